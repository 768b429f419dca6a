"""The transcript as metalscribe's own JSON document."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from metalscribe.render.lettering import encodable
from metalscribe.render.times import rounded
from metalscribe.transcript import Decision, Done, Segment, Transcript, Word


def to_json(
    transcript: Transcript,
    *,
    id: str,  # noqa: A002  (the document's own word)
    processing_time: float,
    include_segments: bool,
    word_timestamps: bool,
) -> dict[str, Any]:
    """The document that answers a native request, ready for any JSON encoder.

    Texts are as the model wrote them, leading spaces included. Times are seconds to three decimals, never negative.
    A measurement that is not a finite number, which JSON cannot say, is null.

    Args:
        transcript: what to say.
        id: of the request or job.
        processing_time: seconds from the request to now.
        include_segments: list the segments; otherwise ``segments`` is null.
        word_timestamps: list the segments with their words; otherwise ``words`` is empty.
    """
    segments = None
    if include_segments or word_timestamps:
        segments = [segment_json(segment, word_timestamps=word_timestamps) for segment in transcript.segments]
    return {
        "id": id,
        "text": encodable(transcript.text),
        "language": transcript.language,
        "language_probability": finite(transcript.language_probability),
        "duration": rounded(transcript.duration),
        "processing_time": rounded(processing_time),
        "segments": segments,
        "model": encodable(transcript.model),
    }


def segment_json(segment: Segment, *, word_timestamps: bool) -> dict[str, Any]:
    """One segment of the document; ``speaker`` is there only where diarization named one."""
    document = {
        "index": segment.index,
        **span(segment),
        "text": encodable(segment.text),
        "words": [_word_json(word) for word in segment.words] if word_timestamps else [],
        "avg_logprob": finite(segment.avg_logprob),
        "no_speech_prob": finite(segment.no_speech_prob),
        "compression_ratio": finite(segment.compression_ratio),
    }
    if segment.speaker is not None:
        document["speaker"] = encodable(segment.speaker)
    return document


def debug_json(done: Done) -> dict[str, Any]:
    """What the engine decided on the way: see :class:`Statistics` and :class:`Decision` for the fields."""
    return {
        "statistics": asdict(done.statistics),
        "decisions": [_decision_json(decision) for decision in done.decisions],
    }


def _decision_json(decision: Decision) -> dict[str, Any]:
    return {name: finite(value) if isinstance(value, float) else value for name, value in asdict(decision).items()}


def _word_json(word: Word) -> dict[str, Any]:
    return {**span(word), "word": encodable(word.text), "probability": finite(word.probability)}


def span(timed: Segment | Word) -> dict[str, float]:
    """``start`` and ``end`` to three decimals, never negative, never backwards."""
    start = rounded(timed.start)
    return {"start": start, "end": max(start, rounded(timed.end))}


def finite(number: float) -> float | None:
    """A number that JSON can say, None for any other."""
    return float(number) if math.isfinite(number) else None
