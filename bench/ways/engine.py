"""metalscribe's engine, called directly: no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from statistics import fmean
from typing import Any, Final

import psutil
from typing_extensions import override

from bench.recordings import Recording
from bench.ways.settings import service_settings
from bench.ways.way import Answer, Setup, Way
from metalscribe.app import build_engine
from metalscribe.engine.interface import ModelState
from metalscribe.log import configure_logging
from metalscribe.settings import Settings
from metalscribe.transcript import Done, Latency, SegmentsReady, TranscriptionRequest

_LOADING_SECONDS: Final = 600.0
_GLANCE_SECONDS: Final = 0.02


class InProcess(Way):
    """``build_engine(settings)`` and ``Engine.transcribe``."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        settings: dict[str, Any] = service_settings(setup)
        self._engine = build_engine(Settings(**{**settings, "model": str(setup.model)}))
        self._watching: asyncio.Task[None] | None = None
        self._running: list[int] = []

    @property
    @override
    def model_pid(self) -> int | None:
        """The engine's largest child; the others decode."""
        children = psutil.Process(self.pid).children(recursive=True)
        return max(children, key=lambda child: child.memory_info().rss).pid if children else None

    @override
    async def start(self) -> None:
        configure_logging("warning")
        await self._engine.start()
        await self._engine.settled(_LOADING_SECONDS)
        status = self._engine.status
        if status.state is not ModelState.READY:
            raise RuntimeError(f"the engine is {status.state}: {status.detail}")

    @override
    async def close(self) -> None:
        await self._engine.close()

    @override
    async def transcribe(self, recording: Recording) -> Answer:
        begin = time.perf_counter()
        first: float | None = None
        setup = self._setup
        request = TranscriptionRequest(recording.path, language=setup.language, segments=setup.segments)
        async with aclosing(self._engine.transcribe(request)) as events:
            async for event in events:
                if isinstance(event, SegmentsReady) and first is None:
                    first = time.perf_counter() - begin
                if isinstance(event, Done):
                    return Answer(
                        recording=recording,
                        text=event.transcript.text,
                        latency_seconds=time.perf_counter() - begin,
                        queue_seconds=event.statistics.queue_seconds,
                        first_segment_seconds=first,
                    )
        raise RuntimeError(f"{recording.path.name}: the engine ended without a result")

    @override
    @asynccontextmanager
    async def behind(self, recording: Recording, count: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._unhurried(recording)) for _ in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _unhurried(self, recording: Recording) -> None:
        request = TranscriptionRequest(recording.path, language=self._setup.language, latency=Latency.BATCH)
        async with aclosing(self._engine.transcribe(request)) as events:
            async for _ in events:
                pass

    @override
    async def begin(self) -> None:
        self._running.clear()
        self._watching = asyncio.create_task(self._watch())

    @override
    async def end(self) -> dict[str, float]:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        return {"chunks_in_model": fmean(self._running)} if self._running else {}

    async def _watch(self) -> None:
        """Look every 20 ms at how many chunks are inside the model's process, while there are any."""
        while True:
            await asyncio.sleep(_GLANCE_SECONDS)
            if running := self._engine.status.chunks_running:
                self._running.append(running)
