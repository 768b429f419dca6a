"""The history of the models' lives, and those who follow it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from metalscribe.engine.events import LifecycleEvents, Listener
from metalscribe.engine.interface import ModelState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
READY, UNLOADED = ModelState.READY, ModelState.UNLOADED


@pytest.fixture
def events() -> LifecycleEvents:
    return LifecycleEvents(kept=3, now=lambda: NOW)


async def rest(listener: Listener) -> list[tuple[int, str]]:
    return [(event.number, event.name) async for event in listener]


async def test_everybody_hears_everything_in_order(events: LifecycleEvents) -> None:
    listeners = [events.listen() for _ in range(3)]
    reading = [asyncio.create_task(rest(listener)) for listener in listeners[:2]]
    await asyncio.sleep(0)
    events.publish("demo", READY, "")
    await asyncio.sleep(0)
    events.publish("demo", UNLOADED, "idle")
    events.close()
    heard = [*await asyncio.gather(*reading), await rest(listeners[2])]
    assert heard == [[(1, "model_ready"), (2, "model_unloaded")]] * 3
    assert events.last == 2


async def test_an_event_tells_all(events: LifecycleEvents) -> None:
    listener = events.listen()
    events.publish("demo", UNLOADED, "idle")
    event = await anext(listener)
    assert (event.number, event.at, event.model, event.state, event.detail) == (1, NOW, "demo", UNLOADED, "idle")


async def test_a_listener_goes_on_after_what_it_knows(events: LifecycleEvents) -> None:
    for _ in range(3):
        events.publish("demo", READY, "")
    late, resumed = events.listen(), events.listen(after=1)
    events.close()
    assert await rest(late) == []
    assert [number for number, _ in await rest(resumed)] == [2, 3]


async def test_what_a_slow_one_misses_is_counted(events: LifecycleEvents) -> None:
    slow = events.listen()
    for _ in range(10):
        events.publish("demo", READY, "")
    events.close()
    assert [number for number, _ in await rest(slow)] == [8, 9, 10]
    assert slow.missed == 7


async def test_two_histories_are_told_apart(events: LifecycleEvents) -> None:
    assert events.run != LifecycleEvents().run
