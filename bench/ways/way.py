"""What the workloads know of a way to transcribe."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.recordings import Recording


@dataclass(frozen=True, slots=True)
class Setup:
    """The same for all ways of a benchmark.

    Attributes:
        model: directory in CTranslate2's format.
        device: cpu or cuda.
        compute_type: CTranslate2's.
        language: code, or None to have it detected.
        segments: ask metalscribe for the segments' times as well, as the sequential way always gives them.
        scratch: folder that is emptied afterwards.
    """

    model: Path
    device: str
    compute_type: str
    language: str | None
    segments: bool
    scratch: Path


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a recording.

    Attributes:
        text: what was said.
        latency_seconds: from sending the recording to having the whole text.
        queue_seconds: what it waited of that before the model took it (its last chunk's batch, for metalscribe).
        first_segment_seconds: from sending to having the first segment.
        mark: name of the request in a log.
    """

    recording: Recording
    text: str
    latency_seconds: float
    queue_seconds: float | None = None
    first_segment_seconds: float | None = None
    mark: str = ""

    def waited(self, queue_seconds: float | None) -> Answer:
        """The same with another queue wait."""
        return replace(self, queue_seconds=queue_seconds)


class Way(ABC):
    """A loaded model and something in front of it; takes any number of recordings at a time."""

    @property
    def pid(self) -> int:
        """The process whose memory and processor time count, with all of its children."""
        return os.getpid()

    @property
    def model_pid(self) -> int | None:
        """The process that runs CTranslate2."""
        return self.pid

    @abstractmethod
    async def start(self) -> None:
        """Load the model.

        Raises:
            RuntimeError: it does not load.
        """

    @abstractmethod
    async def close(self) -> None:
        """Free everything."""

    @abstractmethod
    async def transcribe(self, recording: Recording) -> Answer:
        """Transcribe a recording.

        Raises:
            RuntimeError: it failed.
        """

    def behind(self, recording: Recording, count: int) -> AbstractAsyncContextManager[None]:
        """Have a recording transcribed ``count`` times over, with nobody waiting, while the block runs; what is not done then is dropped.

        Raises:
            NotImplementedError: this way has somebody wait for everything.
        """
        raise NotImplementedError(
            f"{type(self).__name__} knows no work that nobody waits for: {count} × {recording.path.name}"
        )

    async def begin(self) -> None:  # noqa: B027  (most have nothing to do)
        """A run begins."""

    async def end(self) -> dict[str, float]:
        """A run has ended; figures about it."""
        return {}

    def completed(self, answer: Answer) -> Answer:
        """An answer with what is known only when its run has ended."""
        return answer
