from __future__ import annotations

from pathlib import Path

import pytest

from metalscribe.engine.processor import wider_instructions

SKYLAKE = "fpu vme avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
ICE_LAKE = f"{SKYLAKE} avx512_bitalg avx512_vnni"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (f"processor\t: 0\nflags\t\t: {ICE_LAKE}\n\nprocessor\t: 1\nflags\t\t: {ICE_LAKE}\n", "AVX512"),
        (f"processor\t: 0\nflags\t\t: {SKYLAKE}\n", None),
        ("processor\t: 0\nflags\t\t: fpu vme avx2 fma\n", None),
        ("processor\t: 0\nFeatures\t: fp asimd evtstrm aes\n", None),  # ARM names them otherwise
        ("", None),
    ],
)
def test_asks_for_what_the_processor_has(tmp_path: Path, cpuinfo: str, expected: str | None) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert wider_instructions(tmp_path / "cpuinfo") == expected


def test_without_proc_nothing_is_asked_for(tmp_path: Path) -> None:
    assert wider_instructions(tmp_path / "missing") is None
