"""What a host's cards ask of a driver, whatever the distribution: one branch and one set of kernel modules for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metalscribe_provision.driver.cards import CUDA_12_BRANCH, LEGACY, LISTED_FROM, Card, Flavour
from metalscribe_provision.driver.pci import NvidiaPci
from metalscribe_provision.hostdata import Driver

OPEN_DEFAULT_BRANCH: Final = 560
"""From this branch on NVIDIA takes the open modules wherever all cards can (driver installation guide, "Kernel Modules")."""

OPEN_USABLE_BRANCH: Final = 550
"""Before it the open modules are alpha quality on GeForce and Workstation cards and want a module parameter to run them at
all (READMEs of 535 and of 550, "Open Linux Kernel Modules")."""


class Refused(ValueError):
    """There is no driver for this host as it is; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What every card of a host can live with."""

    cards: tuple[Card, ...]
    """The cards that the driver is for."""

    flavours: frozenset[Flavour]
    first_branch: int
    last_branch: int | None
    pinned_branch: int | None = None
    """The operator's driver_branch."""

    nvswitches: int = 0

    @property
    def text(self) -> str:
        """The cards and what they need, as messages say it."""
        span = f"{self.first_branch} to {self.last_branch}" if self.last_branch else f"{self.first_branch} or later"
        modules = f" with the {min(self.flavours)} kernel modules" if len(self.flavours) == 1 else ""
        verb = "needs" if len(self.cards) == 1 else "need"
        return f"{_listed(self.cards)} {verb} NVIDIA's driver branch {span}{modules}"

    def accepts(self, branch: int) -> bool:
        """Whether the cards, and the operator, can live with a branch."""
        if self.pinned_branch is not None:
            return branch == self.pinned_branch
        return self.first_branch <= branch <= (self.last_branch or branch)

    def flavour(self, branch: int) -> Flavour:
        """The kernel modules to take of a branch: the only ones that do, or NVIDIA's own choice for that branch.

        Raises:
            Refused: only the open modules would do, and this branch's are not fit for it.
        """
        if self.flavours == {Flavour.OPEN} and branch < OPEN_USABLE_BRANCH:
            raise Refused(
                f"the open kernel modules of branch {branch} are of alpha quality; "
                f"they are usable from branch {OPEN_USABLE_BRANCH} on: set driver=proprietary"
            )
        if len(self.flavours) == 1:
            return min(self.flavours)
        return Flavour.OPEN if branch >= OPEN_DEFAULT_BRANCH else Flavour.PROPRIETARY


def requirement(devices: NvidiaPci, driver: Driver, driver_branch: str) -> Requirement:
    """What the cards of a host, and its operator, ask of a driver.

    Args:
        devices: NVIDIA's devices on the host.
        driver: the operator's ``driver``, anything but none.
        driver_branch: the operator's ``driver_branch``: auto or a branch. One that is named is taken even for a card that
            the branch's list of products does not have yet, as long as its architecture is older than the branch.

    Raises:
        Refused: no driver suits the cards, or not the one that the operator names.
    """
    cards = _usable(devices)
    pinned = None if driver_branch == "auto" else int(driver_branch)
    for card in cards:
        if card.architecture is LEGACY:
            raise Refused(
                f"{card} is too old: its last driver branch is {LEGACY.last_branch}, and CUDA 12 needs "
                f"{CUDA_12_BRANCH} or later. Use a card of the Maxwell generation or a newer one, or set driver=none"
            )
        if card.architecture is None and (driver is Driver.AUTO or pinned is None):
            raise Refused(
                f"{card} is newer than the table of cards; say which driver it needs: driver=open and driver_branch=…"
            )
    wanted = frozenset(Flavour) if driver is Driver.AUTO else frozenset({Flavour(driver.value)})
    for card in cards:
        if not card.flavours & wanted:
            raise Refused(f"driver={driver}, but {card} needs the {min(card.flavours)} kernel modules; set driver=auto")
    flavours = frozenset.intersection(wanted, *(card.flavours for card in cards))
    if not flavours:
        raise Refused(_opposed(cards))
    first = max(_first_branch(card, listed=pinned is None) for card in cards)
    last = min(
        (card.architecture.last_branch for card in cards if card.architecture and card.architecture.last_branch),
        default=None,
    )
    if last is not None and first > last:
        raise Refused(_opposed(cards))
    found = Requirement(cards, flavours, first, last, pinned, devices.nvswitches)
    if pinned is not None and not first <= pinned <= (last or pinned):
        raise Refused(f"driver_branch={pinned}, but {found.text}")
    return found


def _usable(devices: NvidiaPci) -> tuple[Card, ...]:
    """The cards that are there for this host's own use."""
    if not devices.cards:
        raise Refused(
            "no NVIDIA GPU is on this host's PCI bus; pass one through to it, or set driver=none for a host that "
            "computes on its CPU"
        )
    usable = tuple(card for card in devices.cards if card.driver != "vfio-pci")
    if not usable:
        raise Refused(
            f"{_listed(devices.cards)} {'is' if len(devices.cards) == 1 else 'are'} bound to vfio-pci, for a virtual "
            "machine: deploy to that machine, or give the card back to this host"
        )
    return usable


def _first_branch(card: Card, *, listed: bool) -> int:
    """First branch for a card; with ``listed`` also the first whose list of products has it."""
    first = card.architecture.first_branch if card.architecture else CUDA_12_BRANCH
    return max(first, LISTED_FROM.get(card.device_id, 0)) if listed else first


def _opposed(cards: Sequence[Card]) -> str:
    old = [card for card in cards if Flavour.OPEN not in card.flavours]
    new = [card for card in cards if Flavour.PROPRIETARY not in card.flavours]
    return (
        f"{_listed(old)} needs the proprietary kernel modules and {_listed(new)} the open ones, and a host can load only "
        "one of them: take out the one or the other, or bind it to vfio-pci for a virtual machine"
    )


def _listed(cards: Sequence[Card]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, cards[:-1])), str(cards[-1])]))


def kernel_series(kernel: str) -> tuple[int, int]:
    """Version of a kernel by its release (``uname -r``), to compare: ``6.8.0-85-generic`` → (6, 8).

    Raises:
        Refused: it is not a kernel's release.
    """
    found = re.match(r"(\d+)\.(\d+)\.", kernel)
    if found is None:
        raise Refused(f"the running kernel's release {kernel!r} is not one of Debian's or Ubuntu's")
    return int(found[1]), int(found[2])
