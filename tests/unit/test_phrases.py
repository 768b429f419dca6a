from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from faster_whisper import WhisperModel
from hypothesis import given, settings
from hypothesis import strategies as st

from metalscribe.engine.messages import AlignedWord, Phrase
from metalscribe.engine.phrases import SECONDS_PER_STAMP, split_by_stamps, words_of

FIRST = 50_363
LENGTH = 30.0


def stamp(seconds: float) -> int:
    return FIRST + round(seconds / SECONDS_PER_STAMP)


def reference(tokens: list[int], length: float) -> tuple[list[tuple[float, float, list[int]]], float]:
    """faster-whisper's split of the same tokens, without its empty phrases."""
    frames = round(length * 100)
    whisper: Any = SimpleNamespace(time_precision=0.02, input_stride=2)
    segments, seek, _ = WhisperModel._split_segments_by_timestamps(
        whisper, SimpleNamespace(timestamp_begin=FIRST), tokens, 0.0, frames, length, 0
    )
    phrases = []
    for segment in segments:
        text = [token for token in segment["tokens"] if token < FIRST]
        if text:
            phrases.append((segment["start"], segment["end"], text))
    return phrases, seek / 100


@st.composite
def plausible_tokens(draw: st.DrawFn) -> list[int]:
    """What Whisper may write: text between rising stamps, the last phrase perhaps unfinished."""
    marks = sorted(draw(st.lists(st.integers(0, 1500), min_size=1, max_size=14)))
    tokens: list[int] = []
    for number, mark in enumerate(marks):
        tokens.append(FIRST + mark)
        if number % 2 == 0:
            tokens += draw(st.lists(st.integers(0, 50_000), min_size=1, max_size=5))
    return tokens


@settings(max_examples=200, deadline=None)
@given(plausible_tokens())
def test_phrases_equal_the_reference(tokens: list[int]) -> None:
    phrases, advance = split_by_stamps(tokens, FIRST, LENGTH)
    expected, seek = reference(tokens, LENGTH)
    assert [text for _, _, text in phrases] == [text for _, _, text in expected]
    for ours, theirs in zip(phrases, expected, strict=True):
        assert ours[0] == pytest.approx(theirs[0])
        assert ours[1] == pytest.approx(theirs[1])
    # Where the reference would not advance at all, the whole window is done.
    assert advance == pytest.approx(seek if seek > 0 else LENGTH)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 50_362), st.integers(FIRST, FIRST + 1500)), max_size=40),
    st.floats(0.02, LENGTH),
)
def test_any_tokens_give_phrases_within_the_window(tokens: list[int], length: float) -> None:
    phrases, advance = split_by_stamps(tokens, FIRST, length)
    assert 0 < advance <= length
    written = [token for token in tokens if token < FIRST]
    kept = [token for _, _, text in phrases for token in text]
    assert kept == written[: len(kept)], "words are lost or moved"
    for start, end, text in phrases:
        assert text
        assert 0 <= start <= length
        assert 0 <= end <= length


def test_the_window_moves_on_behind_the_last_complete_phrase() -> None:
    tokens = [stamp(0), 1, 2, stamp(4), stamp(4), 3, stamp(9), stamp(9), 4, 5]
    phrases, advance = split_by_stamps(tokens, FIRST, LENGTH)
    assert phrases == [(0.0, 4.0, [1, 2]), (4.0, 9.0, [3])]
    assert advance == pytest.approx(9.0)


def test_a_single_stamp_at_the_end_finishes_the_window() -> None:
    tokens = [stamp(0), 1, 2, stamp(4), stamp(5), 3, stamp(9)]
    assert split_by_stamps(tokens, FIRST, LENGTH) == ([(0.0, 4.0, [1, 2]), (5.0, 9.0, [3])], LENGTH)


def test_no_stamps_and_no_tokens() -> None:
    assert split_by_stamps([1, 2, 3], FIRST, 12.5) == ([(0.0, 12.5, [1, 2, 3])], 12.5)
    assert split_by_stamps([], FIRST, 12.5) == ([], 12.5)
    assert split_by_stamps([FIRST], FIRST, 12.5) == ([], 12.5)


# --- words of phrases -------------------------------------------------------------------------------------------------


def phrase(*tokens: int) -> Phrase:
    return Phrase(0.0, 1.0, "", list(tokens))


def words(*tokens: int) -> list[AlignedWord]:
    """Words of so many tokens each."""
    return [AlignedWord(0.0, 1.0, " word", 1.0, count) for count in tokens]


def test_words_are_handed_out_by_their_tokens() -> None:
    assert words_of([phrase(1, 2, 3), phrase(4, 5)], words(1, 2, 1, 1)) == [(0, 2), (2, 4)]


def test_a_word_across_two_phrases_is_the_firsts() -> None:
    assert words_of([phrase(1, 2), phrase(3, 4)], words(1, 2, 1)) == [(0, 2), (2, 3)]
    assert words_of([phrase(1, 2), phrase(3), phrase(4)], words(1, 2, 1)) == [(0, 2), (2, 2), (2, 3)]


def test_words_behind_the_last_complete_phrase_are_left() -> None:
    assert words_of([phrase(1, 2)], words(1, 1, 1, 1)) == [(0, 2)]


def test_no_words() -> None:
    assert words_of([phrase(1), phrase(2)], []) == [(0, 0), (0, 0)]


@given(st.lists(st.integers(1, 5)), st.lists(st.integers(1, 5), min_size=1))
def test_every_word_has_one_phrase_at_most(counts: list[int], lengths: list[int]) -> None:
    spans = words_of([phrase(*range(length)) for length in lengths], words(*counts))
    assert len(spans) == len(lengths)
    assert spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    begun = [word for word in range(len(counts)) if sum(counts[:word]) < sum(lengths)]
    assert spans[-1][1] == len(begun)
