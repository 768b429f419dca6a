"""A virtual machine: QEMU without hardware virtualisation, from its firmware on."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.access import Access
from lab.host import Host
from lab.network import Namespace, Plug

BOOT_WITHIN: Final = 180.0  # seconds; forty are usual
HALT_WITHIN: Final = 120.0

_FIRMWARE: Final = Path("/usr/share/OVMF")
_OUTPUT: Final = 8192  # bytes of the console that describe a failure

QEMU: Final = (
    *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-accel", "tcg,thread=multi", "-cpu", "max,vendor=GenuineIntel,la57=off"),
)
IOMMU: Final = ("-device", "intel-iommu,intremap=on,caching-mode=on")
"""Before all other devices, whose memory accesses it is to see."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine consists of beside its disk and its network.

    Attributes:
        efi: its firmware is EFI and not a BIOS.
        iommu: its chipset has one, and the firmware tells.
        devices: QEMU's words for more devices.
        memory: MiB.
        cores: of its processor. Several wait for each other more than they work where QEMU has to emulate them.
    """

    efi: bool = False
    iommu: bool = True
    devices: tuple[str, ...] = ()
    memory: int = 1280
    cores: int = 1


class Machine(Host):
    """A host of the lab that has a kernel of its own.

    Args:
        name: of the machine, for its files.
        folder: where its disk and its console are.
        golden: the disk that it starts from, left as it is.
        plug: its network.
        hardware: what it consists of.
        controller: the network that the lab reaches it from.
        access: how the lab gets in.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        golden: Path,
        plug: Plug,
        hardware: Hardware,
        controller: Namespace,
        access: Access,
    ) -> None:
        super().__init__(name, plug.address, controller=controller, access=access)
        self._folder = folder
        self._plug = plug
        self._hardware = hardware
        self._process: subprocess.Popen[bytes] | None = None
        self.console = folder / "console.log"
        folder.mkdir(mode=0o711)
        overlay(golden, folder / "disk.qcow2")
        if hardware.efi:
            shutil.copyfile(_FIRMWARE / "OVMF_VARS_4M.fd", folder / "vars.fd")

    @property
    def on(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def boot(self) -> None:
        """Switch it on and wait until it lets the lab in.

        Raises:
            AssertionError: it does not; says what its console says.
        """
        assert not self.on, f"{self.name} is on already"
        hardware = self._hardware
        command = [
            *QEMU,
            *("-machine", "q35,kernel-irqchip=split", "-smp", str(hardware.cores), "-m", str(hardware.memory)),
            *(IOMMU if hardware.iommu else ()),
            *(firmware(self._folder / "vars.fd") if hardware.efi else ()),
            *("-drive", f"if=none,id=disk,file={self._folder / 'disk.qcow2'},cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", f"tap,id=net,ifname={self._plug.device},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={self._plug.hardware}"),
            *("-device", "virtio-rng-pci"),
            *hardware.devices,
            *serial(self.console),
        ]
        self._process = started(self._controller.enter(*command), self.console)
        self.wait_until_up()

    def wait_until_up(self, before: str | None = None, within: float = BOOT_WITHIN) -> None:
        """Wait until it lets the lab in.

        Args:
            before: the boot that is not waited for any more.
            within: seconds.
        """
        end = time.monotonic() + within
        while True:
            assert self.on, f"QEMU has ended; {self.name}'s console:\n{self._said()}"
            asked = self._controller.run(*self.ssh("cat /proc/sys/kernel/random/boot_id"), check=False, timeout=within)
            if asked.returncode == 0 and asked.stdout.strip() != before:
                return
            assert time.monotonic() < end, (
                f"{self.name} did not come up within {within:g} s ({asked.stderr.strip()}); its console:\n{self._said()}"
            )
            time.sleep(0.5)

    def reboot(self) -> None:
        """Let it reboot itself and wait until it is up again."""
        before = self.boot_id()
        self.run("systemctl reboot", check=False)  # the connection may be cut before the answer
        self.wait_until_up(before)

    def close(self) -> None:
        """Switch it off at once and remove it, but for its network."""
        if self._process is not None and self.on:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder)

    def describe(self) -> dict[str, str]:
        """What helps to understand a failure."""
        return {f"console of {self.name}": self._said()}

    def _said(self) -> str:
        said = self.console.read_bytes() if self.console.is_file() else b""
        return said[-_OUTPUT:].decode(errors="replace").replace("\r", "")


def overlay(golden: Path, disk: Path) -> None:
    """A disk that begins as ``golden`` and keeps its own changes."""
    kind = golden.suffix.removeprefix(".").replace("img", "raw")
    made = subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", golden, "-F", kind, disk],
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr


def firmware(variables: Path) -> tuple[str, ...]:
    """QEMU's words for EFI firmware that keeps its variables in a file."""
    return (
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_FIRMWARE / 'OVMF_CODE_4M.fd'}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
    )


def serial(console: Path) -> tuple[str, ...]:
    """QEMU's words for a serial line whose output goes to the end of a file."""
    return "-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"


def started(command: Sequence[str], console: Path) -> subprocess.Popen[bytes]:
    """QEMU running; what it has to say itself comes before what the machine says."""
    with console.open("ab") as said:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
