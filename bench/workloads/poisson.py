"""Short clips that arrive at random, as from many people who do not know each other."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from bench.recordings import Recordings
from bench.ways.way import Answer, Way
from bench.workloads.workload import Groups, closed_loop

_SATURATING = 16


@dataclass(frozen=True, slots=True)
class Poisson:
    """Arrivals at shares of what the way itself can do at most, measured just before.

    Attributes:
        seconds: how long clips arrive at each load.
        loads: shares of the capacity.
    """

    seconds: float
    loads: tuple[float, ...] = (0.5, 0.8)
    name: str = "poisson"
    ways: frozenset[str] | None = None

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """See :class:`bench.workloads.workload.Workload`."""
        every = [clip.seconds for clip in recordings.clips]
        _, seconds = await closed_loop(way, recordings.clips, _SATURATING)
        capacity = sum(every) / seconds
        figures = {"capacity": capacity}
        groups: Groups = {}
        for load in self.loads:
            rate = load * capacity / fmean(every)
            arrived = await self._arrive(way, recordings, arrivals(rate, self.seconds, seed=int(100 * load)))
            name = f"load{int(100 * load)}_"
            figures |= {f"{name}offered": load * capacity, f"{name}clips": float(len(arrived))}
            groups[name] = arrived
        return groups, figures

    async def _arrive(self, way: Way, recordings: Recordings, times: Iterator[float]) -> list[Answer]:
        begin = time.perf_counter()
        clips = itertools.cycle(recordings.clips)
        tasks: list[asyncio.Task[Answer]] = []
        for due in times:
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            tasks.append(asyncio.create_task(way.transcribe(next(clips))))
        return list(await asyncio.gather(*tasks))


def arrivals(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Moments of a Poisson process, in seconds from its start: ``rate`` a second, always the same for a seed."""
    dice = random.Random(seed)  # noqa: S311  (nothing secret)
    moment = dice.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += dice.expovariate(rate)
