from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalscribe.engine.messages import AlignedWord, RowDone
from metalscribe.engine.timeline import Timeline, lasting, place_words, segments_of, sentences, whole_words
from metalscribe.media.messages import Piece
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.transcript import Task, Word

TOLERANCE = 1e-6


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Timeline, list[tuple[int, int, int]]]:
    """A timeline, and its pieces (ring position, length, place in the recording)."""
    timeline, pieces = Timeline(), []
    at = source = 0
    for _ in range(draw(st.integers(1, 8))):
        source += draw(st.integers(0, 10 * SAMPLE_RATE))
        length = draw(st.integers(512, 12 * SAMPLE_RATE))
        timeline.append(at, [Piece(source, length)])
        pieces.append((at, length, source))
        at, source = at + length, source + length
    return timeline, pieces


@st.composite
def aligned_words(draw: st.DrawFn, length: float) -> list[AlignedWord]:
    """Words in order, as alignment gives them: touching, empty or overlong ones included."""
    marks = sorted(draw(st.lists(st.floats(0, length), min_size=2, max_size=20)))
    texts = draw(st.lists(st.sampled_from([" yes", " no.", " Mr.", " 3.", "14", " So", "?", " “Why?”"]), min_size=1))
    return [
        AlignedWord(start, end, texts[number % len(texts)], draw(st.floats(-0.1, 1.1)))
        for number, (start, end) in enumerate(itertools.pairwise(marks))
    ]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_words_are_in_order_and_lie_within_the_pieces(data: st.DataObject) -> None:
    timeline, pieces = data.draw(timelines())
    total = (pieces[-1][0] + pieces[-1][1]) / SAMPLE_RATE
    aligned = data.draw(aligned_words(total))
    words = place_words(aligned, 0.0, timeline)
    assert [word.text for word in words] == [word.text for word in aligned]
    floor = 0.0
    for word in words:
        assert floor - TOLERANCE <= word.start <= word.end
        assert 0.0 <= word.probability <= 1.0
        assert any(
            source / SAMPLE_RATE - TOLERANCE <= word.start and word.end <= (source + length) / SAMPLE_RATE + TOLERANCE
            for _, length, source in pieces
        ), "a word stretches over silence that was cut out"
        floor = word.end


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_span_within_a_piece_is_moved_and_not_bent(data: st.DataObject) -> None:
    timeline, pieces = data.draw(timelines())
    at, length, source = data.draw(st.sampled_from(pieces))
    first = data.draw(st.floats(0.01, 0.98)) * length
    second = data.draw(st.floats(first / length, 0.99)) * length
    start, end = timeline.span((at + first) / SAMPLE_RATE, (at + second) / SAMPLE_RATE)
    assert start == pytest.approx((source + first) / SAMPLE_RATE, abs=1e-6)
    assert end == pytest.approx((source + second) / SAMPLE_RATE, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_wide_span_grows_with_its_ends(data: st.DataObject) -> None:
    timeline, pieces = data.draw(timelines())
    total = (pieces[-1][0] + pieces[-1][1]) / SAMPLE_RATE
    marks = sorted(data.draw(st.lists(st.floats(0, total + 1), min_size=2, max_size=10)))
    places = [timeline.wide_span(mark, mark)[0] for mark in marks]
    assert places == sorted(places)
    start, end = timeline.wide_span(marks[0], marks[-1])
    assert 0 <= start <= end <= (pieces[-1][1] + pieces[-1][2]) / SAMPLE_RATE + TOLERANCE


def test_what_is_forgotten_does_not_move_what_is_kept() -> None:
    timeline = Timeline()
    timeline.append(0, [Piece(0, SAMPLE_RATE), Piece(5 * SAMPLE_RATE, SAMPLE_RATE)])
    timeline.append(2 * SAMPLE_RATE, [Piece(20 * SAMPLE_RATE, SAMPLE_RATE)])
    before = timeline.span(2.2, 2.8)
    timeline.forget(2 * SAMPLE_RATE)
    assert timeline.span(2.2, 2.8) == before
    assert before == pytest.approx((20.2, 20.8))
    timeline.forget(100 * SAMPLE_RATE)
    assert timeline.span(2.2, 2.8) == before


def test_a_word_that_swallowed_a_pause_gives_it_back() -> None:
    timeline = Timeline()
    timeline.append(0, [Piece(0, 30 * SAMPLE_RATE)])
    first, second = place_words(
        [AlignedWord(0.0, 9.0, " So", 1.0), AlignedWord(9.0, 20.0, " long", 1.0)], 0.0, timeline
    )
    assert (first.start, first.end) == (7.0, 9.0)
    assert (second.start, second.end) == (9.0, 11.0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_word_lasts_and_stays_in_order_between_the_ends(data: st.DataObject) -> None:
    aligned = data.draw(aligned_words(20.0))
    words = lasting(aligned)
    assert [word.text for word in words] == [word.text for word in aligned]
    assert all(before.end <= after.start + TOLERANCE for before, after in itertools.pairwise(words))
    assert words[0].start == aligned[0].start
    if aligned[-1].end > aligned[0].start:  # there is time for them
        assert all(word.start < word.end for word in words)
        assert words[-1].end <= max(aligned[-1].end, aligned[-1].start + 1e-9)
    for word, before in zip(words, aligned, strict=True):
        if before.end - before.start > 2.0:
            assert word.end > before.start
            assert word.start < before.end, "a word is somewhere else now"


def lasted(*texts_and_times: tuple[str, float, float]) -> list[tuple[float, float]]:
    words = lasting([AlignedWord(start, end, text, 1.0) for text, start, end in texts_and_times])
    return [(round(word.start, 6), round(word.end, 6)) for word in words]


def test_a_hurried_word_shares_the_next_ones_time() -> None:
    assert lasted((" so,", 0.0, 1.0), (" my", 1.4, 1.4), (" fellow", 1.4, 1.8)) == [(0, 1), (1.4, 1.5), (1.5, 1.8)]


def test_it_gets_back_what_a_comma_has_taken() -> None:
    assert lasted((" center,", 2.0, 2.0), (" back", 3.0, 3.2)) == [(2, 2.42), (3, 3.2)]
    assert lasted((" center,", 2.0, 2.0), (" back", 2.1, 3.2)) == [(2, 2.1), (2.1, 3.2)]
    assert lasted((" Well,", 2.0, 2.0), (" I", 2.1, 2.1), (" see", 2.1, 2.5)) == [(2, 2.1), (2.1, 2.2), (2.2, 2.5)]


def test_at_the_end_it_shares_the_last_ones_time() -> None:
    assert lasted((" Why", 1.0, 1.6), (" am", 1.6, 1.6), (" I", 1.6, 1.6)) == [(1, 1.3), (1.3, 1.5), (1.5, 1.6)]


def test_where_nothing_lasts_nothing_can_be_shared() -> None:
    assert lasted((" a", 1.0, 1.0), (" b", 1.0, 1.0)) == [(1, 1), (1, 1)]
    assert lasting([]) == []


# --- sentences --------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from([" yes", " No.", " Mr.", " he", " 3.", "14", "!", " “Why?”", " …", "。", "你", " don't", ""])


@st.composite
def words_in_time(draw: st.DrawFn) -> list[Word]:
    words, now = [], 0.0
    for _ in range(draw(st.integers(0, 60))):
        now += draw(st.sampled_from([0.0, 0.05, 0.9, 1.1, 8.0]))
        end = now + draw(st.sampled_from([0.0, 0.1, 0.5, 2.0]))
        words.append(Word(now, end, draw(TEXTS), 1.0))
        now = end
    return words


@settings(max_examples=150, deadline=None)
@given(words_in_time())
def test_sentences_are_a_partition_of_the_words(words: list[Word]) -> None:
    groups = sentences(words)
    assert [word for group in groups for word in group] == words
    assert all(groups)


@settings(max_examples=100, deadline=None)
@given(words_in_time())
def test_no_segment_is_overlong_or_contains_a_long_pause(words: list[Word]) -> None:
    for group in sentences(words):
        assert len(group) == 1 or group[-1].end - group[0].start <= 20.0 + TOLERANCE
        assert all(after.start - before.end < 1.0 for before, after in itertools.pairwise(group))


@settings(max_examples=100, deadline=None)
@given(words_in_time(), st.integers(0, 5))
def test_segments_carry_all_the_text(words: list[Word], first: int) -> None:
    text = "".join(word.text for word in words)
    segments = segments_of(done(text), words, (0.0, 1.0), first)
    assert "".join(segment.text for segment in segments) == (text if text.strip() else "")
    assert [segment.index for segment in segments] == list(range(first, first + len(segments)))
    assert all(segment.start == segment.words[0].start and segment.end == segment.words[-1].end for segment in segments)


def done(text: str) -> RowDone:
    return RowDone(1, text, [], "en", 1.0, -0.2, 0.01, 1.2, [])


def spoken(*texts: str) -> list[Word]:
    return [Word(float(number) / 2, float(number) / 2 + 0.4, text, 1.0) for number, text in enumerate(texts)]


def texts_of(*texts: str) -> list[str]:
    return ["".join(word.text for word in group) for group in sentences(spoken(*texts))]


def test_sentences_end_where_sentences_end() -> None:
    assert texts_of(" It", " works.", " Does", " it?", " “Yes!”", " he", " said.") == [
        " It works.",
        " Does it?",
        " “Yes!” he said.",
    ]


def test_numbers_and_abbreviations_are_no_ends() -> None:
    assert texts_of(" About", " 3.", "14", " e.g.", " this") == [" About 3.14 e.g. this"]


def test_text_without_words_is_one_segment_over_the_span() -> None:
    (segment,) = segments_of(done(" Only text."), [], (3.0, 9.5), 4)
    assert (segment.index, segment.start, segment.end, segment.text, segment.words) == (4, 3.0, 9.5, " Only text.", ())
    assert segments_of(done("  "), spoken(" x"), (0.0, 1.0), 0) == []


def test_words_are_parted_by_spaces_alone() -> None:
    pieces = [(" seven", 1), (" o", 1), ("'clock", 2), (",", 1), (" 1", 1), (",000", 1), (" e", 1), ("-mail", 1)]
    aligned = [AlignedWord(i, i + 1, text, 0.5 + i / 20, tokens) for i, (text, tokens) in enumerate(pieces)]
    words = whole_words(aligned, "en", Task.TRANSCRIBE)
    assert [word.text for word in words] == [" seven", " o'clock,", " 1,000", " e-mail"]
    assert [(word.start, word.end) for word in words] == [(0, 1), (1, 4), (4, 6), (6, 8)]
    assert sum(word.tokens for word in words) == sum(tokens for _, tokens in pieces)
    assert words[1].probability == pytest.approx((0.55 + 2 * 0.6 + 0.65) / 4)


def test_languages_without_spaces_keep_their_words_unless_they_are_translated() -> None:
    aligned = [AlignedWord(0, 1, "今天", 1.0), AlignedWord(1, 2, "天气", 1.0)]
    assert whole_words(aligned, "zh", Task.TRANSCRIBE) == aligned
    pieces = [AlignedWord(0, 1, " wea", 1.0), AlignedWord(1, 2, "ther", 1.0)]
    assert [word.text for word in whole_words(pieces, "zh", Task.TRANSLATE)] == [" weather"]
    assert whole_words([], "en", Task.TRANSCRIBE) == []
