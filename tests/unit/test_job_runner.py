"""The runner of jobs between the database and the engine; the engine here says one sentence, since none is what this is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from metalscribe.engine.interface import Engine
from metalscribe.errors import TryLater
from metalscribe.jobs.feeds import Feeds
from metalscribe.jobs.metrics import JobMetrics
from metalscribe.jobs.runner import JobRunner
from metalscribe.store.database import Database
from metalscribe.store.job import Job, JobStatus, NewJob, Quota
from metalscribe.store.jobs import JobStore
from metalscribe.store.recordings import Recordings
from metalscribe.transcript import Done, Event, Segment, Statistics, Transcript, TranscriptionRequest

OPTIONS = {
    **dict.fromkeys(("language", "prompt", "hotwords", "model")),
    "task": "transcribe",
    "mode": "fast",
    "vad": True,
    "word_timestamps": False,
    "audio_track": 0,
}


class OneSentence:
    """As much of an engine as the runner asks for."""

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Event]:
        del request
        segment = Segment(0, 0.0, 1.0, " Done.")
        yield Done(Transcript("Done.", "en", 1.0, 1.0, (segment,), "demo"), Statistics(audio_seconds=1.0))


class Place:
    """A database, recordings, and a runner."""

    def __init__(self, root: Path) -> None:
        self.database = Database(f"sqlite:///{root / 'metalscribe.db'}")
        self.store = JobStore(self.database)
        self.recordings = Recordings(root / "jobs")
        self.feeds = Feeds(self.store)
        self.runner = JobRunner(
            cast("Engine", OneSentence()),
            self.store,
            self.recordings,
            self.feeds,
            owner="this",
            alive=lambda owner: owner == "this",
            places=1,
            metrics=JobMetrics(CollectorRegistry()),
            webhook=lambda job, segments: None,
            on_webhook=lambda: None,
        )

    async def accept(self, root: Path) -> Job:
        upload = root / "upload"
        upload.write_bytes(b"speech")
        new = NewJob("job", "key", 1.0, "a.flac", OPTIONS, None, 6)
        await asyncio.to_thread(self.recordings.keep, new.id, upload)
        upload.unlink()
        return await self.store.accept(new, Quota())

    async def status(self) -> JobStatus:
        return (await self.store.get("job")).status


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_an_end_that_is_seen_before_it_is_answered_is_carried_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner looks for jobs that others have ended while it ends one itself, and must not take that for another's."""
    place = Place(tmp_path)
    await place.database.open()
    await place.accept(tmp_path)
    end = place.store.end

    async def answered_late(*arguments: Any) -> bool:
        result = await end(*arguments)
        place.runner.wake()
        await asyncio.sleep(0.5)
        return result

    monkeypatch.setattr(place.store, "end", answered_late)
    place.runner.start()
    await until(lambda: _is(place, JobStatus.DONE))
    await until(lambda: _gone(place))
    await place.runner.close()
    assert not place.runner.running
    await place.database.close()


async def test_an_end_whose_answer_is_lost_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction went through, and the connection broke before it said so: the second attempt finds it done."""
    place = Place(tmp_path)
    await place.database.open()
    await place.accept(tmp_path)
    end = place.store.end
    attempts = 0

    async def broken_once(*arguments: Any) -> bool:
        nonlocal attempts
        attempts += 1
        result = await end(*arguments)
        if attempts == 1:
            raise TryLater("the connection broke")
        return result

    monkeypatch.setattr(place.store, "end", broken_once)
    place.runner.start()
    await until(lambda: _gone(place))
    assert await place.status() is JobStatus.DONE
    await place.runner.close()
    await place.database.close()


async def _is(place: Place, status: JobStatus) -> bool:
    return await place.status() is status


async def _gone(place: Place) -> bool:
    return not place.recordings.path("job").exists()
