"""How long a cue stays: long enough to be read, as far as the recording and the next cue let it.

The figures are those of Netflix's Timed Text Style Guide (General Requirements, Subtitle Timing Guidelines), which most
of the field works by, in columns: a Chinese character is read in the time of two letters, about nine a second.
"""

from __future__ import annotations

from collections.abc import Sequence

from metalscribe.render.lettering import columns

CUE_MS = 7000
SHORTEST_MS = 833
"""Five sixths of a second: what is shown for less is a flicker."""

CLOSE_MS = 500
"""A gap up to half a second looks like a flicker too: a cue stays until the next one is about to come."""

_COLUMNS_PER_SECOND = 17
_BETWEEN_MS = 83  # two frames at 24 a second, by which the eye notices that the text has changed


def reading_ms(width: int) -> int:
    """How long a cue should be shown whose text is so many columns wide, on one line."""
    return min(CUE_MS, max(SHORTEST_MS, -(-1000 * width // _COLUMNS_PER_SECOND)))


def width_of(lines: Sequence[str]) -> int:
    """Columns of a cue's text as if on one line; a line's end is read like a space."""
    return sum(map(columns, lines)) + len(lines) - 1


def shown_until(start_ms: int, end_ms: int, width: int, *, following_ms: int | None, duration_ms: int) -> int:
    """When a cue ends: at least as long as it takes to read it, where there is room.

    A cue never stays beyond the start of the next one, and keeps two frames clear before it unless it needs them to be
    read; it never outlasts the recording or seven seconds for the sake of being read, only for what is spoken.

    Args:
        start_ms: of the cue.
        end_ms: of its speech, not after ``following_ms``.
        width: of its text, in columns.
        following_ms: start of the next cue, None after the last.
        duration_ms: of the recording.
    """
    latest = max(end_ms, min(duration_ms, start_ms + CUE_MS))
    readable = min(start_ms + reading_ms(width), latest)
    wanted = max(end_ms, readable)
    if following_ms is None or following_ms - wanted > CLOSE_MS:
        return wanted
    clear = following_ms - _BETWEEN_MS
    return min(max(clear, readable), following_ms, latest)
