"""Operations on a host's passthrough. Each looks at the host anew when it is its turn, so that an interrupted deploy goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import server

from metalscribe_provision.passthrough.binding import FILES, HOOK_FILE
from metalscribe_provision.passthrough.bootloader import (
    CMDLINE_FILE,
    GRUB_FILE,
    BootLoader,
    grub_drop_in,
    with_arguments,
    without_arguments,
)
from metalscribe_provision.passthrough.choice import INTERFACES, RECORD, UNDONE, Choice, recorded
from metalscribe_provision.passthrough.facts import BOOT_ID, STATE, Interfaces, Texts
from metalscribe_provision.passthrough.iommu import missing, tokens

Commands = Generator[Any]
Reason = Callable[[], str | None]

INITRAMFS: Final = "PATH=$PATH:/usr/sbin:/sbin update-initramfs -u -k all"
"""Proxmox' hook lets proxmox-boot-tool copy the new ones to the EFI partitions."""

STAMPS: Final = PurePosixPath(STATE)
BOOT_STAMP: Final = "passthrough-boot"
INITRAMFS_STAMP: Final = "passthrough-initramfs"

_REBOOT_SECONDS: Final = 900
"""A server with much memory takes minutes until its kernel starts."""


@operation()
def interfaces_noted() -> Commands:
    """The network interfaces' names, as they were before the first change."""
    if INTERFACES in host.get_fact(Texts, paths=(INTERFACES,)):
        host.noop("the interfaces' names are noted")
        return
    yield from _written(INTERFACES, _lines(f"{mac} {name}" for mac, name in host.get_fact(Interfaces).items()))


@operation()
def kernel_arguments(choice: Choice) -> Commands:
    """The kernel's arguments where the boot loader's configuration has them; nothing else there changes."""
    added = choice.plan.added
    if choice.plan.loader is BootLoader.GRUB:
        wanted = {GRUB_FILE: grub_drop_in(added)} if added else {}
        yield from _exactly((GRUB_FILE,), wanted)
        return
    yield from _cmdline(added)


@operation()
def no_kernel_arguments() -> Commands:
    """The boot loaders' configuration as it was before."""
    yield from _exactly((GRUB_FILE,), {})
    yield from _cmdline(())


@operation()
def binding(choice: Choice) -> Commands:
    """The files that give the cards to vfio-pci."""
    yield from _exactly(FILES, choice.plan.files)


@operation()
def no_binding() -> Commands:
    """Without the files that give cards to vfio-pci."""
    yield from _exactly(FILES, {})


@operation()
def rebooted(reason: Reason, *, allowed: bool, pinned: bool) -> Commands:
    """A reboot, if one is due and the operator allows it.

    Args:
        reason: looks at the host, and says why a reboot is due.
        allowed: by the operator.
        pinned: proxmox-boot-tool, which keeps the EFI partitions, is told to start the kernel that runs now and no newer one, so that
            the host comes back with one change and not with two.
    """
    why = reason()
    if why is None:
        host.noop("no reboot is due")
        return
    if not allowed:
        host.noop(f"a reboot is due: {why}")
        return
    if pinned:
        yield StringCommand('PATH=$PATH:/usr/sbin:/sbin proxmox-boot-tool kernel pin "$(uname -r)" --next-boot')
    yield from server.reboot._inner(reboot_timeout=_REBOOT_SECONDS)  # noqa: SLF001


@operation()
def undone(commands: Sequence[str]) -> Commands:
    """What carries the removed files to where the host starts from, and a note of the boot that has not seen it yet."""
    if not host.get_fact(Texts, paths=(INTERFACES,)):
        host.noop("the host has nothing of ours")
        return
    if host.get_fact(Texts, paths=(UNDONE,)):
        host.noop("the host starts without it from the next boot on")
        return
    # Stamps first: were the files to come back before the next boot, they would have to be carried there again.
    yield StringCommand("rm", "-f", *(str(STAMPS / stamp) for stamp in (BOOT_STAMP, INITRAMFS_STAMP)))
    for command in commands:
        yield StringCommand(command)
    yield StringCommand("cat", BOOT_ID, ">", UNDONE)


@operation()
def resumed() -> Commands:
    """No note of an undoing that is undone itself."""
    yield from _exactly((UNDONE,), {})


@operation()
def forgotten() -> Commands:
    """Nothing is remembered on the host any more."""
    if host.get_fact(Texts, paths=(INTERFACES, UNDONE, RECORD)):
        yield StringCommand("rm", "-rf", STATE)
    else:
        host.noop("the host has nothing of ours")


def _cmdline(added: Sequence[str]) -> Commands:
    """/etc/kernel/cmdline with ``added``, and without what earlier deploys have added beside."""
    text = host.get_fact(Texts, paths=(CMDLINE_FILE,)).get(CMDLINE_FILE, "")
    ours = recorded()
    settled = (
        not missing(tokens(text), added) and ours == tuple(added) if added else without_arguments(text, ours) == text
    )
    if settled:
        host.noop(f"{CMDLINE_FILE} is as it should be")
        return
    # What may be ours is noted before it is there, so that a deploy that is cut off in between leaves nothing unknown.
    yield from _written(RECORD, _lines(dict.fromkeys((*ours, *added))))
    yield from _written(CMDLINE_FILE, with_arguments(without_arguments(text, ours), added))
    if added and set(ours) - set(added):
        yield from _written(RECORD, _lines(added))


def _lines(words: Iterable[str]) -> str:
    return "".join(f"{word}\n" for word in words)


def _exactly(paths: Sequence[str], wanted: Mapping[str, str]) -> Commands:
    """Of ``paths`` those in ``wanted`` with its texts, and no others."""
    there = host.get_fact(Texts, paths=tuple(paths))
    if there == wanted:
        host.noop("the files are as they should be")
        return
    for path in paths:
        if path in wanted and there.get(path) != wanted[path]:
            yield from _written(path, wanted[path], mode="755" if path == HOOK_FILE else "644")
        elif path in there and path not in wanted:
            yield StringCommand("rm", "-f", QuoteString(path))


def _written(path: str, text: str, mode: str = "644") -> Commands:
    """A file, there as a whole or not at all."""
    new = QuoteString(f"{path}.new")
    yield StringCommand(
        *("mkdir", "-p", QuoteString(str(PurePosixPath(path).parent))),
        *("&&", "printf", "%s", QuoteString(text), ">", new),
        *("&&", "chmod", mode, new, "&&", "mv", "-f", new, QuoteString(path)),
    )
