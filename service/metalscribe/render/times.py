"""Seconds as the model tells them, to the whole milliseconds and time stamps of the text formats."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal


def milliseconds(seconds: float) -> int:
    """Round seconds to whole milliseconds, halves up, never negative.

    The number is taken as it is written, not as it is stored: 1.0005 is 1001 ms although the nearest binary fraction
    lies a little below. What is not a finite number has no place on a time line and becomes 0.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        return 0
    # repr() of a float is its shortest decimal form; float() because NumPy's scalars have a repr of their own.
    return int(Decimal(repr(float(seconds))).scaleb(3).to_integral_value(rounding=ROUND_HALF_UP))


def rounded(seconds: float) -> float:
    """Seconds to three decimals, by the rule of :func:`milliseconds`."""
    return milliseconds(seconds) / 1000


def srt_timestamp(milliseconds: int) -> str:
    """``HH:MM:SS,mmm`` as SubRip writes it; hours take more digits where they need them."""
    return _timestamp(milliseconds, ",")


def vtt_timestamp(milliseconds: int) -> str:
    """``HH:MM:SS.mmm`` as WebVTT writes it (https://www.w3.org/TR/webvtt1/#webvtt-timestamp)."""
    return _timestamp(milliseconds, ".")


def utc_text(moment: datetime) -> str:
    """A moment in UTC as JSON documents have it: RFC 3339 to the millisecond, with ``Z``."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _timestamp(milliseconds: int, decimal_mark: str) -> str:
    seconds, thousandths = divmod(max(0, milliseconds), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal_mark}{thousandths:03d}"
