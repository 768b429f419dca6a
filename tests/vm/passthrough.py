"""What the tests of the passthrough's deploy look at: a host's boot configuration, and who has its devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from lab.controller import Outcome
from vm.disk import ESP_UUID
from vm.machine import Machine

NIC: Final = "8086:10d3"
"""e1000e, the card that is given away."""

PORTS: Final = tuple(
    word for port in (1, 2, 3) for word in ("-device", f"pcie-root-port,id=rp{port},chassis={port},slot={port}")
)
"""Three slots of PCI Express."""

BOOT_CONFIGURATION: Final = (
    *("/etc/default/grub", "/etc/default/grub.d", "/boot/grub/grub.cfg", "/etc/kernel", "/etc/initramfs-tools"),
    *("/etc/modprobe.d", "/etc/modules-load.d", "/etc/modules", "/etc/udev/rules.d"),
)

Deploy = Callable[..., Outcome]


@dataclass(frozen=True, slots=True)
class State:
    """What a host starts with: its boot configuration's files by digest, and who has which device."""

    files: Mapping[str, str]
    drivers: Mapping[str, str]

    @classmethod
    def of(cls, host: Machine) -> State:
        """As it is now. The EFI partition's entries are among the files, where there is one."""
        host.run("systemctl is-system-running --wait", check=False, timeout=120)  # the last boot's work is done
        esp = f"/dev/disk/by-uuid/{ESP_UUID}"
        host.run(f"[ ! -e {esp} ] || mountpoint --quiet /mnt || mount -o ro {esp} /mnt")
        listed = host.run(
            f"find {' '.join(BOOT_CONFIGURATION)} /mnt/loader -type f -exec sha256sum {{}} + 2>/dev/null; umount /mnt 2>/dev/null; true"
        )
        lines = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
        return cls({path: digest for digest, path in lines}, drivers(host))


def drivers(host: Machine) -> dict[str, str]:
    """PCI address → driver, empty where nobody has the device."""
    listed = host.run(
        'for device in /sys/bus/pci/devices/*; do driver=$(readlink "$device/driver"); echo "${device##*/} ${driver##*/}"; done'
    )
    return {address: driver for address, _, driver in (line.partition(" ") for line in listed.stdout.splitlines())}


def addresses(host: Machine, device: str) -> list[str]:
    """The PCI addresses of the devices with an id."""
    return [line.split()[0] for line in host.run(f"lspci -Dn -d {device}").stdout.splitlines()]


def group_of(host: Machine, address: str) -> tuple[list[str], str]:
    """Who is in a device's IOMMU group, bridges apart, and its type."""
    group = f"/sys/bus/pci/devices/{address}/iommu_group"
    members = host.run(
        f"for device in $(ls {group}/devices/); do case $(cat /sys/bus/pci/devices/$device/class) in 0x0604*) ;; *) echo $device;; esac; done"
    )
    return members.stdout.split(), host.text(f"{group}/type").strip()


@dataclass(frozen=True, slots=True)
class Given:
    """A host whose card was given away.

    Attributes:
        address: the card's.
        before: the host as it was.
    """

    host: Machine
    address: str
    before: State
    outcome: Outcome
