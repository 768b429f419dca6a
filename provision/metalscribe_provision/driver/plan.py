"""From cards, distribution and the operator's wishes to the packages of a driver, or to a refusal.

What is decided, in this order (``cards`` has the table, ``debian`` and ``ubuntu`` the names of the packages):

| host                                       | outcome                                                               |
|--------------------------------------------|-----------------------------------------------------------------------|
| no card, or all of them bound to vfio-pci  | refused: driver=none, or deploy to the virtual machine                |
| a card older than Maxwell                  | refused: CUDA 12 does not run on it                                   |
| a card that the table does not know        | refused, unless both driver and driver_branch are named               |
| cards that need opposite kernel modules    | refused: Maxwell, Pascal and Volta cannot share a host with Blackwell |
| driver, driver_branch contradict a card    | refused                                                               |
| Debian, branch too old for a card          | refused: RTX 5090 on Debian 12 and 13, H200 on Debian 12              |
| Debian, Secure Boot, key not enrolled      | refused, with the commands that enrol it                              |
| Debian, kernel without headers, real-time  | refused                                                               |
| NVSwitches on Debian                       | refused: no nvidia-fabricmanager there                                |
| Ubuntu, no branch for this card and kernel | refused, with what each branch lacks                                  |
| otherwise                                  | the newest branch that all cards can live with                        |

Kernel modules: ``driver`` if it names them; else the only ones that all cards can live with; else the open ones from
branch 560 on and the proprietary ones before, as NVIDIA advises. So cards of different generations share a host wherever one
set of modules and one branch suits them all: Maxwell beside Turing gets the proprietary modules of branch 580 or older.
"""

from __future__ import annotations

from typing import Final

from metalscribe_provision.driver import debian, ubuntu
from metalscribe_provision.driver.pci import NvidiaPci
from metalscribe_provision.driver.requirement import Refused, requirement
from metalscribe_provision.driver.system import Selection, System
from metalscribe_provision.hostdata import Driver

_RELEASES: Final = {"debian": tuple(debian.BRANCHES), "ubuntu": tuple(ubuntu.KERNELS)}

HELD: Final = {"debian": debian.HELD, "ubuntu": ubuntu.HELD}
"""Distribution → beginnings of the names of packages that unattended-upgrades must leave alone."""


def plan(devices: NvidiaPci, system: System, driver: Driver, driver_branch: str) -> Selection | None:
    """The driver for a host; None if that cannot be said before apt's lists have NVIDIA's packages.

    Args:
        devices: NVIDIA's devices on the host.
        system: the host otherwise.
        driver: host data ``driver``, neither none nor existing.
        driver_branch: host data ``driver_branch``.

    Raises:
        Refused: there is no driver for this host, and why.
    """
    name, version, _ = system.distribution
    if version not in _RELEASES.get(name, ()):
        known = ", ".join(f"{one.title()} {' and '.join(versions)}" for one, versions in _RELEASES.items())
        raise Refused(
            f"no driver is known for {name} {version}; install one yourself and set driver=existing, or use {known}"
        )
    required = requirement(devices, driver, driver_branch)
    return debian.select(required, system) if name == "debian" else ubuntu.select(required, system)
