"""Fixtures of the virtual machines: the lab's network, disks to start from, machines for a module."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from lab.access import Access
from lab.controller import Controller, Outcome
from lab.lab import Lab
from lab.session import lab_of
from vm.golden import Golden, golden
from vm.machine import Hardware, Machine
from vm.passthrough import Deploy

HERE = Path(__file__).parent
DEPLOYED_WITHIN = 900.0  # seconds for a deploy, with an initramfs and a reboot
TIMEOUT = 3600  # seconds for one test and the fixtures that it is the first to need


class MakeMachine(Protocol):
    """Start a machine from one of the disks; it is removed after the module."""

    def __call__(self, name: str, golden: Path, hardware: Hardware) -> Machine: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        for machine in getattr(item, "funcargs", {}).values():
            if isinstance(machine, Machine):
                report.sections += list(machine.describe().items())
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab; machines are the modules'."""
    with lab_of(HERE / "prepare", "make vmlab") as lab:
        yield lab


@pytest.fixture(scope="session")
def disks() -> Iterator[Golden]:
    """What machines start from."""
    with golden() as made:
        yield made


@pytest.fixture(scope="session")
def access(lab: Lab, disks: Golden) -> Access:
    """How the lab gets into hosts that were started from one of the disks."""
    return Access(key=disks.key, known_hosts=lab.access.known_hosts)


@pytest.fixture(scope="module")
def make_machine(lab: Lab, disks: Golden, access: Access) -> Iterator[MakeMachine]:
    """Start machines; they are removed after the module."""
    made: list[Machine] = []

    def make(name: str, golden: Path, hardware: Hardware) -> Machine:
        plug = lab.network.plug(name)
        access.know([name, plug.address], disks.host_key)
        machine = Machine(
            name,
            folder=lab.folder / name,
            golden=golden,
            plug=plug,
            hardware=hardware,
            controller=lab.network.controller,
            access=access,
        )
        made.append(machine)
        machine.boot()
        return machine

    yield make
    for machine in made:
        machine.close()


@pytest.fixture(scope="module")
def controller(lab: Lab, access: Access, request: pytest.FixtureRequest) -> Controller:
    """The machine that deploys this checkout."""
    return Controller(lab.network.controller, access, lab.folder / f"controller-{request.module.__name__}")


@pytest.fixture(scope="module")
def deploy(controller: Controller) -> Deploy:
    """How to run ``proxmox_host.py`` on a host, with what its inventory says."""

    def run(host: Machine, devices: str | None = None, **variables: object) -> Outcome:
        named = {} if devices is None else {"passthrough_devices": devices}
        inventory = controller.inventory([host], {**named, **variables}, group="proxmox_hosts")
        return controller.deploy(inventory, script="proxmox_host.py", within=DEPLOYED_WITHIN)

    return run
