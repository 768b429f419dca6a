"""The driver of Debian 12 and 13: one branch per release, kernel modules built on the host by DKMS.

| release | branch | kernel modules                                  |
|---------|--------|-------------------------------------------------|
| 12      | 535    | nvidia-kernel-dkms (proprietary)                |
| 13      | 550    | nvidia-kernel-dkms, or nvidia-open-kernel-dkms  |

Beside the modules: libcuda1 and libnvidia-ml1 (the driver's libraries), nvidia-smi, nvidia-persistenced, nvidia-modprobe,
and the running kernel's headers; the GPU's firmware comes as their dependency. No X, no OpenGL. The open modules are taken on
the operator's word alone: Debian updates them less often, and 550.163.01-2 does not build for 13's newer 6.12 kernels.
(https://wiki.debian.org/NvidiaGraphicsDrivers, packages nvidia-graphics-drivers and nvidia-open-gpu-kernel-modules.)
"""

from __future__ import annotations

import re
from typing import Final

from metalscribe_provision.driver.cards import Flavour
from metalscribe_provision.driver.requirement import Refused, Requirement, kernel_series
from metalscribe_provision.driver.system import Selection, System

BRANCHES: Final = {"12": 535, "13": 550}
"""What the releases have, for plans made before apt's lists have NVIDIA's packages."""

KERNEL_MODULES: Final = {Flavour.PROPRIETARY: "nvidia-kernel-dkms", Flavour.OPEN: "nvidia-open-kernel-dkms"}

KERNEL_SUPPORT: Final = {Flavour.PROPRIETARY: "nvidia-kernel-support", Flavour.OPEN: "nvidia-open-kernel-support"}
"""Their modprobe configuration, which they depend on: left behind, it would be preferred to the other ones'."""

LIBRARIES: Final = ("libcuda1", "libnvidia-ml1", "nvidia-smi")
"""Must be of the kernel modules' very version."""

TOOLS: Final = ("nvidia-persistenced", "nvidia-modprobe")

HELD: Final = ("nvidia-", "libnvidia-", "libcuda1", "firmware-nvidia-")
"""Beginnings of the driver's packages' names, for unattended-upgrades."""


def select(required: Requirement, system: System) -> Selection:
    """The packages for these cards.

    Raises:
        Refused: this release's branch does not run the cards, or this host could not build or load the kernel modules.
    """
    release = system.distribution.version
    known = KERNEL_MODULES[Flavour.PROPRIETARY] in system.candidates
    branch = system.candidates[KERNEL_MODULES[Flavour.PROPRIETARY]].branch if known else BRANCHES[release]
    if not required.accepts(branch):
        raise Refused(_wrong_branch(required, release, branch))
    if required.nvswitches:
        raise Refused(
            f"this host has {required.nvswitches} NVSwitches, whose GPUs need nvidia-fabricmanager of the driver's version, "
            "and Debian does not have it; use Ubuntu 22.04 or 24.04"
        )
    flavour = required.flavour(branch)
    driver = (KERNEL_MODULES[flavour], *LIBRARIES, *TOOLS)
    if known and not system.installed.issuperset(driver):
        _same_version(system, driver)
    _signed(system)
    return Selection(
        branch=branch,
        flavour=flavour,
        packages=(*driver, *_headers(system)),
        unwanted=tuple(
            names[other]
            for names in (KERNEL_MODULES, KERNEL_SUPPORT)
            for other in Flavour
            if other is not flavour and names[other] in system.present
        ),
        held=driver,
    )


def _wrong_branch(required: Requirement, release: str, branch: int) -> str:
    if required.pinned_branch is not None:
        return (
            f"driver_branch={required.pinned_branch}, and Debian {release} has branch {branch}; set driver_branch=auto"
        )
    newer = [other for other, has in BRANCHES.items() if required.accepts(has)]
    where = f"Debian {' or '.join(newer)}, or Ubuntu" if newer else "Ubuntu 22.04 or 24.04"
    late = [card for card in required.cards if card.architecture and card.architecture.first_branch <= branch]
    anyway = f" (or try this one anyway: driver_branch={branch})" if len(late) == len(required.cards) and newer else ""
    return f"{required.text}, and Debian {release} has branch {branch}; install {where}, which has a newer one{anyway}"


def _same_version(system: System, driver: tuple[str, ...]) -> None:
    missing = [name for name in driver if name not in system.candidates]
    if missing:
        raise Refused(f"apt on this host has no {', '.join(missing)}; its sources lack part of Debian's archive")
    module = system.candidates[driver[0]]
    for name in LIBRARIES:
        if system.candidates[name].upstream != module.upstream:
            raise Refused(
                f"apt would install {module.name} {module.upstream} with {name} {system.candidates[name].upstream}, and kernel "
                "modules and libraries have to be of one version; "
                + (
                    "set driver=proprietary"
                    if module.name == KERNEL_MODULES[Flavour.OPEN]
                    else "look at apt's sources and pins"
                )
            )


def _signed(system: System) -> None:
    if system.secure_boot and not system.mok_enrolled:
        raise Refused(
            "Secure Boot is on, and the kernel modules that DKMS builds on this host are signed with a key that its "
            "firmware does not know. On the host: apt-get install dkms mokutil openssl; "
            "[ -e /var/lib/dkms/mok.pub ] || openssl req -new -x509 -nodes -days 36500 -newkey rsa:2048 "
            '-subj "/CN=DKMS module signing key" -keyout /var/lib/dkms/mok.key -outform DER -out /var/lib/dkms/mok.pub; '
            "mokutil --import /var/lib/dkms/mok.pub; reboot, choose Enroll MOK at the console, and deploy again. "
            "Or turn Secure Boot off, or use Ubuntu, whose kernel modules are signed"
        )


def _headers(system: System) -> tuple[str, ...]:
    """Headers of the running kernel and of those to come; with a newer kernel where the archive has dropped the running one.

    Raises:
        Refused: the running kernel is not one of Debian's that NVIDIA's modules can be built for.
    """
    kernel = system.kernel
    found = re.search(r"-((?:cloud-)?amd64)$", kernel)
    if kernel.endswith("-rt-amd64"):
        raise Refused(f"the running kernel {kernel} is a real-time one, which NVIDIA's driver does not support")
    if found is None:
        if system.headers:
            return ()
        raise Refused(
            f"the running kernel {kernel} is not Debian's, and its headers are missing; install the package that has them "
            f"(so that /lib/modules/{kernel}/build is there) or boot Debian's own kernel (linux-image-amd64)"
        )
    flavour = found[1]
    series = "{}.{}".format(*kernel_series(kernel))
    metapackage = f"linux-headers-{series}-{flavour}"
    if metapackage not in system.candidates:
        metapackage = f"linux-headers-{flavour}"
    running = f"linux-headers-{kernel}"
    if system.headers:
        return (metapackage,)
    if running in system.candidates or not system.candidates:
        return (metapackage, running)
    return (metapackage, metapackage.replace("-headers-", "-image-"))
