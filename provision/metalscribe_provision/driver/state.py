"""Whether a host's driver works, and what is left to do until it does: read from the host, not from what was done before."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from metalscribe_provision.driver.cards import Flavour

COMMAND: Final = (
    "PATH=$PATH:/usr/sbin:/sbin; printf 'running\\t%s\\n' \"$(uname -r)\"; "
    'for image in /boot/vmlinuz-*; do [ ! -e "$image" ] || printf \'installed\\t%s\\n\' "${image#/boot/vmlinuz-}"; done | sort -V; '
    "find /lib/modules -regex '.*/nvidia\\(-current\\(-open\\)?\\)?\\.ko\\(\\.[a-z]+\\)?' 2>/dev/null | while read -r file; do "
    "kernel=${file#/lib/modules/}; printf 'module\\t%s\\t%s\\t%s\\n' \"${kernel%%/*}\" "
    '"$(modinfo -F version "$file")" "$(modinfo -F license "$file")"; done; '
    "[ ! -r /sys/module/nvidia/version ] || printf 'loaded\\t%s\\t%s\\n' \"$(cat /sys/module/nvidia/version)\" "
    '"$(head -n 1 /proc/driver/nvidia/version)"; '
    "library=$(ldconfig -p | sed -n 's/.*libnvidia-ml\\.so\\.1 (libc6,x86-64).* => //p' | head -n 1); "
    '[ -z "$library" ] || printf \'library\\t%s\\n\' "$(readlink -f "$library")"'
)
"""Tab-separated lines: the running kernel and those in /boot, oldest first; every nvidia.ko on disk (Debian calls it
nvidia-current or nvidia-current-open) with its kernel, version and licence; the loaded one; and the library's file, whose name
ends in its version."""


class Module(NamedTuple):
    """The version of an nvidia kernel module, and which of the two it is."""

    version: str
    flavour: Flavour


@dataclass(frozen=True, slots=True)
class DriverState:
    """The driver as a host has it."""

    running: str = ""
    """Release of the running kernel."""

    installed: tuple[str, ...] = ()
    """Kernels in /boot, oldest first; the next boot takes the last."""

    on_disk: tuple[tuple[str, Module], ...] = ()
    """Kernel → module that it would load."""

    loaded: Module | None = None
    library: str | None = None
    """Version of libnvidia-ml.so.1, which is the driver's libraries' version."""


class Step(StrEnum):
    """What is left to do."""

    READY = "nothing"
    LOAD = "load the kernel module"
    REBOOT = "reboot"
    BROKEN = "mend the installation"


class Next(NamedTuple):
    """The next step, and why."""

    step: Step
    reason: str = ""


def parse_state(lines: Iterable[str]) -> DriverState:
    """What ``COMMAND`` printed."""
    fields: dict[str, list[list[str]]] = {}
    for line in lines:
        key, *values = line.split("\t")
        fields.setdefault(key, []).append(values)
    loaded = next((Module(version, _loaded_flavour(nvrm)) for version, nvrm in fields.get("loaded", [])), None)
    library = next((re.search(r"\.so\.(\d[\d.]*)$", path) for (path,) in fields.get("library", [])), None)
    return DriverState(
        running=next((kernel for (kernel,) in fields.get("running", [])), ""),
        installed=tuple(kernel for (kernel,) in fields.get("installed", [])),
        on_disk=tuple(
            (kernel, Module(version, Flavour.OPEN if "GPL" in licence else Flavour.PROPRIETARY))
            for kernel, version, licence in fields.get("module", [])
        ),
        loaded=loaded,
        library=library[1] if library else None,
    )


def next_step(state: DriverState, flavour: Flavour, *, nouveau: bool) -> Next:
    """What is left to do until the kernel runs the module that is planned, of the libraries' version.

    Args:
        state: the driver as the host has it.
        flavour: the kernel modules that are planned.
        nouveau: whether nouveau has one of the cards.
    """
    if state.library is None:
        return Next(Step.BROKEN, "the driver's libraries are not installed (no libnvidia-ml.so.1)")
    wanted = Module(state.library, flavour)
    if state.loaded == wanted and not nouveau:
        return Next(Step.READY)
    ready = [kernel for kernel, module in state.on_disk if module == wanted]
    upcoming = state.installed[-1] if state.installed else state.running
    if state.running in ready and state.loaded is None and not nouveau:
        return Next(Step.LOAD)
    if state.running in ready:
        loaded = (
            f"the kernel runs module {_text(state.loaded)}, and {_text(wanted)} is installed" if state.loaded else ""
        )
        return Next(Step.REBOOT, "nouveau has the card until then" if nouveau else loaded)
    if upcoming in ready:
        return Next(Step.REBOOT, f"the kernel module is there for kernel {upcoming}, and {state.running} is running")
    found = ", ".join(f"{_text(module)} for {kernel}" for kernel, module in state.on_disk) or "none"
    return Next(
        Step.BROKEN,
        f"there is no kernel module {_text(wanted)} for {state.running}"
        + (f" nor for {upcoming}" if upcoming != state.running else "")
        + f" (found: {found}); look at `dkms status` and /var/lib/dkms/*/*/build/make.log on Debian, at "
        "`apt list --installed 'linux-modules-nvidia-*'` on Ubuntu",
    )


def _loaded_flavour(nvrm: str) -> Flavour:
    """``NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  …`` (README, "Open Linux Kernel Modules")."""
    return Flavour.OPEN if "Open Kernel Module" in nvrm else Flavour.PROPRIETARY


def _text(module: Module) -> str:
    return f"{module.version} ({module.flavour})"
