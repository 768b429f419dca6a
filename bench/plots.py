"""A result as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.figures import medians
from bench.report import NAMES
from bench.result import Result

_COLOURS: Final = {"sequential": "#9aa5b1", "batched": "#61707f", "engine": "#7fb3d5", "http": "#1f6fa8"}
_THROUGHPUT: Final = ("clients-1", "clients-8", "clients-32", "long")
_LATENCY: Final = (("idle_seconds", "idle"), ("latency_p50_seconds", "p50"), ("latency_p95_seconds", "p95"))


def draw(result: Result, path: Path) -> None:
    """Throughput by workload, and the latency of clips while a long recording runs; an SVG that changes with its data only."""
    mpl.rcParams.update({"svg.hashsalt": result.key, "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    measured = {run.workload for run in result.runs}
    throughput = [name for name in _THROUGHPUT if name in measured]
    _bars(left, result, [(name, name, "throughput", _label(name)) for name in throughput])
    left.set_ylabel("seconds of audio per second")
    if "mix" in measured:
        _bars(right, result, [(name, "mix", name, label) for name, label in _LATENCY])
        right.set_yscale("log")
        right.set_ymargin(0.15)
        right.set_ylabel("seconds")
        right.set_title("a 5 s clip while a long recording runs")
    left.set_title(f"throughput, {result.model} on {result.machine.gpu or f'{result.machine.cores} CPU cores'}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(NAMES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _bars(axes: Any, result: Result, groups: list[tuple[str, str, str, str]]) -> None:
    """Groups of bars, one bar per way: (id, workload, figure, label) each."""
    ways = [way for way in NAMES if any(run.way == way for run in result.runs)]
    width = 0.8 / max(1, len(ways))
    for index, way in enumerate(ways):
        heights = [medians(result.runs, workload, way).get(figure, 0.0) for _, workload, figure, _ in groups]
        places = [place + (index - (len(ways) - 1) / 2) * width for place in range(len(groups))]
        bars = axes.bar(places, heights, width, label=NAMES[way], color=_COLOURS[way])
        axes.bar_label(bars, fmt="%.3g", fontsize=6, padding=1)
    axes.set_xticks(range(len(groups)), [label for *_, label in groups])
    axes.spines[["top", "right"]].set_visible(False)


def _label(workload: str) -> str:
    clients = workload.removeprefix("clients-")
    return "one long recording" if workload == "long" else f"clips, {clients} client{'s' if clients != '1' else ''}"
