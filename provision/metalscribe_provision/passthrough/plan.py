"""What a host's passthrough comes to: decided from what the host says, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from metalscribe_provision.passthrough.binding import binding_files, binding_of
from metalscribe_provision.passthrough.bootloader import BootLoader, BootSetup, boot_loader, configured_arguments
from metalscribe_provision.passthrough.data import ProxmoxData
from metalscribe_provision.passthrough.iommu import (
    Machine,
    arguments,
    contradiction,
    firmware_problem,
    missing,
    modules,
)
from metalscribe_provision.passthrough.isolation import isolation_problem, known
from metalscribe_provision.passthrough.pci import PciDevice
from metalscribe_provision.passthrough.refusal import Refused
from metalscribe_provision.passthrough.selection import Card, as_seen, choose

VFIO: Final = "vfio-pci"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be on a host.

    Attributes:
        loader: what starts it.
        cards: that are given away.
        arguments: of the kernel, all that have to be there.
        added: those of them that the host's own configuration lacks.
        files: path → text, of the binding.
    """

    loader: BootLoader
    cards: tuple[Card, ...]
    arguments: tuple[str, ...]
    added: tuple[str, ...]
    files: Mapping[str, str]


def plan(
    data: ProxmoxData,
    devices: Sequence[PciDevice],
    machine: Machine,
    setup: BootSetup,
    *,
    ours: Sequence[str] = (),
) -> Plan:
    """Decide.

    Args:
        data: what the operator wants.
        devices: all of the host's.
        machine: its processor, firmware and kernel.
        setup: its boot loader.
        ours: the arguments that an earlier deploy has added to /etc/kernel/cmdline.

    Raises:
        Refused: the host cannot have it; nothing was changed.
    """
    problem = firmware_problem(machine)
    if problem is not None:
        raise Refused(problem)
    loader = boot_loader(setup)
    own = configured_arguments(setup, loader)
    if loader is BootLoader.SYSTEMD_BOOT:
        own = tuple(argument for argument in own if argument not in ours)
    off = contradiction(own)
    if off is not None:
        where = "/etc/default/grub or one of its drop-ins" if loader is BootLoader.GRUB else "/etc/kernel/cmdline"
        raise Refused(f"its boot configuration says {off}, which turns the IOMMU off: take it out of {where} first")
    cards = choose(devices, data.passthrough_devices, boot_vga=data.passthrough_boot_vga)
    if not data.passthrough_acs_override:
        problem = isolation_problem(cards, devices)
        if problem is not None:
            raise Refused(problem)
    wanted = arguments(machine, acs_override=data.passthrough_acs_override)
    binding = binding_of(cards, devices, data.passthrough_binding)
    files = binding_files(cards, devices, binding, modules(machine))
    return Plan(loader, cards, wanted, missing(own, wanted), files)


def due(plan_: Plan, devices: Sequence[PciDevice], machine: Machine) -> str | None:
    """Why a reboot is due before the running system is what ``plan_`` is for; None if none is."""
    lacking = missing(machine.cmdline, plan_.arguments)
    if lacking:
        return f"the running kernel was started without {' '.join(lacking)}"
    others = [
        function for card in as_seen(plan_.cards, devices) for function in card.functions if function.driver != VFIO
    ]
    return f"vfio-pci does not have {_listed(others)} yet" if others else None


def groups_due(plan_: Plan, devices: Sequence[PciDevice]) -> str | None:
    """Why a reboot is due before it is known what shares the cards' groups; None if it is known."""
    return (
        None
        if known(as_seen(plan_.cards, devices))
        else "the IOMMU is off, and what shares the card's group is not known before"
    )


def groups_problem(plan_: Plan, devices: Sequence[PciDevice]) -> str | None:
    """Why the cards cannot be given away, now that the kernel has its arguments; None if they can."""
    cards = as_seen(plan_.cards, devices)
    gone = {card.slot for card in plan_.cards} - {card.slot for card in cards}
    if gone:
        return f"there is no device at {', '.join(sorted(gone))} any more"
    if not known(cards):
        return (
            f"the kernel has no IOMMU group for {', '.join(map(str, cards))}: the IOMMU is off although the command line has its "
            "arguments; look for DMAR or AMD-Vi in the kernel's log (journalctl -k)"
        )
    return isolation_problem(cards, devices)


def defect(plan_: Plan, devices: Sequence[PciDevice], machine: Machine) -> str | None:
    """What is wrong after all was done, None if virtual machines can have the cards."""
    return due(plan_, devices, machine) or groups_problem(plan_, devices)


def renamed(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """Network interfaces that have another name than before; None if those that are still there have theirs.

    Args:
        before: hardware address → name.
        after: the same, now.
    """
    changed = [f"{before[mac]} is now {name}" for mac, name in after.items() if mac in before and before[mac] != name]
    if not changed:
        return None
    return (
        f"network interfaces have other names since the reboot ({', '.join(changed)}), and /etc/network/interfaces may speak of "
        "the old ones: pin them (pve-network-interface-pinning generate, on Proxmox VE 9; else a .link file in "
        "/etc/systemd/network) and mend it"
    )


def _listed(devices: Sequence[PciDevice]) -> str:
    return ", ".join(map(str, devices))
