"""The store on a real PostgreSQL server, which the tests start for themselves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import permutations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from metalscribe.errors import ConfigurationError, Conflict, TryLater
from metalscribe.store.database import Database
from metalscribe.store.idempotency import IdempotencyStore
from metalscribe.store.job import JobStatus, NewJob, Quota
from metalscribe.store.jobs import JobStore
from metalscribe.store.keys import KeyStore, Scope
from metalscribe.store.models import ApiKeyRow, Base
from metalscribe.store.usage import Usage, UsageStore
from postgresql import PATIENCE, Server, postgresql

OPEN = """
import asyncio, sys
from metalscribe.store.database import Database

async def main() -> None:
    database = Database(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    await database.open()
    await database.close()
    print("done")

asyncio.run(main())
"""


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as server:
        yield server


@pytest.fixture
async def url(server: Server) -> AsyncIterator[str]:
    """Make an empty database of the test's own."""
    from sqlalchemy.ext.asyncio import create_async_engine

    admin = create_async_engine(
        server.url("postgres").replace("postgresql:", "postgresql+psycopg:"),
        isolation_level="AUTOCOMMIT",
        pool_pre_ping=True,
    )
    async with admin.connect() as connection:
        await connection.execute(text("CREATE DATABASE one"))
    yield server.url("one")
    async with admin.connect() as connection:
        await connection.execute(text("DROP DATABASE one WITH (FORCE)"))
    await admin.dispose()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.open()
    yield database
    await database.close()


async def test_models_and_migrations_agree(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    async with database.session() as session:
        assert await (await session.connection()).run_sync(differences) == []


async def test_processes_may_open_a_fresh_database_at_the_same_time(url: str) -> None:
    processes = [start(url) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    answers = await asyncio.gather(*(asyncio.to_thread(process.communicate, "go\n", PATIENCE) for process in processes))
    assert [out for out, _ in answers] == ["done\n"] * 3, answers


async def test_opening_waits_for_the_process_that_migrates_but_not_for_ever(url: str, database: Database) -> None:
    lock = int.from_bytes(b"metalscr", "big")
    async with database.session() as holder:
        await holder.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
        with pytest.raises(TryLater, match="migration"):
            await Database(url, migration_timeout=0.001).open()
    other = Database(url)
    await other.open()
    await other.close()


async def test_a_database_newer_than_the_code_is_refused(url: str, database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="newer metalscribe"):
        await Database(url).open()


async def test_keys_live_as_they_do_in_sqlite(database: Database) -> None:
    now = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    store = KeyStore(database, clock=lambda: now)
    old = await store.create("app", [Scope.TRANSCRIBE, Scope.METRICS], timedelta(days=90), "5/minute", weight=0.3)
    with pytest.raises(Conflict):
        await store.create("app", [Scope.ADMIN])
    assert await store.verify(old.key_text) == old.api_key
    await store.close()
    assert (await store.list())[0].last_used_at == now
    new = await store.rotate("app", grace=timedelta(hours=1))
    assert new.api_key.created_at == now
    found = await asyncio.gather(*(store.verify(text) for text in [old.key_text, new.key_text] * 25))
    assert all(key is not None and key.weight == 0.3 for key in found)
    now += timedelta(hours=1)
    assert await store.verify(old.key_text) is None
    assert await store.verify(new.key_text) is not None
    assert await store.any_exists()
    await store.revoke("app")
    assert await store.verify(new.key_text) is None
    assert not await store.any_exists()
    await store.close()


async def test_rotations_at_the_same_time_leave_the_last_secret_only(database: Database) -> None:
    store = KeyStore(database)
    await store.create("app", [Scope.TRANSCRIBE])
    made = await asyncio.gather(*(store.rotate("app") for _ in range(8)))
    found = [await store.verify(new.key_text) for new in made]
    await store.close()
    assert sum(key is not None for key in found) == 1


async def test_answers_live_as_they_do_in_sqlite(database: Database) -> None:
    store = IdempotencyStore(database)

    async def put(body: bytes) -> bool:
        return await store.put(
            "configured",
            "k",
            fingerprint="f",
            status=200,
            media_type="text/plain",
            headers={"X-Request-ID": "ü"},
            body=body,
        )

    bodies = [bytes([index]) * 1000 for index in range(10)]
    won = await asyncio.gather(*(put(body) for body in bodies))
    assert sum(won) == 1
    found = await store.get("configured", "k")
    assert found is not None
    assert (found.body, found.headers) == (bodies[won.index(True)], {"X-Request-ID": "ü"})
    assert await store.purge(timedelta(0)) == 1


async def test_limits_and_usage_live_as_they_do_in_sqlite(database: Database) -> None:
    keys = KeyStore(database)
    await keys.create("app", [Scope.TRANSCRIBE], concurrency=2, daily_audio_seconds=0.1)
    assert (await keys.change("app", {"concurrency": None})).daily_audio_seconds == 0.1
    day = date(2030, 1, 1)
    store = UsageStore(database, clock=lambda: datetime(2030, 1, 2, tzinfo=UTC))
    names = ["alice", "bob", "configured"]
    one = Usage(requests=1, jobs=1, failed=1, audio_seconds=0.5, engine_seconds=0.25)
    # In every order: entries that are locked in different ones would lock each other out.
    await asyncio.gather(
        *(
            store.add(dict.fromkeys([(day, key) for key in order], one))
            for order in permutations(names)
            for _ in range(4)
        )
    )
    assert await store.of_day(day, "bob") == Usage(24, 24, 24, 12.0, 6.0)
    assert [entry.key_id for entry in await store.between(day, day)] == names
    assert await store.forget(timedelta(days=2)) == 0
    assert await store.forget(timedelta(0)) == 3


async def test_a_jobs_end_and_others_count_on_one_entry(database: Database) -> None:
    jobs, used = JobStore(database), UsageStore(database)
    for number in range(8):
        await jobs.accept(NewJob(f"job-{number}", "alice", 1.0, "a", {}, None, 1), Quota())
    claimed = [await jobs.claim("me") for _ in range(8)]
    ends = [
        jobs.end(job, "me", replace(job, status=JobStatus.DONE, duration=2.0, completed_at=datetime.now(UTC)), 0, None)
        for job, _ in filter(None, claimed)
    ]
    today = datetime.now(UTC).date()
    requests = [used.add({(today, "alice"): Usage(requests=1), (today, "bob"): Usage(requests=1)}) for _ in range(8)]
    assert all(await asyncio.gather(*ends))
    await asyncio.gather(*requests)
    alices = [entry.usage for entry in await used.between(today, date.max, "alice")]
    assert sum(alices, start=Usage()) == Usage(requests=8, jobs=8, audio_seconds=16.0)


async def test_a_read_only_session_cannot_write_and_leaves_no_trace_on_its_connection(database: Database) -> None:
    await KeyStore(database).create("app", [Scope.TRANSCRIBE])
    with pytest.raises(DBAPIError, match="read-only"):
        async with database.session(read_only=True) as session:
            await session.execute(update(ApiKeyRow).values(name="changed"))
    async with database.session() as session:
        await session.execute(update(ApiKeyRow).values(name="changed"))
    async with database.session(read_only=True) as session:
        assert await session.scalar(select(ApiKeyRow.name)) == "changed"


async def test_foreign_keys_hold_and_errors_do_not_repeat_what_was_stored(database: Database) -> None:
    store = KeyStore(database)
    await store.create("confidential", [Scope.TRANSCRIBE])
    with pytest.raises(IntegrityError) as caught:
        async with database.session() as session:
            await session.execute(text("INSERT INTO api_key_secrets VALUES ('nobody00', 'x', now(), NULL)"))
    assert "confidential" not in str(caught.value)


async def test_a_server_that_restarts_or_is_gone(server: Server, database: Database, url: str) -> None:
    store = KeyStore(database)
    new = await store.create("app", [Scope.TRANSCRIBE])
    await asyncio.to_thread(server.stop)
    try:
        with pytest.raises(TryLater, match="does not answer"):
            await store.verify(new.key_text)
        with pytest.raises(TryLater, match="METALSCRIBE_DATABASE_URL"):
            await Database(url).open()
    finally:
        await asyncio.to_thread(server.start)
    assert await store.verify(new.key_text) is not None
    await store.close()
