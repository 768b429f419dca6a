"""What the deploy asks a host; the parsing is in the modules that the commands come from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase
from typing_extensions import override

from metalscribe_provision.passthrough import bootloader, iommu, pci

STATE: Final = "/var/lib/metalscribe-provision"
"""What the deploy has to remember on the host; goes with passthrough=absent."""


BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class BootId(FactBase[str]):
    """What tells this boot from others."""

    default = str

    @override
    def command(self) -> str:
        return f"cat {BOOT_ID}"

    @override
    def process(self, output: Iterable[str]) -> str:
        return "".join(output).strip()


class Bus(FactBase[Sequence[pci.PciDevice]]):
    """The PCI devices."""

    default = tuple

    @override
    def command(self) -> str:
        return pci.COMMAND

    @override
    def process(self, output: Iterable[str]) -> Sequence[pci.PciDevice]:
        try:
            return pci.parse_devices(output)
        except ValueError as error:
            raise FactProcessError(str(error)) from error


class Iommu(FactBase[iommu.Machine]):
    """Processor, firmware, kernel."""

    default = iommu.Machine

    @override
    def command(self) -> str:
        return iommu.COMMAND

    @override
    def process(self, output: Iterable[str]) -> iommu.Machine:
        return iommu.parse_machine(output)


class Boot(FactBase[bootloader.BootSetup]):
    """How the kernel gets its command line."""

    default = bootloader.BootSetup

    @override
    def command(self) -> str:
        return bootloader.COMMAND

    @override
    def process(self, output: Iterable[str]) -> bootloader.BootSetup:
        return bootloader.parse_setup(output)


class Texts(FactBase[Mapping[str, str]]):
    """Path → text of those files that are there."""

    default = dict

    @override
    def command(self, paths: Sequence[str]) -> str:
        # With a mark behind it, since a file may lack its last newline.
        return "; ".join(
            f"[ ! -f {path} ] || {{ printf '%s' \"$(cat {path}; printf .)\" | sed 's/^/= /'; echo; echo '< '{path}; }}"
            for path in map(shlex.quote, paths)
        )

    @override
    def process(self, output: Iterable[str]) -> Mapping[str, str]:
        texts: dict[str, str] = {}
        lines: list[str] = []
        for line in output:
            if line.startswith("= "):
                lines.append(line[2:])
            elif line.startswith("< "):
                texts[line[2:]] = "\n".join(lines)[:-1]
                lines = []
        return texts


class Interfaces(FactBase[Mapping[str, str]]):
    """Hardware address → name of the network interfaces that are devices."""

    default = dict

    @override
    def command(self) -> str:
        return 'for net in /sys/class/net/*; do [ ! -e "$net/device" ] || echo "$(cat "$net/address") ${net##*/}"; done'

    @override
    def process(self, output: Iterable[str]) -> Mapping[str, str]:
        return dict(line.split() for line in output if line.strip())
