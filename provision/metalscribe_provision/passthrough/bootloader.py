"""How a host's kernel gets its command line: GRUB, or systemd-boot through proxmox-boot-tool.

Proxmox installs systemd-boot on machines with EFI, ZFS and no Secure Boot, and GRUB on all others; on both proxmox-boot-tool
may keep the EFI partitions in step (Proxmox VE Administration Guide, "Host Bootloader").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from metalscribe_provision.passthrough.iommu import tokens
from metalscribe_provision.passthrough.refusal import Refused

GRUB_FILE: Final = "/etc/default/grub.d/zz-metalscribe-passthrough.cfg"
"""Read after the other drop-ins, some of which set the variable anew."""

CMDLINE_FILE: Final = "/etc/kernel/cmdline"

_GRUB_FILES: Final = "/etc/default/grub /etc/default/grub.d/*.cfg"

COMMAND: Final = (
    "PATH=$PATH:/usr/sbin:/sbin; has() { command -v $1 >/dev/null; }; "
    "[ ! -d /sys/firmware/efi ] || echo efi; ! has update-grub || echo grub; ! has proxmox-boot-tool || echo tool; "
    f"[ ! -f {CMDLINE_FILE} ] || sed 's/^/cmdline /' {CMDLINE_FILE}; "
    "! has proxmox-boot-tool || proxmox-boot-tool status 2>&1 | sed 's/^/status /'; "
    "! has efibootmgr || efibootmgr -v 2>/dev/null | sed 's/^/entry /'; "
    # As grub-mkconfig reads them, but for our own.
    "( set +eu; GRUB_CMDLINE_LINUX=; GRUB_CMDLINE_LINUX_DEFAULT=; "
    f'for file in {_GRUB_FILES}; do [ ! -f "$file" ] || [ "$file" = {GRUB_FILE} ] || . "$file"; done >/dev/null 2>&1; '
    'echo "arguments $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT" )'
)
"""What the host has of boot loaders, and what they are configured to hand to the kernel."""


class BootLoader(StrEnum):
    """What reads the kernel's command line from where."""

    GRUB = "GRUB"
    SYSTEMD_BOOT = "systemd-boot"


@dataclass(frozen=True, slots=True)
class BootSetup:
    """What ``COMMAND`` saw."""

    efi: bool = False
    """The running system was started by EFI firmware."""

    grub: bool = False
    tool: bool = False
    """proxmox-boot-tool is there (not: that it is in use)."""

    cmdline: tuple[str, ...] | None = None
    """The lines of /etc/kernel/cmdline; None where there is no such file."""

    status: tuple[str, ...] = ()
    """What proxmox-boot-tool says of the EFI partitions."""

    entries: tuple[str, ...] = ()
    """What efibootmgr says of the firmware's entries."""

    arguments: tuple[str, ...] = field(default=())
    """What GRUB's configuration gives to the kernel, our own drop-in left out."""

    @property
    def managed(self) -> bool:
        """Whether proxmox-boot-tool keeps the EFI partitions."""
        return any("is configured with:" in line for line in self.status)


def parse_setup(lines: Iterable[str]) -> BootSetup:
    """What ``COMMAND`` printed."""
    said: Mapping[str, list[str]] = {name: [] for name in ("cmdline", "status", "entry", "arguments")}
    flags = set()
    for line in lines:
        name, separator, value = line.partition(" ")
        if name in said and separator:
            said[name].append(value)
        else:
            flags.add(name)
    return BootSetup(
        efi="efi" in flags,
        grub="grub" in flags,
        tool="tool" in flags,
        cmdline=tuple(said["cmdline"]) if said["cmdline"] else None,
        status=tuple(said["status"]),
        entries=tuple(said["entry"]),
        arguments=tokens(" ".join(said["arguments"])),
    )


def boot_loader(setup: BootSetup) -> BootLoader:
    """Which one starts this host.

    What the firmware says it started counts before what is installed: a host may have both.

    Raises:
        Refused: neither.
    """
    started = _started(setup.entries) if setup.efi else BootLoader.GRUB
    configured = {
        BootLoader.SYSTEMD_BOOT if kind == "uefi" else BootLoader.GRUB
        for line in setup.status
        for kind in re.findall(r"\b(uefi|grub) \(versions:", line)
        or re.findall(r"configured with: (uefi|grub)\b", line)
    }
    if started is None and len(configured) == 1:
        started = next(iter(configured))
    if started is None and configured:
        started = BootLoader.SYSTEMD_BOOT  # the tool writes GRUB's files beside for machines without EFI
    if started is None and setup.grub:
        started = BootLoader.GRUB
    if started is BootLoader.GRUB and setup.grub:
        return started
    if started is BootLoader.SYSTEMD_BOOT and setup.tool and setup.cmdline is not None:
        return started
    raise Refused(
        "how this host starts is not known: there is neither GRUB (update-grub) nor systemd-boot through proxmox-boot-tool "
        f"(with {CMDLINE_FILE})"
    )


def _started(entries: Sequence[str]) -> BootLoader | None:
    """What efibootmgr's current entry is; None where it does not say, or it is neither."""
    current = next((line.split()[-1] for line in entries if line.startswith("BootCurrent:")), None)
    entry = next((line.lower() for line in entries if current and line.startswith(f"Boot{current}")), "")
    if "systemd-boot" in entry:
        return BootLoader.SYSTEMD_BOOT
    return BootLoader.GRUB if re.search(r"(grub|shim)x64\.efi", entry) else None


def configured_arguments(setup: BootSetup, loader: BootLoader) -> tuple[str, ...]:
    """What the next boot's command line would be, our own GRUB drop-in left out."""
    return setup.arguments if loader is BootLoader.GRUB else tokens(" ".join(setup.cmdline or ()))


def refresh_commands(setup: BootSetup, loader: BootLoader) -> tuple[str, ...]:
    """What carries a changed command line to where the boot loader reads it.

    With proxmox-boot-tool, GRUB's own file in /boot is not what is read: the tool writes another on each EFI partition.
    """
    sbin = "PATH=$PATH:/usr/sbin:/sbin"
    grub = (f"{sbin} update-grub",) if loader is BootLoader.GRUB else ()
    tool = (f"{sbin} proxmox-boot-tool refresh",) if loader is BootLoader.SYSTEMD_BOOT or setup.managed else ()
    return grub + tool


def grub_drop_in(arguments: Sequence[str]) -> str:
    """GRUB's configuration file with these kernel arguments beside all the others; recovery entries do not get them."""
    return (
        "# Written by metalscribe: what PCI passthrough needs of the kernel. Removed with passthrough=absent.\n"
        f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {" ".join(arguments)}"\n'
    )


def with_arguments(text: str, arguments: Sequence[str]) -> str:
    """/etc/kernel/cmdline with ``arguments`` at the end of its first line; everything else stays byte by byte."""
    line, newline, rest = text.partition("\n")
    return " ".join((line, *arguments) if line else arguments) + newline + rest


def without_arguments(text: str, arguments: Sequence[str]) -> str:
    """/etc/kernel/cmdline without ``arguments``, each with the blank before it and only once: what others wrote stays."""
    for argument in arguments:
        found = list(re.finditer(rf"(?:^|(?<=\n)|[ \t]){re.escape(argument)}(?=\s|$)", text))
        if found:
            text = text[: found[-1].start()] + text[found[-1].end() :]
    return text
