"""A transcript as subtitles: cues in order that never overlap, each short enough to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from metalscribe.render.layout import CUE_MS, Layout, timed_pieces, untimed_pieces
from metalscribe.render.lettering import columns, speaker_label
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
    only a single word may exceed that. Otherwise the segment is one cue. Segments without text yield none.
    """
    return _in_order([cue for segment in transcript.segments for cue in _segment_cues(segment)])


def speaker_prefix(speaker: str) -> str:
    """How a format without voices names the speaker, before the first line of a cue."""
    return f"[{speaker}] "


def _segment_cues(segment: Segment) -> Iterable[Cue]:
    speaker = speaker_label(segment.speaker)
    indent = columns(speaker_prefix(speaker)) if speaker else 0
    pieces = timed_pieces(segment)
    if pieces:
        layout = Layout(pieces, indent)
        for first, last in layout.cues():
            yield Cue(pieces[first].start_ms, pieces[last].end_ms, layout.lines(first, last), speaker)
        return
    pieces = untimed_pieces(segment.text)
    if pieces:
        lines = Layout(pieces, indent).lines(0, len(pieces) - 1)
        yield Cue(milliseconds(segment.start), milliseconds(segment.end), lines, speaker)


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
