"""What happens to the models, told to whoever listens: one bounded history, any number of listeners."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from metalscribe.engine.interface import LifecycleEvent, ModelState

KEPT: Final = 1000
"""Events remembered; a model that is loaded and unloaded once a minute makes so many in four hours."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LifecycleEvents:
    """The history, and the place where listeners wait for more of it.

    A listener is a position in the history and owns no queue: what a slow one costs is bounded by the history, and it is
    told how much it missed when the history has gone on without it.

    Args:
        kept: events remembered.
        now: the time of an event, aware.

    Attributes:
        run: tells this history from that of an earlier process, whose numbers began at 1 as well.
    """

    def __init__(self, *, kept: int = KEPT, now: Callable[[], datetime] = _utc_now) -> None:
        self.run = secrets.token_hex(4)
        self._now = now
        self._history: deque[LifecycleEvent] = deque(maxlen=kept)
        self._arrival = asyncio.Event()
        self._closed = False
        self.last = 0
        """Number of the newest event; 0 before the first."""

    def publish(self, model: str, state: ModelState, detail: str) -> None:
        """Tell everybody that a model has changed its state."""
        self.last += 1
        self._history.append(LifecycleEvent(self.last, self._now(), model, state, detail))
        self._wake()

    def close(self) -> None:
        """No more will come: listeners get what they have not seen yet, and end."""
        self._closed = True
        self._wake()

    def listen(self, after: int | None = None) -> Listener:
        """Listen to what follows event number ``after``; by default, to what is yet to come."""
        return Listener(self, self.last if after is None else after)

    def _wake(self) -> None:
        self._arrival.set()
        self._arrival = asyncio.Event()

    def _following(self, number: int) -> LifecycleEvent | None:
        """The oldest remembered event after ``number``."""
        if number >= self.last:
            return None
        first = self._history[0].number
        return self._history[max(0, number + 1 - first)]

    async def _next(self, number: int) -> LifecycleEvent:
        while (event := self._following(number)) is None:
            if self._closed:
                raise StopAsyncIteration
            await self._arrival.wait()
        return event


class Listener:
    """An asynchronous iterator over events; ends when the history is closed.

    Attributes:
        position: number of the event that was given out last.
        missed: events that were forgotten before this listener came to them.
    """

    def __init__(self, events: LifecycleEvents, position: int) -> None:
        self._events = events
        self.position = position
        self.missed = 0

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> LifecycleEvent:
        event = await self._events._next(self.position)  # noqa: SLF001  (the two are one thing in two classes)
        self.missed += event.number - self.position - 1
        self.position = event.number
        return event
