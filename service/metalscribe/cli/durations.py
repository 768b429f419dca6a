"""Durations as people write them: 90d, 12h, 30m."""

from __future__ import annotations

import re
from datetime import timedelta

from metalscribe.errors import InvalidParameter

_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str, parameter: str) -> timedelta:
    """Read a duration such as 90d, 12h or 30m; the units are s, m, h, d and w.

    Raises:
        InvalidParameter: it is not one; ``parameter`` names the option.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidParameter(f"{text!r} is not a duration such as 90d, 12h or 30m.", parameter)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def duration_text(seconds: float) -> str:
    """A duration in the largest of the units h, m and s in which it is a whole number: 10h, 90m, 45s."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"
