"""Short clips from several clients at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.recordings import Recordings
from bench.ways.way import Way
from bench.workloads.workload import Groups, closed_loop, repeated

_TURNS: Final = 3
"""Each client sends so many clips at least: the end, when clients have nothing to send any more, must not weigh much."""


@dataclass(frozen=True, slots=True)
class Clients:
    """``count`` clients, each with one clip under way."""

    count: int
    ways: frozenset[str] | None = None

    @property
    def name(self) -> str:
        """See :class:`bench.workloads.workload.Workload`."""
        return f"clients-{self.count}"

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """See :class:`bench.workloads.workload.Workload`."""
        clips = repeated(recordings.clips, _TURNS * self.count)
        answers, seconds = await closed_loop(way, clips, self.count)
        audio = sum(clip.seconds for clip in clips)
        return {"": answers}, {"audio_seconds": audio, "wall_seconds": seconds, "throughput": audio / seconds}
