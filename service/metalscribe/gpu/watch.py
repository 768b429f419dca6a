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
    """The reporter's latest report. A lost card can block its driver for long, so its thread is a daemon."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._asked = 0.0
        self._report: GpuReport | None = None
        self._asking: asyncio.Future[GpuReport] | None = None

    async def report(self, *, fresh: bool = False) -> GpuReport | None:
        """The latest report; an old one (or None) while the driver does not answer.

        Args:
            fresh: asked for after this call began; by default one of some seconds ago is good enough.
        """
        if not fresh and self._report is not None and time.monotonic() - self._asked < _FRESH_SECONDS:
            return self._report
        if fresh and self._asking is not None and not self._asking.done():
            await asyncio.wait({self._asking}, timeout=_PATIENCE_SECONDS)  # its answer may be of before
        if self._asking is None or self._asking.done():
            self._asking = _in_daemon_thread(self._reporter.report)
        asking = self._asking
        done, _ = await asyncio.wait({asking}, timeout=_PATIENCE_SECONDS)
        if done:
            self._report = asking.result()
            self._asked = time.monotonic()
        return self._report


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
