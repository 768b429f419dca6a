from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from metalscribe.api.work import Desk
from metalscribe.errors import EngineFailed, IdempotencyMismatch
from metalscribe.store.database import Database
from metalscribe.store.idempotency import IdempotencyStore
from metalscribe.store.identity import ApiKey, Scope, utc_now

LINGER = 0.3

KEY = ApiKey("abcd1234", "somebody", frozenset(Scope), None, 1.0, utc_now(), None, None, None)


class Client:
    """A caller's end of a connection: a request whose body has been read, and a way to hang up."""

    def __init__(self, idempotency_key: str | None = None) -> None:
        self._gone = asyncio.Event()
        headers = [(b"idempotency-key", idempotency_key.encode())] if idempotency_key else []
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, self._receive)

    async def _receive(self) -> dict[str, str]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def hang_up(self) -> None:
        self._gone.set()


class Work:
    """An answer that takes until it is told to finish, and time to be torn down."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.finish = asyncio.Event()
        self.ending = asyncio.Event()
        self.torn_down = asyncio.Event()
        self.runs = 0

    async def __call__(self) -> Response:
        self.runs += 1
        self.begun.set()
        try:
            await self.finish.wait()
            return PlainTextResponse(f"answer {self.runs}")
        finally:
            self.ending.set()
            await asyncio.shield(asyncio.ensure_future(self.torn_down.wait()))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'desk.db'}")
    await database.open()
    yield Desk(IdempotencyStore(database), linger=LINGER)
    await database.close()


async def test_coming_back_while_the_abandoned_work_is_torn_down_begins_anew(desk: Desk) -> None:
    abandoned, again = Work(), Work()
    first, second = Client("k"), Client("k")
    leaving = asyncio.create_task(desk.serve(first.request, KEY, "same", abandoned))
    await abandoned.begun.wait()
    first.hang_up()
    await abandoned.ending.wait()
    returning = asyncio.create_task(desk.serve(second.request, KEY, "same", again))
    async with asyncio.timeout(5):
        await again.begun.wait()
    abandoned.torn_down.set()
    with pytest.raises(ClientDisconnect):
        await leaving
    again.finish.set()
    again.torn_down.set()
    assert (await returning).body == b"answer 1"


async def test_two_callers_share_one_piece_of_work_and_each_has_an_answer_of_its_own(desk: Desk) -> None:
    work = Work()
    work.torn_down.set()
    callers = [asyncio.create_task(desk.serve(Client("k").request, KEY, "same", work)) for _ in range(3)]
    await work.begun.wait()
    work.finish.set()
    answers = await asyncio.gather(*callers)
    assert work.runs == 1
    assert {answer.body for answer in answers} == {b"answer 1"}
    replayed = await desk.serve(Client("k").request, KEY, "same", work)
    assert (work.runs, replayed.headers["idempotent-replayed"]) == (1, "true")


async def test_one_may_leave_while_another_waits(desk: Desk) -> None:
    work = Work()
    work.torn_down.set()
    leaver = Client("k")
    leaving = asyncio.create_task(desk.serve(leaver.request, KEY, "same", work))
    await work.begun.wait()
    staying = asyncio.create_task(desk.serve(Client("k").request, KEY, "same", work))
    while len(asyncio.all_tasks()) < 6 and not staying.done():  # both wait now, each with its own watch
        await asyncio.sleep(0.01)
    leaver.hang_up()
    with pytest.raises(ClientDisconnect):
        await leaving
    work.finish.set()
    assert (await staying).body == b"answer 1"


async def test_another_request_under_the_same_key_is_refused_and_another_keys_is_not(desk: Desk) -> None:
    work = Work()
    work.torn_down.set()
    work.finish.set()
    await desk.serve(Client("k").request, KEY, "this", work)
    with pytest.raises(IdempotencyMismatch):
        await desk.serve(Client("k").request, KEY, "that", work)
    await desk.serve(Client("k").request, replace(KEY, id="efgh5678"), "that", work)
    assert work.runs == 2


async def test_failures_reach_every_caller_and_are_not_kept(desk: Desk) -> None:
    attempts = 0

    async def fail() -> Response:
        nonlocal attempts
        attempts += 1
        raise EngineFailed("no")

    for expected in (1, 2):
        with pytest.raises(EngineFailed):
            await desk.serve(Client("k").request, KEY, "same", fail)
        assert attempts == expected


# --- work that goes on for nobody -------------------------------------------------------------------------------------


async def begun(desk: Desk, work: Work, mark: str = "same", key: ApiKey = KEY, header: str | None = None) -> Client:
    """A caller who has sent a request, and hangs up once its work has begun."""
    work.torn_down.set()
    client = Client(header)
    waiting = asyncio.create_task(desk.serve(client.request, key, mark, work, twins=True))
    await work.begun.wait()
    client.hang_up()
    with pytest.raises(ClientDisconnect):
        await waiting
    return client


@pytest.mark.parametrize("header", [None, "k"])
async def test_a_retry_finds_the_work_that_its_caller_has_left(desk: Desk, header: str | None) -> None:
    work = Work()
    await begun(desk, work, header=header)
    assert desk.abandoned(KEY)
    again = asyncio.create_task(desk.serve(Client(header).request, KEY, "same", work, twins=True))
    await asyncio.sleep(2 * LINGER)
    assert not desk.abandoned(KEY)
    work.finish.set()
    assert (await again).body == b"answer 1"
    assert work.runs == 1


async def test_an_answer_that_nobody_was_there_to_take_waits_for_the_retry(desk: Desk) -> None:
    work = Work()
    await begun(desk, work)
    work.finish.set()
    await asyncio.sleep(LINGER / 3)
    assert (await desk.serve(Client().request, KEY, "same", work, twins=True)).body == b"answer 1"
    assert (await desk.serve(Client().request, KEY, "same", work, twins=True)).body == b"answer 2", "taken once"


async def test_what_nobody_asks_for_again_ends(desk: Desk) -> None:
    work = Work()
    await begun(desk, work)
    async with asyncio.timeout(10):
        await work.ending.wait()
    await asyncio.sleep(0)
    assert not desk.abandoned(KEY)


async def test_it_goes_on_while_the_key_is_sending_something(desk: Desk) -> None:
    work = Work()
    await begun(desk, work)
    with desk.receiving(KEY):
        await asyncio.sleep(3 * LINGER)
        assert not work.ending.is_set()
    work.finish.set()
    assert (await desk.serve(Client().request, KEY, "same", work, twins=True)).body == b"answer 1"


async def test_a_failure_with_nobody_there_is_not_kept(desk: Desk) -> None:
    fail = asyncio.Event()
    attempts = 0

    async def work() -> Response:
        nonlocal attempts
        attempts += 1
        await fail.wait()
        raise EngineFailed("no")

    client = Client()
    waiting = asyncio.create_task(desk.serve(client.request, KEY, "same", work, twins=True))
    await asyncio.sleep(0.01)
    client.hang_up()
    with pytest.raises(ClientDisconnect):
        await waiting
    fail.set()
    await asyncio.sleep(0.01)
    with pytest.raises(EngineFailed):
        await desk.serve(Client().request, KEY, "same", work, twins=True)
    assert attempts == 2


async def test_of_too_much_the_oldest_ends(desk: Desk) -> None:
    left = [Work() for _ in range(9)]
    for number, work in enumerate(left):
        await begun(desk, work, f"request {number}")
    assert [work.ending.is_set() for work in left] == [True, *[False] * 8]


async def test_something_new_goes_before_what_was_left(desk: Desk) -> None:
    key = replace(KEY, concurrency=1)
    left, new = Work(), Work()
    await begun(desk, left, key=key)
    new.torn_down.set()
    new.finish.set()
    assert (await desk.serve(Client().request, key, "new", new, twins=True)).body == b"answer 1"
    assert left.ending.is_set()


async def test_a_refusal_is_put_off_until_it_is_known_to_be_new(desk: Desk) -> None:
    work = Work()
    await begun(desk, work)
    work.finish.set()
    for mark in ("same", "new"):
        request = Client().request
        desk.put_off(request, EngineFailed("not now"))
        if mark == "new":
            with pytest.raises(EngineFailed):
                await desk.serve(request, KEY, mark, work, twins=True)
        else:
            assert (await desk.serve(request, KEY, mark, work, twins=True)).body == b"answer 1"
    assert work.runs == 1


async def test_nothing_goes_on_after_the_end(desk: Desk) -> None:
    works = [Work() for _ in range(3)]
    for number, work in enumerate(works):
        await begun(desk, work, f"request {number}")
    await desk.close()
    assert all(work.ending.is_set() for work in works)
    assert not desk.abandoned(KEY)
