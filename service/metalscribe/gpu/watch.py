"""NVML asked from an event loop: in a thread that nobody has to wait for, and not more often than is useful."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from metalscribe.gpu.health import GpuReport

_FRESH_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 3.0


class Reporter(Protocol):
    """Whoever knows of the GPUs: :class:`metalscribe.gpu.nvml.Nvml`."""

    def report(self) -> GpuReport:
        """Return the health of the driver and of every GPU; blocks."""


class GpuWatch:
    """The reporter's latest report. A lost card can block its driver for long, so its thread is a daemon.

    Patience counts from the question, not from whoever waits for the answer: while the driver hangs, one caller waits for it,
    and those who come later do not.

    Args:
        reporter: asked in a thread.
        clock: in seconds, monotonic.
    """

    def __init__(self, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter = reporter
        self._clock = clock
        self._answered = 0.0
        self._report: GpuReport | None = None
        self._asking: asyncio.Future[GpuReport] | None = None
        self._asked = 0.0

    async def report(self, *, fresh: bool = False) -> GpuReport | None:
        """The latest report; an old one (or None) while the driver does not answer.

        Args:
            fresh: asked for after this call began; by default one of some seconds ago is good enough.
        """
        await self._renew(fresh=fresh)
        return self._report

    async def present(self) -> GpuReport | None:
        """A report of the last seconds; None while the driver does not answer."""
        return self._report if await self._renew(fresh=False) else None

    async def _renew(self, *, fresh: bool) -> bool:
        """See to a new report where one is wanted; whether there is one that will do."""
        if not fresh and self._report is not None and self._clock() - self._answered < _FRESH_SECONDS:
            return True
        if fresh and self._asking is not None and not self._asking.done():
            await self._wait_for(self._asking)  # its answer may be of before
        if self._asking is None or self._asking.done():
            self._asking = _in_daemon_thread(self._reporter.report)
            self._asked = self._clock()
        asking = self._asking
        if not await self._wait_for(asking):
            return False
        self._report = asking.result()
        self._answered = self._clock()
        return True

    async def _wait_for(self, asking: asyncio.Future[GpuReport]) -> bool:
        patience = max(0.0, self._asked + _PATIENCE_SECONDS - self._clock())
        done, _ = await asyncio.wait({asking}, timeout=patience)
        return bool(done)


def _in_daemon_thread(ask: Callable[[], GpuReport]) -> asyncio.Future[GpuReport]:
    """``ask`` in a thread that the process does not wait for at its end, as it would for one of asyncio's own."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[GpuReport] = loop.create_future()

    def settle(report: GpuReport | None, error: Exception | None) -> None:
        if answer.done():
            return
        if report is not None:
            answer.set_result(report)
        elif error is not None:
            answer.set_exception(error)

    def run() -> None:
        report, error = None, None
        try:
            report = ask()
        except Exception as failure:  # noqa: BLE001  (raised where the answer is awaited)
            error = failure
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, report, error)

    threading.Thread(target=run, daemon=True, name="nvml").start()
    return answer
