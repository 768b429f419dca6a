"""What a benchmark leaves behind: a JSON document, from which every table and plot can be made again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.figures import Run
from bench.machine import Machine


@dataclass(frozen=True, slots=True)
class Material:
    """What was transcribed; lengths in seconds of audio."""

    source: str
    clips: int
    clips_seconds: float
    long_seconds: float
    short_seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark.

    Attributes:
        measured: date, UTC.
        model: as named on the command line; a directory by its own name.
        language: the code given to every way, None where each detected it.
        segments: whether metalscribe was asked for segments with their times.
        quick: less material and one round: good for a look, not for a comparison.
    """

    measured: str
    model: str
    device: str
    compute_type: str
    language: str | None
    segments: bool
    quick: bool
    rounds: int
    material: Material
    machine: Machine
    runs: list[Run]

    @property
    def key(self) -> str:
        """What tells it from others: file names and the documents' markers have it."""
        return f"{self.model}-{self.device}"


def write(result: Result, path: Path) -> None:
    """Write the document, rounded to what was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(run.workload, run.way, run.round, {name: round(value, 5) for name, value in run.figures.items()})
        for run in result.runs
    ]
    document = {**msgspec.to_builtins(result), "runs": msgspec.to_builtins(runs)}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def read(path: Path) -> Result:
    """Read a document.

    Raises:
        msgspec.ValidationError: it is not one.
    """
    return msgspec.json.decode(path.read_bytes(), type=Result)
