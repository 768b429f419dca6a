"""Usage counted as it happens, and written down a moment later: no answer waits for a disk to have counted it."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Final

import structlog

from metalscribe.errors import MetalscribeError
from metalscribe.jobs.loop import Loop
from metalscribe.store.identity import Clock, utc_now
from metalscribe.store.usage import Usage, UsageStore, day_of

_GATHER_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class Ledger:
    """The usage of callers that wait for their transcripts; that of jobs is written with their ends.

    What is counted here is known here at once, and to the other services on the database after a second. While the database
    does not take it, it is kept and tried again; what a killed process had not written yet is lost.
    """

    def __init__(self, store: UsageStore, *, clock: Clock = utc_now) -> None:
        self._store = store
        self._clock = clock
        self._unwritten: dict[tuple[date, str], Usage] = {}
        # Held while entries are on their way to the database, so that nobody misses them in both places or finds them in both.
        self._moving = asyncio.Lock()
        self._loop = Loop("entries of usage", self._turn)

    def start(self) -> None:
        """Begin to write."""
        self._loop.start()

    async def close(self) -> None:
        """Write what is left, and end."""
        await self._loop.close()
        try:
            await self._write()
        except MetalscribeError as error:
            _log.error("usage is lost", entries=len(self._unwritten), code=error.code, detail=error.detail)

    def add(self, key_id: str, usage: Usage) -> None:
        """Count for a key, today."""
        self._put((day_of(self._clock()), key_id), usage)

    async def audio_today(self, key_id: str) -> float:
        """Seconds of audio that count for a key today.

        Raises:
            TryLater: the database does not answer.
        """
        entry = (day_of(self._clock()), key_id)
        async with self._moving:
            written = await self._store.of_day(*entry)
            return (written + self._unwritten.get(entry, Usage())).audio_seconds

    def _put(self, entry: tuple[date, str], usage: Usage) -> None:
        self._unwritten[entry] = self._unwritten.get(entry, Usage()) + usage

    async def _turn(self) -> float:
        await self._write()
        return _GATHER_SECONDS

    async def _write(self) -> None:
        if not self._unwritten:
            return
        async with self._moving:
            moving, self._unwritten = self._unwritten, {}
            try:
                await self._store.add(moving)
            except BaseException:
                for entry, usage in moving.items():
                    self._put(entry, usage)
                raise
