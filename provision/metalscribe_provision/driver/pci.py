"""What the kernel says of a host's NVIDIA devices in sysfs (no lspci, which not every host has)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from metalscribe_provision.driver.cards import FIRST_NVSWITCH, Card

COMMAND: Final = (
    "for device in /sys/bus/pci/devices/*; do "
    'read -r vendor <"$device/vendor" 2>/dev/null && [ "$vendor" = 0x10de ] || continue; '
    'read -r id <"$device/device"; read -r class <"$device/class"; '
    'driver=$(readlink "$device/driver"); echo "${device##*/} $id $class ${driver##*/}"; done'
)
"""One line per device of vendor 10de: address, device id, class, and the kernel driver that has it, if one has."""

_LINE: Final = re.compile(r"([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) 0x([0-9a-f]{4}) 0x([0-9a-f]{6})(?: (\S+))?")

_DISPLAY: Final = frozenset({"0300", "0302"})
"""VGA controller and 3D controller; a card's sound and USB functions are of other classes."""

_BRIDGE: Final = "0680"
"""Other bridge, which is what NVSwitches are."""


@dataclass(frozen=True, slots=True)
class NvidiaPci:
    """NVIDIA's devices on a host's PCI bus."""

    cards: tuple[Card, ...] = ()
    nvswitches: int = 0


def parse_devices(lines: Iterable[str]) -> NvidiaPci:
    """What ``COMMAND`` printed.

    Raises:
        ValueError: a line is not of its form.
    """
    cards = []
    nvswitches = 0
    for line in lines:
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"not an NVIDIA device as sysfs describes it: {line!r}")
        address, device_id, device_class, driver = found[1], int(found[2], 16), found[3][:4], found[4]
        if device_class in _DISPLAY:
            cards.append(Card(address, device_id, driver))
        elif device_class == _BRIDGE and device_id >= FIRST_NVSWITCH:
            nvswitches += 1
    return NvidiaPci(tuple(sorted(cards, key=lambda card: card.address)), nvswitches)
