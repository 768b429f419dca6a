"""What is transcribed. Plain data, so that a measured process does not have to load what made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recording:
    """A file, its length in seconds, and what is said in it where that is known."""

    path: Path
    seconds: float
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Recordings:
    """The material of a benchmark.

    Attributes:
        clips: short recordings, about a sentence each.
        long: one recording of several minutes.
        short: the clip nearest to five seconds.
        chunk: thirty seconds of ``long``: as much as the model hears at once.
        source: where they come from, for the report.
    """

    clips: tuple[Recording, ...]
    long: Recording
    short: Recording
    chunk: Recording
    source: str
