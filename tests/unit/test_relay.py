"""A request's events, and their end from either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from metalscribe.engine.lifecycle import Lease
from metalscribe.engine.relay import relay
from metalscribe.errors import EngineFailed, ModelUnloaded
from metalscribe.transcript import Event, Progress

FORCED = ModelUnloaded("by force")


COUNT = 20


class Source:
    """Twenty events, and whether somebody closed it."""

    def __init__(self, fails_at: int = COUNT) -> None:
        self.made = 0
        self.closed = False
        self._fails_at = fails_at

    async def events(self) -> AsyncGenerator[Event]:
        try:
            for number in range(COUNT):
                if number == self._fails_at:
                    raise EngineFailed("twice")
                self.made += 1
                yield Progress(float(number), None)
                await asyncio.sleep(0)
        finally:
            self.closed = True


def revoke(lease: Lease) -> None:
    lease.revoked = FORCED
    lease.on_revoked()


async def test_all_events_in_order_and_their_end() -> None:
    source = Source()
    assert [event async for event in relay(source.events(), Lease())] == [
        Progress(float(n), None) for n in range(COUNT)
    ]
    assert source.closed


async def test_an_error_comes_after_the_events_before_it() -> None:
    events = relay(Source(fails_at=3).events(), Lease())
    assert [await anext(events) for _ in range(3)] == [Progress(float(number), None) for number in range(3)]
    with pytest.raises(EngineFailed):
        await anext(events)


@pytest.mark.parametrize("turns", range(6))
async def test_a_lease_that_is_revoked_ends_it_at_any_moment(turns: int) -> None:
    """Also before its task has taken a first step."""
    source, lease = Source(), Lease()

    async def read() -> None:
        async for _ in relay(source.events(), lease):
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    revoke(lease)
    async with asyncio.timeout(10):
        with pytest.raises(ModelUnloaded):
            await reading
    assert source.closed or not source.made


async def test_one_that_was_revoked_already_does_not_begin() -> None:
    source, lease = Source(), Lease()
    revoke(lease)
    with pytest.raises(ModelUnloaded):
        await anext(relay(source.events(), lease))
    assert not source.made


async def test_a_reader_who_leaves_closes_it() -> None:
    source = Source()
    async with aclosing(relay(source.events(), Lease())) as events:
        await anext(events)
    assert source.closed
    assert source.made < COUNT


async def test_a_reader_who_dawdles_stops_it() -> None:
    source = Source()
    async with aclosing(relay(source.events(), Lease())) as events:
        await anext(events)
        for _ in range(100):
            await asyncio.sleep(0)
        assert 1 < source.made < COUNT
