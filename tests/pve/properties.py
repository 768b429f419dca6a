"""Proxmox' property strings: ``local-lvm:vm-100-disk-0,size=32G`` and the like."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse(text: str, default: str = "") -> dict[str, str]:
    """Key to value in order; a value without a key gets ``default``."""
    found = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        found.update({key: value} if separator else {default: part})
    return found


def join(values: dict[str, str], default: str = "") -> str:
    """The other way; ``default``'s value stands first and without its key."""
    return ",".join(
        [*([values[default]] if default in values else []), *(f"{k}={v}" for k, v in values.items() if k != default)]
    )


def size_in_bytes(text: str) -> int:
    """``32G`` or a plain number.

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return int(float(found[1]) * _UNITS[found[2]])


def size_in_words(count: int) -> str:
    """The largest unit that leaves a whole number."""
    for unit, factor in reversed(_UNITS.items()):
        if count >= factor and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)
