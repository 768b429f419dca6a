"""Which devices a host is to give away: named by address, by id, or as "the NVIDIA one"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from metalscribe_provision.passthrough.pci import NVIDIA, PciDevice
from metalscribe_provision.passthrough.refusal import Refused

THE_NVIDIA_ONE: Final = "nvidia"

_IN_USE: Final = frozenset({"up", "unknown"})
"""States of a network interface that may carry traffic; some drivers never say."""

_ADDRESS: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2})(?:\.[0-7])?")
_ID: Final = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})")


@dataclass(frozen=True, slots=True)
class Card:
    """A device with all of its functions: a GPU comes with its sound, and often USB, and goes as a whole.

    Attributes:
        functions: one or more, by address.
    """

    functions: tuple[PciDevice, ...]

    @property
    def slot(self) -> str:
        """Its address without a function, which is how Proxmox names a whole device."""
        return self.functions[0].slot

    @property
    def ids(self) -> tuple[str, ...]:
        """The functions' ids, each once."""
        return tuple(dict.fromkeys(function.id for function in self.functions))

    def __str__(self) -> str:
        return f"{self.slot} ({', '.join(self.ids)})"


def as_seen(cards: Sequence[Card], devices: Sequence[PciDevice]) -> tuple[Card, ...]:
    """The same cards as they are now, in ``devices``; one that is gone is left out."""
    found = (tuple(device for device in devices if device.slot == card.slot) for card in cards)
    return tuple(Card(functions) for functions in found if functions)


def is_selector(text: str) -> bool:
    """Whether ``text`` could name a device: ``nvidia``, an address such as 01:00 or 0000:01:00.0, or an id such as 10de:13f1."""
    return text == THE_NVIDIA_ONE or _ADDRESS.fullmatch(text) is not None or _ID.fullmatch(text) is not None


def choose(devices: Sequence[PciDevice], wanted: Sequence[str], *, boot_vga: bool = False) -> tuple[Card, ...]:
    """The cards that an operator names.

    Args:
        devices: all of the host's.
        wanted: selectors, see :func:`is_selector`.
        boot_vga: the one that shows the host's console may be given away, too.

    Raises:
        Refused: a selector names none or several, or a device that the host needs.
    """
    slots = dict.fromkeys(_slot(devices, selector) for selector in wanted)
    cards = tuple(Card(tuple(device for device in devices if device.slot == slot)) for slot in slots)
    for card in cards:
        _check(card, boot_vga=boot_vga)
    return cards


def _slot(devices: Sequence[PciDevice], selector: str) -> str:
    if selector == THE_NVIDIA_ONE:
        found = [device for device in devices if device.vendor == NVIDIA and device.is_display]
        if not found:
            raise Refused(
                "no NVIDIA GPU is on this host's PCI bus: look whether the card is seated and has power, and whether "
                f"the firmware has its slot enabled. {_displays(devices)}"
            )
    elif address := _ADDRESS.fullmatch(selector):
        slot = f"{address[1] or '0000'}:{address[2]}"
        found = [device for device in devices if device.slot == slot][:1]
        if not found:
            raise Refused(f"there is no PCI device at {selector}. {_displays(devices)}")
    else:
        found = [device for device in devices if device.id == selector]
        if not found:
            raise Refused(f"there is no PCI device with the id {selector}. {_displays(devices)}")
    if len(found) > 1:
        raise Refused(
            f"there are {len(found)} devices that {selector} could mean: {_listed(found)}. Name the address of each that "
            f"is for virtual machines, for example passthrough_devices={found[0].slot}"
        )
    return found[0].slot


def _check(card: Card, *, boot_vga: bool) -> None:
    for function in card.functions:
        if function.is_bridge:
            raise Refused(f"{function} is a bridge of the PCI bus; name the device behind it")
        if function.boot_vga and not boot_vga:
            raise Refused(
                f"{function} is where the firmware shows this host's console: without it the host has no screen. Choose another "
                "primary display in the firmware, or set passthrough_boot_vga=true if the host is reached by network alone"
            )
        for interface in function.interfaces:
            if interface.state in _IN_USE:
                raise Refused(
                    f"{function} carries {interface.name}, which is up: a host that gives it away may lose its network. "
                    f"Take it down first (ip link set {interface.name} down) if nothing needs it"
                )


def _displays(devices: Iterable[PciDevice]) -> str:
    found = [device for device in devices if device.is_display]
    return f"Display controllers here: {_listed(found)}." if found else "There is no display controller at all."


def _listed(devices: Iterable[PciDevice]) -> str:
    return ", ".join(map(str, devices))
