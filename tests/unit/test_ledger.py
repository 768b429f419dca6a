from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from common import Eventually
from metalscribe.api.ledger import Ledger
from metalscribe.errors import TryLater
from metalscribe.store.database import Database
from metalscribe.store.usage import Usage, UsageStore

DAY = date(2030, 1, 1)
CLIP = Usage(requests=1, audio_seconds=10.0)


class Clock:
    """Moves by order only."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 23, 59, 59, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class SlowStore(UsageStore):
    """The real one, whose writes stop before or after the database has them, or fail, until they are let go on."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.before, self.after = asyncio.Event(), asyncio.Event()
        self.before.set()
        self.after.set()
        self.entered, self.written = asyncio.Event(), asyncio.Event()
        self.away = False

    async def add(self, entries: Mapping[tuple[date, str], Usage]) -> None:
        self.entered.set()
        await self.before.wait()
        if self.away:
            raise TryLater("the database is away")
        await super().add(entries)
        self.written.set()
        await self.after.wait()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'metalscribe.db'}")
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> SlowStore:
    return SlowStore(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(store: SlowStore, clock: Clock) -> AsyncIterator[Ledger]:
    ledger = Ledger(store, clock=clock)
    ledger.start()
    yield ledger
    await ledger.close()


async def test_what_is_counted_is_known_at_once_and_written_down_soon(
    ledger: Ledger, store: SlowStore, eventually: Eventually
) -> None:
    for _ in range(3):
        ledger.add("alice", CLIP)
    ledger.add("bob", Usage(requests=1, failed=1))
    assert await ledger.audio_today("alice") == 30.0
    await eventually(store.written.is_set)
    assert await store.of_day(DAY, "alice") == Usage(requests=3, audio_seconds=30.0)
    assert await store.of_day(DAY, "bob") == Usage(requests=1, failed=1)
    assert await ledger.audio_today("alice") == 30.0


@pytest.mark.parametrize("place", ["before", "after"])
async def test_it_counts_once_while_it_is_being_written(ledger: Ledger, store: SlowStore, place: str) -> None:
    gate = getattr(store, place)
    gate.clear()
    ledger.add("alice", CLIP)
    await (store.entered if place == "before" else store.written).wait()
    ledger.add("alice", CLIP)
    asked = asyncio.create_task(ledger.audio_today("alice"))
    await asyncio.sleep(0)
    gate.set()
    assert await asked == 20.0


async def test_others_on_the_database_count_too(ledger: Ledger, store: SlowStore) -> None:
    await store.add({(DAY, "alice"): Usage(jobs=1, audio_seconds=5.0)})
    ledger.add("alice", CLIP)
    assert await ledger.audio_today("alice") == 15.0


async def test_what_the_database_does_not_take_is_kept(
    ledger: Ledger, store: SlowStore, eventually: Eventually
) -> None:
    store.away = True
    ledger.add("alice", CLIP)
    await store.entered.wait()
    ledger.add("alice", CLIP)
    assert await ledger.audio_today("alice") == 20.0
    store.away = False
    await eventually(store.written.is_set)
    await ledger.close()
    assert await store.of_day(DAY, "alice") == Usage(requests=2, audio_seconds=20.0)


async def test_closing_writes_what_is_left_or_says_that_it_is_lost(store: SlowStore, clock: Clock) -> None:
    for away in (False, True):
        store.away = away
        ledger = Ledger(store, clock=clock)
        ledger.add("alice", CLIP)
        with structlog.testing.capture_logs() as logged:
            await ledger.close()
        assert [line["log_level"] for line in logged] == ["error"] * away
    assert await store.of_day(DAY, "alice") == CLIP


async def test_a_new_day_begins_at_midnight_and_an_old_one_goes_on_when_the_clock_is_set_back(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.add("alice", CLIP)
    clock.now += timedelta(seconds=1)
    assert await ledger.audio_today("alice") == 0.0
    ledger.add("alice", CLIP)
    ledger.add("alice", CLIP)
    assert await ledger.audio_today("alice") == 20.0
    clock.now -= timedelta(minutes=5)
    assert await ledger.audio_today("alice") == 10.0
    ledger.add("alice", CLIP)
    assert await ledger.audio_today("alice") == 20.0
