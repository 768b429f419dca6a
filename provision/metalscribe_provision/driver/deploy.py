"""Installs the NVIDIA driver that suits a host's cards, takes it into use, and proves it with NVML."""

from __future__ import annotations

from io import StringIO

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host
from pyinfra.operations import files

from metalscribe_provision.common import proven
from metalscribe_provision.driver import operations
from metalscribe_provision.driver.choice import Choice, existing_defect
from metalscribe_provision.driver.configuration import (
    NOUVEAU,
    NOUVEAU_FILE,
    PERSISTENCE,
    PERSISTENCE_FILE,
    UNATTENDED_UPGRADES_FILE,
    unattended_upgrades,
)
from metalscribe_provision.driver.plan import HELD
from metalscribe_provision.driver.requirement import Refused
from metalscribe_provision.driver.state import Step
from metalscribe_provision.hostdata import Driver, HostData


@deploy("Driver")
def driver(data: HostData) -> None:
    """The driver of ``data``, from the distribution's own archive.

    Two phases: what must be there is installed, and then, in what may be another boot, taken into use. A host whose kernel
    cannot take the driver into use without a reboot gets one if ``allow_reboot`` is set; otherwise the deploy ends there and
    says so, and the next one goes on.

    Raises:
        DeployError: there is no driver for this host (``plan`` has the table of reasons).
    """
    if not data.needs_gpu:
        operations.no_driver(name="No driver")
        return
    if data.driver is Driver.EXISTING:
        proven(problem=existing_defect, name="NVML sees every card")
        return
    try:
        choice = Choice(data)
    except Refused as refused:
        raise DeployError(f"{host.name}: {refused}") from refused
    upcoming = choice.next()
    if upcoming.step is Step.REBOOT and not data.allow_reboot:
        logger.warning(
            "%s: the driver will need a reboot (%s); without allow_reboot=true the deploy ends there",
            host.name,
            upcoming.reason,
        )

    _install(choice)
    proven(problem=choice.obstacle, name="The driver can be taken into use")
    operations.rebooted(choice=choice, name="Reboot if the driver needs it")
    operations.loaded(choice=choice, name="Load the kernel module")
    operations.persistent(name="Start nvidia-persistenced")
    if choice.devices.nvswitches:
        operations.fabric(name="Start nvidia-fabricmanager")
    proven(problem=choice.defect, name="NVML sees every card")


def _install(choice: Choice) -> None:
    """Packages that stay as they are, and nouveau out of the way."""
    distribution = choice.distribution.name
    operations.archive_components(choice=choice, name="The archive's components with the driver")
    operations.archive_lists(choice=choice, name="apt's lists")
    proven(problem=choice.refusal, name="There is a driver for these cards")
    files.put(src=StringIO(NOUVEAU), dest=NOUVEAU_FILE, mode="644", name="Keep nouveau off the card")
    blacklist = StringIO(unattended_upgrades(HELD[distribution]))
    files.put(src=blacklist, dest=UNATTENDED_UPGRADES_FILE, mode="644", name="Keep unattended-upgrades off the driver")
    if distribution == "ubuntu":
        files.put(src=StringIO(PERSISTENCE), dest=PERSISTENCE_FILE, mode="644", name="Persistence mode")
    chosen = choice.selection
    what = f"driver {chosen.branch}, {chosen.flavour} kernel modules" if chosen else "newest driver for servers"
    operations.driver_packages(choice=choice, name=f"Packages of the {what}")
    operations.held(choice=choice, name="Hold the driver's packages")
    operations.initramfs(name="Initramfs without nouveau")
