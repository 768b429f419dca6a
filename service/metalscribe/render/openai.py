"""The transcript as OpenAI's API answers with it: ``json`` and ``verbose_json``.

Shapes: the types of OpenAI's published client (``openai.types.audio``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from metalscribe.languages import language_name
from metalscribe.render.lettering import encodable
from metalscribe.render.native import finite, span
from metalscribe.render.times import rounded
from metalscribe.transcript import Segment, Task, Transcript, Word

_LEAST_PROBABILITY = 1e-10
_FRAMES_PER_SECOND = 100


def to_openai_json(transcript: Transcript, *, logprobs: bool = False) -> dict[str, Any]:
    """The ``json`` document.

    Args:
        transcript: with its words where log-probabilities are wanted.
        logprobs: list the log-probability of each word.
    """
    document: dict[str, Any] = {"text": encodable(transcript.text)}
    if logprobs:
        document["logprobs"] = word_logprobs(transcript.segments)
    return document | {"usage": _usage(transcript)}


def to_verbose_json(transcript: Transcript, *, segments: bool, words: bool) -> dict[str, Any]:
    """The ``verbose_json`` document; what is not listed is left out altogether, as the real service does.

    Args:
        transcript: with its words, where they are to be listed.
        segments: list the segments.
        words: list the words of all segments, without the spaces around them.
    """
    translated = transcript.task is Task.TRANSLATE
    document: dict[str, Any] = {
        "task": transcript.task.value,
        "language": "english" if translated else language_name(transcript.language),
        "duration": rounded(transcript.duration),
        "text": encodable(transcript.text),
    }
    if segments:
        document["segments"] = [_segment(segment) for segment in transcript.segments]
    if words:
        document["words"] = [
            {"word": encodable(word.text).strip(), **span(word)}
            for segment in transcript.segments
            for word in segment.words
        ]
    return document | {"usage": _usage(transcript)}


def word_logprobs(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    """What OpenAI lists for each token, for each word: the model's tokens are pieces of words, which nobody else can join."""
    return [_logprob(word) for segment in segments for word in segment.words]


def _logprob(word: Word) -> dict[str, Any]:
    text = encodable(word.text)
    return {
        "token": text,
        "bytes": list(text.encode()),
        "logprob": round(math.log(max(word.probability, _LEAST_PROBABILITY)), 6),
    }


def _segment(segment: Segment) -> dict[str, Any]:
    times = span(segment)
    return {
        "id": segment.index,
        "seek": round(times["start"] * _FRAMES_PER_SECOND),
        **times,
        "text": encodable(segment.text),
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": finite(segment.avg_logprob) or 0.0,
        "compression_ratio": finite(segment.compression_ratio) or 0.0,
        "no_speech_prob": finite(segment.no_speech_prob) or 0.0,
    }


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(rounded(transcript.duration))}
