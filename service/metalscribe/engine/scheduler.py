"""Which chunks the model decodes next. Pure: no clock, no process, no event loop of its own.

Rows of all requests wait together. The next batch starts from the row with the highest response ratio,
``(waited + cost) / cost`` with the audio left of its request as the cost (Hansen 1971, HRRN), and is filled with rows that can be
decoded in the same call. A short clip therefore overtakes a long recording, and the recording's ratio grows until it is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from metalscribe.engine.messages import DecodeOptions, Row

_MIN_COST: Final = 1.0


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the scheduler's eyes; ``audio_left`` in seconds, kept current by its pipeline."""

    weight: float = 1.0
    audio_left: float = 30.0


@dataclass(slots=True, eq=False)
class WaitingRow:
    """A row in the queue.

    Attributes:
        since: when it was queued, in the clock's seconds.
        attempts: how many batches it was in when the process died.
    """

    row: Row
    options: DecodeOptions
    ticket: Ticket
    seconds: float
    since: float
    attempts: int = field(default=0)

    @property
    def alone(self) -> bool:
        """A suspect is decoded by itself, so that it takes no other row down with it."""
        return self.attempts > 0

    def response_ratio(self, now: float) -> float:
        """How much waiting hurts this row's request, against its size."""
        cost = max(_MIN_COST, self.ticket.audio_left)
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

    def take(self, limit: int) -> list[WaitingRow]:
        """The next batch, at most ``limit`` rows with the same options, most urgent first; empty when nothing waits."""
        now = self._clock()
        # A stable sort: rows of one request keep their order.
        urgent = sorted(self._rows, key=lambda waiting: waiting.response_ratio(now), reverse=True)
        if not urgent:
            return []
        first = urgent[0]
        if first.alone:
            batch = [first]
        else:
            batch = [row for row in urgent if row.options == first.options and not row.alone][:limit]
        chosen = {id(waiting) for waiting in batch}
        self._rows = [waiting for waiting in self._rows if id(waiting) not in chosen]
        return batch
