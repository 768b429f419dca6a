"""Where jobs are handed in, asked for and called off: everything that a caller can do with them, and those who do the work."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from metalscribe.engine.interface import Engine, ModelState
from metalscribe.errors import MetalscribeError
from metalscribe.jobs.documents import job_json
from metalscribe.jobs.feeds import Feeds
from metalscribe.jobs.loop import Loop
from metalscribe.jobs.metrics import JobMetrics
from metalscribe.jobs.runner import JobRunner
from metalscribe.jobs.webhooks import Deliverer, target_of
from metalscribe.media.addresses import AddressPolicy
from metalscribe.render.times import utc_text
from metalscribe.store.backup import incoming, scratches
from metalscribe.store.database import Database
from metalscribe.store.deliveries import DeliveryStore
from metalscribe.store.identity import ApiKey
from metalscribe.store.job import Job, JobStatus, NewJob, Quota, Webhook
from metalscribe.store.jobs import JobStore
from metalscribe.store.recordings import Recordings
from metalscribe.store.spool import alive, spool, sweep
from metalscribe.transcript import Segment

_TOLD: Final = frozenset({ModelState.READY, ModelState.UNLOADED})
"""What of the models' lives webhooks tell."""

_HOUSEKEEPING_SECONDS: Final = 15.0
_TIDY_SECONDS: Final = 3600.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How jobs are kept; see the settings of the same names."""

    directory: Path
    places: int
    quota: Quota
    reserve_bytes: int
    max_upload_bytes: int
    keep: timedelta


class JobOffice:
    """The jobs of this process and of all others that share its database and its directory of jobs."""

    def __init__(
        self,
        engine: Engine,
        database: Database,
        options: JobOptions,
        policy: AddressPolicy,
        incoming: Path,
        metrics: JobMetrics,
    ) -> None:
        def lives(owner: str) -> bool:
            return alive(incoming.parent, owner)

        self.options = options
        self.incoming = incoming
        self.store = JobStore(database)
        self.deliveries = DeliveryStore(database)
        self.recordings = Recordings(options.directory, reserve=options.reserve_bytes)
        self.feeds = Feeds(self.store)
        self.metrics = metrics
        self.metrics.disk_reserve.set(options.reserve_bytes)
        self._engine = engine
        self._deliverer = Deliverer(self.deliveries, policy, owner=incoming.name, alive=lives, metrics=metrics)
        self._runner = JobRunner(
            engine,
            self.store,
            self.recordings,
            self.feeds,
            owner=incoming.name,
            alive=lives,
            places=options.places,
            metrics=metrics,
            webhook=_webhook,
            on_webhook=self._deliverer.wake,
        )
        self._tidied = time.monotonic()
        self._housekeeping = Loop("jobs' housekeeping", self._keep_house)
        self._stop = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """How many jobs run in this process."""
        return self._runner.running

    async def depth(self) -> dict[str, int] | None:
        """How many jobs wait and run, in all services on this database; None while it does not answer."""
        try:
            counts = await self.store.counts()
        except MetalscribeError:
            return None
        return {status.value: counts.get(status, 0) for status in (JobStatus.QUEUED, JobStatus.RUNNING)}

    async def measure(self) -> None:
        """Bring the metrics that are gauges up to date."""
        depth = await self.depth()
        for status in (JobStatus.QUEUED, JobStatus.RUNNING):
            self.metrics.jobs.labels(status.value).set(math.nan if depth is None else depth[status.value])
        try:
            self.metrics.disk_free.set((await asyncio.to_thread(shutil.disk_usage, self.options.directory)).free)
        except OSError:
            self.metrics.disk_free.set(math.nan)  # whoever hands in a job is told why

    async def start(self) -> None:
        """Take up work, with what was left behind."""
        await self.tidy()
        if self.options.places:
            self._listening = asyncio.create_task(self._tell_of_models(), name="models' webhooks")
            self._deliverer.start()
            self._runner.start()
            self._housekeeping.start()

    async def close(self) -> None:
        """Stop; what runs goes on with the next start, or in another process."""
        await self._housekeeping.close()
        await self._runner.close()
        await self._deliverer.close()
        await self.feeds.close()
        self._stop.set()
        if self._listening is not None:
            await self._listening

    async def tidy(self) -> None:
        """Forget what has been kept long enough, and recordings without a job."""
        self._tidied = time.monotonic()
        try:
            forgotten = await self.store.forget(self.options.keep)
            await self.deliveries.forget(self.options.keep)
            files = await asyncio.to_thread(self.recordings.candidates)
            left_over = files - await self.store.with_recordings()
            await asyncio.to_thread(self.recordings.sweep, left_over)
            await asyncio.to_thread(sweep, scratches(self.options.directory))
        except MetalscribeError as error:
            _log.warning("jobs not tidied; tried again in an hour", code=error.code, detail=error.detail)
            return
        if forgotten or left_over:
            _log.info("jobs tidied", forgotten=forgotten, recordings_left_over=len(left_over))

    async def _keep_house(self) -> float:
        """Tidy every hour, and when a process has died: it may have ended a job, and not lived to remove its recording."""
        dead = await asyncio.to_thread(sweep, self.incoming.parent)
        if dead or time.monotonic() - self._tidied > _TIDY_SECONDS:
            await self.tidy()
        return _HOUSEKEEPING_SECONDS

    async def accept(
        self, key: ApiKey, upload: Path, *, name: str, size: int, options: Mapping[str, Any], webhook_url: str | None
    ) -> Job:
        """Take a job in; when this returns, it will be done whatever happens to this process.

        Args:
            key: whose it is.
            upload: its whole recording, in :attr:`incoming`; its caller removes it there afterwards.
            name: what the caller calls the recording.
            size: of the recording, in bytes.
            options: see :func:`metalscribe.jobs.runner.request_of`.
            webhook_url: who is told of its end; checked already.

        Raises:
            RateLimited: the key has as many jobs as it may.
            StorageFull: the disk, or its budget, is full.
        """
        new = NewJob(str(uuid.uuid4()), key.id, key.weight, name, options, webhook_url, size)
        await asyncio.to_thread(self.recordings.keep, new.id, upload)
        try:
            if webhook_url is not None:
                await self.deliveries.remember(key.id, webhook_url)
            job = await self.store.accept(new, self.options.quota)
        except BaseException:
            self.recordings.remove(new.id)
            raise
        self._runner.wake()
        return job

    async def cancel(self, job_id: str, key_id: str | None) -> Job:
        """Cancel a job that has not ended, delete one that has; returns it as it was.

        Raises:
            NotFound: there is none, or it is another key's.
        """
        was = await self.store.cancel(job_id, key_id)
        if not was.status.final:
            self.metrics.ends.labels(JobStatus.CANCELLED.value).inc()
        await self._runner.cancelled(job_id)
        return was

    async def _tell_of_models(self) -> None:
        listener = self._engine.events.listen()
        stopping = asyncio.ensure_future(self._stop.wait())
        while True:
            coming = asyncio.ensure_future(anext(listener))
            await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                return
            if isinstance(coming.exception(), StopAsyncIteration):
                stopping.cancel()
                return
            event = coming.result()
            if event.state not in _TOLD:
                continue
            body = {"type": event.name, "model": event.model, "state": event.state.value, "at": utc_text(event.at)}
            try:
                if await self.deliveries.announce(event.name, _json(body), target_of):
                    self._deliverer.wake()
            except MetalscribeError as error:
                _log.error(
                    "webhooks do not tell of a model", event_type=event.name, code=error.code, detail=error.detail
                )


@contextmanager
def incoming_of(options: JobOptions) -> Iterator[Path]:
    """The directory where this process receives recordings; its name is what other processes know this one by.

    Raises:
        OSError: it cannot be made.
    """
    with spool(incoming(options.directory)) as directory:
        yield directory


def _webhook(ended: Job, segments: tuple[Segment, ...]) -> Webhook | None:
    if ended.webhook_url is None:
        return None
    event = "job_done" if ended.status is JobStatus.DONE else "job_failed"
    return Webhook(event, ended.webhook_url, target_of(ended.webhook_url), _json(job_json(ended, segments)))


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()
