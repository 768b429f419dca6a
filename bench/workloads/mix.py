"""A short clip every second while a long recording runs, or jobs that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.figures import percentile
from bench.recordings import Recording, Recordings
from bench.ways.way import Answer, Way
from bench.workloads.workload import Groups

_ALONE: Final = 5
_CHUNKS_ALLOWED: Final = 1.5
_UNDER_WAY_SECONDS: Final = 3.0
"""After which the jobs have been decoded far enough to keep the model busy."""

_TIMES_ALONE: Final = 3.0
"""Clips arrive so many times as long as the long recording takes alone, at most: where they alone are more than a machine
can do, it would never be done."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Latency of the clips against the idle one, time of the long recording against the same alone."""

    name: str = "mix"
    ways: frozenset[str] | None = None
    period_seconds: float = 1.0

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """See :class:`bench.workloads.workload.Workload`."""
        idle = await alone(way, recordings.short)
        chunk = await alone(way, recordings.chunk)
        by_itself = (await way.transcribe(recordings.long)).latency_seconds
        long, clips = await self._together(way, recordings, _TIMES_ALONE * by_itself)
        figures = {
            "idle_seconds": idle,
            "chunk_seconds": chunk,
            "long_alone_seconds": by_itself,
            "long_mixed_seconds": long.latency_seconds,
            "long_ratio": long.latency_seconds / by_itself,
            "clips": float(len(clips)),
        }
        return {"": clips}, {
            **figures,
            **promptness(percentile([clip.latency_seconds for clip in clips], 95), idle, chunk),
        }

    async def _together(self, way: Way, recordings: Recordings, limit: float) -> tuple[Answer, list[Answer]]:
        begin = time.perf_counter()
        long = asyncio.create_task(way.transcribe(recordings.long))
        clips: list[asyncio.Task[Answer]] = []
        while not long.done() and len(clips) * self.period_seconds < limit:
            clips.append(asyncio.create_task(way.transcribe(recordings.short)))
            # By the clock, whatever became of the clips before: those who arrive do not know each other.
            due = begin + len(clips) * self.period_seconds
            await asyncio.wait({long}, timeout=max(0.0, due - time.perf_counter()))
        return await long, list(await asyncio.gather(*clips))


@dataclass(frozen=True, slots=True)
class Jobs:
    """Latency of the clips against the idle one, while as many jobs run as a service runs at a time."""

    name: str = "jobs"
    ways: frozenset[str] | None = frozenset({"engine", "http"})
    period_seconds: float = 1.0
    clips: int = 60
    jobs: int = 4

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """See :class:`bench.workloads.workload.Workload`."""
        idle = await alone(way, recordings.short)
        chunk = await alone(way, recordings.chunk)
        async with way.behind(recordings.long, self.jobs):
            await asyncio.sleep(_UNDER_WAY_SECONDS)
            begin = time.perf_counter()
            tasks: list[asyncio.Task[Answer]] = []
            for number in range(self.clips):
                await asyncio.sleep(max(0.0, begin + number * self.period_seconds - time.perf_counter()))
                tasks.append(asyncio.create_task(way.transcribe(recordings.short)))
            clips = list(await asyncio.gather(*tasks))
        p95 = percentile([clip.latency_seconds for clip in clips], 95)
        return {"": clips}, {"idle_seconds": idle, "chunk_seconds": chunk, **promptness(p95, idle, chunk)}


async def alone(way: Way, recording: Recording) -> float:
    """Seconds that a recording takes when there is nothing else; the median of five."""
    return median([(await way.transcribe(recording)).latency_seconds for _ in range(_ALONE)])


def promptness(p95: float, idle: float, chunk: float) -> dict[str, float]:
    """How the clips' 95th percentile compares with what a clip may take that finds the model at work on a chunk.

    That is its idle latency and 1.5 × the time of one 30-second chunk alone; all in seconds.
    """
    allowed = idle + _CHUNKS_ALLOWED * chunk
    return {"allowed_seconds": allowed, "allowed_ratio": p95 / allowed}
