"""Cues by example: where they are cut, how lines are set, how broken times are mended."""

from __future__ import annotations

from itertools import pairwise

import pytest

from metalscribe.render import Cue, cues
from metalscribe.render.lettering import columns, may_break, one_line, speaker_label, without_arrows
from metalscribe.transcript import Segment, Transcript, Word


def transcript(*segments: Segment) -> Transcript:
    return Transcript("".join(s.text for s in segments).strip(), "en", 1.0, 60.0, segments, "demo")


def spoken(text: str, *, start: float = 0.0, pace: float = 0.3, pauses: dict[str, float] | None = None) -> Segment:
    """A segment whose words last ``pace`` seconds each, with pauses after some of them."""
    words = []
    clock = start
    for word in text.split():
        words.append(Word(clock, clock + pace, f" {word}", 0.9))
        clock += pace + (pauses or {}).get(word, 0.0)
    return Segment(0, words[0].start, words[-1].end, f" {text}", tuple(words))


def lettered(text: str, *, pace: float = 0.2) -> Segment:
    """A segment whose words are single characters, as the model times scripts without spaces."""
    words = tuple(Word(i * pace, (i + 1) * pace, character, 0.9) for i, character in enumerate(text))
    return Segment(0, 0.0, len(text) * pace, text, words)


def untimed(text: str, start: float = 0.0, end: float = 5.0, speaker: str | None = None) -> Segment:
    return Segment(0, start, end, text, speaker=speaker)


def lines(*segments: Segment) -> list[tuple[str, ...]]:
    return [cue.lines for cue in cues(transcript(*segments))]


def spans(*segments: Segment) -> list[tuple[int, int]]:
    return [(cue.start_ms, cue.end_ms) for cue in cues(transcript(*segments))]


def test_no_segments_no_cues() -> None:
    assert cues(transcript()) == []


def test_a_short_segment_is_one_line_over_its_words_time() -> None:
    assert cues(transcript(spoken("Hello, world.", start=1.0, pace=0.5))) == [Cue(1000, 2000, ("Hello, world.",))]


def test_a_cue_is_cut_after_a_sentence() -> None:
    text = "We met the year before last in the winter. After that nothing was heard of them for quite a while."
    assert [" ".join(cue) for cue in lines(spoken(text))] == [
        "We met the year before last in the winter.",
        "After that nothing was heard of them for quite a while.",
    ]


def test_a_closing_quote_belongs_to_its_sentence() -> None:
    text = 'He told us "we are not going there any more." Then everyone was quiet for a rather long time indeed.'
    assert " ".join(lines(spoken(text))[0]) == 'He told us "we are not going there any more."'


def test_without_a_sentence_it_is_cut_after_a_comma() -> None:
    text = "when all of the others had left the big house at last, two of us stayed behind and put out the lights"
    assert [" ".join(cue) for cue in lines(spoken(text))] == [
        "when all of the others had left the big house at last,",
        "two of us stayed behind and put out the lights",
    ]


def test_without_punctuation_it_is_cut_at_a_pause() -> None:
    text = "when all of the others had left the big house at last two of us stayed behind and put out the lights"
    segment = spoken(text, pace=0.2, pauses={"last": 0.9})
    assert " ".join(lines(segment)[0]) == "when all of the others had left the big house at last"


def test_seven_seconds_cut_what_would_fit_in_letters() -> None:
    segment = spoken("one two three four five six seven eight", pace=1.0)
    for start, end in spans(segment):
        assert end - start <= 7000
    assert len(spans(segment)) == 2


def test_exactly_seven_seconds_is_one_cue() -> None:
    assert spans(spoken("one two three four five six seven", pace=1.0)) == [(0, 7000)]


def test_exactly_two_full_lines_are_one_cue() -> None:
    full = " ".join(["abcdefg"] * 5) + " xy"
    assert len(full) == 42
    assert lines(spoken(f"{full} {full}", pace=0.1)) == [(full, full)]
    assert len(lines(spoken(f"{full} {full} a", pace=0.1))) == 2


def test_two_lines_are_balanced() -> None:
    upper, lower = lines(spoken("the committee has decided to postpone the next meeting", pace=0.1))[0]
    assert abs(len(upper) - len(lower)) <= 8


def test_a_line_prefers_to_end_with_its_clause() -> None:
    assert lines(spoken("if you ask me about it, this was never going to work out", pace=0.1)) == [
        ("if you ask me about it,", "this was never going to work out")
    ]


def test_cues_are_even_where_nothing_asks_for_a_cut() -> None:
    first, second = lines(spoken(" ".join(["word"] * 20)))
    assert " ".join(first).count("word") == " ".join(second).count("word") == 10


def test_a_segment_becomes_no_more_cues_than_it_needs() -> None:
    text = "This is the first of three sentences. Here is another one that follows. And now the last one comes."
    assert [" ".join(cue) for cue in lines(spoken(text, pace=0.1))] in (
        [text[: text.index(" And")], text[text.index("And") :]],
        [text[: text.index(" Here")], text[text.index("Here") :]],
    )


def test_a_word_wider_than_a_line_stays_whole() -> None:
    long = "x" * 60
    shown = [line for cue in lines(spoken(f"before {long} after it")) for line in cue]
    assert long in shown


def test_a_word_longer_than_seven_seconds_is_a_cue_of_its_own() -> None:
    segment = Segment(
        0, 0.0, 12.0, " so loooong then", (Word(0, 1, " so", 1), Word(1, 11, " loooong", 1), Word(11, 12, " then", 1))
    )
    assert spans(segment) == [(0, 917), (1000, 10917), (11000, 12000)]


def test_what_no_space_separates_is_not_torn_apart() -> None:
    words = [Word(i, i + 1, f" w{i}", 1) for i in range(6)]
    words += [Word(6, 6.5, " well", 1), Word(6.5, 7.5, "-known", 1)]
    segment = Segment(0, 0.0, 7.5, "".join(w.text for w in words), tuple(words))
    assert [line for cue in lines(segment) for line in cue if "-" in line] == [
        next(line for cue in lines(segment) for line in cue if "well-known" in line)
    ]


def test_spaces_come_from_the_text_where_the_words_have_none() -> None:
    words = (Word(0, 1, "Hello,", 1), Word(1, 2, "dear", 1), Word(2, 3, "world.", 1))
    assert lines(Segment(0, 0.0, 3.0, "Hello, dear world.", words)) == [("Hello, dear world.",)]


def test_words_that_do_not_spell_the_text_do_not_replace_it() -> None:
    words = (Word(0, 1, " Hello", 1),)
    assert cues(transcript(Segment(0, 0.0, 3.0, " Hello, dear world.", words))) == [
        Cue(0, 3000, ("Hello, dear world.",))
    ]


def test_a_character_cut_off_by_a_chunks_end_costs_no_split() -> None:
    words = tuple(Word(i, i + 1, f" w{i}", 1) for i in range(10))
    text = "".join(w.text for w in words) + "\ufffd"
    assert len(lines(Segment(0, 0.0, 10.0, text, words))) == 2


def test_words_without_a_text_are_shown() -> None:
    assert lines(Segment(0, 0.0, 2.0, " ", (Word(0, 1, " Hello", 1), Word(1, 2, " you", 1)))) == [("Hello you",)]


def test_without_words_a_segment_stays_one_cue_and_loses_nothing() -> None:
    text = " ".join(["word"] * 60)
    (cue,) = cues(transcript(untimed(text, 3.0, 40.0)))
    assert (cue.start_ms, cue.end_ms) == (3000, 40000)
    assert " ".join(cue.lines) == text
    assert all(len(line) <= 42 for line in cue.lines)


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\x00\x1f", "\u2028", "\u00a0", "\u3000"])
def test_blank_texts_are_dropped(blank: str) -> None:
    assert cues(transcript(untimed(blank), Segment(1, 0, 1, blank, (Word(0, 1, blank, 1),)))) == []


@pytest.mark.parametrize(
    "gap", ["\n", "\r\n", "\t", "\x00", "\x0b", "\x1c", "\x85", "\u2028", "\u2029", "  ", "\u3000", "\n\n"]
)
def test_line_ends_and_controls_become_one_space(gap: str) -> None:
    assert lines(untimed(f" one{gap}two{gap}")) == [("one two",)]


def test_arrows_are_shortened_even_when_words_make_them() -> None:
    words = (Word(0, 1, " a", 1), Word(1, 2, "--", 1), Word(2, 3, ">", 1), Word(3, 4, " b", 1))
    assert lines(Segment(0, 0.0, 4.0, " a--> b", words)) == [("a-> b",)]
    assert lines(untimed("a ----> b --> c")) == [("a -> b -> c",)]


# --- scripts ----------------------------------------------------------------------------------------------------------


def test_wide_characters_count_as_two_columns() -> None:
    assert columns("ab") == 2
    assert columns("日本") == 4
    assert columns("한") == 2
    assert columns("é") == 1
    assert [len(line) for line in lines(untimed("字" * 50))[0]] == [21, 21, 8]


def test_japanese_is_cut_at_its_own_punctuation() -> None:
    text = (
        "今日はとても良い天気ですから皆さんで、近くの公園まで散歩に行きましょう。その後はゆっくり珈琲でも飲みませんか。"
    )
    shown = lines(lettered(text, pace=0.1))
    assert ["".join(cue) for cue in shown] == [text[: text.index("。") + 1], text[text.index("。") + 1 :]]
    assert all(columns(line) <= 42 for cue in shown for line in cue)


def test_no_line_starts_with_closing_punctuation_or_ends_with_an_opening_bracket() -> None:
    for lead in range(15, 27):
        text = "字" * lead + "。「字ーっ」" + "字" * 30
        for cue in (*lines(untimed(text)), *lines(lettered(text, pace=0.05))):
            for line in cue:
                assert line[0] not in "。」ーっ"
                assert line[-1] != "「"


def test_korean_is_cut_between_words_only() -> None:
    text = "오늘은 날씨가 매우 좋아서 친구들과 함께 공원에서 산책을 했습니다 그리고 맛있는 점심을 먹었습니다"
    assert " ".join(line for cue in lines(spoken(text)) for line in cue) == text
    assert " ".join(line for cue in lines(untimed(text)) for line in cue) == text


def test_thai_is_cut_where_the_model_says_a_word_ends() -> None:
    words = tuple(Word(i, i + 0.9, "สวัสดี", 1) for i in range(12))
    segment = Segment(0, 0.0, 12.0, "สวัสดี" * 12, words)
    shown = [line for cue in lines(segment) for line in cue]
    assert len(shown) > 1
    assert all(len(line) % len("สวัสดี") == 0 for line in shown)
    assert lines(untimed("สวัสดี" * 12)) == [("สวัสดี" * 12,)]


def test_emoji_sequences_are_not_torn_apart() -> None:
    family = "👩\u200d👩\u200d👧"
    assert not any(may_break(a, b, between_words=True) for a, b in pairwise(family))
    assert not may_break("👍", "🏽", between_words=True)
    assert lines(untimed(f"look {family} there")) == [(f"look {family} there",)]


def test_right_to_left_text_and_its_marks_stay() -> None:
    text = "\u200fשלום עולם (abc)\u200f"
    assert lines(untimed(text)) == [(text,)]


def test_no_break_spaces_hold() -> None:
    assert one_line("Quoi\u00a0?\n") == "Quoi\u00a0?"
    words = (Word(0, 1, " Quoi", 1), Word(1, 2, "\u00a0?", 1))
    assert lines(Segment(0, 0.0, 2.0, " Quoi\u00a0?", words)) == [("Quoi\u00a0?",)]


def test_lone_surrogates_are_replaced() -> None:
    assert lines(untimed("a\ud800b")) == [("a\ufffdb",)]


# --- speakers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speaker", "label"),
    [
        (None, None),
        ("SPEAKER_00", "SPEAKER_00"),
        (" Ann\n\x00 B. ", "Ann B."),
        ("\n", None),
        ("a]\n[b", "a) (b"),
        ("x--", "x-"),
        ("-->", "->"),
    ],
)
def test_speaker_labels(speaker: str | None, label: str | None) -> None:
    assert speaker_label(speaker) == label


def test_the_first_line_leaves_room_for_the_speaker() -> None:
    segment = spoken("now this is a sentence that would have needed only two lines had there been no one to name")
    named = Segment(0, segment.start, segment.end, segment.text, segment.words, speaker="SPEAKER_00")
    for cue in cues(transcript(named)):
        assert cue.speaker == "SPEAKER_00"
        assert len(f"[{cue.speaker}] {cue.lines[0]}") <= 42


def test_arrows_meet_without_arrows() -> None:
    assert without_arrows("--->->-->") == "->->->"


# --- times ------------------------------------------------------------------------------------------------------------


def test_overlapping_cues_end_before_the_next_begins() -> None:
    assert spans(untimed("a", 0, 10), untimed("b", 5, 8), untimed("c", 8, 9)) == [(0, 4917), (5000, 7917), (8000, 9000)]


def test_no_length_becomes_what_a_glance_takes() -> None:
    assert spans(untimed("a", 1, 1), untimed("b", 3, 2)) == [(1000, 1833), (3000, 3833)]


def test_negative_times_start_at_zero() -> None:
    assert spans(untimed("a", -5, -1), untimed("b", 2, 3)) == [(0, 833), (2000, 3000)]


def test_cues_that_run_backwards_share_the_time_in_the_order_of_the_text() -> None:
    shown = cues(transcript(untimed("aaaa", 10, 12), untimed("bbbb", 9.5, 11), untimed("c", 14, 15)))
    assert [(cue.start_ms, cue.end_ms, cue.lines[0]) for cue in shown] == [
        (10000, 10917, "aaaa"),
        (11000, 12000, "bbbb"),
        (14000, 15000, "c"),
    ]


def test_many_cues_at_one_instant_push_the_next_one_on() -> None:
    shown = spans(*(untimed("a", 1, 1) for _ in range(5)), untimed("b", 1.002, 2))
    assert shown == [(1000, 1001), (1001, 1002), (1002, 1003), (1003, 1004), (1004, 1005), (1005, 2000)]


def test_words_that_run_backwards_keep_their_order() -> None:
    words = (Word(5, 6, " one", 1), Word(2, 3, " two", 1), Word(6, 7, " three", 1))
    assert cues(transcript(Segment(0, 2.0, 7.0, " one two three", words))) == [Cue(5000, 7000, ("one two three",))]


def test_a_words_impossible_start_does_not_hide_how_long_a_cue_lasts() -> None:
    words = (Word(0, 1, " one", 1), Word(20, 21, " two", 1), Word(1, 2, " three", 1))
    shown = cues(transcript(Segment(0, 0.0, 21.0, " one two three", words)))
    assert [cue.lines for cue in shown] == [("one",), ("two three",)]
    assert [cue.start_ms for cue in shown] == [0, 20000]


def test_one_words_impossible_end_does_not_stretch_the_others() -> None:
    words = tuple(Word(i, 1e6 if i == 3 else i + 1, f" w{i}", 1) for i in range(14))
    shown = spans(Segment(0, 0.0, 14.0, "".join(w.text for w in words), words))
    assert shown == [(0, 6917), (7000, 14000)]


# --- time to read -----------------------------------------------------------------------------------------------------

SENTENCE = "This was said so fast that nobody could read it."  # 48 columns: 2.824 seconds


def said(text: str, start: float, end: float, speaker: str | None = None) -> Segment:
    """A segment whose words share its time evenly."""
    words = text.split()
    pace = (end - start) / len(words)
    timed = tuple(Word(start + i * pace, start + (i + 1) * pace, f" {word}", 0.9) for i, word in enumerate(words))
    return Segment(0, start, end, f" {text}", timed, speaker=speaker)


def shown(*segments: Segment) -> list[tuple[int, int, str]]:
    return [(cue.start_ms, cue.end_ms, " ".join(cue.lines)) for cue in cues(transcript(*segments))]


def test_what_is_spoken_fast_stays_until_it_can_be_read() -> None:
    assert shown(said(SENTENCE, 1, 2), said("Then a long while later.", 8, 10)) == [
        (1000, 3824, SENTENCE),
        (8000, 10000, "Then a long while later."),
    ]


def test_but_not_beyond_the_next_cue() -> None:
    assert spans(said(SENTENCE, 1, 2), said("And on it went from there.", 2.5, 5))[0] == (1000, 2500)


def test_nor_beyond_the_recording() -> None:
    assert spans(said(SENTENCE, 58.5, 59.5)) == [(58500, 60000)]
    unknown = Transcript(SENTENCE, "en", 1.0, 0.0, (said(SENTENCE, 1, 2),), "demo")
    assert [(cue.start_ms, cue.end_ms) for cue in cues(unknown)] == [(1000, 2000)]


def test_wide_characters_take_twice_as_long_to_read() -> None:
    assert spans(Segment(0, 1.0, 1.5, "字" * 17)) == [(1000, 3000)]


def test_a_word_stays_five_sixths_of_a_second() -> None:
    assert spans(said("No.", 1, 1.2), said("Never.", 5, 5.3, "B")) == [(1000, 1833), (5000, 5833)]


def test_a_small_gap_is_closed_to_two_frames_and_a_larger_one_stays() -> None:
    slow = "Once upon a time"
    assert spans(said(slow, 0, 2), said(slow, 2.3, 4), said(slow, 4.501, 6)) == [(0, 2217), (2300, 4000), (4501, 6000)]


def test_two_frames_stay_clear_between_two_cues_that_leave_time_to_read() -> None:
    assert spans(said("Once upon a time", 0, 2), said("there was a king.", 2, 4)) == [(0, 1917), (2000, 4000)]


def test_segments_that_would_flicker_share_a_cue() -> None:
    assert shown(said("Yes.", 1, 1.2), said("I have seen them both.", 1.3, 3)) == [
        (1000, 3000, "Yes. I have seen them both.")
    ]
    assert shown(said("I have seen them both.", 1, 3), said("Yes.", 3.2, 3.4), said("Who?", 3.5, 4.5, "B")) == [
        (1000, 3417, "I have seen them both. Yes."),
        (3500, 4500, "Who?"),
    ]
    assert shown(said("Oh.", 1, 1.1), said("Oh.", 1.2, 1.3), said("Hello.", 1.4, 2.4)) == [
        (1000, 2400, "Oh. Oh. Hello.")
    ]


def test_a_shared_cue_is_cut_again_where_it_is_too_full() -> None:
    long = "We met the year before last in the winter, and after that nothing was heard of them again."
    parts = shown(said("Yes.", 1, 1.2), said(long, 1.2, 7))
    assert " ".join(text for _, _, text in parts) == f"Yes. {long}"
    assert all(end - start >= 833 for start, end, _ in parts)


@pytest.mark.parametrize(
    "following",
    [said("I have seen them.", 1.2, 3, "B"), said("I have seen them.", 1.8, 3), untimed("I have seen them.", 1.2, 3)],
)
def test_only_what_one_speaker_says_at_once_shares_a_cue(following: Segment) -> None:
    assert [text for _, _, text in shown(said("Yes.", 1, 1.2), following)] == ["Yes.", "I have seen them."]


def test_scripts_without_spaces_share_a_cue_without_one() -> None:
    first, second = lettered("是。", pace=0.1), lettered("我们都看见了。", pace=0.3)
    moved = tuple(Word(word.start + 0.3, word.end + 0.3, word.text, 1) for word in second.words)
    assert lines(first, Segment(1, 0.3, 2.4, second.text, moved)) == [("是。我们都看见了。",)]
