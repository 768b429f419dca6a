"""The driver of Ubuntu 22.04 and 24.04: several branches, kernel modules built and signed by Canonical.

Of a branch ``B`` and a kernel flavour ``K`` (generic, generic-hwe-24.04, lowlatency, aws, …):

| what                    | package (``-open`` for the open modules)                 |
|-------------------------|----------------------------------------------------------|
| libraries, no X         | ``nvidia-headless-no-dkms-B-server[-open]``               |
| kernel modules, signed  | ``linux-modules-nvidia-B-server[-open]-K``                |
| nvidia-smi              | ``nvidia-utils-B-server``                                 |
| /dev/nvidia-uvm         | ``nvidia-modprobe`` (of no branch)                        |
| NVSwitch                | ``nvidia-fabricmanager-B``                                |

The ``-server`` series are the ones that NVIDIA supports in data centres (https://ubuntu.com/server/docs, "NVIDIA drivers
installation"). A branch that has ended lives on as transitional packages that lead to another one; it is no candidate.
The newest branch that the cards can live with, and whose packages are all there, is taken.

``linux-modules-nvidia-B-server-K`` is a metapackage that moves with ``linux-image-K``: it brings the modules of K's newest
kernel, and that kernel. So the driver's packages are held together with the kernel's metapackages: a new kernel alone would
boot without a driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from metalscribe_provision.driver.cards import Flavour
from metalscribe_provision.driver.requirement import Refused, Requirement, kernel_series
from metalscribe_provision.driver.system import Selection, System

KERNELS: Final = {"22.04": (5, 15), "24.04": (6, 8)}
"""A release's own kernel; a newer one is its hardware enablement (HWE) kernel."""

HELD: Final = (
    "nvidia-",
    "libnvidia-",
    "linux-modules-nvidia-",
    "linux-objects-nvidia-",
    "linux-signatures-nvidia-",
    "linux-(image-|headers-)?(generic|virtual|lowlatency|aws|azure|gcp|oracle|nvidia)(-|$)",
)
"""Beginnings of the names of the driver's packages and of the kernel's metapackages, for unattended-upgrades."""

_HEADLESS: Final = re.compile(r"nvidia-headless-no-dkms-(\d+)-server(?:-open)?")

_OF_BRANCH: Final = re.compile(
    r"(?:nvidia-driver|nvidia-headless|nvidia-headless-no-dkms|linux-(?:modules|objects|signatures)-nvidia|nvidia-dkms)"
    r"-(\d+(?:-server)?(?:-open)?)(?:-.+)?"
)
"""Packages that bring, or ask for, the kernel modules of one branch and flavour."""


def select(required: Requirement, system: System) -> Selection | None:
    """The packages for these cards; None if apt's lists do not have NVIDIA's packages yet.

    A branch that is installed stays, although a newer one has come, as long as the cards and the operator can live with it.

    Raises:
        Refused: no branch that runs the cards is there for this kernel, and why each is not.
    """
    offered = _branches(name for name, candidate in system.candidates.items() if not candidate.transitional)
    installed = _branches(system.installed)
    if not offered | installed:
        return None
    problems = []
    for branch in sorted(
        filter(required.accepts, offered | installed), key=lambda one: (one in installed, one), reverse=True
    ):
        try:
            return _branch(required, system, branch)
        except Refused as problem:
            problems.append(f"{branch}: {problem}")
    wanted = f"driver_branch={required.pinned_branch}" if required.pinned_branch else required.text
    reasons = f" ({'; '.join(problems)})" if problems else ""
    raise Refused(
        f"{wanted}, and apt's lists for Ubuntu {system.distribution.version} have {', '.join(map(str, sorted(offered)))} "
        f"for servers{reasons}; if the lists are old, apt-get update refreshes them"
    )


def _branches(names: Iterable[str]) -> frozenset[int]:
    return frozenset(int(found[1]) for name in names if (found := _HEADLESS.fullmatch(name)))


def _branch(required: Requirement, system: System, branch: int) -> Selection:
    """The packages of one branch.

    Raises:
        Refused: what it lacks.
    """
    flavour = required.flavour(branch)
    suffix = f"{branch}-server" + ("-open" if flavour is Flavour.OPEN else "")
    headless = f"nvidia-headless-no-dkms-{suffix}"
    kernel = _kernel_flavour(system.kernel, system.distribution.version)
    packages = [headless, f"linux-modules-nvidia-{suffix}-{kernel}", f"nvidia-utils-{branch}-server", "nvidia-modprobe"]
    if required.nvswitches:
        packages.append(f"nvidia-fabricmanager-{branch}")
    _available(system, packages)
    metapackages = [f"linux-{kind}{kernel}" for kind in ("", "image-", "headers-")]
    metapackages += [name.replace("generic", "virtual") for name in metapackages if "generic" in name]
    return Selection(
        branch=branch,
        flavour=flavour,
        packages=tuple(packages),
        unwanted=tuple(
            sorted(
                name
                for name in system.present
                if (found := _OF_BRANCH.fullmatch(name)) and (found[1] != suffix or name.startswith("nvidia-dkms-"))
            )
        ),
        held=(*packages, *metapackages),
    )


def _available(system: System, packages: Sequence[str]) -> None:
    """Refuse packages that apt cannot install, or not in one version; what is installed has been consistent when it was.

    Multiverse's are not asked for before that component is there, which the deploy sees to.
    """
    if system.installed.issuperset(packages):
        return
    multiverse = "nvidia-modprobe" in system.candidates
    asked = [
        name for name in packages if multiverse or not name.startswith(("nvidia-modprobe", "nvidia-fabricmanager"))
    ]
    missing = [name for name in asked if name not in system.candidates or system.candidates[name].transitional]
    if missing:
        raise Refused(f"no {', '.join(missing)}, with {system.kernel} running")
    # The kernel modules' metapackage has the kernel's version, and nvidia-modprobe goes with any.
    versions = {
        name: system.candidates[name].upstream
        for name in asked
        if not name.startswith(("linux-modules-nvidia", "nvidia-modprobe"))
    }
    if len(set(versions.values())) > 1:
        raise Refused(f"different versions of {', '.join(f'{name} ({version})' for name, version in versions.items())}")


def _kernel_flavour(kernel: str, release: str) -> str:
    """The metapackages that move with the running kernel: ``6.8.0-85-generic`` → generic, on 22.04 generic-hwe-22.04.

    Raises:
        Refused: it is not one of Ubuntu's.
    """
    found = re.fullmatch(r"\d+\.\d+\.\d+-\d+-([a-z][a-z0-9-]*)", kernel)
    if found is None:
        raise Refused(f"the running kernel {kernel} is not Ubuntu's; boot its generic one (linux-image-generic)")
    if found[1] in {"generic", "lowlatency"} and kernel_series(kernel) > KERNELS[release]:
        return f"{found[1]}-hwe-{release}"
    return found[1]
