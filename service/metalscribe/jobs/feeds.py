"""What happens to jobs, told to whoever follows them. The database knows; it is read once for all who follow a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from metalscribe.errors import MetalscribeError, NotFound
from metalscribe.jobs.loop import Loop
from metalscribe.jobs.whole import whole
from metalscribe.store.job import Job
from metalscribe.store.jobs import JobStore
from metalscribe.transcript import Segment

_POLL_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 3600.0
_ASKED_TOGETHER: Final = 500

_log = structlog.get_logger(__name__)


class Feed:
    """A job that somebody follows.

    Attributes:
        job: at this moment.
        segments: those that are final.
        gone: it was deleted.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.segments: list[Segment] = []
        self.gone = False
        self.followers = 0
        self._version = 0
        self._changed = asyncio.Event()
        self._reading = asyncio.Lock()

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._version

    async def changed(self, since: int) -> None:
        """Wait until the version is not ``since`` any more."""
        while self._version == since:
            await self._changed.wait()

    async def refresh(self, store: JobStore) -> None:
        """Read what is new."""
        async with self._reading:
            try:
                self.job = await store.get(self.job.id)
                self.segments += await store.segments(self.job, len(self.segments))
            except NotFound:
                self.gone = True
            self._version += 1
            self._changed.set()
            self._changed = asyncio.Event()


class Feeds:
    """The jobs that somebody follows, of this process and of others.

    Those of this process are told of at once (:meth:`tell`), the others by a look at the database every second.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._feeds: dict[str, Feed] = {}
        self._looking: Loop | None = None

    @asynccontextmanager
    async def follow(self, job: Job) -> AsyncIterator[Feed]:
        """Follow a job for as long as the block runs."""
        feed = self._feeds.setdefault(job.id, Feed(job))
        feed.followers += 1
        try:
            if feed.version == 0:
                await whole(feed.refresh(self._store))  # a follower may hang up at any moment
            if self._looking is None:
                self._looking = Loop("job feeds", self._look_at_all)
                self._looking.start()
            self._looking.wake()
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers and self._feeds.get(job.id) is feed:
                del self._feeds[job.id]

    async def tell(self, job_id: str) -> None:
        """Something has been written down of a job."""
        feed = self._feeds.get(job_id)
        if feed is not None:
            await self._refresh(feed)

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            await self._looking.close()

    async def _refresh(self, feed: Feed) -> None:
        try:
            await whole(feed.refresh(self._store))
        except MetalscribeError as error:
            _log.warning("followers of a job hear of it later", code=error.code, detail=error.detail)

    async def _look_at_all(self) -> float:
        open_ones = [feed for feed in self._feeds.values() if not (feed.job.status.final or feed.gone)]
        for at in range(0, len(open_ones), _ASKED_TOGETHER):
            await self._look(open_ones[at : at + _ASKED_TOGETHER])
        return _POLL_SECONDS if self._feeds else _IDLE_SECONDS

    async def _look(self, feeds: list[Feed]) -> None:
        now = {job.id: job for job in await self._store.several([feed.job.id for feed in feeds])}
        for feed in feeds:
            job = now.get(feed.job.id)
            if job is None or (job.status, job.progress) != (feed.job.status, feed.job.progress):
                await self._refresh(feed)
