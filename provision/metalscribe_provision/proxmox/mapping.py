"""PCI resource mappings: the name by which virtual machines ask for a device, whichever node and slot it is in.

A token may use a mapping (``Mapping.Use``); the bare address only root@pam may. A virtual machine does not start when id, group or
subsystem of an entry differ from what the node has, so that entries are made anew whenever they do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from metalscribe_provision.passthrough.selection import Card

DESCRIPTION: Final = "Written by metalscribe"

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
"""What Proxmox takes for a mapping's name (pve-configid)."""

_ORDER: Final = ("id", "iommugroup", "node", "path", "subsystem-id")


@dataclass(frozen=True, slots=True)
class PciMapping:
    """A mapping as the cluster has it.

    Attributes:
        entries: ``map=`` of each node's devices, as property strings.
        digest: of the configuration file, with which a change that somebody else made in between is noticed.
    """

    entries: tuple[str, ...] = ()
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Mappings:
    """The cluster's PCI mappings, by name."""

    by_name: Mapping[str, PciMapping] = field(default_factory=dict)


def parse_mappings(text: str) -> Mappings:
    """What ``pvesh get /cluster/mapping/pci --output-format json`` printed.

    Raises:
        ValueError: it is not that.
    """
    return Mappings({one["id"]: PciMapping(tuple(one.get("map", ())), one.get("digest")) for one in _array(text)})


def entry(card: Card, node: str) -> str:
    """A card's entry: all of its functions, as the kernel describes the first."""
    first = card.functions[0]
    parts = {
        "id": first.id,
        "iommugroup": first.group,
        "node": node,
        "path": card.slot,
        # The kernel says 0000:0000 where the board has none, and Proxmox compares nothing then.
        "subsystem-id": first.subsystem_id if first.subsystem_vendor else None,
    }
    return ",".join(f"{name}={parts[name]}" for name in _ORDER if parts[name] is not None)


def merged(present: Sequence[str], ours: Iterable[str], node: str) -> tuple[str, ...]:
    """``present`` with this node's entries replaced by ``ours``; those of other nodes stay as they are, and where they are."""
    return (*(one for one in present if properties(one).get("node") != node), *ours)


def same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of entries mean the same, whatever the order of their properties."""
    return sorted(map(_canonical, one)) == sorted(map(_canonical, other))


def properties(text: str) -> dict[str, str]:
    """A property string's names and values."""
    return dict(part.partition("=")[::2] for part in text.split(","))


def _canonical(text: str) -> tuple[tuple[str, str], ...]:
    # A description is the operator's; it changes nothing for a virtual machine.
    return tuple(sorted((name, value) for name, value in properties(text).items() if name != "description"))


def _array(text: str) -> list[Any]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and isinstance(one.get("id"), str) for one in found
    ):
        raise ValueError("not a list of mappings")
    return found
