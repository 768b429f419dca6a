"""Speech without words: where a model has skipped a sentence, judged by its own alignment of words and sound.

A word gets as much time as it took to say; a sentence that was left out leaves its time behind, as a gap between two words
or as a word beside it that seems to last for seconds. Speech reaches the model with its pauses cut out, so on 35 minutes
of readings a hole of 1.6 seconds told every sentence that tiny.en had skipped, and hardly anything else
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metalscribe.engine.messages import AlignedWord

SMALLEST: Final = 1.6
"""Seconds."""

_USUAL_WORD: Final = 0.7
_LONGEST_WORD: Final = 1.5


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch that lacks words.

    Attributes:
        first, last: words ``[first:last]`` stand in it, drawn out beyond belief; mostly there is none.
        start, end: seconds from the start of the row, from the last word before to the first word after.
        seconds: of speech that no word accounts for.
    """

    first: int
    last: int
    start: float
    end: float
    seconds: float


def find_holes(words: Sequence[AlignedWord], length: float, smallest: float = SMALLEST) -> list[Hole]:
    """The holes of a row, in order; they do not overlap.

    Args:
        words: all of the row's, in order.
        length: of the row, in seconds.
        smallest: leave out what lacks fewer seconds.
    """
    holes: list[Hole] = []
    for after in range(len(words) + 1):
        before = after - 1
        end = words[before].end if before >= 0 else 0.0
        start = words[after].start if after < len(words) else length
        missing = start - end + _excess(words, before) + _excess(words, after)
        if missing < smallest:
            continue
        first = before if _drawn_out(words, before) else after
        last = after + 1 if _drawn_out(words, after) else after
        if holes and first < holes[-1].last:
            known = holes.pop()
            first, missing = known.first, max(missing, known.seconds)
        holes.append(
            Hole(
                first,
                last,
                words[first - 1].end if first > 0 else 0.0,
                words[last].start if last < len(words) else length,
                missing,
            )
        )
    return holes


def _excess(words: Sequence[AlignedWord], index: int) -> float:
    if not 0 <= index < len(words):
        return 0.0
    return max(0.0, words[index].end - words[index].start - _USUAL_WORD)


def _drawn_out(words: Sequence[AlignedWord], index: int) -> bool:
    return 0 <= index < len(words) and words[index].end - words[index].start > _LONGEST_WORD
