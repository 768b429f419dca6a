"""The table of cards: consistent in itself, and of one mind with the PCI ID database where that is installed."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalscribe_provision.driver.cards import ARCHITECTURES, LISTED_FROM, Card, Flavour, architecture_of

PCI_IDS = next(
    (path for path in map(Path, ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")) if path.is_file()), None
)

CHIPS = {
    "GM": "Maxwell",
    "GP": "Pascal",
    "GV": "Volta",
    "TU": "Turing",
    "GA": "Ampere",
    "GH": "Hopper",
    "AD": "Ada Lovelace",
    "GB": "Blackwell",
}
"""Beginning of a chip's name → architecture; older chips are G80 to GT2xx, GF1xx, GK1xx, NVxx, …"""

NOT_A_CARD = {0x3340}
"""GB120, of which there is no product."""


def test_ranges_are_disjoint_and_in_order() -> None:
    ranges = sorted(span for architecture in ARCHITECTURES for span in architecture.ids)
    assert all(first <= last for first, last in ranges)
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize(
    ("device_id", "name"),
    [
        (0x0FF3, "Kepler or older"),  # Quadro K420
        (0x13F1, "Maxwell"),  # Quadro M4000
        (0x1B06, "Pascal"),  # GeForce GTX 1080 Ti
        (0x15F8, "Pascal"),  # Tesla P100
        (0x1DB6, "Volta"),  # Tesla V100
        (0x1E87, "Turing"),  # GeForce RTX 2080
        (0x1EB8, "Turing"),  # Tesla T4
        (0x2184, "Turing"),  # GeForce GTX 1660
        (0x20B0, "Ampere"),  # A100
        (0x2204, "Ampere"),  # GeForce RTX 3090
        (0x2335, "Hopper"),  # H200
        (0x2684, "Ada Lovelace"),  # GeForce RTX 4090
        (0x27B8, "Ada Lovelace"),  # L4
        (0x2B85, "Blackwell"),  # GeForce RTX 5090
        (0x2901, "Blackwell"),  # B200
        (0x3182, "Blackwell Ultra"),  # B300
    ],
)
def test_known_cards(device_id: int, name: str) -> None:
    architecture = architecture_of(device_id)
    assert architecture is not None
    assert architecture.name == name


def test_an_id_beyond_the_table_is_unknown() -> None:
    assert architecture_of(0x4001) is None
    assert str(Card("0000:01:00.0", 0x4001)) == "10de:4001 (unknown) at 0000:01:00.0"


def test_grace_hopper_has_the_open_modules_alone() -> None:
    assert Card("0000:01:00.0", 0x2342).flavours == {Flavour.OPEN}
    assert Card("0000:01:00.0", 0x2330).flavours == {Flavour.OPEN, Flavour.PROPRIETARY}


@given(st.integers(0, 0xFFFF))
def test_a_newer_architecture_never_lacks_the_open_modules(device_id: int) -> None:
    architecture = architecture_of(device_id)
    if architecture is not None and architecture.flavours:
        # Only those that end, with the proprietary modules, lack them.
        assert (Flavour.OPEN in architecture.flavours) == (architecture.last_branch is None)


def test_late_cards_are_of_an_architecture_that_came_before_them() -> None:
    for device_id, branch in LISTED_FROM.items():
        architecture = architecture_of(device_id)
        assert architecture is not None
        assert architecture.first_branch < branch


@pytest.mark.skipif(PCI_IDS is None, reason="no PCI ID database here (package pci.ids)")
def test_every_display_device_of_the_pci_id_database_is_where_its_chip_belongs() -> None:
    assert PCI_IDS is not None
    devices = nvidia_devices(PCI_IDS.read_text(encoding="utf-8", errors="replace"))
    checked = 0
    for device_id, name in devices.items():
        # Sound, USB and bridge functions carry their chip's name too, in words of their own.
        if re.search(r"Audio|USB|UCSI|NVSwitch|Bridge|Endpoint|Root|SATA|Controller", name) or device_id in NOT_A_CARD:
            continue
        chip = re.match(r"(G[MPVAHB]|TU|AD)\d\w{2}", name)
        architecture = architecture_of(device_id)
        assert architecture is not None, f"{device_id:04x} {name}"
        if chip:
            assert architecture.name.startswith(CHIPS[chip[1]]), f"{device_id:04x} {name}"
            checked += 1
        elif re.match(r"(G[KF]|G|GT|NV|C|MCP|nForce)\d", name):
            assert architecture.name == "Kepler or older", f"{device_id:04x} {name}"
            checked += 1
    assert checked > 1000


def nvidia_devices(text: str) -> dict[int, str]:
    """Device id → name of vendor 10de: ``\\t13f1  GM204GL [Quadro M4000]``."""
    vendor = re.search(r"^10de\s.*\n((?:\t.*\n|#.*\n|\n)*)", text, re.MULTILINE)
    assert vendor is not None
    return {int(found[1], 16): found[2] for found in re.finditer(r"^\t([0-9a-f]{4})  (.*)$", vendor[1], re.MULTILINE)}
