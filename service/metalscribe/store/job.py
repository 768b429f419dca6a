"""A job as the other floors see it. Pure; knows no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from metalscribe.transcript import Segment


class JobStatus(StrEnum):
    """Where a job is in its life; the last three are its end."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """It will not change any more."""
        return self in {JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED}


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be accepted.

    Attributes:
        id: a UUID; also the name of its recording.
        key_id: whose it is.
        weight: the key's share of the machine.
        name: what the caller calls the recording.
        options: how to transcribe it; plain JSON.
        webhook_url: who is told of its end.
        audio_bytes: size of its recording.
    """

    id: str
    key_id: str
    weight: float
    name: str
    options: Mapping[str, Any]
    webhook_url: str | None
    audio_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job at this moment, without its segments. Times carry UTC.

    Attributes:
        number: order of acceptance, from 1.
        owner: the process that runs it.
        language: of the recording, as asked for or detected.
        duration: of the recording in seconds, None until it is known.
        progress: percent.
        text: once it is done.
        error_code, error: why it failed.
    """

    number: int
    id: str
    key_id: str
    status: JobStatus
    owner: str | None
    weight: float
    name: str
    options: Mapping[str, Any] = field(repr=False)
    webhook_url: str | None = field(repr=False)
    audio_bytes: int
    model: str | None
    language: str | None
    language_probability: float | None
    duration: float | None
    progress: int
    text: str | None = field(repr=False)
    error_code: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Advance:
    """What has come of a running job since it was last written down.

    Attributes:
        checkpoints: of chunks that are done.
        segments: that are final, in order.
        progress: percent.
        language, language_probability: of the recording, as soon as it is known.
        duration: likewise, in seconds.
    """

    checkpoints: Mapping[int, bytes] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    progress: int = 0
    language: str | None = None
    language_probability: float | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may be accepted; 0 is no bound.

    Attributes:
        queued_per_key: jobs of a key that have not ended.
        bytes_per_key: of their recordings.
        bytes: of all recordings, and of all results.
    """

    queued_per_key: int = 0
    bytes_per_key: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Webhook:
    """What is sent to whom when a job ends.

    Attributes:
        event: what it tells of.
        url: to whom.
        target: scheme, host and port of the URL.
        body: plain JSON.
    """

    event: str
    url: str = field(repr=False)
    target: str
    body: bytes = field(repr=False)
