"""Operations on a host's driver. Each looks at the host anew when it is its turn, so that an interrupted deploy goes on."""

from __future__ import annotations

from collections.abc import Generator
from io import StringIO
from typing import Any, Final

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import File
from pyinfra.operations import files, server

from metalscribe_provision.driver.choice import Choice, installed
from metalscribe_provision.driver.facts import AptSources, HeldPackages, Nvml, StaleInitramfs, UnitState
from metalscribe_provision.driver.sources import OWN_FILE, has_password, missing_components, render_sources
from metalscribe_provision.driver.state import Step

Commands = Generator[Any]

_APT: Final = "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -qq -o DPkg::Lock::Timeout=600"

_SBIN: Final = "PATH=$PATH:/usr/sbin:/sbin;"

_REBOOT_SECONDS: Final = 900
"""A server with eight cards takes minutes until its kernel starts."""


@operation()
def no_driver() -> Commands:
    """Nothing, for a host that computes on its CPU."""
    host.noop("driver=none: this host computes on its CPU")
    yield from ()


@operation()
def archive_components(choice: Choice) -> Commands:
    """The components of the distribution's archive that have the driver, while there is something to install from them."""
    ours = host.get_fact(File, path=OWN_FILE)
    entries = host.get_fact(AptSources)
    try:
        lacking = missing_components(entries, choice.distribution.name, choice.distribution.codename)
    except ValueError as error:
        if choice.missing:
            yield StringCommand("printf '%s\\n'", QuoteString(str(error)), ">&2; exit 1")
        return
    if lacking and (ours or choice.missing):
        text = render_sources(lacking)
        mode = "600" if has_password(text) else "644"
        yield from files.put._inner(src=StringIO(text), dest=OWN_FILE, mode=mode)  # noqa: SLF001
    elif ours and not lacking:
        yield StringCommand("rm", "-f", OWN_FILE)
    else:
        host.noop("apt has every component that is needed")


@operation()
def archive_lists(choice: Choice) -> Commands:
    """apt's lists, refreshed while there is something to install."""
    if choice.missing:
        yield StringCommand("command -v cloud-init >/dev/null && cloud-init status --wait >/dev/null;", _APT, "update")
    else:
        host.noop("there is nothing to install")


@operation()
def driver_packages(choice: Choice) -> Commands:
    """The driver's packages; those of other kernel modules go."""
    if choice.selection is None:
        host.noop("which packages is decided once apt's lists have them")
        return
    missing = choice.missing
    if not missing and not choice.selection.unwanted:
        host.noop(f"packages {', '.join(choice.selection.packages)} are installed")
        return
    # A run that was cut off may have left packages that are not set up yet, and apt-get does not go on by itself.
    yield StringCommand(
        "DEBIAN_FRONTEND=noninteractive dpkg --configure -a;",
        *(_APT, "-y", "--no-install-recommends", "--allow-change-held-packages", "install"),
        *(QuoteString(name) for name in missing),
        *(QuoteString(f"{name}-") for name in choice.selection.unwanted),
    )


@operation()
def held(choice: Choice) -> Commands:
    """The driver's packages held, so that no upgrade changes them unasked."""
    selection = choice.selection
    if selection is None:
        host.noop("which packages is decided once apt's lists have them")
        return
    there = installed() | set(selection.packages)
    already = host.get_fact(HeldPackages)
    names = [name for name in selection.held if name in there and name not in already]
    if names:
        yield StringCommand("apt-mark", "hold", *(QuoteString(name) for name in names))
    else:
        host.noop("the driver's packages are held")


@operation()
def initramfs() -> Commands:
    """Every initramfs without nouveau."""
    if host.get_fact(StaleInitramfs):
        yield StringCommand(_SBIN, "update-initramfs -u -k all")
    else:
        host.noop("every initramfs is newer than the file that keeps nouveau out")


@operation()
def rebooted(choice: Choice) -> Commands:
    """A reboot, if the driver needs one and the operator allows it."""
    step, reason = choice.next()
    if step is Step.REBOOT and choice.may_reboot:
        yield from server.reboot._inner(reboot_timeout=_REBOOT_SECONDS)  # noqa: SLF001
    else:
        host.noop("no reboot is due" if step is not Step.REBOOT else f"a reboot will be due: {reason}")


@operation()
def loaded(choice: Choice) -> Commands:
    """The kernel modules loaded, the one for unified memory too; the cards' device nodes come with whoever asks NVML as root."""
    step, _ = choice.next()
    if step is Step.LOAD:
        yield StringCommand(_SBIN, "modprobe nvidia && nvidia-modprobe -u -c 0")
    else:
        host.noop("the kernel module is loaded" if step is Step.READY else f"first there is to {step}")


@operation()
def persistent() -> Commands:
    """nvidia-persistenced started now and at boot, with persistence mode on."""
    name = "nvidia-persistenced.service"
    unit = host.get_fact(UnitState, unit=name)
    if unit.stale:
        yield StringCommand("systemctl daemon-reload")
    if not unit.enabled:
        yield StringCommand("systemctl enable", name)
    if not unit.active:
        yield StringCommand("systemctl start", name)
    elif unit.stale or not all(gpu.persistent for gpu in host.get_fact(Nvml).gpus):
        yield StringCommand("systemctl restart", name)


@operation()
def fabric() -> Commands:
    """nvidia-fabricmanager started now and at boot: without it CUDA does not start on an NVSwitch board."""
    name = "nvidia-fabricmanager.service"
    unit = host.get_fact(UnitState, unit=name)
    if not unit.enabled:
        yield StringCommand("systemctl enable", name)
    if not unit.active:
        yield StringCommand("systemctl start", name)
