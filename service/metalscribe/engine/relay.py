"""A request's events, passed on from a task of its own that can be ended from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from metalscribe.engine.lifecycle import Lease
from metalscribe.transcript import Event

_AHEAD: Final = 8
"""Events made before their reader has taken the first of them; then the request waits for its reader."""


async def relay(events: AsyncGenerator[Event], lease: Lease) -> AsyncGenerator[Event]:
    """Yield ``events`` for as long as ``lease`` holds; closing this closes them.

    A generator runs in its reader's task, which must not be cancelled: between two events it does something else. So the
    events are made in a task that belongs to nobody else.

    Raises:
        TryLater: the lease was revoked; this is why.
    """
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    room = asyncio.Semaphore(_AHEAD)

    async def pump() -> None:
        async with aclosing(events):
            async for event in events:
                await room.acquire()
                queue.put_nowait(event)

    task = asyncio.create_task(pump(), name="request")
    # Not a `finally` of the task's own: one that is cancelled before its first step never comes to that.
    task.add_done_callback(lambda _: queue.put_nowait(None))
    lease.on_revoked = task.cancel
    if lease.revoked is not None:
        task.cancel()
    try:
        while (event := await queue.get()) is not None:
            room.release()
            yield event
        await asyncio.wait({task})
        if task.cancelled() and lease.revoked is not None:
            raise lease.revoked
        task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: if it was not raised above, the reader has left and does not want to know
