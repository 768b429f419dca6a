"""Disk images made of folders, without a loop device and without booting anything."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

LABEL: Final = "lab-root"
"""By which the first boot finds its root file system."""

ESP_UUID: Final = "1AB0-E5D0"
"""Serial number of the EFI partition, as proxmox-boot-tool keeps a list of."""

_MIB: Final = 1024**2
_SECTOR: Final = 512
_START: Final = 1  # MiB: where the first partition begins, and GRUB's core ends
_ESP: Final = 192  # MiB; two kernels with their initramfs
_END: Final = 1  # MiB, for the second table of GPT

_GRUB: Final = Path("/usr/lib/grub/i386-pc")
_GRUB_MODULES: Final = (
    "biosdisk",
    "part_msdos",
    "ext2",
    "normal",
    "search",
    "search_label",
    "linux",
    "serial",
    "test",
    "echo",
)
_BOOT_CODE: Final = 440  # bytes of the first sector before the partition table's


def grub_disk(root: Path, disk: Path, size: int) -> None:
    """A disk that a BIOS starts with GRUB; ``size`` of its root partition in MiB."""
    _empty(disk, _START + size)
    _partition(disk, f"label: dos\nstart={_START}MiB, type=83, bootable\n")
    core = disk.with_suffix(".core")
    _run("grub-mkimage", "-O", "i386-pc", "-o", str(core), "-p", "(,msdos1)/boot/grub", *_GRUB_MODULES)
    # The core begins in the second sector, which is what both parts say unless grub-install writes something else into them.
    assert core.stat().st_size <= _START * _MIB - _SECTOR, "GRUB's core does not fit before the first partition"
    with disk.open("r+b") as file:
        file.write((_GRUB / "boot.img").read_bytes()[:_BOOT_CODE])
        file.seek(_SECTOR)
        file.write(core.read_bytes())
    core.unlink()
    _root_partition(root, disk, _START, size)


def efi_disk(root: Path, esp: Path, disk: Path, size: int) -> None:
    """A disk that EFI firmware starts: a system partition with what is in ``esp``, and the root partition of ``size`` MiB."""
    _empty(disk, _START + _ESP + size + _END)
    _partition(disk, f"label: gpt\nstart={_START}MiB, size={_ESP}MiB, type=uefi\nsize={size}MiB, type=linux\n")
    system = disk.with_suffix(".esp")
    _empty(system, _ESP)
    _run("mkfs.vfat", "-F", "32", "-n", "EFI", "-i", ESP_UUID.replace("-", ""), str(system))
    _run("mcopy", "-s", "-i", str(system), *map(str, sorted(esp.iterdir())), "::")
    _run("dd", f"if={system}", f"of={disk}", "bs=1M", f"seek={_START}", "conv=notrunc,sparse", "status=none")
    system.unlink()
    _root_partition(root, disk, _START + _ESP, size)


def _empty(disk: Path, size: int) -> None:
    with disk.open("wb") as file:
        file.truncate(size * _MIB)


def _partition(disk: Path, script: str) -> None:
    _run("sfdisk", "--quiet", str(disk), text=script)


def _root_partition(root: Path, disk: Path, start: int, size: int) -> None:
    _run(
        *("mkfs.ext4", "-q", "-F", "-L", LABEL, "-d", str(root)),
        # Nothing is left for the first boot's kernel to write.
        *("-E", f"offset={start * _MIB},lazy_itable_init=0,lazy_journal_init=0", str(disk), f"{size * 1024}k"),
    )


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
