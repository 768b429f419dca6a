from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.store.database import Database
from metalscribe.store.usage import KEPT, DayOfUse, Usage, UsageStore, day_of

DAY = date(2030, 1, 1)
NEXT = date(2030, 1, 2)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'metalscribe.db'}")
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> UsageStore:
    return UsageStore(database, clock=lambda: datetime(2030, 1, 2, 12, tzinfo=UTC))


async def test_entries_add_up_by_day_and_key(store: UsageStore) -> None:
    assert await store.of_day(DAY, "alice") == Usage()
    await store.add({(DAY, "alice"): Usage(1, 0, 0, 2.5, 0.25), (DAY, "configured"): Usage(requests=3, failed=3)})
    await store.add({(DAY, "alice"): Usage(1, 2, 1, 10.0, 0.5), (NEXT, "alice"): Usage(jobs=1, audio_seconds=60.0)})
    assert await store.of_day(DAY, "alice") == Usage(
        requests=2, jobs=2, failed=1, audio_seconds=12.5, engine_seconds=0.75
    )
    assert await store.of_day(NEXT, "alice") == Usage(jobs=1, audio_seconds=60.0)
    assert await store.of_day(NEXT, "configured") == Usage()


async def test_a_stretch_of_days_is_told_by_day_and_key(store: UsageStore) -> None:
    one = Usage(requests=1)
    days = [DAY + timedelta(days=number) for number in range(4)]
    await store.add({(day, key): one for day in days for key in ("bob", "alice")})
    assert [(entry.day, entry.key_id) for entry in await store.between(days[1], days[2])] == [
        (days[1], "alice"),
        (days[1], "bob"),
        (days[2], "alice"),
        (days[2], "bob"),
    ]
    assert await store.between(days[3], days[3], "bob") == [DayOfUse(days[3], "bob", one)]
    assert await store.between(days[3], days[0]) == []


async def test_all_of_what_is_added_together_is_there_or_nothing(store: UsageStore, database: Database) -> None:
    with pytest.raises(Exception, match="NOT NULL"):
        await store.add({(DAY, "alice"): Usage(requests=1), (DAY, "bob"): Usage(requests=None)})  # type: ignore[arg-type]
    assert await store.between(DAY, DAY) == []


async def test_nothing_is_lost_between_those_who_add_at_the_same_time(store: UsageStore) -> None:
    await asyncio.gather(
        *(store.add({(DAY, key): Usage(requests=1, audio_seconds=0.5) for key in ("alice", "bob")}) for _ in range(20))
    )
    assert [entry.usage for entry in await store.between(DAY, DAY)] == [Usage(requests=20, audio_seconds=10.0)] * 2


async def test_entries_are_kept_for_more_than_a_year(store: UsageStore) -> None:
    first_kept = NEXT - KEPT
    await store.add(
        {(first_kept - timedelta(days=1), "a"): Usage(1), (first_kept, "a"): Usage(1), (NEXT, "a"): Usage(1)}
    )
    assert timedelta(days=366) < KEPT
    assert await store.forget() == 1
    assert [entry.day for entry in await store.between(date.min, date.max)] == [first_kept, NEXT]


def test_a_day_is_one_of_utc() -> None:
    east = timezone(timedelta(hours=9))
    assert day_of(datetime(2030, 1, 2, 8, 59, tzinfo=east)) == DAY
    assert day_of(datetime(2030, 1, 2, 9, 0, tzinfo=east)) == NEXT


@given(st.lists(st.builds(Usage, *[st.integers(0, 1000)] * 3, st.integers(0, 10**6), st.integers(0, 10**6))))
def test_sums_are_those_of_each_amount(usages: list[Usage]) -> None:
    total = sum(usages, start=Usage())
    for name in ("requests", "jobs", "failed", "audio_seconds", "engine_seconds"):
        assert getattr(total, name) == sum(getattr(usage, name) for usage in usages)
