"""Fixtures of the lab: one lab for the session, hosts for a module, and what a failed test's hosts had to say."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from lab.checkout import Checkout
from lab.container import Container
from lab.controller import CHECKOUT, Controller
from lab.deployed import Deployed, Recording
from lab.https import Client
from lab.lab import Lab, Snapshot
from lab.network import OUTSIDE, Namespace
from lab.session import exit_unless_prepared, lab_of

HERE = Path(__file__).parent
TIMEOUT = 1500  # seconds for one test and the fixtures that it is the first to need: the image, the first deploy


class MakeContainer(Protocol):
    """Start a host, fresh or from a snapshot of it; it is removed after the module."""

    def __call__(self, name: str, snapshot: Snapshot | None = None) -> Container: ...


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("numprocesses", None):  # what a worker has to say at its end is not shown
        exit_unless_prepared(HERE / "prepare", "make lab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        for container in lab.containers.values():
            report.sections += list(container.describe().items())
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab; where several processes share the tests, each has one of its own."""
    with lab_of(HERE / "prepare", "make lab") as lab:
        yield lab


@pytest.fixture(scope="module")
def make_container(lab: Lab) -> Iterator[MakeContainer]:
    """Start hosts, by name; they are removed after the module."""
    before = set(lab.containers)
    yield lab.start
    for name in set(lab.containers) - before:
        lab.stop(lab.containers[name])


@pytest.fixture(scope="session")
def client(lab: Lab) -> Namespace:
    """A machine in the operator's own network."""
    return lab.network.attach("client")


@pytest.fixture(scope="session")
def stranger(lab: Lab) -> Namespace:
    """A machine on the internet, as far as the hosts can tell."""
    return lab.network.attach("stranger", OUTSIDE)


@pytest.fixture(scope="session")
def nowhere(lab: Lab) -> Namespace:
    """A machine that is connected to nothing: the control of what the others reach."""
    return lab.network.unattached("nowhere")


@pytest.fixture(scope="session")
def checkout(lab: Lab) -> Checkout:
    """This checkout as it was when the session came to it, with a bundle."""
    return Checkout.of(CHECKOUT, lab.folder / "checkout")


@pytest.fixture(scope="module")
def controller(lab: Lab, checkout: Checkout, request: pytest.FixtureRequest) -> Controller:
    """The machine that deploys it."""
    folder = lab.folder / f"controller-{request.module.__name__}"
    return Controller(lab.network.controller, lab.access, folder, checkout.folder)


@pytest.fixture(scope="session")
def variables(lab: Lab, checkout: Checkout) -> Mapping[str, object]:
    """What the inventory says of every deployed host."""
    return {
        "driver": "none",
        "model": "demo",
        "bundle": checkout.bundle,
        "ca_dir": lab.folder / "ca",
        "min_disk_gb": 3,  # there is one model, and it is a small one
        "metalscribe_rate_limit": "1000/minute",  # the tests ask more than a client does
    }


@pytest.fixture(scope="session")
def deployed(lab: Lab, checkout: Checkout, variables: Mapping[str, object]) -> Deployed:
    """A fresh host ``gpu1``, deployed to once as root, then shut down: what most tests start from."""
    controller = Controller(lab.network.controller, lab.access, lab.folder / "controller-deployed", checkout.folder)
    host = lab.start("gpu1")
    with controller.start(controller.inventory([host], variables)) as deploy:
        outcome = deploy.outcome().succeeded()
        begun, seconds = deploy.begun, deploy.seconds
    key = host.run("cat /etc/metalscribe/credentials/metalscribe_api_key").stdout.strip()
    return Deployed(lab.snapshot(host), outcome, begun, seconds, lab.folder / "ca" / "ca.crt", key)


@pytest.fixture(scope="module")
def host(make_container: MakeContainer, deployed: Deployed) -> Container:
    """The deployed host, the module's own."""
    return make_container("gpu1", deployed.snapshot)


@pytest.fixture(scope="module")
def inventory(controller: Controller, host: Container, variables: Mapping[str, object]) -> Path:
    """The one that the deployed host was deployed with."""
    return controller.inventory([host], variables)


@pytest.fixture(scope="module")
def api(client: Namespace, host: Container, deployed: Deployed) -> Client:
    """A client in the operator's own network that has the host's key."""
    return Client(client, host, deployed.authority, deployed.key)


@pytest.fixture(scope="session")
def recording(checkout: Checkout) -> Recording:
    """A quarter of a minute of speech, the service's own sample."""
    path = checkout.folder / "service/metalscribe/samples/sample.flac"
    return Recording(path, "the train leaves at")
