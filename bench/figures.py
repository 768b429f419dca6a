"""The arithmetic of measuring: percentiles, medians over rounds, ratios within a round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Figures = Mapping[str, float]
"""What one run has measured, by name; what is not known is absent. Names end in their unit: _seconds, _bytes, _percent."""

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Run:
    """One way, doing one workload, in one round."""

    workload: str
    way: str
    round: int
    figures: Figures


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` % of the values do not exceed, interpolated linearly as NumPy does.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """``{name}_p50_seconds`` and so on; nothing where there are no values."""
    return {f"{name}_p{percent}_seconds": percentile(values, percent) for percent in PERCENTILES} if values else {}


def medians(runs: Iterable[Run], workload: str, way: str) -> dict[str, float]:
    """Median over the rounds of every figure of a way at a workload; empty where it was not run."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if (run.workload, run.way) == (workload, way):
            for name, value in run.figures.items():
                found.setdefault(name, []).append(value)
    return {name: median(values) for name, values in found.items()}


def ratio(runs: Iterable[Run], workload: str, figure: str, way: str, base: str) -> float | None:
    """Median over the rounds of a figure of ``way`` over the same of ``base`` in the same round; None if never both.

    Machines drift: what is measured minutes apart is compared round by round, not median with median.
    """
    of = {
        (run.round, run.way): run.figures[figure] for run in runs if run.workload == workload and figure in run.figures
    }
    quotients = [
        value / of[number, base]
        for (number, name), value in of.items()
        if name == way and of.get((number, base), 0.0) > 0
    ]
    return median(quotients) if quotients else None
