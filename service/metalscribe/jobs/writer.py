"""Writing down what comes of a running job, without the engine waiting for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import structlog

from metalscribe.errors import MetalscribeError
from metalscribe.jobs.whole import whole
from metalscribe.store.job import Advance, Job
from metalscribe.store.jobs import JobStore
from metalscribe.transcript import ChunkDone, Done, Event, LanguageDetected, Progress, Segment, SegmentsReady

_T = TypeVar("_T")

_PATIENCE: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between attempts to write; the last one again and again."""

_log = structlog.get_logger(__name__)


class JobWriter:
    """Gathers events of one job and writes them together, one transaction after another.

    A database that is locked or full is asked again until it takes them: nothing that was transcribed is dropped for it.

    Args:
        job: as it was claimed.
        owner: this process.
        on_written: awaited after each transaction.
        on_lost: called once when the job turns out not to be this process's any more: cancelled, deleted, or taken over.
    """

    def __init__(
        self,
        store: JobStore,
        job: Job,
        owner: str,
        *,
        on_written: Callable[[], Awaitable[None]],
        on_lost: Callable[[], None],
    ) -> None:
        self._store = store
        self._job = job
        self._owner = owner
        self._on_written = on_written
        self._on_lost = on_lost
        self._checkpoints: dict[int, bytes] = {}
        self._segments: list[Segment] = []
        self._progress = job.progress
        self._language: LanguageDetected | None = None
        self._duration: float | None = None
        self._news = asyncio.Event()
        self._ending = False
        self.lost = False
        self._task = asyncio.create_task(self._write(), name=f"job {job.id} writer")

    def take(self, event: Event) -> None:
        """What the engine says."""
        match event:
            case LanguageDetected():
                self._language = event
            case ChunkDone():
                _log.debug("chunk done", job=self._job.id, chunk=event.number)
                self._checkpoints[event.number] = event.data
            case SegmentsReady():
                self._segments += event.segments
            case Progress():
                self._progress = max(self._progress, event.percent)
                self._duration = event.duration or self._duration
                if not (self._checkpoints or self._segments):
                    return  # that alone is not worth a transaction
            case Done():
                return
        self._news.set()

    async def flush(self) -> None:
        """Wait until all is written."""
        self._ending = True
        self._news.set()
        await self._task

    async def stop(self) -> None:
        """End without waiting for a database that does not take anything."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def persist(self, write: Callable[[], Awaitable[_T]]) -> _T:
        """Do ``write`` until the database takes it."""
        attempt = 0
        while True:
            try:
                return await whole(write())
            except MetalscribeError as error:
                delay = _PATIENCE[min(attempt, len(_PATIENCE) - 1)]
                attempt += 1
                _log.warning(
                    "job not written down yet", job=self._job.id, code=error.code, detail=error.detail, retry_in=delay
                )
                await asyncio.sleep(delay)

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._checkpoints or self._segments:
                advance = self._taken()
                if not await self.persist(partial(self._store.advance, self._job, self._owner, advance)):
                    self.lost = True
                    self._on_lost()
                    return
                await self._on_written()
            elif self._ending:
                return
            if self._ending:
                self._news.set()

    def _taken(self) -> Advance:
        checkpoints, self._checkpoints = self._checkpoints, {}
        segments, self._segments = self._segments, []
        language = self._language
        return Advance(
            checkpoints=checkpoints,
            segments=tuple(segments),
            progress=self._progress,
            language=language.language if language else None,
            language_probability=language.probability if language else None,
            duration=self._duration,
        )
