from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from metalscribe.errors import NotFound, RateLimited, StorageFull
from metalscribe.store.database import Database
from metalscribe.store.deliveries import DeliveryStatus, DeliveryStore
from metalscribe.store.job import Advance, Job, JobStatus, NewJob, Quota, Webhook
from metalscribe.store.jobs import JobStore
from metalscribe.store.recordings import Recordings
from metalscribe.store.spool import alive, spool
from metalscribe.store.usage import DayOfUse, Usage, UsageStore
from metalscribe.transcript import Segment, Word

START = datetime(2030, 1, 1, tzinfo=UTC)
FREE = Quota()
OPTIONS = {"language": "en", "task": "transcribe"}


class Clock:
    """Moves by order only, in either direction."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'metalscribe.db'}")
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def jobs(database: Database, clock: Clock) -> JobStore:
    return JobStore(database, clock=clock)


@pytest.fixture
def outbox(database: Database, clock: Clock) -> DeliveryStore:
    return DeliveryStore(database, clock=clock)


numbers: Iterator[int] = count()


def new(key_id: str = "alice", **changes: Any) -> NewJob:
    facts = {"weight": 1.0, "name": "talk.mp3", "options": OPTIONS, "webhook_url": None, "audio_bytes": 100}
    return NewJob(id=f"job-{next(numbers)}", key_id=key_id, **{**facts, **changes})


def segment(index: int, text: str = " Hello.") -> Segment:
    return Segment(
        index, index * 2.0, index * 2.0 + 1.5, text, (Word(index * 2.0, index * 2.0 + 1.5, text, 0.5),), -0.5, 0.25, 1.5
    )


def done(job: Job, text: str = "Hello.") -> Job:
    return replace(job, status=JobStatus.DONE, text=text, language="en", progress=100, completed_at=START)


async def claimed(jobs: JobStore, owner: str = "me") -> Job:
    found = await jobs.claim(owner)
    assert found is not None
    return found[0]


async def test_a_job_survives_a_restart_as_it_was(database: Database, jobs: JobStore) -> None:
    accepted = await jobs.accept(new(webhook_url="https://example.com/hook"), FREE)
    await database.close()
    await database.open()
    assert await jobs.get(accepted.id) == accepted
    assert (accepted.status, accepted.created_at, accepted.progress) == (JobStatus.QUEUED, START, 0)
    assert accepted.options == OPTIONS


async def test_it_goes_on_from_what_was_written_down(jobs: JobStore) -> None:
    await jobs.accept(new(), FREE)
    job = await claimed(jobs)
    first = Advance({0: b"zero", 2: b"two"}, (segment(0), segment(1)), 40, "en", 0.9, 12.5)
    assert await jobs.advance(job, "me", first)
    assert await jobs.give_back("me") == 1
    again = await jobs.claim("another")
    assert again is not None
    assert again[1] == {0: b"zero", 2: b"two"}
    assert (again[0].progress, again[0].duration, again[0].language) == (40, 12.5, "en")
    assert again[0].started_at == START
    # It tells again what the first run has told, and more.
    assert await jobs.advance(job, "another", Advance({1: b"one"}, (segment(0), segment(1), segment(2)), 80))
    assert await jobs.segments(job) == (segment(0), segment(1), segment(2))
    assert await jobs.segments(job, 2) == (segment(2),)
    assert await jobs.end(job, "another", done(job), 2, None)
    ended = await jobs.get(job.id)
    assert (ended.status, ended.owner, ended.text, ended.progress) == (JobStatus.DONE, None, "Hello.", 100)
    assert await jobs.segments(job) == (segment(0), segment(1)), "what an earlier run told beyond the end is gone"
    assert await jobs.claim("me") is None


async def test_who_does_not_own_it_writes_nothing(jobs: JobStore) -> None:
    await jobs.accept(new(), FREE)
    job = await claimed(jobs)
    assert not await jobs.advance(job, "another", Advance({0: b""}, (segment(0),), 10))
    assert not await jobs.end(job, "another", done(job), 1, Webhook("job_done", "https://a", "https://a", b"{}"))
    await jobs.cancel(job.id, "alice")
    assert not await jobs.advance(job, "me", Advance({0: b""}, (segment(0),), 10))
    assert not await jobs.end(job, "me", done(job), 1, None)
    assert (await jobs.get(job.id)).status is JobStatus.CANCELLED
    assert await jobs.segments(job) == ()
    assert (await jobs.cancel(job.id, "alice")).status is JobStatus.CANCELLED
    with pytest.raises(NotFound):
        await jobs.get(job.id)


async def test_nobody_claims_what_another_has(jobs: JobStore) -> None:
    for _ in range(20):
        await jobs.accept(new(), FREE)
    found = await asyncio.gather(*(jobs.claim(f"process-{number % 4}") for number in range(25)))
    taken = [one[0].number for one in found if one is not None]
    assert len(taken) == len(set(taken)) == 20
    assert await jobs.owners() == {f"process-{number}" for number in range(4)}


async def test_keys_take_turns_by_weight_and_their_jobs_in_order(jobs: JobStore) -> None:
    for _ in range(6):
        await jobs.accept(new("crowd"), FREE)
    await jobs.accept(new("alone"), FREE)
    for _ in range(2):
        await jobs.accept(new("heavy", weight=2.0), FREE)
    turns = [(await claimed(jobs)).key_id for _ in range(9)]
    assert turns == ["crowd", "alone", "heavy", "heavy", "crowd", "crowd", "crowd", "crowd", "crowd"]
    assert (await jobs.counts()) == {JobStatus.RUNNING: 9}


async def test_order_does_not_hang_on_the_clock(jobs: JobStore, clock: Clock) -> None:
    first = await jobs.accept(new(), FREE)
    clock.now -= timedelta(days=1)
    second = await jobs.accept(new(), FREE)
    assert [job.id for job in await jobs.page("alice", limit=5)] == [second.id, first.id]
    assert [job.id for job in await jobs.page("alice", limit=5, before=second.number)] == [first.id]
    assert (await claimed(jobs)).id == first.id


async def test_quotas(jobs: JobStore) -> None:
    quota = Quota(queued_per_key=2, bytes_per_key=250, bytes=400)
    await jobs.accept(new(), quota)
    with pytest.raises(RateLimited, match="more than the"):
        await jobs.accept(new(audio_bytes=200), quota)
    await jobs.accept(new(), quota)
    with pytest.raises(RateLimited, match=r"2 of this key's jobs"):
        await jobs.accept(new(audio_bytes=1), quota)
    await jobs.accept(new("bob", audio_bytes=200), quota)
    with pytest.raises(StorageFull, match="METALSCRIBE_JOBS_DISK_MB"):
        await jobs.accept(new("carol", audio_bytes=1), quota)


async def test_the_oldest_results_make_room(jobs: JobStore, clock: Clock) -> None:
    quota = Quota(bytes=1000)
    kept = []
    for _ in range(4):
        job = await jobs.accept(new(audio_bytes=10), quota)
        job = await claimed(jobs)
        await jobs.end(job, "me", done(job, "x" * 200), 0, None)
        kept.append(job.id)
        clock.now += timedelta(seconds=1)
    await jobs.accept(new(audio_bytes=900), quota)
    assert len(await jobs.page(None, limit=10)) == 1
    with pytest.raises(StorageFull):
        await jobs.accept(new(audio_bytes=900), quota)


async def test_ended_jobs_are_forgotten_in_time(jobs: JobStore, outbox: DeliveryStore, clock: Clock) -> None:
    for _ in range(2):
        await jobs.accept(new(), FREE)
    job = await claimed(jobs)
    await jobs.end(job, "me", done(job), 0, Webhook("job_done", "https://a/1", "https://a:443", b"{}"))
    clock.now += timedelta(days=31)
    assert await jobs.forget(timedelta(days=30)) == 1
    assert [one.status for one in await jobs.page(None, limit=5)] == [JobStatus.QUEUED]
    assert len(await outbox.of_job(job.id)) == 1, "a webhook that has not arrived outlives its job"


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def used(database: Database) -> UsageStore:
    return UsageStore(database)


async def test_a_job_counts_once_however_often_it_was_begun_and_its_end_was_told(
    jobs: JobStore, used: UsageStore, clock: Clock
) -> None:
    await jobs.accept(new(), FREE)
    job = await claimed(jobs, "killed")
    await jobs.advance(job, "killed", Advance({0: b""}, (segment(0),), 40))
    await jobs.give_back("killed")
    assert await used.between(date.min, date.max) == [], "what has not ended"
    again = await claimed(jobs, "me")
    clock.now += timedelta(days=1)
    ended = replace(done(again), duration=12.5)
    assert not await jobs.end(again, "killed", ended, 1, None, 3.0)
    assert await jobs.end(again, "me", ended, 1, None, 0.5)
    assert not await jobs.end(again, "me", ended, 1, None, 0.5), "the answer was lost, and it is tried again"
    counted = DayOfUse(date(2030, 1, 2), "alice", Usage(jobs=1, audio_seconds=12.5, engine_seconds=0.5))
    assert await used.between(date.min, date.max) == [counted]
    await jobs.cancel(job.id)
    assert await used.between(date.min, date.max) == [counted], "a job that is deleted was done all the same"


async def test_a_job_that_fails_counts_as_far_as_it_told(jobs: JobStore, used: UsageStore) -> None:
    await jobs.accept(new(), FREE)
    job = await claimed(jobs)
    await jobs.advance(job, "me", Advance({}, (segment(0), segment(1)), 40, duration=60.0))
    failed = replace(job, status=JobStatus.FAILED, duration=60.0, error_code="undecodable_media", completed_at=START)
    assert await jobs.end(job, "me", failed, 2, None)
    assert await used.of_day(START.date(), "alice") == Usage(jobs=1, failed=1, audio_seconds=3.5)


async def test_a_job_that_is_cancelled_counts_if_it_had_begun(jobs: JobStore, used: UsageStore) -> None:
    first, second = await jobs.accept(new(), FREE), await jobs.accept(new(), FREE)
    job = await claimed(jobs)
    await jobs.advance(job, "me", Advance({}, (segment(0),), 40, duration=60.0))
    await jobs.cancel(second.id)
    assert await used.between(date.min, date.max) == []
    await jobs.cancel(first.id)
    assert not await jobs.end(job, "me", done(job), 1, None)
    assert await used.of_day(START.date(), "alice") == Usage(jobs=1, audio_seconds=1.5)


# --- webhooks ---------------------------------------------------------------------------------------------------------


async def due(outbox: DeliveryStore, **wanted: Any) -> list[str]:
    found = await outbox.claim("me", limit=10, horizon=timedelta(seconds=32), **wanted)
    return [delivery.url for delivery in found]


async def with_webhook(jobs: JobStore, url: str = "https://a/1") -> Job:
    await jobs.accept(new(webhook_url=url), FREE)
    job = await claimed(jobs)
    assert await jobs.end(job, "me", done(job), 0, Webhook("job_done", url, "https://a:443", b'{"x": 1}'))
    return job


async def test_a_webhook_is_due_with_the_end_of_its_job_and_until_it_has_arrived(
    jobs: JobStore, outbox: DeliveryStore, clock: Clock
) -> None:
    job = await with_webhook(jobs)
    (delivery,) = await outbox.claim("me", limit=10, horizon=timedelta(seconds=32))
    assert (delivery.url, delivery.body, delivery.event, delivery.attempts) == (
        "https://a/1",
        b'{"x": 1}',
        "job_done",
        0,
    )
    assert await due(outbox) == [], "one process sends it at a time"
    await outbox.postponed(delivery, "refused", timedelta(seconds=4))
    assert await due(outbox) == []
    assert await outbox.seconds_to_next() == 4
    clock.now += timedelta(seconds=4)
    assert await due(outbox) == ["https://a/1"]
    assert await outbox.give_back("me") == 1, "its process has died"
    assert await due(outbox) == ["https://a/1"]
    await outbox.delivered((await outbox.of_job(job.id))[0])
    assert await due(outbox) == []
    (ended,) = await outbox.of_job(job.id)
    assert (ended.status, ended.attempts, ended.error) == (DeliveryStatus.DELIVERED, 2, None)


async def test_a_webhook_that_was_given_up_is_sent_again_by_order(jobs: JobStore, outbox: DeliveryStore) -> None:
    job = await with_webhook(jobs)
    (delivery,) = await outbox.claim("me", limit=1, horizon=timedelta(seconds=32))
    await outbox.failed(delivery, "answered with status 500")
    assert await due(outbox) == []
    assert (await outbox.of_job(job.id))[0].error == "answered with status 500"
    assert await outbox.redeliver(job.id) == 1
    assert await due(outbox) == ["https://a/1"]
    with pytest.raises(NotFound):
        await outbox.redeliver("job-without")


async def test_a_clock_that_was_set_back_delays_nothing(jobs: JobStore, outbox: DeliveryStore, clock: Clock) -> None:
    await with_webhook(jobs)
    clock.now -= timedelta(days=365)
    assert await due(outbox) == ["https://a/1"]


async def test_receivers_can_be_left_alone(jobs: JobStore, outbox: DeliveryStore) -> None:
    await with_webhook(jobs)
    assert await due(outbox, except_for={"https://a:443"}) == []
    assert await due(outbox, except_for={"https://b:443"}) == ["https://a/1"]


async def test_secrets_are_made_once_and_addresses_remembered_once(outbox: DeliveryStore) -> None:
    first, second = await asyncio.gather(outbox.secret("alice"), outbox.secret("alice"))
    assert first == second == await outbox.secret("alice") != await outbox.secret("bob")
    for _ in range(2):
        await outbox.remember("alice", "https://a/1")
    await outbox.remember("bob", "https://a/1")
    assert await outbox.announce("model_ready", b"{}", lambda url: url[:9]) == 2
    assert await due(outbox) == ["https://a/1", "https://a/1"]


# --- recordings -------------------------------------------------------------------------------------------------------


def test_a_recording_is_kept_under_its_jobs_name_and_what_is_left_over_is_found(tmp_path: Path) -> None:
    recordings = Recordings(tmp_path)
    with spool(tmp_path / "incoming") as incoming:
        for name in ("a", "b", "c"):
            (incoming / name).write_bytes(b"sound")
            recordings.keep(name, incoming / name)
        assert recordings.candidates() == set(), "they are on their way"
        for name in ("a", "b"):
            (incoming / name).unlink()
        assert recordings.candidates() == {"a", "b"}
    assert recordings.candidates() == {"a", "b", "c"}, "the process that received the third is gone"
    recordings.sweep({"b", "c"})
    assert recordings.path("a").read_bytes() == b"sound"
    recordings.remove("a")
    recordings.remove("a")
    assert list((tmp_path / "recordings").iterdir()) == []


def test_what_the_disk_shall_keep_free_is_not_taken(tmp_path: Path) -> None:
    Recordings(tmp_path).check_room(1)
    with pytest.raises(StorageFull, match="MiB free"):
        Recordings(tmp_path, reserve=2**60).check_room(1)


def test_a_process_is_known_by_the_lock_on_its_spool(tmp_path: Path) -> None:
    with spool(tmp_path) as mine:
        assert alive(tmp_path, mine.name)
    assert not alive(tmp_path, mine.name)
    assert not alive(tmp_path, "never-was")
