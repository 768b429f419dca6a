"""Fixtures of the lab: one lab for the session, hosts for a module, and what a failed test's hosts had to say."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lab.container import Container
from lab.controller import CHECKOUT, Controller
from lab.lab import Lab
from lab.network import OUTSIDE, Namespace

HERE = Path(__file__).parent
TIMEOUT = 1500  # seconds for one test and the fixtures that it is the first to need: the image, the first deploy

MakeContainer = Callable[[str], Container]


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
    """The lab. Whatever ends the tests, it is taken down; what SIGKILL leaves behind the next lab removes."""
    missing = subprocess.run([HERE / "prepare", "--check"], check=False, capture_output=True, text=True)
    if os.geteuid() != 0:
        pytest.exit("the lab boots containers with systemd, which needs root: run make lab as root", returncode=2)
    if missing.returncode:
        pytest.exit(
            f"the lab needs Debian packages that are missing ({missing.stdout.strip()}): run tests/lab/prepare",
            returncode=2,
        )
    before = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM, signal.SIGHUP)}
    with Lab() as lab:
        yield lab
    for number, handler in before.items():
        signal.signal(number, handler)


def _interrupted(number: int, _frame: FrameType | None) -> None:
    pytest.exit(f"interrupted by {signal.Signals(number).name}", returncode=128 + number)


@pytest.fixture(scope="module")
def make_container(lab: Lab) -> Iterator[MakeContainer]:
    """Start fresh hosts, by name; they are removed after the module."""
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


@pytest.fixture(scope="module")
def controller(lab: Lab, request: pytest.FixtureRequest) -> Controller:
    """The machine that deploys this checkout."""
    return Controller(
        lab.network.controller, lab.access, lab.folder / f"controller-{request.module.__name__}", CHECKOUT
    )
