"""Gives PCI devices to virtual machines: IOMMU, isolation, vfio-pci, proven after the reboot; and takes them back."""

from __future__ import annotations

from pathlib import PurePosixPath

from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host

from metalscribe_provision.common import applied, proven
from metalscribe_provision.passthrough import operations
from metalscribe_provision.passthrough.binding import FILES
from metalscribe_provision.passthrough.bootloader import (
    CMDLINE_FILE,
    GRUB_FILE,
    BootLoader,
    BootSetup,
    boot_loader,
    refresh_commands,
)
from metalscribe_provision.passthrough.choice import Choice, reboot_forbidden, undoing_defect, undoing_due
from metalscribe_provision.passthrough.data import Passthrough, ProxmoxData
from metalscribe_provision.passthrough.facts import Boot
from metalscribe_provision.passthrough.operations import BOOT_STAMP, INITRAMFS, INITRAMFS_STAMP, STAMPS
from metalscribe_provision.passthrough.refusal import Refused


def passthrough(data: ProxmoxData) -> None:
    """Give the host's devices away, or take them back, as ``data`` says.

    Raises:
        DeployError: the host cannot have it; nothing was changed.
    """
    try:
        if data.passthrough is Passthrough.PRESENT:
            present(choice=Choice(data))
        else:
            absent(data=data, setup=host.get_fact(Boot))
    except Refused as refused:
        raise DeployError(f"{host.name}: {refused}. Nothing was changed") from refused


@deploy("Passthrough")
def present(choice: Choice) -> None:
    """The cards of ``choice`` bound to vfio-pci, each alone in its IOMMU group.

    Where the IOMMU is off, two reboots: what shares a card's group is known after the first, and no device is taken from its
    driver before.
    """
    loader = choice.plan.loader
    managed = choice.setup.managed
    operations.resumed(name="No undoing is under way")
    operations.interfaces_noted(name="Note the network interfaces' names")
    operations.kernel_arguments(choice=choice, name=f"Kernel arguments ({loader})")
    applied(
        stamp=BOOT_STAMP,
        paths=[PurePosixPath(GRUB_FILE if loader is BootLoader.GRUB else CMDLINE_FILE)],
        commands=refresh_commands(choice.setup, loader),
        stamps=STAMPS,
        name="Hand them to the boot loader",
    )
    proven(problem=choice.unless_allowed(choice.groups_due), name="The IOMMU groups can be known")
    _rebooted(choice, choice.groups_due, "Reboot if the IOMMU is off", managed=managed)
    proven(problem=choice.groups_problem, name="The cards are alone in their IOMMU groups")

    operations.binding(choice=choice, name="Bind the cards to vfio-pci")
    applied(
        stamp=INITRAMFS_STAMP,
        paths=[PurePosixPath(path) for path in FILES],
        commands=[INITRAMFS],
        stamps=STAMPS,
        name="In the initramfs, too",
    )
    proven(problem=choice.unless_allowed(choice.due), name="The host may be rebooted if it has to be")
    _rebooted(choice, choice.due, "Reboot if something is not in use yet", managed=managed)
    proven(problem=choice.defect, name="Virtual machines can have the cards")


@deploy("No passthrough")
def absent(data: ProxmoxData, setup: BootSetup) -> None:
    """Everything as it was before: the boot configuration byte by byte, and the cards with their own drivers."""
    loader = boot_loader(setup)
    operations.no_binding(name="Do not bind cards to vfio-pci")
    operations.no_kernel_arguments(name="No kernel arguments of ours")
    operations.undone(commands=(*refresh_commands(setup, loader), INITRAMFS), name="From the next boot on")
    if not data.allow_reboot:
        proven(problem=lambda: reboot_forbidden(undoing_due()), name="The host may be rebooted if it has to be")
    operations.rebooted(
        reason=undoing_due,
        allowed=data.allow_reboot,
        pinned=setup.managed,
        name="Reboot if the host does not know it yet",
    )
    proven(problem=undoing_defect, name="The host has its devices back")
    operations.forgotten(name="Forget it")


def _rebooted(choice: Choice, reason: operations.Reason, name: str, *, managed: bool) -> None:
    operations.rebooted(reason=reason, allowed=choice.may_reboot, pinned=managed, name=name)
