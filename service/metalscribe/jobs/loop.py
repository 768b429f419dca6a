"""Something done again and again until the service stops: when it is woken, and after a while in any case."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from metalscribe.errors import MetalscribeError

_AFTER_TROUBLE: Final = 2.0

_log = structlog.get_logger(__name__)


class Loop:
    """Runs ``turn`` in a task of its own.

    What a turn raises is logged and does not end the loop: a locked database passes, and a defect must not stop everybody's work.
    It is told to end and not cancelled: a database call that is cut off midway can hang its connection.

    Args:
        name: for the log.
        turn: does what there is to do, and returns the seconds after which to look again.
    """

    def __init__(self, name: str, turn: Callable[[], Awaitable[float]]) -> None:
        self._name = name
        self._turn = turn
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.stopping = False

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def close(self) -> None:
        """End after the present turn."""
        self.stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self.stopping:
            pause = _AFTER_TROUBLE
            try:
                pause = await self._turn()
            except MetalscribeError as error:
                _log.warning(f"{self._name} wait", code=error.code, detail=error.detail)
            except Exception:  # noqa: BLE001  (a defect must neither pass in silence nor stop everybody's work)
                _log.exception(f"{self._name} met an unexpected error and go on")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
