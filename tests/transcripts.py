"""What holds for every transcript, whatever was said."""

from __future__ import annotations

from itertools import pairwise

from metalscribe.transcript import Transcript


def check(transcript: Transcript, *, words: bool) -> None:
    """Order, bounds, and texts that agree with each other; ``words``: whether they were asked for."""
    segments = transcript.segments
    assert [segment.index for segment in segments] == list(range(len(segments)))
    assert all(0 <= segment.start <= segment.end <= transcript.duration for segment in segments)
    assert all(before.end <= after.start for before, after in pairwise(segments))
    assert all(segment.text.strip() for segment in segments)
    assert "".join(segment.text for segment in segments).strip() == transcript.text
    for segment in segments:
        assert bool(segment.words) is words
        if words:
            assert "".join(word.text for word in segment.words) == segment.text
            assert all(word.text.strip() for word in segment.words)
            assert all(word.start <= word.end for word in segment.words)
            assert all(before.end <= after.start for before, after in pairwise(segment.words))
            assert segment.start <= segment.words[0].start
            assert segment.words[-1].end <= segment.end
            assert all(0 <= word.probability <= 1 for word in segment.words)
