"""What metalscribe is meant to reach, and whether a result reaches it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.figures import Run, medians, ratio

_CLIPS_RATIO: Final = {"demo": 3.5, "base": 2.5}
"""Throughput over HTTP against the sequential loop, 8 clients; the smaller the model, the more there is to win."""

_LONG_OVER_SEQUENTIAL: Final = 2.3
_LONG_OVER_BATCHED: Final = 1.0
_MORE_ERRORS_PERCENT: Final = 0.3
_FIRST_SEGMENT_PERCENT: Final = 10.0
_LONG_MIXED_RATIO: Final = 1.25
_HTTP_OVER_ENGINE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound; ``at_least`` tells on which side of the bound it shall be."""

    what: str
    measured: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def targets(model: str, runs: Sequence[Run]) -> list[Target]:
    """Those that the runs tell something about."""
    return [*_clips(model, runs), *_long(runs), *_mix(runs), *_jobs(runs), *_saturation(runs)]


def _clips(model: str, runs: Sequence[Run]) -> Iterator[Target]:
    quotient = ratio(runs, "clients-8", "throughput", "http", "sequential")
    if quotient is not None and model in _CLIPS_RATIO:
        yield Target("short clips, 8 clients: HTTP ÷ sequential", quotient, _CLIPS_RATIO[model], at_least=True)
    yield from _errors("short clips, 8 clients", runs, "clients-8")


def _long(runs: Sequence[Run]) -> Iterator[Target]:
    for base, bound in (("sequential", _LONG_OVER_SEQUENTIAL), ("batched", _LONG_OVER_BATCHED)):
        quotient = ratio(runs, "long", "throughput", "http", base)
        if quotient is not None:
            yield Target(f"long recording: HTTP ÷ {base}", quotient, bound, at_least=True)
    yield from _errors("long recording", runs, "long")
    for way in ("engine", "http"):
        first = medians(runs, "long", way).get("first_segment_percent")
        if first is not None:
            what = f"long recording: first segment after % of the time, {way}"
            yield Target(what, first, _FIRST_SEGMENT_PERCENT, at_least=False)


def _mix(runs: Iterable[Run]) -> Iterator[Target]:
    every = list(runs)
    for way in ("engine", "http"):
        found = medians(every, "mix", way)
        if found:
            what = f"mix: clips' p95 ÷ (idle + 1.5 × chunk), {way}"
            yield Target(what, found["allowed_ratio"], 1.0, at_least=False)
            what = f"mix: long recording mixed ÷ alone, {way}"
            yield Target(what, found["long_ratio"], _LONG_MIXED_RATIO, at_least=False)


def _jobs(runs: Sequence[Run]) -> Iterator[Target]:
    for way in ("engine", "http"):
        found = medians(runs, "jobs", way)
        if found:
            what = f"while jobs run: clips' p95 ÷ (idle + 1.5 × chunk), {way}"
            yield Target(what, found["allowed_ratio"], 1.0, at_least=False)


def _saturation(runs: Sequence[Run]) -> Iterator[Target]:
    for workload in ("clients-8", "clients-32"):
        quotient = ratio(runs, workload, "throughput", "http", "engine")
        if quotient is not None:
            what = f"saturation, {workload.removeprefix('clients-')} clients: HTTP ÷ engine"
            yield Target(what, quotient, _HTTP_OVER_ENGINE, at_least=True)


def _errors(what: str, runs: Sequence[Run], workload: str) -> Iterator[Target]:
    ours = medians(runs, workload, "http").get("wer_percent")
    theirs = medians(runs, workload, "sequential").get("wer_percent")
    if ours is not None and theirs is not None:
        yield Target(f"{what}: WER over HTTP − sequential, points", ours - theirs, _MORE_ERRORS_PERCENT, at_least=False)
