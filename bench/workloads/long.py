"""One long recording, alone."""

from __future__ import annotations

from dataclasses import dataclass

from bench.recordings import Recordings
from bench.ways.way import Way
from bench.workloads.workload import Groups


@dataclass(frozen=True, slots=True)
class Long:
    """The long recording; how soon its first segment is there."""

    name: str = "long"
    ways: frozenset[str] | None = None

    async def run(self, way: Way, recordings: Recordings) -> tuple[Groups, dict[str, float]]:
        """See :class:`bench.workloads.workload.Workload`."""
        answer = await way.transcribe(recordings.long)
        audio, seconds = recordings.long.seconds, answer.latency_seconds
        figures = {"audio_seconds": audio, "wall_seconds": seconds, "throughput": audio / seconds}
        if answer.first_segment_seconds is not None:
            figures["first_segment_seconds"] = answer.first_segment_seconds
            figures["first_segment_percent"] = 100 * answer.first_segment_seconds / seconds
        return {"": [answer]}, figures
