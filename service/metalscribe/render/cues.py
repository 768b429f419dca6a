"""A transcript as subtitles: cues in order that never overlap, each short enough to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, zip_longest

from metalscribe.render.layout import Layout, Piece, joined, timed_pieces, untimed_pieces
from metalscribe.render.lettering import columns, speaker_label
from metalscribe.render.reading import CLOSE_MS, CUE_MS, SHORTEST_MS, shown_until, width_of
from metalscribe.render.times import milliseconds
from metalscribe.transcript import Segment, Transcript


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines of text and when to show them; ``end_ms`` is above ``start_ms`` and not above the next cue's start.

    Attributes:
        lines: at least one, none empty, no control characters, no ``-->``; not escaped for any format.
        speaker: who speaks, fit for a prefix or a tag; the first line leaves room for :func:`speaker_prefix`.
    """

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    speaker: str | None = None


def cues(transcript: Transcript) -> list[Cue]:
    """Cut the transcript's segments into cues, in the order of the text.

    Where a segment's words are known it is split between them to at most two lines of 42 columns and seven seconds;
    only a single word may exceed that. Otherwise the segment is one cue. Segments without text yield none. Segments too
    short to be read before the next one comes share a cue with their neighbour, and every cue stays as
    :mod:`metalscribe.render.reading` has it.
    """
    duration_ms = milliseconds(transcript.duration)
    passages = [passage for segment in transcript.segments if (passage := _passage(segment)) is not None]
    drafts = [cue for passage, until_ms in _legible(passages, duration_ms) for cue in passage.cues(until_ms)]
    ordered = _in_order(drafts)
    return [_held(cue, following, duration_ms) for cue, following in zip_longest(ordered, ordered[1:])]


def speaker_prefix(speaker: str) -> str:
    """How a format without voices names the speaker, before the first line of a cue."""
    return f"[{speaker}] "


@dataclass(frozen=True, slots=True)
class _Passage:
    """What one speaker says in one go: a segment, or several that are too short to stand alone.

    Attributes:
        timed: the pieces have times; otherwise the passage is one cue.
    """

    start_ms: int
    end_ms: int
    pieces: list[Piece]
    timed: bool
    speaker: str | None

    def cues(self, until_ms: int) -> Iterable[Cue]:
        """The passage's cues, the last of which can be shown until then."""
        indent = columns(speaker_prefix(self.speaker)) if self.speaker else 0
        layout = Layout(self.pieces, indent, until_ms)
        if not self.timed:
            yield Cue(self.start_ms, self.end_ms, layout.lines(0, len(self.pieces) - 1), self.speaker)
            return
        for first, last in layout.cues():
            start_ms, end_ms = self.pieces[first].start_ms, self.pieces[last].end_ms
            yield Cue(start_ms, end_ms, layout.lines(first, last), self.speaker)

    def followed_by(self, other: _Passage) -> bool:
        """Whether the other one goes on where this one ends, so that both may share a cue."""
        gap_ms = other.start_ms - self.end_ms
        return self.timed and other.timed and self.speaker == other.speaker and 0 <= gap_ms <= CLOSE_MS

    def with_(self, other: _Passage) -> _Passage:
        """Both in one."""
        return replace(self, end_ms=other.end_ms, pieces=joined(self.pieces, other.pieces))


def _passage(segment: Segment) -> _Passage | None:
    """A segment's own passage, None where it has no text."""
    speaker = speaker_label(segment.speaker)
    pieces = timed_pieces(segment)
    if pieces:
        return _Passage(pieces[0].start_ms, pieces[-1].end_ms, pieces, timed=True, speaker=speaker)
    pieces = untimed_pieces(segment.text)
    if not pieces:
        return None
    return _Passage(milliseconds(segment.start), milliseconds(segment.end), pieces, timed=False, speaker=speaker)


def _legible(passages: Sequence[_Passage], duration_ms: int) -> list[tuple[_Passage, int]]:
    """The passages, those that would only flicker joined to a neighbour's, each with the time when it has to be gone."""
    kept: list[tuple[_Passage, int]] = []
    flickers = False
    for passage, following in zip_longest(passages, passages[1:]):
        until_ms = following.start_ms if following else max(duration_ms, passage.end_ms)
        flickered, flickers = flickers, until_ms - passage.start_ms < SHORTEST_MS
        before = kept[-1][0] if kept else None
        alone = following is None or not passage.followed_by(following)
        if before is not None and before.followed_by(passage) and (flickered or (flickers and alone)):
            kept[-1] = before.with_(passage), until_ms
        else:
            kept.append((passage, until_ms))
    return kept


def _in_order(drafts: Sequence[Cue]) -> list[Cue]:
    """Mend times that overlap, run backwards or take no time, keeping the order of the text, which errs less often.

    A cue ends where the next one starts. Cues that start no later than the one before them have no start of their own
    to keep: together with it they share the time up to the next cue that has, by the length of their texts.
    """
    placed: list[Cue] = []
    first = 0
    clock = 0
    while first < len(drafts):
        start = max(drafts[first].start_ms, clock)
        after = first + 1
        while after < len(drafts) and drafts[after].start_ms <= start:
            after += 1
        end = max(draft.end_ms for draft in drafts[first:after])
        if after < len(drafts):
            end = min(end, drafts[after].start_ms)
        placed.extend(_share(drafts[first:after], start, end))
        clock = placed[-1].end_ms
        first = after
    return placed


def _share(drafts: Sequence[Cue], start_ms: int, end_ms: int) -> Iterable[Cue]:
    """Show the drafts one after another between the two times, each for at least a millisecond."""
    count = len(drafts)
    end_ms = max(end_ms, start_ms + count)
    weights = list(accumulate(sum(columns(line) for line in draft.lines) for draft in drafts))
    clock = start_ms
    for index, (draft, weight) in enumerate(zip(drafts, weights, strict=True), 1):
        share_end = start_ms + (end_ms - start_ms) * weight // weights[-1]
        share_end = min(max(share_end, clock + 1), end_ms - (count - index))
        longest = max(CUE_MS, draft.end_ms - draft.start_ms)
        share_end = min(share_end, clock + longest)
        yield Cue(clock, share_end, draft.lines, draft.speaker)
        clock = share_end


def _held(cue: Cue, following: Cue | None, duration_ms: int) -> Cue:
    """The cue, shown for as long as it takes to read it, or there is room."""
    following_ms = following.start_ms if following else None
    width = width_of(cue.lines)
    end_ms = shown_until(cue.start_ms, cue.end_ms, width, following_ms=following_ms, duration_ms=duration_ms)
    return replace(cue, end_ms=end_ms)
