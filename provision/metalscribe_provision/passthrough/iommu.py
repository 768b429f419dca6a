"""Kernel arguments that a processor and a kernel want for passthrough, and whether the firmware has an IOMMU at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from metalscribe_provision.passthrough.refusal import Refused

COMMAND: Final = (
    'echo "kernel $(uname -r)"; echo "vendor $(grep -m 1 ^vendor_id /proc/cpuinfo | cut -d: -f2)"; '
    'for table in DMAR IVRS; do [ ! -e "/sys/firmware/acpi/tables/$table" ] || echo "table $table"; done; '
    'for group in /sys/kernel/iommu_groups/*; do [ ! -d "$group" ] || { echo groups; break; }; done; '
    'echo "cmdline $(cat /proc/cmdline)"'
)
"""The running kernel, the processor's vendor, the ACPI tables of an IOMMU, whether it is in use, the command line."""

INTEL: Final = "GenuineIntel"
AMD: Final = "AuthenticAMD"

_INTEL_ON_BY_DEFAULT: Final = (6, 8)
"""Proxmox' kernels from here on are built with the Intel IOMMU on."""

_VIRQFD_MERGED: Final = (6, 2)
"""From here on vfio_virqfd is a part of vfio."""

_OFF: Final = frozenset({"intel_iommu=off", "amd_iommu=off", "iommu=off"})

ACS_OVERRIDE: Final = "pcie_acs_override=downstream,multifunction"
"""Known to Proxmox' kernels and to no others."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A host's processor, firmware and running kernel."""

    kernel: str = ""
    vendor: str = ""
    tables: frozenset[str] = frozenset()
    """ACPI tables by which a firmware describes its IOMMU: DMAR (Intel), IVRS (AMD)."""

    groups: bool = False
    """Whether the kernel has IOMMU groups, which it has once the IOMMU is in use."""

    cmdline: tuple[str, ...] = field(default=())
    """The arguments that the running kernel was started with."""

    @property
    def series(self) -> tuple[int, int]:
        """The kernel's version, to compare.

        Raises:
            Refused: it is no kernel's release.
        """
        found = re.match(r"(\d+)\.(\d+)\.", self.kernel)
        if found is None:
            raise Refused(f"the running kernel's release {self.kernel!r} has no version")
        return int(found[1]), int(found[2])


def parse_machine(lines: Iterable[str]) -> Machine:
    """What ``COMMAND`` printed."""
    said = [line.partition(" ")[::2] for line in lines]
    values = {name: value.strip() for name, value in said}
    return Machine(
        kernel=values.get("kernel", ""),
        vendor=values.get("vendor", ""),
        tables=frozenset(value for name, value in said if name == "table"),
        groups="groups" in values,
        cmdline=tokens(values.get("cmdline", "")),
    )


def firmware_problem(machine: Machine) -> str | None:
    """What the firmware lacks, None if it has an IOMMU."""
    if machine.vendor not in {INTEL, AMD}:
        return f"its processor is {machine.vendor or 'unknown'}; passthrough is for x86_64 processors of Intel and AMD"
    if machine.groups or machine.tables:
        return None
    if machine.vendor == INTEL:
        return (
            "its firmware has no IOMMU (there is no ACPI table DMAR): enable VT-d in the firmware's setup, next to "
            "virtualisation (VT-x), and start the host again"
        )
    return (
        "its firmware has no IOMMU (there is no ACPI table IVRS): enable IOMMU (AMD-Vi) in the firmware's setup, often under "
        "AMD CBS / NBIO, and SVM, and start the host again"
    )


def arguments(machine: Machine, *, acs_override: bool = False) -> tuple[str, ...]:
    """The kernel arguments that passthrough wants here.

    AMD's IOMMU is on unless it is turned off, as is Intel's with Proxmox' later kernels. ``iommu=pt`` keeps the host's own
    devices out of the translation, which costs them nothing then.
    """
    on_by_default = machine.vendor == AMD or ("pve" in machine.kernel and machine.series >= _INTEL_ON_BY_DEFAULT)
    if acs_override and "pve" not in machine.kernel:
        raise Refused("passthrough_acs_override needs one of Proxmox' kernels; this one would ignore it")
    return (*(() if on_by_default else ("intel_iommu=on",)), "iommu=pt", *((ACS_OVERRIDE,) if acs_override else ()))


def modules(machine: Machine) -> tuple[str, ...]:
    """The modules that vfio wants loaded at boot."""
    return ("vfio", "vfio_iommu_type1", "vfio_pci", *(("vfio_virqfd",) if machine.series < _VIRQFD_MERGED else ()))


def tokens(text: str) -> tuple[str, ...]:
    """A command line's arguments; a value may hold blanks between double quotes, as the kernel reads it."""
    return tuple(re.findall(r'(?:[^\s"]|"[^"]*"?)+', text))


def missing(present: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of ``wanted`` that ``present`` does not have, ``intel_iommu=on,sm_on`` being as good as ``intel_iommu=on``."""

    def there(argument: str) -> bool:
        name, _, value = argument.partition("=")
        return any(
            argument == other or (other.partition("=")[0] == name and value in other.partition("=")[2].split(","))
            for other in present
        )

    return tuple(argument for argument in wanted if not there(argument))


def contradiction(present: Sequence[str]) -> str | None:
    """The argument that turns the IOMMU off, if there is one: an operator's decision, which is not undone behind their back."""
    return next((argument for argument in present if argument in _OFF), None)
