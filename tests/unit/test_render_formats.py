"""The documents, byte for byte."""

from __future__ import annotations

import pytest

from metalscribe.render import MEDIA_TYPES, Format, render, to_json, to_srt, to_text, to_tsv, to_vtt
from metalscribe.transcript import Segment, Transcript, Word

NOTHING = Transcript("", "en", 1.0, 3.0, (), "demo")
MEETING = Transcript(
    "Hello & welcome. <b>R&D</b> --> now.",
    "en",
    0.987654321,
    4.00049,
    (
        Segment(0, 0.0, 0.9995, " Hello & welcome.", (Word(0.0, 0.4, " Hello", 0.9), Word(0.4, 0.5, " &", 0.8), Word(0.5, 0.9995, " welcome.", 0.7)),
                -0.25, 0.01, 1.1, "SPEAKER_00"),
        Segment(1, 1.5, 4.0004, " <b>R&D</b> -->\tnow.", (), -0.5, 0.02, 1.2),
    ),
    "demo",
)  # fmt: skip


def test_srt() -> None:
    assert to_srt(MEETING) == (
        "1\n00:00:00,000 --> 00:00:01,417\n[SPEAKER_00] Hello & welcome.\n"
        "\n2\n00:00:01,500 --> 00:00:04,000\n<b>R&D</b> -> now.\n"
    )


def test_vtt() -> None:
    assert to_vtt(MEETING) == (
        "WEBVTT\n"
        "\n00:00:00.000 --> 00:00:01.417\n<v SPEAKER_00>Hello &amp; welcome.\n"
        "\n00:00:01.500 --> 00:00:04.000\n&lt;b>R&amp;D&lt;/b> -> now.\n"
    )


def test_tsv() -> None:
    assert to_tsv(MEETING) == "start\tend\ttext\n0\t1000\tHello & welcome.\n1500\t4000\t<b>R&D</b> --> now.\n"


def test_tsv_never_ends_before_it_starts() -> None:
    backwards = Transcript("a", "en", 1.0, 9.0, (Segment(0, 5.0, 3.0, "a"),), "demo")
    assert to_tsv(backwards).splitlines()[1] == "5000\t5000\ta"


def test_text() -> None:
    assert to_text(MEETING) == "Hello & welcome. <b>R&D</b> --> now.\n"


def test_text_keeps_its_own_line_ends() -> None:
    assert to_text(Transcript(" one\r\ntwo\tthree\n\x1b", "en", 1.0, 1.0, (), "demo")) == "one\ntwo three\n"


def test_nothing_said() -> None:
    assert to_text(NOTHING) == ""
    assert to_srt(NOTHING) == ""
    assert to_vtt(NOTHING) == "WEBVTT\n"
    assert to_tsv(NOTHING) == "start\tend\ttext\n"


def test_a_speakers_hyphens_do_not_close_the_voice_tag_into_an_arrow() -> None:
    named = Transcript("a", "en", 1.0, 1.0, (Segment(0, 0.0, 1.0, "a", speaker="x-->& <y--"),), "demo")
    assert to_vtt(named).splitlines()[3] == "<v x-&gt;&amp; &lt;y->a"


def test_json_with_words() -> None:
    assert to_json(MEETING, id="r1", processing_time=0.12345, include_segments=True, word_timestamps=True) == {
        "id": "r1",
        "text": "Hello & welcome. <b>R&D</b> --> now.",
        "language": "en",
        "language_probability": 0.987654321,
        "duration": 4.0,
        "processing_time": 0.123,
        "segments": [
            {
                "index": 0,
                "start": 0.0,
                "end": 1.0,
                "text": " Hello & welcome.",
                "words": [
                    {"start": 0.0, "end": 0.4, "word": " Hello", "probability": 0.9},
                    {"start": 0.4, "end": 0.5, "word": " &", "probability": 0.8},
                    {"start": 0.5, "end": 1.0, "word": " welcome.", "probability": 0.7},
                ],
                "avg_logprob": -0.25,
                "no_speech_prob": 0.01,
                "compression_ratio": 1.1,
                "speaker": "SPEAKER_00",
            },
            {
                "index": 1,
                "start": 1.5,
                "end": 4.0,
                "text": " <b>R&D</b> -->\tnow.",
                "words": [],
                "avg_logprob": -0.5,
                "no_speech_prob": 0.02,
                "compression_ratio": 1.2,
            },
        ],
        "model": "demo",
    }


def test_json_lists_segments_and_words_only_where_asked() -> None:
    plain = to_json(MEETING, id="r1", processing_time=0.1, include_segments=False, word_timestamps=False)
    assert plain["segments"] is None
    segments = to_json(MEETING, id="r1", processing_time=0.1, include_segments=True, word_timestamps=False)["segments"]
    assert [segment["words"] for segment in segments] == [[], []]
    words = to_json(MEETING, id="r1", processing_time=0.1, include_segments=False, word_timestamps=True)["segments"]
    assert len(words[0]["words"]) == 3


def test_json_has_no_words_for_what_is_not_a_number() -> None:
    nan, infinity = float("nan"), float("inf")
    broken = Transcript(
        "a", "en", nan, infinity, (Segment(0, nan, -infinity, "a", (), -infinity, nan, infinity),), "demo"
    )
    document = to_json(broken, id="r1", processing_time=nan, include_segments=True, word_timestamps=False)
    assert document["language_probability"] is None
    assert (document["duration"], document["processing_time"]) == (0.0, 0.0)
    (segment,) = document["segments"]
    assert (segment["start"], segment["end"]) == (0.0, 0.0)
    assert segment["avg_logprob"] is segment["no_speech_prob"] is segment["compression_ratio"] is None


@pytest.mark.parametrize(("name", "writer"), [("text", to_text), ("srt", to_srt), ("vtt", to_vtt), ("tsv", to_tsv)])
def test_render_dispatches(name: str, writer: object) -> None:
    assert callable(writer)
    assert render(MEETING, Format(name)) == writer(MEETING)


def test_render_refuses_json() -> None:
    with pytest.raises(ValueError, match="to_json"):
        render(MEETING, Format.JSON)


def test_media_types() -> None:
    assert set(MEDIA_TYPES) == set(Format)
    assert MEDIA_TYPES[Format.JSON] == "application/json"
    assert MEDIA_TYPES[Format.TEXT] == "text/plain; charset=utf-8"
    assert MEDIA_TYPES[Format.SRT] == "application/x-subrip; charset=utf-8"
    assert MEDIA_TYPES[Format.VTT] == "text/vtt; charset=utf-8"
    assert MEDIA_TYPES[Format.TSV] == "text/tab-separated-values; charset=utf-8"
