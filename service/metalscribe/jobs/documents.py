"""A job as a document, the same for who asks, follows or is called back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from metalscribe.render import segment_json
from metalscribe.render.times import utc_text
from metalscribe.store.job import Job
from metalscribe.transcript import Segment, Task, Transcript


def job_json(job: Job, segments: Iterable[Segment] | None) -> dict[str, Any]:
    """A job.

    Args:
        job: at this moment.
        segments: those that are final; None leaves them out, with the text, for lists.
    """
    document: dict[str, Any] = {
        "id": job.id,
        "status": job.status.value,
        "name": job.name,
        "language": job.language or job.options.get("language"),
        "task": job.options["task"],
        "model": job.model or job.options.get("model"),
        "duration_secs": None if job.duration is None else round(job.duration, 3),
        "progress": job.progress,
        "error": job.error,
        "error_code": job.error_code,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "completed_at": _time(job.completed_at),
    }
    if segments is not None:
        told = list(segments)
        words = bool(job.options.get("word_timestamps"))
        document["text"] = job.text if job.text is not None else "".join(segment.text for segment in told).strip()
        document["segments"] = [segment_json(segment, word_timestamps=words) for segment in told]
    return document


def transcript_of(job: Job, segments: Sequence[Segment]) -> Transcript:
    """A finished job's transcript."""
    return Transcript(
        text=job.text or "",
        language=job.language or "en",
        language_probability=job.language_probability or 0.0,
        duration=job.duration or 0.0,
        segments=tuple(segments),
        model=job.model or "",
        task=Task(job.options["task"]),
    )


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else utc_text(moment)
