"""What the deploys ask a host about its driver; the parsing is in the modules that the commands come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase
from typing_extensions import override

from metalscribe_provision.driver import candidates, nvml, pci, sources, state
from metalscribe_provision.driver.configuration import NOUVEAU_FILE


class PciDevices(FactBase[pci.NvidiaPci]):
    """NVIDIA's devices on the PCI bus."""

    default = pci.NvidiaPci

    @override
    def command(self) -> str:
        return pci.COMMAND

    @override
    def process(self, output: Iterable[str]) -> pci.NvidiaPci:
        try:
            return pci.parse_devices(output)
        except ValueError as error:
            raise FactProcessError(str(error)) from error


class AptCandidates(FactBase[Mapping[str, candidates.Candidate]]):
    """Package → what apt would install, of the packages that a driver is chosen by."""

    default = dict

    @override
    def command(self) -> str:
        return candidates.COMMAND

    @override
    def process(self, output: Iterable[str]) -> Mapping[str, candidates.Candidate]:
        return candidates.parse_candidates(output)


@dataclass(frozen=True, slots=True)
class Packages:
    """Names of packages: those that are installed, and those whose installation has begun and not come to its end."""

    installed: frozenset[str] = frozenset()
    unfinished: frozenset[str] = frozenset()


class PackageStates(FactBase[Packages]):
    """What dpkg has; a package whose kernel module failed to build is among the unfinished."""

    default = Packages

    @override
    def command(self) -> str:
        return "dpkg-query -W -f '${db:Status-Status} ${Package}\\n'"

    @override
    def process(self, output: Iterable[str]) -> Packages:
        states = [line.split() for line in output]
        return Packages(
            frozenset(name for state, name in states if state == "installed"),
            frozenset(name for state, name in states if state not in {"installed", "not-installed", "config-files"}),
        )


class AptSources(FactBase[list[sources.Source]]):
    """apt's entries of binary packages, without our own file's."""

    default = list

    @override
    def command(self) -> str:
        return sources.COMMAND

    @override
    def process(self, output: Iterable[str]) -> list[sources.Source]:
        return sources.parse_sources(output)


@dataclass(frozen=True, slots=True)
class Boot:
    """The running kernel, and what its firmware asks of modules."""

    kernel: str = ""
    headers: bool = False
    secure_boot: bool = False
    mok_enrolled: bool = False


_SECURE_BOOT: Final = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Four bytes of attributes, then one that is 1 while Secure Boot is on (UEFI specification, "Globally Defined Variables")."""


class BootState(FactBase[Boot]):
    """The running kernel, its headers, Secure Boot, and whether the key that DKMS signs with is enrolled."""

    default = Boot

    @override
    def command(self) -> str:
        return (
            'kernel=$(uname -r); echo "kernel $kernel"; [ ! -e "/lib/modules/$kernel/build" ] || echo headers; '
            f"[ ! -r {_SECURE_BOOT} ] || [ \"$(od -An -tu1 -j4 -N1 {_SECURE_BOOT} | tr -d ' ')\" != 1 ] || echo secure_boot; "
            "mokutil --test-key /var/lib/dkms/mok.pub 2>/dev/null | grep -q 'already enrolled' && echo mok_enrolled || true"
        )

    @override
    def process(self, output: Iterable[str]) -> Boot:
        lines = list(output)
        kernel = next((line.removeprefix("kernel ") for line in lines if line.startswith("kernel ")), "")
        return Boot(kernel, "headers" in lines, "secure_boot" in lines, "mok_enrolled" in lines)


class RunningDriver(FactBase[state.DriverState]):
    """The kernel modules on disk, the loaded one, and the libraries."""

    default = state.DriverState

    @override
    def command(self) -> str:
        return state.COMMAND

    @override
    def process(self, output: Iterable[str]) -> state.DriverState:
        return state.parse_state(output)


class Nvml(FactBase[nvml.NvmlReport]):
    """The cards as NVML sees them."""

    default = nvml.NvmlReport

    @override
    def command(self) -> str:
        return nvml.COMMAND

    @override
    def process(self, output: Iterable[str]) -> nvml.NvmlReport:
        return nvml.parse_report(output)


class HeldPackages(FactBase[frozenset[str]]):
    """Packages that apt may not change unasked."""

    default = frozenset

    @override
    def command(self) -> str:
        return "apt-mark showhold"

    @override
    def process(self, output: Iterable[str]) -> frozenset[str]:
        return frozenset(line.strip() for line in output)


class StaleInitramfs(FactBase[tuple[str, ...]]):
    """Kernels whose initramfs is older than the file that keeps nouveau out; all that have one, while there is no such file."""

    default = tuple

    @override
    def command(self) -> str:
        return (
            "PATH=$PATH:/usr/sbin:/sbin; command -v update-initramfs >/dev/null || exit 0; for image in /boot/vmlinuz-*; do "
            "kernel=${image#/boot/vmlinuz-}; initramfs=/boot/initrd.img-$kernel; "
            f'[ ! -e "$initramfs" ] || [ -e {NOUVEAU_FILE} -a ! {NOUVEAU_FILE} -nt "$initramfs" ] || echo "$kernel"; done'
        )

    @override
    def process(self, output: Iterable[str]) -> tuple[str, ...]:
        return tuple(line.strip() for line in output)


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit: whether it is loaded, runs, starts at boot, and is read as it is on disk."""

    found: bool = False
    active: bool = False
    enabled: bool = False
    stale: bool = False


class UnitState(FactBase[Unit]):
    """State of a systemd unit."""

    default = Unit

    @override
    def command(self, unit: str) -> str:
        return (
            f"systemctl show -p LoadState -p ActiveState -p NeedDaemonReload {unit}; "
            f'echo "Enabled=$(systemctl is-enabled {unit} 2>/dev/null || true)"'
        )

    @override
    def process(self, output: Iterable[str]) -> Unit:
        values = dict(line.split("=", 1) for line in output if "=" in line)
        return Unit(
            found=values.get("LoadState") == "loaded",
            active=values.get("ActiveState") == "active",
            enabled=values.get("Enabled") == "enabled",
            stale=values.get("NeedDaemonReload") == "yes",
        )


@dataclass(frozen=True, slots=True)
class DeviceNodes:
    """What a systemd unit has to be allowed to use a host's cards (DeviceAllow=)."""

    nodes: tuple[str, ...] = ()
    """Device nodes, sorted: /dev/nvidia0, /dev/nvidia-caps/nvidia-cap1, /dev/nvidia-uvm, /dev/nvidiactl, …"""

    groups: tuple[str, ...] = ()
    """Names of the character devices in /proc/devices, sorted: nvidia, nvidia-caps, nvidia-frontend, nvidia-uvm, …"""


class NvidiaDevices(FactBase[DeviceNodes]):
    """NVIDIA's device nodes and character devices; empty as long as the driver is not loaded."""

    default = DeviceNodes

    @override
    def command(self) -> str:
        return (
            "find /dev -maxdepth 2 -path '/dev/nvidia*' -type c 2>/dev/null; "
            "awk '/^Block/ {exit} $2 ~ /^nvidia/ {print $2}' /proc/devices"
        )

    @override
    def process(self, output: Iterable[str]) -> DeviceNodes:
        lines = sorted({line.strip() for line in output})
        return DeviceNodes(
            tuple(line for line in lines if line.startswith("/dev/")),
            tuple(line for line in lines if line.startswith("nvidia")),
        )
