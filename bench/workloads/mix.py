"""A short clip every second while a long recording runs."""

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
_TIMES_ALONE: Final = 3.0
"""Clips arrive so many times as long as the long recording takes alone, at most: where they alone are more than a machine
can do, it would never be done."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Latency of the clips against the idle one, time of the long recording against the same alone."""

    name: str = "mix"
    period_seconds: float = 1.0

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """See :class:`bench.workloads.workload.Workload`."""
        idle = await self._alone(way, recordings.short)
        chunk = await self._alone(way, recordings.chunk)
        alone = (await way.transcribe(recordings.long)).latency_seconds
        long, clips = await self._together(way, recordings, _TIMES_ALONE * alone)
        figures = {
            "idle_seconds": idle,
            "chunk_seconds": chunk,
            "long_alone_seconds": alone,
            "long_mixed_seconds": long.latency_seconds,
            "long_ratio": long.latency_seconds / alone,
            "clips": float(len(clips)),
        }
        return {"": clips}, {
            **figures,
            **promptness(percentile([clip.latency_seconds for clip in clips], 95), idle, chunk),
        }

    async def _alone(self, way: Way, recording: Recording) -> float:
        return median([(await way.transcribe(recording)).latency_seconds for _ in range(_ALONE)])

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


def promptness(p95: float, idle: float, chunk: float) -> dict[str, float]:
    """How the clips' 95th percentile compares with what a clip may take that finds the model at work on a chunk.

    That is its idle latency and 1.5 × the time of one 30-second chunk alone; all in seconds.
    """
    allowed = idle + _CHUNKS_ALLOWED * chunk
    return {"allowed_seconds": allowed, "allowed_ratio": p95 / allowed}
