"""What each API key has had transcribed, day by day.

A day is one of UTC, and what is used belongs to the day on which it is counted: that on which its transcription ended. Entries
are only ever added to, so that a clock that is set back counts on where that day was, and what is counted already stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from metalscribe.store.database import Database, affected
from metalscribe.store.identity import Clock, utc_now
from metalscribe.store.models import UsageRow

KEPT: Final = timedelta(days=400)
"""How long entries are kept: long enough to hold a month against the same one of last year."""

_INSERTS: Final[Mapping[str, Callable[..., postgresql.Insert | sqlite.Insert]]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used.

    Attributes:
        requests: transcriptions whose callers waited, however they ended; not those that were told to come later.
        jobs: that have ended; those that were cancelled count if they had begun.
        failed: of both, those that ended in an error.
        audio_seconds: of recordings: their whole length, silence included; where the end was not come to, up to the last words that
            were told.
        engine_seconds: the machine's share in those that were done (:class:`metalscribe.transcript.Statistics`); of a job, in the
            run that ended it.
    """

    requests: int = 0
    jobs: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    engine_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class DayOfUse:
    """What one key has used on one day."""

    day: date
    key_id: str
    usage: Usage


class UsageStore:
    """The entries of all processes that share a database."""

    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def add(self, entries: Mapping[tuple[date, str], Usage]) -> None:
        """Add to the entries of days and keys, to all of them or to none."""
        async with self._database.session() as session:
            for (day, key_id), usage in sorted(entries.items()):  # in one order everywhere: nobody waits in a circle
                await record(session, day, key_id, usage)

    async def of_day(self, day: date, key_id: str) -> Usage:
        """What a key has used on a day."""
        async with self._database.session(read_only=True) as session:
            row = await session.get(UsageRow, (day, key_id))
            return Usage() if row is None else _usage(row)

    async def between(self, first: date, last: date, key_id: str | None = None) -> list[DayOfUse]:
        """What was used from the first to the last of these days, by day and key; of one key, or of all.

        Days without use are left out.
        """
        wanted = select(UsageRow).where(UsageRow.day.between(first, last)).order_by(UsageRow.day, UsageRow.key_id)
        if key_id is not None:
            wanted = wanted.where(UsageRow.key_id == key_id)
        async with self._database.session(read_only=True) as session:
            return [DayOfUse(row.day, row.key_id, _usage(row)) for row in await session.scalars(wanted)]

    async def forget(self, older_than: timedelta = KEPT) -> int:
        """Delete the entries of days that ended longer ago than that; returns how many."""
        async with self._database.session() as session:
            first_kept = day_of(self._clock() - older_than)
            return affected(await session.execute(delete(UsageRow).where(UsageRow.day < first_kept)))


def day_of(moment: datetime) -> date:
    """The day that a moment counts to."""
    return moment.astimezone(UTC).date()


async def record(session: AsyncSession, day: date, key_id: str, usage: Usage) -> None:
    """Add to a key's entry within a transaction, best at its end: others wait for the entry until then."""
    insert = _INSERTS[(await session.connection()).dialect.name]
    amounts = {amount.name: getattr(usage, amount.name) for amount in fields(usage)}
    row = insert(UsageRow).values(day=day, key_id=key_id, **amounts)
    sums = {name: getattr(UsageRow, name) + row.excluded[name] for name in amounts}
    await session.execute(row.on_conflict_do_update(index_elements=[UsageRow.day, UsageRow.key_id], set_=sums))


def _usage(row: UsageRow) -> Usage:
    return Usage(row.requests, row.jobs, row.failed, row.audio_seconds, row.engine_seconds)
