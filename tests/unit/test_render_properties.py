"""What holds for every transcript, however chaotic its texts and times."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import unicodedata
from datetime import timedelta
from itertools import pairwise

import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.render import Cue, cues, to_json, to_srt, to_text, to_tsv, to_vtt
from metalscribe.render.times import milliseconds
from metalscribe.transcript import Segment, Transcript, Word

NASTY = [
    "-->", "--", ">", "->", "-", "<script>", "</v>", "<v x>", "&", "&lt;", "&amp;", "\t", "\n", "\n\n", "\r\n", "\x00", "\x1b[31m", "\u2028",
    "\u2029", "\x85", "\u00a0", "\u3000", "\ufeff", "\u200b", "\u202e", "\u200f", "שלום", "مرحبا", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "\ud800", "\udfff",
    "\ufffd", "日本語", "。", "「", "」", "ー", "สวัสดี", "한국어", "é", "e\u0301", '"', "'", "NOTE", "WEBVTT", "STYLE", "1", "[SPEAKER_01]", "{\\an8}",
    "=1+1", "\\", ",", ".", " ", "  ", "x" * 50,
]  # fmt: skip
nasty = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=4)), max_size=12).map("".join)
# Near one another, so that they overlap and run backwards, or anywhere at all.
chaotic_times = st.one_of(
    st.floats(-2, 30), st.integers(-1, 20).map(float), st.floats(0, 1e7), st.floats(allow_nan=True, allow_infinity=True)
)
measures = st.floats(allow_nan=True, allow_infinity=True)
speakers = st.one_of(st.none(), st.just("SPEAKER_00"), nasty)


@st.composite
def chaotic_segments(draw: st.DrawFn) -> Segment:
    words = draw(st.lists(st.builds(Word, chaotic_times, chaotic_times, nasty, measures), max_size=15))
    spelled = "".join(word.text for word in words)
    text = draw(st.one_of(st.just(spelled), nasty, st.just("")))
    return Segment(
        draw(st.integers(0, 99)), draw(chaotic_times), draw(chaotic_times), text, tuple(words),
        draw(measures), draw(measures), draw(measures), draw(speakers),
    )  # fmt: skip


@st.composite
def orderly_segments(draw: st.DrawFn) -> Segment:
    """Words as a model times them, one after another, in one of three scripts; chaotic times now and then."""
    letters = st.sampled_from(["abcdefgh", "äßéàøł", "абвгде"])
    latin = letters.flatmap(lambda alphabet: st.text(alphabet, min_size=1, max_size=12)).map(lambda word: f" {word}")
    long = st.sampled_from([" " + "w" * 43, " " + "m" * 90])
    ended = st.tuples(latin, st.sampled_from([".", ",", "?", "…"])).map("".join)
    spaceless = st.text("日月火水木金土", min_size=1, max_size=3)
    texts = draw(
        st.lists(draw(st.sampled_from([latin, st.one_of(latin, ended, long), spaceless])), min_size=1, max_size=60)
    )
    if draw(st.booleans()):
        moments = [(draw(chaotic_times), draw(chaotic_times)) for _ in texts]
    else:
        steps = [(draw(st.integers(1, 900)), draw(st.sampled_from([0, 0, 0, 300, 2000, 9000]))) for _ in texts]
        if draw(st.booleans()):
            steps[-1] = (draw(st.integers(7000, 12000)), 0)
        clock = draw(st.integers(0, 100000))
        moments = []
        for length, pause in steps:
            moments.append((clock / 1000, (clock + length) / 1000))
            clock += length + pause
    words = tuple(Word(start, end, text, 0.5) for (start, end), text in zip(moments, texts, strict=True))
    return Segment(
        0, words[0].start, words[-1].end, "".join(texts), words, speaker=draw(st.sampled_from([None, "SPEAKER_00"]))
    )


def transcripts(segments: st.SearchStrategy[Segment], max_size: int = 6) -> st.SearchStrategy[Transcript]:
    return st.lists(segments, max_size=max_size).flatmap(
        lambda listed: st.builds(
            Transcript,
            text=st.one_of(st.just("".join(s.text for s in listed).strip()), nasty),
            language=st.just("en"),
            language_probability=measures,
            duration=chaotic_times,
            segments=st.just(tuple(listed)),
            model=st.just("demo"),
        )
    )


@st.composite
def conversations(draw: st.DrawFn) -> Transcript:
    """One segment after another in sound times, by up to two speakers, some fast, some of a single word."""
    clock = draw(st.integers(0, 10**6))
    segments: list[Segment] = []
    for number in range(draw(st.integers(1, 8))):
        letter = draw(st.sampled_from(["a", "a", "日"]))
        lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=draw(st.sampled_from([1, 3, 30]))))
        pace = draw(st.sampled_from([10, 40, 60, 150]))  # milliseconds a letter: from a babble to a drawl
        words = []
        for length in lengths:
            text = letter * length if letter == "日" else " " + letter * length
            words.append(Word(clock / 1000, (clock + pace * length) / 1000, text, 1.0))
            clock += pace * length + draw(st.sampled_from([0, 0, 0, 60, 400]))
        text = "".join(word.text for word in words)
        speaker = draw(st.sampled_from([None, None, "A"]))
        segments.append(Segment(number, words[0].start, words[-1].end, text, tuple(words), speaker=speaker))
        clock += draw(st.sampled_from([0, 0, 50, 300, 800, 10_000]))
    duration = max(segments[-1].end, clock / 1000)
    return Transcript("".join(s.text for s in segments).strip(), "en", 1.0, duration, tuple(segments), "demo")


chaotic = transcripts(chaotic_segments())
orderly = transcripts(orderly_segments(), max_size=3)


def letters(text: str) -> str:
    """Every visible character, arrows made alike."""
    spaced = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text)
    return re.sub("-+>", "->", "".join(re.sub("[\ud800-\udfff]", "\ufffd", spaced).split()))


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def word_count(cue: Cue, words: list[str]) -> int:
    """How many of the given words, in their order, the cue takes off the front of the list."""
    rest, count = letters("".join(cue.lines)), 0
    while rest:
        assert rest.startswith(letters(words[0]))
        rest = rest[len(letters(words.pop(0))) :]
        count += 1
    return count


@given(chaotic)
def test_cues_are_sorted_apart_and_positive(transcript: Transcript) -> None:
    shown = cues(transcript)
    assert all(cue.start_ms >= 0 for cue in shown)
    assert all(cue.end_ms > cue.start_ms for cue in shown)
    assert all(before.end_ms <= after.start_ms for before, after in pairwise(shown))


@given(chaotic)
def test_cue_lines_are_clean(transcript: Transcript) -> None:
    for cue in cues(transcript):
        assert cue.lines
        for line in cue.lines:
            assert line == line.strip() != ""
            assert "-->" not in line
            assert len(line.splitlines()) == 1
            assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in line)


@given(chaotic)
def test_no_letter_is_lost(transcript: Transcript) -> None:
    segments = [s.text if letters(s.text) else "".join(w.text for w in s.words) for s in transcript.segments]
    shown = letters("".join(line for cue in cues(transcript) for line in cue.lines))
    # A replacement character may be missing where the words do without it.
    assert shown.replace("\ufffd", "") == letters("".join(letters(text) for text in segments)).replace("\ufffd", "")


@given(orderly)
def test_no_word_is_lost_and_spaces_stay(transcript: Transcript) -> None:
    for segment in transcript.segments:
        shown = cues(Transcript("", "en", 1.0, 1.0, (segment,), "demo"))
        joint = "" if width(segment.text) > len(segment.text) else " "
        assert joint.join(line for cue in shown for line in cue.lines) == segment.text.strip()


@given(orderly)
def test_cues_keep_to_two_lines_of_42_columns_and_seven_seconds(transcript: Transcript) -> None:
    words = [word.text for segment in transcript.segments for word in segment.words]
    for cue in cues(transcript):
        count = word_count(cue, words)
        assert len(cue.lines) <= 2
        if cue.end_ms - cue.start_ms > 7000:
            assert count == 1
        prefix = f"[{cue.speaker}] " if cue.speaker else ""
        for line in (prefix + cue.lines[0], *cue.lines[1:]):
            if width(line) > 42:
                assert " " not in line.removeprefix(prefix)
                assert line.isascii()
    assert words == []


@given(conversations())
def test_speech_is_shown_from_its_first_word_to_its_last(transcript: Transcript) -> None:
    """To the millisecond where it begins; up to two frames may be missing where it ends."""
    words = [word for segment in transcript.segments for word in segment.words]
    texts = [word.text for word in words]
    for cue in cues(transcript):
        count = word_count(cue, texts)
        said, words = words[:count], words[count:]
        assert cue.start_ms == round(said[0].start * 1000)
        assert cue.end_ms >= round(said[-1].end * 1000) - 83
    assert words == []


# --- time to read -----------------------------------------------------------------------------------------------------


def reading_time(cue: Cue) -> int:
    """Milliseconds for 17 columns a second, five sixths of a second at least."""
    return max(833, -(-1000 * width(" ".join(cue.lines)) // 17))


def with_following(transcript: Transcript) -> list[tuple[Cue, Cue | None]]:
    shown = cues(transcript)
    return [(cue, shown[number + 1] if number + 1 < len(shown) else None) for number, cue in enumerate(shown)]


@given(st.one_of(conversations(), chaotic))
def test_no_cue_is_harder_to_read_than_it_must_be(transcript: Transcript) -> None:
    """What is shown too shortly is followed at once by the next cue, by the recording's end, or stays seven seconds."""
    for cue, following in with_following(transcript):
        if cue.end_ms - cue.start_ms < min(7000, reading_time(cue)):
            assert (following is not None and following.start_ms == cue.end_ms) or cue.end_ms >= milliseconds(
                transcript.duration
            )


@given(conversations())
def test_gaps_are_closed_to_two_frames_or_large_enough_to_be_seen(transcript: Transcript) -> None:
    for cue, following in with_following(transcript):
        gap = following.start_ms - cue.end_ms if following else 83
        lasts = cue.end_ms - cue.start_ms
        if gap < 83:
            assert lasts <= min(7000, reading_time(cue)), "closer than two frames, and not for the reader's sake"
        elif gap > 83:
            assert gap > 500 or lasts >= 7000


@given(conversations())
def test_no_cue_outlasts_the_recording(transcript: Transcript) -> None:
    assert cues(transcript)[-1].end_ms <= milliseconds(transcript.duration)


@given(conversations())
def test_no_cue_is_drawn_out_beyond_what_is_said_and_what_it_takes_to_read(transcript: Transcript) -> None:
    texts = [word.text for segment in transcript.segments for word in segment.words]
    ends = [word.end for segment in transcript.segments for word in segment.words]
    for cue, following in with_following(transcript):
        count = word_count(cue, texts)
        said = round(ends[count - 1] * 1000)
        ends = ends[count:]
        if following is None or following.start_ms - cue.end_ms > 500:
            assert cue.end_ms <= max(said, cue.start_ms + reading_time(cue))


# --- other people's readers -------------------------------------------------------------------------------------------


@given(chaotic)
def test_srt_round_trips(transcript: Transcript) -> None:
    # Beyond this, the reader's timedelta overflows; the times themselves are checked elsewhere.
    shown = cues(transcript)
    if shown and shown[-1].end_ms > 10**15:
        return
    text = to_srt(transcript)
    text.encode()
    read = list(srt.parse(text))
    assert [subtitle.index for subtitle in read] == list(range(1, len(shown) + 1))
    for subtitle, cue in zip(read, shown, strict=True):
        assert subtitle.start == timedelta(milliseconds=cue.start_ms)
        assert subtitle.end == timedelta(milliseconds=cue.end_ms)
        prefix = f"[{cue.speaker}] " if cue.speaker else ""
        assert subtitle.content == prefix + "\n".join(cue.lines)


@given(chaotic)
def test_vtt_round_trips(transcript: Transcript) -> None:
    shown = cues(transcript)
    if shown and shown[-1].end_ms > 10**15:
        return
    text = to_vtt(transcript)
    text.encode()
    assert text.count("-->") == len(shown)
    read = webvtt.from_string(text)
    for caption, cue in zip(read.captions, shown, strict=True):
        start, end = (
            webvtt.models.Timestamp.from_string(caption.start),
            webvtt.models.Timestamp.from_string(caption.end),
        )
        assert (start.in_milliseconds(), end.in_milliseconds()) == (cue.start_ms, cue.end_ms)
        payload = caption.raw_text
        if cue.speaker:
            tag = re.match("<v ([^>]*)>", payload)
            assert tag is not None
            assert html.unescape(tag[1]) == cue.speaker
            payload = payload[tag.end() :]
        assert "<" not in payload
        assert "-->" not in payload
        assert html.unescape(payload) == "\n".join(cue.lines)


@given(chaotic)
def test_tsv_reads_as_a_table(transcript: Transcript) -> None:
    text = to_tsv(transcript)
    text.encode()
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["start", "end", "text"]
    assert text.splitlines() == text.split("\n")[:-1]
    spoken = [segment for segment in transcript.segments if letters(segment.text)]
    for (start, end, said), segment in zip(rows, spoken, strict=True):
        assert 0 <= int(start) <= int(end)
        assert letters(said) == letters(segment.text)


@given(chaotic)
def test_plain_text_keeps_every_letter(transcript: Transcript) -> None:
    text = to_text(transcript)
    text.encode()
    assert letters(text) == letters(transcript.text)
    assert text == "" or (text.endswith("\n") and not text.endswith("\n\n"))


@given(chaotic, measures, st.booleans(), st.booleans())
def test_json_is_strict_json(transcript: Transcript, taken: float, segments: bool, words: bool) -> None:
    document = to_json(transcript, id="r1", processing_time=taken, include_segments=segments, word_timestamps=words)
    encoded = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(encoded) == document
