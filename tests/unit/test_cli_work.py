"""Many recordings at once: order, places, failures and cancelling, with transcribers made up here."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from metalscribe.cli.progress import Bars, OnProgress
from metalscribe.cli.work import Answer, Failure, in_order
from metalscribe.errors import EngineFailed, InvalidParameter
from metalscribe.transcript import TranscriptionRequest


def requests(count: int) -> list[TranscriptionRequest]:
    return [TranscriptionRequest(Path(str(number)), name=str(number)) for number in range(count)]


async def collect(count: int, transcribe: object, at_once: int = 3) -> list[Answer | Failure]:
    with Bars() as bars:
        return [outcome async for outcome in in_order(requests(count), transcribe, at_once=at_once, bars=bars)]  # type: ignore[arg-type]


async def test_outcomes_come_in_the_order_of_the_requests_although_the_work_does_not() -> None:
    finished: list[str] = []
    last_is_done = asyncio.Event()

    async def transcribe(request: TranscriptionRequest, progress: OnProgress) -> Answer:
        progress("", 50.0)
        if request.name != "2":
            await last_is_done.wait()
        else:
            last_is_done.set()
        finished.append(request.name)
        return f"text {request.name}"

    assert await collect(3, transcribe) == ["text 0", "text 1", "text 2"]
    assert finished[0] == "2"


async def test_no_more_than_allowed_are_under_way() -> None:
    under_way = most = 0

    async def transcribe(request: TranscriptionRequest, progress: OnProgress) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return ""

    assert len(await collect(20, transcribe, at_once=4)) == 20
    assert most == 4


async def test_a_failure_stays_where_it_is() -> None:
    async def transcribe(request: TranscriptionRequest, progress: OnProgress) -> Answer:
        match request.name:
            case "1":
                raise EngineFailed("the model failed on this recording twice")
            case "2":
                raise FileNotFoundError(2, "No such file or directory")
            case _:
                return request.name

    assert await collect(4, transcribe) == [
        "0",
        Failure("the model failed on this recording twice"),
        Failure("No such file or directory"),
        "3",
    ]


async def test_what_all_would_meet_ends_everything() -> None:
    cancelled: list[str] = []

    async def transcribe(request: TranscriptionRequest, progress: OnProgress) -> Answer:
        if request.name == "0":
            raise InvalidParameter("task=translate: the model demo knows English only", "task")
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            cancelled.append(request.name)
            raise

    with pytest.raises(InvalidParameter):
        await collect(3, transcribe)
    assert cancelled == ["1", "2"]


async def test_closing_cancels_what_is_under_way() -> None:
    cancelled: list[str] = []

    async def transcribe(request: TranscriptionRequest, progress: OnProgress) -> Answer:
        if request.name == "0":
            return "first"
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            cancelled.append(request.name)
            raise

    with Bars() as bars:
        async with aclosing(in_order(requests(3), transcribe, at_once=3, bars=bars)) as outcomes:
            assert await anext(outcomes) == "first"
    assert cancelled == ["1", "2"]
