"""What shares an IOMMU group with a card: a virtual machine that gets the one could reach the memory of the other."""

from __future__ import annotations

from collections.abc import Sequence

from metalscribe_provision.passthrough.pci import PciDevice
from metalscribe_provision.passthrough.selection import Card


def foreign(cards: Sequence[Card], devices: Sequence[PciDevice]) -> tuple[PciDevice, ...]:
    """Devices in the groups of ``cards`` that are neither theirs nor bridges.

    A group whose devices are all given away is no one else's business, so that another card of the same choice is not
    foreign.
    """
    groups = {function.group for card in cards for function in card.functions} - {None}
    ours = {card.slot for card in cards}
    return tuple(
        device for device in devices if device.group in groups and device.slot not in ours and not device.is_bridge
    )


def known(cards: Sequence[Card]) -> bool:
    """Whether the kernel has told every function's group: it does once the IOMMU is on."""
    return all(function.group is not None for card in cards for function in card.functions)


def isolation_problem(cards: Sequence[Card], devices: Sequence[PciDevice]) -> str | None:
    """What is wrong with the groups as they are, None if nothing is (or nothing is known yet)."""
    strangers = foreign(cards, devices)
    if not strangers:
        return None
    listed = "".join(f"\n  - {device} in group {device.group}" for device in strangers)
    return (
        f"{', '.join(map(str, cards))} shares an IOMMU group with devices that stay on this host:{listed}\n"
        "Put the card into another slot (one of the processor's own), update the firmware, or enable ACS there. Where those "
        "devices are of no use to the host, name them in passthrough_devices as well. Only if every virtual machine on this "
        "host is trusted: passthrough_acs_override=true makes the kernel believe in a separation that the hardware does not "
        "promise"
    )
