"""What the workloads have in common."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Protocol

from bench.figures import percentiles
from bench.recordings import Recording, Recordings
from bench.ways.way import Answer, Way

Groups = dict[str, list[Answer]]
"""Answers by what the names of their figures begin with; an empty name where there is one group only."""


class Workload(Protocol):
    """Plain data that can be sent to the process that is to carry it out."""

    @property
    def name(self) -> str:
        """In results, reports and on the command line."""

    @property
    def ways(self) -> frozenset[str] | None:
        """Those that can do it; None where all can."""

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """Carry it out.

        Returns:
            the answers that accuracy, latency and queue wait are taken from, and other figures.
        """


async def closed_loop(way: Way, recordings: Sequence[Recording], clients: int) -> tuple[list[Answer], float]:
    """So many clients, each of which sends the next recording as soon as it has its answer; also the seconds it took."""
    waiting = iter(recordings)
    answers: list[Answer] = []

    async def client() -> None:
        for recording in waiting:
            answers.append(await way.transcribe(recording))  # noqa: PERF401  (another client may be between two items)

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return answers, time.perf_counter() - begin


def repeated(recordings: Sequence[Recording], at_least: int) -> list[Recording]:
    """The recordings, over and over in whole turns, until there are enough."""
    turns = -(-at_least // len(recordings))
    return list(itertools.chain.from_iterable(itertools.repeat(recordings, turns)))


def latencies(name: str, answers: Sequence[Answer]) -> dict[str, float]:
    """Percentiles of the answers' latencies and queue waits; ``name`` begins each figure's."""
    waits = [answer.queue_seconds for answer in answers if answer.queue_seconds is not None]
    return {
        **percentiles(f"{name}latency", [answer.latency_seconds for answer in answers]),
        **percentiles(f"{name}queue", waits),
    }
