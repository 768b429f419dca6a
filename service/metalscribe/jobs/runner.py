"""Runs jobs: claims them one by one, has the engine transcribe them, and goes on where an earlier process has stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog

from metalscribe.engine.interface import Engine
from metalscribe.errors import EngineFailed, MetalscribeError, RecordingMissing, TryLater
from metalscribe.jobs.feeds import Feeds
from metalscribe.jobs.loop import Loop
from metalscribe.jobs.metrics import JobMetrics
from metalscribe.jobs.takeover import taken_over
from metalscribe.jobs.writer import JobWriter
from metalscribe.store.job import Job, JobStatus, Webhook
from metalscribe.store.jobs import JobStore
from metalscribe.store.recordings import Recordings
from metalscribe.transcript import Done, Latency, Mode, Segment, Task, TranscriptionRequest

_LOOK_SECONDS: Final = 2.0
"""Between looks for jobs that other processes have accepted, cancelled, or left behind."""

_LONGEST_PAUSE: Final = 30.0

_log = structlog.get_logger(__name__)

MakeWebhook = Callable[[Job, tuple[Segment, ...]], Webhook | None]


class JobRunner:
    """The jobs that run in this process.

    Args:
        engine: transcribes.
        store: knows the jobs.
        recordings: has their files.
        feeds: whom to tell.
        owner: this process.
        alive: whether another process lives.
        places: how many jobs run at a time.
        metrics: where ends are counted.
        webhook: what to send when a job has ended.
        on_webhook: called when there is one to be sent.
    """

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        recordings: Recordings,
        feeds: Feeds,
        *,
        owner: str,
        alive: Callable[[str], bool],
        places: int,
        metrics: JobMetrics,
        webhook: MakeWebhook,
        on_webhook: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._store = store
        self._recordings = recordings
        self._feeds = feeds
        self._owner = owner
        self._alive = alive
        self._places = places
        self._metrics = metrics
        self._webhook = webhook
        self._on_webhook = on_webhook
        self._running: dict[str, asyncio.Task[None]] = {}
        self._loop = Loop("jobs", self._turn)

    @property
    def running(self) -> int:
        """How many jobs run in this process."""
        return len(self._running)

    def start(self) -> None:
        """Begin, with what dead processes have left behind."""
        self._loop.start()

    def wake(self) -> None:
        """There is a new job."""
        self._loop.wake()

    async def close(self) -> None:
        """Stop; running jobs go back into the queue with all that is done of them."""
        await self._loop.close()
        for task in list(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running.values()))
        try:
            await self._store.give_back(self._owner)
        except MetalscribeError as error:
            _log.warning("running jobs are taken up when this process has ended", code=error.code, detail=error.detail)

    async def cancelled(self, job_id: str) -> None:
        """A job was cancelled or deleted: stop working for it, and remove its recording."""
        task = self._running.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await asyncio.to_thread(self._recordings.remove, job_id)
        await self._feeds.tell(job_id)

    async def _turn(self) -> float:
        if count := await taken_over(self._store, self._owner, self._alive):
            _log.info("jobs taken over from a process that has ended", jobs=count)
        await self._drop_lost()
        await self._fill()
        return _LOOK_SECONDS

    async def _drop_lost(self) -> None:
        """Stop what another process has cancelled."""
        if not self._running:
            return
        now = {job.id: job for job in await self._store.several(list(self._running))}
        for job_id, task in list(self._running.items()):
            job = now.get(job_id)
            if job is None or job.status.final:
                task.cancel()

    async def _fill(self) -> None:
        while not self._loop.stopping and len(self._running) < self._places:
            claimed = await self._store.claim(self._owner)
            if claimed is None:
                return
            job, checkpoints = claimed
            task = asyncio.create_task(self._run(job, checkpoints), name=f"job {job.id}")
            self._running[job.id] = task
            task.add_done_callback(partial(self._ended, job.id))
            await self._feeds.tell(job.id)

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._running[job_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("job met an unexpected error at its end", job=job_id, exc_info=error)
        self._loop.wake()

    async def _run(self, job: Job, checkpoints: Mapping[int, bytes]) -> None:
        log = _log.bind(job=job.id, key=job.key_id)
        log.info("job started", checkpoints=len(checkpoints))
        running = asyncio.current_task()

        def lost() -> None:
            if running is not None:
                running.cancel()

        writer = JobWriter(self._store, job, self._owner, on_written=lambda: self._feeds.tell(job.id), on_lost=lost)
        try:
            try:
                done = await self._transcribe(job, checkpoints, writer)
            except TryLater as error:
                await writer.flush()
                log.info("job goes back into the queue", code=error.code, detail=error.detail)
                await writer.persist(lambda: self._store.give_back(self._owner, job))
                await self._feeds.tell(job.id)
                await asyncio.sleep(min(_LONGEST_PAUSE, error.retry_after))
                return
            except MetalscribeError as error:
                await writer.flush()
                await self._failed(job, writer, error)
                return
            except Exception as error:
                log.exception("job met an unexpected error")
                await writer.flush()
                await self._failed(
                    job, writer, EngineFailed(f"the service met an unexpected error ({type(error).__name__})")
                )
                return
            await writer.flush()
            await self._done(job, writer, done)
        finally:
            await writer.stop()

    async def _transcribe(self, job: Job, checkpoints: Mapping[int, bytes], writer: JobWriter) -> Done:
        if not await asyncio.to_thread(self._recordings.path(job.id).is_file):
            raise RecordingMissing("the recording is not in the jobs' directory any more; hand it in again")
        async with aclosing(self._engine.transcribe(request_of(job, self._recordings, checkpoints))) as events:
            async for event in events:
                writer.take(event)
                if isinstance(event, Done):
                    return event
        raise EngineFailed("the engine ended without a result")

    async def _done(self, job: Job, writer: JobWriter, done: Done) -> None:
        transcript = done.transcript
        ended = replace(
            job,
            status=JobStatus.DONE,
            owner=None,
            model=transcript.model,
            language=transcript.language,
            language_probability=transcript.language_probability,
            duration=transcript.duration,
            progress=100,
            text=transcript.text,
            completed_at=datetime.now(UTC),
        )
        await self._end(job, writer, ended, transcript.segments, done.statistics.engine_seconds)

    async def _failed(self, job: Job, writer: JobWriter, error: MetalscribeError) -> None:
        now = await writer.persist(lambda: self._store.get(job.id))
        segments = await writer.persist(lambda: self._store.segments(job))
        ended = replace(
            now,
            status=JobStatus.FAILED,
            owner=None,
            error_code=error.code,
            error=error.detail,
            completed_at=datetime.now(UTC),
        )
        await self._end(job, writer, ended, segments)

    async def _end(
        self, job: Job, writer: JobWriter, ended: Job, segments: tuple[Segment, ...], engine_seconds: float = 0.0
    ) -> None:
        webhook = self._webhook(ended, segments)
        await writer.persist(lambda: self._concluded(job, ended, len(segments), webhook, engine_seconds))

    async def _concluded(
        self, job: Job, ended: Job, segments: int, webhook: Webhook | None, engine_seconds: float
    ) -> bool:
        """Write a job's end down with all that follows from it; False where it was not this process's to end any more.

        Never cut off in the middle (:meth:`JobWriter.persist`): who looks at the database in between finds a job that has ended, and
        calls this task off.
        """
        if not await self._store.end(job, self._owner, ended, segments, webhook, engine_seconds):
            # Cancelled; or written down by an earlier attempt, whose answer a broken connection has swallowed.
            if all(now.status.final for now in await self._store.several([job.id])):
                await asyncio.to_thread(self._recordings.remove, job.id)
                await self._feeds.tell(job.id)
                self._on_webhook()
            return False
        self._metrics.ended(ended)
        _log.info(
            "job ended",
            job=job.id,
            key=job.key_id,
            status=ended.status.value,
            audio_seconds=None if ended.duration is None else round(ended.duration, 3),
            problem=ended.error_code,
        )
        await asyncio.to_thread(self._recordings.remove, job.id)
        await self._feeds.tell(job.id)
        if webhook is not None:
            self._on_webhook()
        return True


def request_of(job: Job, recordings: Recordings, checkpoints: Mapping[int, bytes]) -> TranscriptionRequest:
    """What a job asks of the engine."""
    options: Mapping[str, Any] = job.options
    return TranscriptionRequest(
        path=recordings.path(job.id),
        language=options["language"],
        task=Task(options["task"]),
        mode=Mode(options["mode"]),
        prompt=options["prompt"],
        hotwords=options["hotwords"],
        vad=options["vad"],
        segments=True,
        word_timestamps=options["word_timestamps"],
        audio_track=options["audio_track"],
        name=job.name,
        latency=Latency.BATCH,
        model=options["model"],
        weight=job.weight,
        checkpoints=checkpoints,
    )
