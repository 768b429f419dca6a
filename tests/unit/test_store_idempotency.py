from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metalscribe.errors import InvalidParameter
from metalscribe.store.database import Database
from metalscribe.store.idempotency import IdempotencyStore, StoredAnswer

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metalscribe.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{path}")
    await database.open()
    yield database
    await database.close()


async def put(store: IdempotencyStore, key_id: str = "configured", name: str = "retry-1", body: bytes = b"{}") -> bool:
    return await store.put(
        key_id,
        name,
        fingerprint="f" * 64,
        status=200,
        media_type="application/json",
        headers={"X-Request-ID": "ü1"},
        body=body,
    )


async def test_an_answer_comes_back_as_it_was_also_after_a_restart(database: Database) -> None:
    store = IdempotencyStore(database, clock=lambda: NOW)
    body = bytes(range(256)) * 4096
    assert await store.get("configured", "retry-1") is None
    assert await put(store, body=body)
    await database.close()
    await database.open()
    found = await store.get("configured", "retry-1")
    assert found == StoredAnswer("f" * 64, 200, "application/json", {"X-Request-ID": "ü1"}, body, NOW)
    assert "\\x00" not in repr(found)


async def test_an_answer_without_a_body_has_no_media_type(database: Database) -> None:
    store = IdempotencyStore(database)
    await store.put("configured", "k", fingerprint="f", status=204, media_type=None, headers={}, body=b"")
    found = await store.get("configured", "k")
    assert found is not None
    assert (found.status, found.media_type, found.headers, found.body) == (204, None, {}, b"")


async def test_the_first_writer_wins(database: Database) -> None:
    store = IdempotencyStore(database)
    assert await put(store, body=b"first")
    assert not await put(store, body=b"second")
    found = await store.get("configured", "retry-1")
    assert found is not None
    assert found.body == b"first"


async def test_of_many_writers_at_once_one_wins(database: Database) -> None:
    store = IdempotencyStore(database)
    won = await asyncio.gather(*(put(store, body=str(index).encode()) for index in range(20)))
    assert sum(won) == 1
    found = await store.get("configured", "retry-1")
    assert found is not None
    assert found.body == str(won.index(True)).encode()


async def test_keys_do_not_see_one_anothers_answers(database: Database) -> None:
    store = IdempotencyStore(database)
    assert await put(store, "aaaaaaaa", body=b"mine")
    assert await store.get("bbbbbbbb", "retry-1") is None
    assert await put(store, "bbbbbbbb", body=b"yours")
    found = await store.get("aaaaaaaa", "retry-1")
    assert found is not None
    assert found.body == b"mine"


@pytest.mark.parametrize("name", ["", "a" * 256, "tab\t", "nul\x00", "é", "line\n"])
async def test_a_key_that_cannot_be_stored_is_refused(database: Database, name: str) -> None:
    store = IdempotencyStore(database)
    with pytest.raises(InvalidParameter) as caught:
        await put(store, name=name)
    assert caught.value.parameter == "Idempotency-Key"
    with pytest.raises(InvalidParameter):
        await store.get("configured", name)


async def test_the_longest_key_is_kept(database: Database) -> None:
    store = IdempotencyStore(database)
    assert await put(store, name="~" * 255)
    assert await store.get("configured", "~" * 255) is not None


async def test_purging_deletes_only_what_is_older(database: Database) -> None:
    moment = NOW
    store = IdempotencyStore(database, clock=lambda: moment)
    for name in ("old", "edge", "new"):
        await put(store, name=name)
        moment += timedelta(hours=1)
    assert await store.purge(timedelta(hours=2)) == 1
    assert await store.get("configured", "old") is None
    assert await store.get("configured", "edge") is not None
    assert await store.get("configured", "new") is not None
    assert await store.purge(timedelta(0)) == 2
    assert await store.purge(timedelta(0)) == 0
