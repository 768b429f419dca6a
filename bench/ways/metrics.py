"""What a run has changed in the service's Prometheus series."""

from __future__ import annotations

from collections import Counter
from typing import Final

_PREFIX: Final = "metalscribe_"
_WANTED: Final = frozenset({"batch_rows_sum", "batch_rows_count", "batch_seconds_sum", "model_seconds_total"})


def parse_series(text: str) -> dict[str, float]:
    """The series wanted here, summed over their labels, out of Prometheus' text format; names without the prefix."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        series, _, value = line.partition("} ") if "{" in line else line.partition(" ")
        name = series.partition("{")[0].removeprefix(_PREFIX)
        if name in _WANTED:
            found[name] += float(value.split()[0])  # type: ignore[assignment]
    return dict(found)


def batches(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Mean rows of a batch, and what share of the batches' time was CTranslate2's; nothing where the series are not there."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    figures = {}
    if grown.get("batch_rows_count"):
        figures["batch_rows"] = grown["batch_rows_sum"] / grown["batch_rows_count"]
    if grown.get("batch_seconds_sum") and "model_seconds_total" in grown:
        figures["model_percent"] = 100 * grown["model_seconds_total"] / grown["batch_seconds_sum"]
    return figures
