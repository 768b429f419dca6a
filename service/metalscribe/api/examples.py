"""Examples in the OpenAPI document: one recording, as it appears in every answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

JOB_ID: Final = "550e8400-e29b-41d4-a716-446655440000"

SEGMENT: Final[Mapping[str, Any]] = {
    "index": 0,
    "start": 0.0,
    "end": 2.4,
    "text": " Hello, world.",
    "words": [],
    "avg_logprob": -0.21,
    "no_speech_prob": 0.01,
    "compression_ratio": 1.1,
}
TRANSCRIPT: Final[Mapping[str, Any]] = {
    "id": "7f9c24e8-3b12-4e1f-9c4a-6d2f0b8a1e57",
    "text": "Hello, world.",
    "language": "en",
    "language_probability": 0.98,
    "duration": 2.4,
    "processing_time": 0.12,
    "segments": [SEGMENT],
    "model": "large-v3-turbo",
}
TRANSCRIPT_TEXTS: Final[Mapping[str, str]] = {
    "text/plain": "Hello, world.\n",
    "text/vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:02.400\nHello, world.\n",
    "application/x-subrip": "1\n00:00:00,000 --> 00:00:02,400\nHello, world.\n",
    "text/tab-separated-values": "start\tend\ttext\n0\t2400\tHello, world.\n",
}
"""By media type."""

TRANSCRIPT_EVENTS: Final = (
    'event: progress\ndata: {"type": "progress", "percent": 42}\n\n'
    'event: segment\ndata: {"type": "segment", "index": 0, "start": 0.0, "end": 2.4, "text": " Hello, world.", "words": [], …}\n\n'
    'event: done\ndata: {"type": "done", "text": "Hello, world.", …}\n\n'
)
OPENAI_VERBOSE: Final[Mapping[str, Any]] = {
    "task": "transcribe",
    "language": "english",
    "duration": 2.4,
    "text": "Hello, world.",
    "segments": [
        {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": 2.4,
            "text": " Hello, world.",
            "tokens": [2425, 11, 1002, 13],
            "temperature": 0.0,
            "avg_logprob": -0.21,
            "compression_ratio": 1.1,
            "no_speech_prob": 0.01,
        }
    ],
    "words": [{"word": "Hello,", "start": 0.0, "end": 1.1}, {"word": "world.", "start": 1.3, "end": 2.4}],
    "usage": {"type": "duration", "seconds": 3},
}
OPENAI_EVENTS: Final = (
    'data: {"type": "transcript.text.delta", "delta": "Hello, world."}\n\n'
    'data: {"type": "transcript.text.done", "text": "Hello, world."}\n\n'
)
OPENAI_MODEL: Final[Mapping[str, Any]] = {
    "id": "whisper-1",
    "object": "model",
    "created": 1_778_014_800,
    "owned_by": "metalscribe",
    "served": True,
    "serves": "large-v3-turbo",
}
WRAPPED: Final[Mapping[str, Any]] = {
    "text": [{"start": 0.0, "end": 2.4, "text": " Hello, world.", "words": []}],
    "language": "en",
    "segments": [{"start": 0.0, "end": 2.4, "text": " Hello, world.", "words": []}],
    "word_segments": [],
}
DETECTED: Final[Mapping[str, Any]] = {"detected_language": "english", "language_code": "en", "confidence": 0.98}

URL_REQUEST: Final[Mapping[str, Any]] = {"url": "https://example.org/lecture.mp3", "language": "en", "format": "srt"}

JOB: Final[Mapping[str, Any]] = {
    "id": JOB_ID,
    "status": "done",
    "name": "meeting.mp3",
    "language": "en",
    "task": "transcribe",
    "model": "large-v3-turbo",
    "duration_secs": 142.3,
    "progress": 100,
    "error": None,
    "error_code": None,
    "created_at": "2026-05-05T21:00:00.000Z",
    "started_at": "2026-05-05T21:00:00.100Z",
    "completed_at": "2026-05-05T21:00:04.700Z",
}
JOB_WITH_TRANSCRIPT: Final[Mapping[str, Any]] = {**JOB, "text": "Hello, world.", "segments": [SEGMENT]}
JOBS: Final[Mapping[str, Any]] = {"jobs": [JOB], "next": None}
JOB_EVENTS: Final = (
    'id: 1\nevent: segment\ndata: {"type": "segment", "index": 0, "start": 0.0, "end": 2.4, "text": " Hello, world.", "words": [], …}\n\n'
    'id: 1\nevent: progress\ndata: {"type": "progress", "percent": 42}\n\n'
    'id: 1-end\nevent: done\ndata: {"type": "done", "job": {…}}\n\n'
)

MODEL: Final[Mapping[str, Any]] = {
    "model": "large-v3-turbo",
    "state": "ready",
    "device": "cuda",
    "compute_type": "int8_float16",
    "detail": "",
    "last_error": "",
    "memory_bytes": 1_825_361_920,
    "memory_estimate_bytes": 1_703_936_000,
    "idle_seconds_left": 287.4,
    "unloads_at": "2026-05-05T21:04:52.100Z",
    "requests": 0,
    "chunks_waiting": 0,
    "chunks_running": 0,
    "loads": 1,
    "load_failures": 0,
    "unloads": 0,
    "evictions": 0,
    "deaths": 0,
}
_CARD: Final = {
    "index": 0,
    "name": "NVIDIA RTX A4000",
    "memory_total": 17_171_480_576,
    "memory_used": 2_147_483_648,
    "memory_free": 15_023_996_928,
}
MODELS: Final[Mapping[str, Any]] = {**MODEL, "memory_budget_bytes": None, "gpus": [_CARD], "models": [MODEL]}
MODEL_EVENTS: Final = (
    "id: 1b4e28ba-2\nevent: model_ready\n"
    'data: {"type": "model_ready", "model": "large-v3-turbo", "state": "ready", "detail": "", "at": "2026-05-05T21:00:02.300Z", '
    '"current": false}\n\n'
)
HEALTH: Final[Mapping[str, Any]] = {
    "status": "healthy",
    "model": "large-v3-turbo",
    "device": "cuda (NVIDIA RTX A4000)",
    "gpu_available": True,
    "model_state": "ready",
}
QUEUE: Final[Mapping[str, Any]] = {
    "serve_mode": "simple",
    "device": "cuda",
    "loaded_models": ["large-v3-turbo"],
    "queue": {
        "requests_queued": 0,
        "requests_in_flight": 2,
        "gpu_concurrency": 32,
        "max_queue_size": 32,
        "chunks_waiting": 5,
        "chunks_running": 16,
        "audio_seconds_waiting": 141.6,
    },
}
METRICS: Final = "# HELP metalscribe_requests Transcriptions under way or waiting\n# TYPE metalscribe_requests gauge\nmetalscribe_requests 2.0\n"
