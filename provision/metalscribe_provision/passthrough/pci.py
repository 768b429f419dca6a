"""What the kernel says of a host's PCI devices in sysfs: who they are, who has them, and with whom they share an IOMMU group."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

COMMAND: Final = (
    "PATH=$PATH:/usr/sbin:/sbin; for device in /sys/bus/pci/devices/*; do "
    '[ -r "$device/vendor" ] || continue; read -r vendor <"$device/vendor"; read -r id <"$device/device"; '
    'read -r class <"$device/class"; read -r subvendor <"$device/subsystem_vendor"; '
    'read -r subid <"$device/subsystem_device"; '
    'group=$(readlink "$device/iommu_group"); group=${group##*/}; driver=$(readlink "$device/driver"); '
    'type=; [ -z "$group" ] || type=$(cat "/sys/kernel/iommu_groups/$group/type" 2>/dev/null); '
    'vga=0; [ ! -r "$device/boot_vga" ] || read -r vga <"$device/boot_vga"; '
    'modules=$(modprobe --resolve-alias "$(cat "$device/modalias")" 2>/dev/null | sort -u | tr "\\n" ,); '
    'nets=; for net in "$device"/net/*; do [ ! -e "$net" ] || nets="$nets${net##*/}/$(cat "$net/operstate"),"; done; '
    'echo "${device##*/} id=$vendor:$id class=$class subsystem=$subvendor:$subid group=$group type=$type '
    'driver=${driver##*/} vga=$vga modules=$modules net=$nets"; done'
)
"""One line per device: its address, then ``name=value`` pairs, empty where there is nothing to say."""

_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

_PCI_BRIDGES: Final = frozenset({0x0600, 0x0604, 0x0609})
"""Host bridge, PCI-to-PCI bridge, semi-transparent one: what vfio lets a group have beside the devices that are passed."""

NVIDIA: Final = 0x10DE


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of a device, and its state as the kernel has it (``up``, ``down``, ``unknown``)."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One function of a device on the bus."""

    address: str
    """PCI address, such as 0000:01:00.0."""

    vendor: int
    device: int
    class_code: int
    """24 bits: class, subclass, programming interface."""

    subsystem_vendor: int = 0
    subsystem_device: int = 0
    group: int | None = None
    """Its IOMMU group; None while the IOMMU is off."""

    group_type: str = ""
    """What the kernel does with the group's addresses: ``identity``, ``DMA``, ``DMA-FQ``; ``blocked`` or empty when unknown."""

    driver: str | None = None
    boot_vga: bool = False
    """Whether the firmware shows its screen there."""

    modules: tuple[str, ...] = ()
    """Kernel modules that would take it."""

    interfaces: tuple[Interface, ...] = ()

    @property
    def slot(self) -> str:
        """The address without the function: what the functions of one card have in common."""
        return self.address.rpartition(".")[0]

    @property
    def id(self) -> str:
        """Vendor and device as ``vfio-pci`` takes them, such as 10de:13f1."""
        return f"{self.vendor:04x}:{self.device:04x}"

    @property
    def subsystem_id(self) -> str:
        """Vendor and device of the board."""
        return f"{self.subsystem_vendor:04x}:{self.subsystem_device:04x}"

    @property
    def is_bridge(self) -> bool:
        """A bridge of the bus itself."""
        return self.class_code >> 8 in _PCI_BRIDGES

    @property
    def is_display(self) -> bool:
        """A VGA or 3D controller."""
        return self.class_code >> 16 == 0x03

    def __str__(self) -> str:
        return f"{self.address} ({self.id}, {self.driver or 'no driver'})"


def parse_devices(lines: Iterable[str]) -> tuple[PciDevice, ...]:
    """What ``COMMAND`` printed, by address.

    Raises:
        ValueError: a line is not of its form.
    """
    return tuple(sorted(map(_parse, lines), key=lambda device: device.address))


def _parse(line: str) -> PciDevice:
    address, _, rest = line.strip().partition(" ")
    said = dict(pair.partition("=")[::2] for pair in rest.split())
    try:
        if _ADDRESS.fullmatch(address) is None:
            raise ValueError(address)
        vendor, device = (int(part, 16) for part in said["id"].split(":"))
        subvendor, subdevice = (int(part, 16) for part in said["subsystem"].split(":"))
        return PciDevice(
            address=address,
            vendor=vendor,
            device=device,
            class_code=int(said["class"], 16),
            subsystem_vendor=subvendor,
            subsystem_device=subdevice,
            group=int(said["group"]) if said["group"] else None,
            group_type=said["type"],
            driver=said["driver"] or None,
            boot_vga=said["vga"] == "1",
            modules=tuple(filter(None, said["modules"].split(","))),
            interfaces=tuple(Interface(*net.split("/", 1)) for net in said["net"].split(",") if net),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"not a PCI device as sysfs describes it: {line!r}") from error
