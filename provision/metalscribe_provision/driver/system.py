"""What a plan has to know of a host besides its cards, and what a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from metalscribe_provision.driver.candidates import Candidate
from metalscribe_provision.driver.cards import Flavour


class Distribution(NamedTuple):
    """``ID``, ``VERSION_ID`` and ``VERSION_CODENAME`` of ``/etc/os-release``: debian, 12, bookworm."""

    name: str
    version: str
    codename: str


@dataclass(frozen=True, slots=True)
class System:
    """A host's distribution, its running kernel, and what apt would install on it."""

    distribution: Distribution
    kernel: str
    """Release of the running kernel (``uname -r``)."""

    headers: bool = False
    """Whether modules can be built for it: ``/lib/modules/<release>/build`` is there."""

    secure_boot: bool = False
    mok_enrolled: bool = False
    """Whether the firmware knows the key that DKMS signs with (``mokutil --test-key``)."""

    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    """Package → what apt would install; lacks NVIDIA's as long as apt's lists do."""

    installed: frozenset[str] = frozenset()
    """Names of the packages that are installed."""

    unfinished: frozenset[str] = frozenset()
    """Names of those that are there, but not set up."""

    @property
    def present(self) -> frozenset[str]:
        """Names of the packages that are there, set up or not."""
        return self.installed | self.unfinished


@dataclass(frozen=True, slots=True)
class Selection:
    """The driver for a host, as packages of its distribution."""

    branch: int
    flavour: Flavour
    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    """Packages of other kernel modules than these that are there: only one of them may be."""

    held: tuple[str, ...] = ()
    """Packages that apt may not change unasked (apt-mark hold), of those that are installed."""
