"""The transcript as the two services answer with it that share the path ``/asr``.

The *wrapped* dialect puts every format into a JSON object; its words have scores and no spaces around them. The *plain* one answers
with the format itself; its JSON is faster-whisper's, words with their spaces.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from metalscribe.render import Format, render
from metalscribe.render.lettering import encodable
from metalscribe.render.native import finite, span
from metalscribe.transcript import Segment, Transcript, Word


class Plain(StrEnum):
    """What the plain dialect calls its formats; also the ending of the answer's file name."""

    TXT = "txt"
    VTT = "vtt"
    SRT = "srt"
    TSV = "tsv"
    JSON = "json"

    @property
    def shared(self) -> Format:
        """The same, as everybody else calls it."""
        return Format.TEXT if self is Plain.TXT else Format(self.value)


def to_wrapped(transcript: Transcript, format: Format, *, words: bool) -> dict[str, Any]:  # noqa: A002  (the dialect's word)
    """The wrapped dialect's object.

    Args:
        transcript: what to say.
        format: what the object holds, under its name.
        words: list the words, in their segments and altogether; JSON only.
    """
    if format is Format.TEXT:
        return {"text": encodable(transcript.text)}
    if format is not Format.JSON:
        return {format.value: render(transcript, format)}
    segments = [_wrapped_segment(segment, words=words) for segment in transcript.segments]
    return {
        "text": segments,
        "language": transcript.language,
        "segments": segments,
        "word_segments": [word for segment in segments for word in segment.get("words", ())],
    }


def to_plain_json(transcript: Transcript, *, words: bool) -> dict[str, Any]:
    """The plain dialect's JSON document; ``words`` is null in segments where words are not listed."""
    return {
        "language": transcript.language,
        "segments": [_plain_segment(segment, words=words) for segment in transcript.segments],
        "text": encodable(transcript.text),
    }


def _wrapped_segment(segment: Segment, *, words: bool) -> dict[str, Any]:
    return {
        **span(segment),
        "text": encodable(segment.text),
        **_speaker(segment),
        **({"words": [_wrapped_word(word, segment) for word in segment.words]} if words else {}),
    }


def _wrapped_word(word: Word, segment: Segment) -> dict[str, Any]:
    return {
        "word": encodable(word.text).strip(),
        **span(word),
        "score": finite(word.probability),
        **_speaker(segment),
    }


def _plain_segment(segment: Segment, *, words: bool) -> dict[str, Any]:
    times = span(segment)
    return {
        "id": segment.index + 1,
        "seek": round(100 * times["start"]),
        **times,
        "text": encodable(segment.text),
        "tokens": list(segment.tokens),
        "avg_logprob": finite(segment.avg_logprob),
        "compression_ratio": finite(segment.compression_ratio),
        "no_speech_prob": finite(segment.no_speech_prob),
        "words": [
            {**span(word), "word": encodable(word.text), "probability": finite(word.probability)}
            for word in segment.words
        ]
        if words
        else None,
        "temperature": segment.temperature,
        **_speaker(segment),
    }


def _speaker(segment: Segment) -> dict[str, str]:
    return {} if segment.speaker is None else {"speaker": encodable(segment.speaker)}
