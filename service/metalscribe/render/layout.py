"""Laying out text: pieces that must stay whole, pieces to cues, a cue to lines.

Where the words' times are known, text is cut into as few, as even, as readable cues as it allows, by dynamic programming
over the places where it may be cut (the idea of Knuth and Plass, "Breaking Paragraphs into Lines", 1981, with a cost per
cue instead of one per line).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from metalscribe.render.lettering import (
    columns,
    ends_clause,
    ends_sentence,
    may_break,
    one_line,
    squashed,
    without_arrows,
)
from metalscribe.render.reading import CUE_MS, reading_ms
from metalscribe.render.times import milliseconds
from metalscribe.transcript import Segment

LINE_COLUMNS = 42
CUE_LINES = 2

# What a cut costs by where it falls, in columns of imbalance between two lines that it is worth: a sentence's end is
# free, a clause's end better than any pause, a long pause better than a short one, the middle of a phrase worst.
_CUT_AFTER_CLAUSE = 3.0
_CUT_AT_LONG_PAUSE = 5.0
_CUT_ANYWHERE = 12.0
_SHORT_PAUSE_MS = 250
_LONG_PAUSE_MS = 1000
# Empty room costs by its square, which keeps cues few and even: leaving a cue empty would cost this.
_EMPTY_CUE = 8.0
# For each second that a cue is shown too shortly to be read.
_HASTE = 6.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text that no line or cue may split.

    Attributes:
        spaced: a space stands before it where it does not start a line.
        start_ms: when it begins; 0 where the words' times are not known.
        end_ms: when it ends, not before it begins and not after the next piece begins.
    """

    text: str
    spaced: bool
    start_ms: int = 0
    end_ms: int = 0


def timed_pieces(segment: Segment) -> list[Piece] | None:
    """The segment's words with their times, in order and not overlapping; None where the words do not spell its text.

    The spaces are those of the segment's text. Words that no space or script separates (``well``, ``-known``) are one
    piece. Times that run backwards are moved up to the word before.
    """
    words = [(word, squashed(word.text)) for word in segment.words]
    words = [(word, letters) for word, letters in words if letters]
    text = _spelling(segment.text, "".join(word.text for word, _ in words))
    if not words or text is None:
        return None
    starts = list(accumulate((milliseconds(word.start) for word, _ in words), max))
    ends = [max(milliseconds(word.end), start) for (word, _), start in zip(words, starts, strict=True)]
    ends = [*(min(end, following) for end, following in zip(ends, starts[1:], strict=False)), ends[-1]]
    pieces: list[Piece] = []
    position = 0
    for (_, letters), start_ms, end_ms in zip(words, starts, ends, strict=True):
        begin, end = _locate(text, position, len(letters))
        _append(pieces, Piece(text[begin:end], spaced=False, start_ms=start_ms, end_ms=end_ms), text[position:begin])
        position = end
    return [replace(piece, text=without_arrows(piece.text)) for piece in pieces]


def untimed_pieces(text: str) -> list[Piece]:
    """The text in parts at which a line may be broken without knowing its words."""
    pieces: list[Piece] = []
    for chunk in one_line(text).split(" "):
        spaced = bool(pieces)
        # A no-break space holds what stands on both sides of it; at an end it holds nothing.
        for part in _unspaced_parts(chunk.strip()):
            pieces.append(Piece(without_arrows(part), spaced))
            spaced = False
    return pieces


def joined(pieces: list[Piece], following: list[Piece]) -> list[Piece]:
    """The pieces of one text and then those of another, with a space between them in scripts that have spaces."""
    first = following[0]
    spaced = not may_break(pieces[-1].text[-1], first.text[0], between_words=True)
    return [*pieces, replace(first, spaced=spaced), *following[1:]]


class Layout:
    """Pieces set in lines and cues.

    Args:
        pieces: at least one.
        indent: columns that a speaker's name takes from the first line of each cue.
        until_ms: how long the last piece may be shown; None where nothing follows soon.
    """

    def __init__(self, pieces: list[Piece], indent: int = 0, until_ms: int | None = None) -> None:
        self._pieces = pieces
        self._indent = indent
        self._until_ms = until_ms
        # Columns where each piece starts and ends if all of them stood on one line.
        self._lefts: list[int] = []
        self._rights: list[int] = []
        right = 0
        for piece in pieces:
            self._lefts.append(right + piece.spaced)
            right += piece.spaced + columns(piece.text)
            self._rights.append(right)

    def cues(self) -> Iterator[tuple[int, int]]:
        """First and last piece of each cue, such that none exceeds two lines or seven seconds unless it is one piece."""
        count = len(self._pieces)
        if self._fits(0, count - 1):
            yield 0, count - 1
            return
        costs = [0.0] + [float("inf")] * count
        begins = [0] * (count + 1)
        for first in range(count):
            for last in range(first, count):
                if not self._fits(first, last):
                    break  # nor does anything longer
                cost = costs[first] + self._cue_cost(first, last)
                if cost < costs[last + 1]:
                    costs[last + 1], begins[last + 1] = cost, first
        cuts = [count]
        while cuts[-1]:
            cuts.append(begins[cuts[-1]])
        for first, after in pairwise(reversed(cuts)):
            yield first, after - 1

    def lines(self, first: int, last: int) -> tuple[str, ...]:
        """The pieces from first to last on as few lines as they need; two lines are balanced."""
        cuts = [first]
        while cuts[-1] <= last:
            cuts.append(self._line_end(cuts[-1], last, self._room(first, cuts[-1])) + 1)
        if len(cuts) - 1 == CUE_LINES:
            cuts[1] = self._balance(first, last)
        return tuple(self._line(begin, after - 1) for begin, after in pairwise(cuts))

    def _line(self, first: int, last: int) -> str:
        pieces = self._pieces[first : last + 1]
        return pieces[0].text + "".join(" " * piece.spaced + piece.text for piece in pieces[1:])

    def _fits(self, first: int, last: int) -> bool:
        if first == last:
            return True
        if self._pieces[last].end_ms - self._pieces[first].start_ms > CUE_MS:
            return False
        end = self._line_end(first, last, self._room(first, first))
        return end == last or self._line_fits(end + 1, last, LINE_COLUMNS)

    def _room(self, cue_first: int, line_first: int) -> int:
        return LINE_COLUMNS - (self._indent if line_first == cue_first else 0)

    def _line_fits(self, first: int, last: int, room: int) -> bool:
        return first == last or self._rights[last] - self._lefts[first] <= room

    def _line_end(self, first: int, last: int, room: int) -> int:
        """The last piece of the longest line that starts with the first piece; a piece too long stands alone."""
        return max(first, bisect_right(self._rights, self._lefts[first] + room, first, last + 1) - 1)

    def _balance(self, first: int, last: int) -> int:
        """The piece that starts the second of two lines."""

        def cost(start: int) -> float:
            upper = self._rights[start - 1] - self._lefts[first] + self._indent
            lower = self._rights[last] - self._lefts[start]
            return abs(upper - lower) + self._cut_cost(start - 1)

        return min(
            (
                start
                for start in range(first + 1, last + 1)
                if self._line_fits(first, start - 1, self._room(first, first))
                and self._line_fits(start, last, LINE_COLUMNS)
            ),
            key=cost,
        )

    def _cue_cost(self, first: int, last: int) -> float:
        width = self._rights[last] - self._lefts[first]
        filled = min(1.0, width / (CUE_LINES * LINE_COLUMNS))
        cut = 0.0 if last + 1 == len(self._pieces) else self._cut_cost(last)
        return _EMPTY_CUE * (1.0 - filled) ** 2 + cut + _HASTE * self._lacking_seconds(first, last, width)

    def _lacking_seconds(self, first: int, last: int, width: int) -> float:
        """How much longer one would read the cue than it can be shown."""
        until_ms = self._pieces[last + 1].start_ms if last + 1 < len(self._pieces) else self._until_ms
        if until_ms is None:
            return 0.0
        return max(0, reading_ms(width) - (until_ms - self._pieces[first].start_ms)) / 1000

    def _cut_cost(self, last: int) -> float:
        piece = self._pieces[last]
        if ends_sentence(piece.text):
            return 0.0
        if ends_clause(piece.text):
            return _CUT_AFTER_CLAUSE
        pause_ms = self._pieces[last + 1].start_ms - piece.end_ms
        if pause_ms < _SHORT_PAUSE_MS:
            return _CUT_ANYWHERE
        return _CUT_ANYWHERE - (_CUT_ANYWHERE - _CUT_AT_LONG_PAUSE) * min(1.0, pause_ms / _LONG_PAUSE_MS)


def _spelling(text: str, words: str) -> str | None:
    """The text that the words spell, on one line, with the text's own spacing; None if they spell something else."""
    letters, spelled = squashed(text), squashed(words)
    if letters == spelled:
        return one_line(text)
    # A character cut off by the end of a chunk is U+FFFD in the text and missing from the words: no loss.
    return one_line(words) if letters.replace("\ufffd", "") == spelled.replace("\ufffd", "") or not letters else None


def _unspaced_parts(chunk: str) -> Iterator[str]:
    breaks = (index for index, pair in enumerate(pairwise(chunk), 1) if may_break(*pair, between_words=False))
    for begin, end in pairwise([0, *breaks, len(chunk)]):
        if begin < end:
            yield chunk[begin:end]


def _locate(text: str, position: int, letters: int) -> tuple[int, int]:
    """Where the next so many characters, white space not counted, begin and end."""
    while text[position].isspace():
        position += 1
    end = position
    while letters:
        letters -= not text[end].isspace()
        end += 1
    return position, end


def _append(pieces: list[Piece], piece: Piece, gap: str) -> None:
    """Add a piece, or join it to the last one where nothing allows a break between them."""
    if not pieces or " " in gap:
        pieces.append(replace(piece, spaced=bool(pieces)))
    elif not gap and may_break(pieces[-1].text[-1], piece.text[0], between_words=True):
        pieces.append(piece)
    else:
        pieces[-1] = replace(pieces[-1], text=pieces[-1].text + gap + piece.text, end_ms=piece.end_ms)
