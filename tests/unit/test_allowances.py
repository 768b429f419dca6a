from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from metalscribe.api.allowances import Allowances, Places
from metalscribe.api.ledger import Ledger
from metalscribe.api.work import Desk
from metalscribe.errors import ConcurrencyLimited, DailyAudioSpent
from metalscribe.store.database import Database
from metalscribe.store.idempotency import IdempotencyStore
from metalscribe.store.identity import ApiKey, Scope, utc_now
from metalscribe.store.usage import Usage, UsageStore

KEY = ApiKey("abcd1234", "somebody", frozenset(Scope), None, 1.0, utc_now(), None, None, None, concurrency=2)


class Clock:
    """Moves by order only."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 18, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Call:
    """A request as far as allowances look at it."""

    def __init__(self, idempotency_key: str | None = None) -> None:
        self.held = ExitStack()
        headers = [(b"idempotency-key", idempotency_key.encode())] if idempotency_key else []
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "state": {"held": self.held}}
        self.request = Request(scope, self._silent)

    async def _silent(self) -> dict[str, str]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    def over(self) -> None:
        self.held.close()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'metalscribe.db'}")
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(IdempotencyStore(database))


@pytest.fixture
def ledger(database: Database, clock: Clock) -> Ledger:
    return Ledger(UsageStore(database), clock=clock)


@pytest.fixture
def allowances(desk: Desk, ledger: Ledger, clock: Clock) -> Allowances:
    return Allowances(desk, ledger, clock=clock)


# --- at one time ------------------------------------------------------------------------------------------------------


def taken(places: Places, key: ApiKey, work: object) -> ExitStack:
    place = ExitStack()
    place.enter_context(places.taken(key, work))
    return place


def test_there_are_so_many_places_and_each_comes_back_however_its_work_ends() -> None:
    places = Places()
    with places.taken(KEY, "a"):
        with pytest.raises(RuntimeError, match="failed"), places.taken(KEY, "b"):
            with pytest.raises(
                ConcurrencyLimited, match=r"2 of this key's requests .* 2 may be at one time.* 5 seconds"
            ) as caught:
                taken(places, KEY, "c")
            with places.taken(replace(KEY, id="efgh5678", concurrency=1), "another key's"):
                pass
            raise RuntimeError("the work failed")
        with places.taken(KEY, "c"), pytest.raises(ConcurrencyLimited):
            taken(places, KEY, "d")
    assert caught.value.retry_after == 5.0
    assert not places._under_way, "nothing is remembered of keys that are not at work"


def test_who_are_at_the_same_work_share_its_place_until_the_last_has_left() -> None:
    places = Places()
    one = replace(KEY, concurrency=1)
    first, second = taken(places, one, "same"), taken(places, one, "same")
    first.close()
    with pytest.raises(ConcurrencyLimited):
        taken(places, one, "other")
    second.close()
    taken(places, one, "other").close()


def test_a_limit_that_is_changed_counts_what_is_under_way_already() -> None:
    places = Places()
    held = [taken(places, replace(KEY, concurrency=None), object()) for _ in range(3)]
    with pytest.raises(ConcurrencyLimited, match=r"3 of .* and 3 may"):
        taken(places, replace(KEY, concurrency=3), object())
    held.append(taken(places, replace(KEY, concurrency=4), object()))
    held.pop().close()
    with pytest.raises(ConcurrencyLimited, match=r"3 of .* and 1 may"):
        taken(places, replace(KEY, concurrency=1), object())


async def test_a_repetition_shares_the_place_of_its_first_request(allowances: Allowances) -> None:
    key = replace(KEY, concurrency=1)
    first, again = Call("k"), Call("k")
    await allowances.admit(first.request, key)
    await allowances.admit(again.request, key)
    for stranger in (Call(), Call("l")):
        with pytest.raises(ConcurrencyLimited):
            await allowances.admit(stranger.request, key)
    first.over()
    with pytest.raises(ConcurrencyLimited):
        await allowances.admit(Call().request, key)
    again.over()
    await allowances.admit(Call().request, key)


async def test_who_asks_for_a_kept_answer_needs_no_place(allowances: Allowances, desk: Desk) -> None:
    key = replace(KEY, concurrency=1)
    await desk.serve(Call("answered").request, key, "mark", _answer)
    working = Call()
    await allowances.admit(working.request, key)
    await allowances.admit(Call("answered").request, key)
    with pytest.raises(ConcurrencyLimited):
        await allowances.admit(Call("another").request, key)


# --- a day ------------------------------------------------------------------------------------------------------------


async def test_a_days_audio_is_spent_until_midnight(allowances: Allowances, ledger: Ledger, clock: Clock) -> None:
    key = replace(KEY, daily_audio_seconds=60.0, concurrency=1)
    ledger.add(key.id, Usage(audio_seconds=59.9))
    await allowances.require_audio(Call().request, key)
    ledger.add(key.id, Usage(audio_seconds=0.1))
    with pytest.raises(DailyAudioSpent, match=r"60 seconds.*may have 60 a day.*2030-01-02T00:00:00\.000Z") as caught:
        await allowances.require_audio(Call().request, key)
    assert caught.value.retry_after == 6 * 3600
    with pytest.raises(DailyAudioSpent):
        await allowances.admit(Call().request, key)
    await allowances.admit(Call().request, replace(key, daily_audio_seconds=61.0))
    await allowances.require_audio(Call().request, replace(key, daily_audio_seconds=None))
    await allowances.require_audio(Call().request, replace(key, id="efgh5678"))
    clock.now += timedelta(hours=6)
    await allowances.require_audio(Call().request, key)
    clock.now -= timedelta(microseconds=1)
    with pytest.raises(DailyAudioSpent) as caught:
        await allowances.require_audio(Call().request, key)
    assert 0 < caught.value.retry_after < 1


async def test_a_repetition_costs_no_audio(allowances: Allowances, ledger: Ledger, desk: Desk) -> None:
    key = replace(KEY, daily_audio_seconds=60.0)
    running, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> Response:
        running.set()
        await go_on.wait()
        return PlainTextResponse("slow")

    await desk.serve(Call("answered").request, key, "mark", _answer)
    under_way = asyncio.create_task(desk.serve(Call("running").request, key, "mark", slow))
    await running.wait()
    ledger.add(key.id, Usage(audio_seconds=60.0))
    for known in ("answered", "running"):
        await allowances.admit(Call(known).request, key)
    with pytest.raises(DailyAudioSpent):
        await allowances.admit(Call("new").request, key)
    with pytest.raises(DailyAudioSpent):
        await allowances.admit(Call("answered").request, replace(key, id="efgh5678", daily_audio_seconds=0.0))
    go_on.set()
    assert (await under_way).body == b"slow"


async def _answer() -> Response:
    return PlainTextResponse("kept")
