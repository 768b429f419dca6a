"""Which chunks the model decodes next. Pure: no clock, no process, no event loop of its own.

Rows of all requests wait together. The next batch starts from the row with the highest response ratio,
``(waited + cost) / cost`` with the time that the rest of its request will take as the cost (Hansen 1971, HRRN). A short clip
therefore overtakes a long recording, and the recording's ratio grows until it is served. Then the batch is filled with rows
that can be decoded in the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from metalscribe.engine.context import FULL_CONTEXT
from metalscribe.engine.messages import Row, Search

_MIN_COST_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be.

    Attributes:
        rows: at most.
        frames: of encoder context in all rows together; one row is always allowed. What bounds the time of a batch, and
            with it how long whoever comes next may have to wait.
        step: contexts are rounded up to a multiple of this many frames, so that rows of like length can share a call. What a
            row's context is depends on the row alone, and so does its text: it is the same in any company.
    """

    rows: int
    frames: int
    step: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the scheduler's eyes.

    Attributes:
        weight: 2.0 is served as if it had waited twice as long.
        audio_left: seconds, kept current by its pipeline.
    """

    weight: float = 1.0
    audio_left: float = 30.0


@dataclass(slots=True, eq=False)
class WaitingRow:
    """A row in the queue.

    Attributes:
        search: how it is to be decoded; rows of a batch share it.
        context: encoder frames that it needs.
        since: when it was queued, in the clock's seconds.
        attempts: how many batches it was in when the process died.
        alone: a suspect is decoded by itself, so that it takes no other row down with it.
    """

    row: Row
    search: Search
    context: int
    ticket: Ticket
    seconds: float
    since: float
    attempts: int = field(default=0)
    alone: bool = field(default=False)

    def response_ratio(self, now: float, rate: float) -> float:
        """How much waiting hurts this row's request, against its size; ``rate`` in audio seconds a second."""
        cost = max(_MIN_COST_SECONDS, self.ticket.audio_left / rate)
        return (max(0.0, now - self.since) * self.ticket.weight + cost) / cost


class Scheduler:
    """The queue. Args: ``clock`` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: list[WaitingRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def audio_seconds(self) -> float:
        """Length of all waiting rows."""
        return sum(waiting.seconds for waiting in self._rows)

    def add(self, waiting: WaitingRow) -> None:
        """Queue a row."""
        self._rows.append(waiting)

    def remove(self, rows: Iterable[int]) -> None:
        """Forget rows by their ids; those that do not wait are ignored."""
        gone = set(rows)
        self._rows = [waiting for waiting in self._rows if waiting.row.row not in gone]

    def drain(self) -> list[WaitingRow]:
        """Take everything out."""
        rows, self._rows = self._rows, []
        return rows

    def take_older_than(self, seconds: float) -> list[WaitingRow]:
        """Take out the rows that have waited longer."""
        limit = self._clock() - seconds
        late = [waiting for waiting in self._rows if waiting.since < limit]
        self._rows = [waiting for waiting in self._rows if waiting.since >= limit]
        return late

    def next(self, count: int, rate: float) -> list[WaitingRow]:
        """The most urgent rows as things stand, without taking them."""
        return self._by_urgency(rate)[:count]

    def take(self, limits: BatchLimits, rate: float) -> tuple[list[WaitingRow], int]:
        """The next batch, most urgent first, and its context in frames; empty when nothing waits.

        Args:
            limits: of the batch.
            rate: audio seconds that the model decodes in a second, roughly; what makes seconds of audio comparable with
                seconds of waiting.
        """
        urgent = self._by_urgency(rate)
        if not urgent:
            return [], 0
        first = urgent[0]
        context = _rounded(first.context, limits.step)
        limit = 1 if first.alone else max(1, min(limits.rows, limits.frames // context))
        batch = [
            waiting
            for waiting in urgent
            if waiting is first
            or (
                not waiting.alone
                and waiting.search == first.search
                and _rounded(waiting.context, limits.step) == context
            )
        ][:limit]
        chosen = {id(waiting) for waiting in batch}
        self._rows = [waiting for waiting in self._rows if id(waiting) not in chosen]
        return batch, context

    def _by_urgency(self, rate: float) -> list[WaitingRow]:
        now = self._clock()
        # Among equals the request that is done soonest; a stable sort, so that rows of one request keep their order.
        return sorted(self._rows, key=lambda waiting: (-waiting.response_ratio(now, rate), waiting.ticket.audio_left))


def _rounded(context: int, step: int) -> int:
    return min(FULL_CONTEXT, -(-context // step) * step)
