"""Which NVIDIA card is which architecture, and which drivers run it: the table that everything here decides by.

| architecture          | PCI device ids (chips)                                      | modules           | branches |
|-----------------------|-------------------------------------------------------------|-------------------|----------|
| Kepler and older      | everything below 1340                                       | –                 | ≤ 470    |
| Maxwell               | 1340–143f, 1600–1724, 1730–17ff (GM1xx, GM2xx)              | proprietary       | 525–580  |
| Pascal                | 15c0–15ff, 1725–172f (GP100), 1b00–1d7f (GP10x)             | proprietary       | 525–580  |
| Volta                 | 1d80–1dff (GV100)                                           | proprietary       | 525–580  |
| Turing                | 1e00–1fff, 2180–21ff (TU1xx)                                | open, proprietary | ≥ 525    |
| Ampere                | 2080–20ff (GA100), 2200–223f, 2400–25ff (GA10x)             | open, proprietary | ≥ 525    |
| Hopper                | 2300–23ff (GH100)                                           | open, proprietary | ≥ 525    |
| Ada Lovelace          | 2680–28ff (AD10x)                                           | open, proprietary | ≥ 525    |
| Blackwell             | 2900–29ff (GB10x), 2b80–2fff (GB20x)                        | open              | ≥ 570    |
| Blackwell Ultra       | 3180–31ff (GB11x)                                           | open              | ≥ 580    |

Below branch 525 there is no CUDA 12, which the service's libraries are built for
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html), so no older one is told apart.

Sources. Ids and chips: the PCI ID database (https://pci-ids.ucw.cz/read/PC/10de), where NVIDIA's ids come in blocks, one
or more per chip. Modules: NVIDIA's driver README, chapter "Open Linux Kernel Modules" (open ones run on Turing and later,
because they depend on the GPU System Processor) and its driver installation guide, "Kernel Modules"
(https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/kernel-modules.html); Grace Hopper and Blackwell have
the open ones alone (NVIDIA's developer blog, "NVIDIA Transitions Fully Towards Open-Source GPU Kernel Modules", 2024).
Branches: the README's Appendix A, "Supported NVIDIA GPU Products", with its lists of legacy GPUs (470 ended Kepler, 580
ends Maxwell, Pascal and Volta), and https://github.com/NVIDIA/open-gpu-kernel-modules, "Compatible GPUs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Flavour(StrEnum):
    """The two sets of kernel modules that every driver release has; the libraries are the same for both."""

    OPEN = "open"
    PROPRIETARY = "proprietary"


CUDA_12_BRANCH: Final = 525
"""First driver branch that runs programs built with CUDA 12."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A generation of GPUs: what its cards' PCI device ids are, and which drivers run them."""

    name: str
    ids: tuple[tuple[int, int], ...]
    """Ranges of PCI device ids, both ends included."""

    flavours: frozenset[Flavour]
    first_branch: int = CUDA_12_BRANCH
    """First driver branch that knows the architecture, of those that run CUDA 12 at all."""

    last_branch: int | None = None
    """Last driver branch that still does; None where there is no end in sight."""


_BOTH: Final = frozenset(Flavour)
_OPEN: Final = frozenset({Flavour.OPEN})
_PROPRIETARY: Final = frozenset({Flavour.PROPRIETARY})

LEGACY: Final = Architecture("Kepler or older", ((0x0000, 0x133F),), frozenset(), last_branch=470)
"""Cards that no driver with CUDA 12 runs."""

ARCHITECTURES: Final = (
    LEGACY,
    Architecture("Maxwell", ((0x1340, 0x143F), (0x1600, 0x1724), (0x1730, 0x17FF)), _PROPRIETARY, last_branch=580),
    Architecture("Pascal", ((0x15C0, 0x15FF), (0x1725, 0x172F), (0x1B00, 0x1D7F)), _PROPRIETARY, last_branch=580),
    Architecture("Volta", ((0x1D80, 0x1DFF),), _PROPRIETARY, last_branch=580),
    Architecture("Turing", ((0x1E00, 0x1FFF), (0x2180, 0x21FF)), _BOTH),
    Architecture("Ampere", ((0x2080, 0x20FF), (0x2200, 0x223F), (0x2400, 0x25FF)), _BOTH),
    Architecture("Hopper", ((0x2300, 0x23FF),), _BOTH),
    Architecture("Ada Lovelace", ((0x2680, 0x28FF),), _BOTH),
    Architecture("Blackwell", ((0x2900, 0x29FF), (0x2B80, 0x2FFF)), _OPEN, first_branch=570),
    Architecture("Blackwell Ultra", ((0x3180, 0x31FF),), _OPEN, first_branch=580),
)

LISTED_FROM: Final[Mapping[int, int]] = {
    0x2335: 550,  # H200 SXM
    **dict.fromkeys((0x25B0, 0x25B2), 550),  # RTX A1000, A400
    **dict.fromkeys(
        (0x2685, 0x2702, 0x2705, 0x2709, 0x2783, 0x2788), 550
    ),  # GeForce RTX 4090 D, 40x0 SUPER, 4070, 4060 Ti
    **dict.fromkeys((0x2808, 0x2822, 0x28A3, 0x28E3), 550),  # GeForce RTX 4060 and laptops' cards
    0x28B0: 550,  # RTX 2000 Ada Generation
}
"""Cards that came after their architecture: device id → first branch whose Appendix A lists it. The difference between the
lists of 535.309.01 and 550.163.01 (Debian's nvidia-detect carries both), the two branches that Debian 12 and 13 have."""

OPEN_GRACE_HOPPER: Final = frozenset({0x2342, 0x2343, 0x2345, 0x2348})
"""GH200: a Hopper that only the open modules run."""

FIRST_NVSWITCH: Final = 0x1AC0
"""First device id of an NVSwitch bridge (those of V100, A100 and H100/H200 boards); NVIDIA's older bridges are chipsets.
A board's GPUs are of no use to CUDA until nvidia-fabricmanager, of exactly the driver's version, has set its switches up
(NVIDIA Fabric Manager User Guide, "Getting Started")."""


def architecture_of(device_id: int) -> Architecture | None:
    """The architecture of a card with this PCI device id; None if the table does not know the id."""
    for architecture in ARCHITECTURES:
        if any(first <= device_id <= last for first, last in architecture.ids):
            return architecture
    return None


@dataclass(frozen=True, slots=True)
class Card:
    """An NVIDIA GPU of a host."""

    address: str
    """PCI address, such as 0000:01:00.0."""

    device_id: int
    driver: str | None = None
    """The kernel driver that has it: nvidia, nouveau, vfio-pci, …; None if none has."""

    @property
    def architecture(self) -> Architecture | None:
        """What the table says; None if it does not know the card."""
        return architecture_of(self.device_id)

    @property
    def flavours(self) -> frozenset[Flavour]:
        """Kernel modules that run this card; both, if the table does not know it."""
        if self.device_id in OPEN_GRACE_HOPPER:
            return _OPEN
        return self.architecture.flavours if self.architecture else _BOTH

    def __str__(self) -> str:
        name = self.architecture.name if self.architecture else "unknown"
        return f"10de:{self.device_id:04x} ({name}) at {self.address}"
