"""A result as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bench.figures import medians, ratio
from bench.machine import Machine
from bench.result import Result
from bench.targets import targets

NAMES: Final = {
    "sequential": "faster-whisper, sequential",
    "batched": "faster-whisper, batched",
    "engine": "metalscribe, in process",
    "http": "metalscribe, HTTP",
}

_ABSENT: Final = "–"
_MIB: Final = 1024 * 1024

_Cells = Callable[[str], list[str]]


def markdown(result: Result) -> str:
    """All tables that the runs have something for."""
    parts = [
        _preamble(result),
        _clips(result),
        _long(result),
        _mix(result),
        _jobs(result),
        _poisson(result),
        _targets(result),
    ]
    return "\n\n".join(part for part in parts if part)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(figures: Mapping[str, float], name: str, digits: int, scale: float = 1.0, unit: str = "") -> str:
    """A figure with so many digits after the point; a dash where it is not known."""
    return f"{figures[name] * scale:,.{digits}f}{unit}" if name in figures else _ABSENT


def describe(machine: Machine) -> str:
    """The machine in one line."""
    where = f"{machine.gpu}, {machine.cpu}" if machine.gpu else machine.cpu
    memory = f"{machine.memory_bytes / 1024**3:.0f} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{where}, {machine.cores} cores, {memory}; Python {machine.python}, {versions}; metalscribe {machine.commit}"
    )


def _preamble(result: Result) -> str:
    material = result.material
    lines = [
        (
            f"Model `{result.model}`, {result.device}, {result.compute_type}, beam 5; {result.measured}; "
            f"medians of {result.rounds} round{'s' if result.rounds > 1 else ''}; "
            f"language {result.language or 'detected by each way'}."
        ),
        f"{describe(result.machine)}.",
        (
            f"{material.source}: {material.clips} clips of {material.clips_seconds:.0f} s together, "
            f"a long recording of {material.long_seconds:.0f} s, the short clip of {material.short_seconds:.1f} s."
        ),
    ]
    if result.machine.settings:
        lines.append("With " + ", ".join(f"`{name}={value}`" for name, value in result.machine.settings.items()) + ".")
    if result.quick:
        lines.append("**A quick look: little material, and no rounds to take medians of.**")
    return "\n".join(lines)


def _clips(result: Result) -> str:
    workloads = sorted(
        {run.workload for run in result.runs if run.workload.startswith("clients-")},
        key=lambda name: int(name.removeprefix("clients-")),
    )
    rows = []
    for workload in workloads:
        clients = workload.removeprefix("clients-")
        for way in _ways(result, workload):
            found = medians(result.runs, workload, way)
            rows.append(
                [
                    clients,
                    NAMES[way],
                    number(found, "throughput", 1),
                    _times(result, workload, way, "sequential"),
                    _times(result, workload, way, "batched"),
                    number(found, "latency_p50_seconds", 2),
                    number(found, "latency_p95_seconds", 2),
                    number(found, "latency_p99_seconds", 2),
                    number(found, "queue_p50_seconds", 2),
                    number(found, "wer_percent", 2),
                    number(found, "batch_rows" if "batch_rows" in found else "chunks_in_model", 1),
                    _cpu(found),
                    number(found, "peak_pss_bytes", 0, 1 / _MIB),
                ]
            )
    heads = ["clients", "way", "audio s/s", "÷ sequential", "÷ batched", "p50 s", "p95 s", "p99 s", "queue p50 s"]
    heads += ["WER %", "batch", "CPU ms per audio s", "peak MiB"]
    return f"**Short clips**\n\n{table(heads, rows)}" if rows else ""


def _long(result: Result) -> str:
    def cells(way: str) -> list[str]:
        found = medians(result.runs, "long", way)
        return [
            number(found, "wall_seconds", 1),
            number(found, "throughput", 1),
            _times(result, "long", way, "sequential"),
            _times(result, "long", way, "batched"),
            number(found, "first_segment_seconds", 2),
            number(found, "first_segment_percent", 1),
            number(found, "wer_percent", 2),
            "/".join(number(found, name, 0) for name in ("substitutions", "deletions", "insertions")),
            _cpu(found),
            number(found, "peak_pss_bytes", 0, 1 / _MIB),
        ]

    heads = ["s", "audio s/s", "÷ sequential", "÷ batched", "first segment s", "% of all", "WER %", "S/D/I"]
    return _per_way(result, "long", "One long recording", [*heads, "CPU ms per audio s", "peak MiB"], cells)


def _mix(result: Result) -> str:
    def cells(way: str) -> list[str]:
        found = medians(result.runs, "mix", way)
        return [
            number(found, "idle_seconds", 3),
            number(found, "chunk_seconds", 3),
            number(found, "latency_p50_seconds", 3),
            number(found, "latency_p95_seconds", 3),
            number(found, "allowed_ratio", 2),
            number(found, "long_alone_seconds", 1),
            number(found, "long_mixed_seconds", 1),
            number(found, "long_ratio", 2),
            number(found, "peak_pss_bytes", 0, 1 / _MIB),
        ]

    heads = ["clip idle s", "30 s chunk alone s", "clip p50 s", "clip p95 s", "p95 ÷ (idle + 1.5 × chunk)"]
    heads += ["long alone s", "long mixed s", "mixed ÷ alone", "peak MiB"]
    return _per_way(result, "mix", "A clip every second while a long recording runs", heads, cells)


def _jobs(result: Result) -> str:
    def cells(way: str) -> list[str]:
        found = medians(result.runs, "jobs", way)
        return [
            number(found, "idle_seconds", 3),
            number(found, "chunk_seconds", 3),
            number(found, "latency_p50_seconds", 3),
            number(found, "latency_p95_seconds", 3),
            number(found, "allowed_ratio", 2),
            number(found, "peak_pss_bytes", 0, 1 / _MIB),
        ]

    heads = ["clip idle s", "30 s chunk alone s", "clip p50 s", "clip p95 s", "p95 ÷ (idle + 1.5 × chunk)", "peak MiB"]
    return _per_way(result, "jobs", "A clip every second while four jobs run", heads, cells)


def _poisson(result: Result) -> str:
    rows = []
    for way in _ways(result, "poisson"):
        found = medians(result.runs, "poisson", way)
        loads = sorted({name.split("_")[0] for name in found if name.startswith("load")})
        rows += [
            [
                NAMES[way],
                number(found, "capacity", 1),
                f"{load.removeprefix('load')} %",
                number(found, f"{load}_offered", 1),
                number(found, f"{load}_latency_p50_seconds", 2),
                number(found, f"{load}_latency_p95_seconds", 2),
                number(found, f"{load}_latency_p99_seconds", 2),
                number(found, f"{load}_queue_p50_seconds", 2),
                number(found, f"{load}_queue_p95_seconds", 2),
            ]
            for load in loads
        ]
    heads = ["way", "capacity audio s/s", "load", "offered audio s/s", "p50 s", "p95 s", "p99 s"]
    heads += ["queue p50 s", "queue p95 s"]
    return f"**Clips that arrive at random**\n\n{table(heads, rows)}" if rows else ""


def _targets(result: Result) -> str:
    rows = [
        [
            target.what,
            f"{target.measured:.2f}",
            f"{'≥' if target.at_least else '≤'} {target.bound:g}",
            "yes" if target.met else "**no**",
        ]
        for target in targets(result.model, result.runs)
    ]
    return f"**Aims**\n\n{table(['what', 'measured', 'aim', 'met'], rows)}" if rows else ""


def _per_way(result: Result, workload: str, title: str, heads: list[str], cells: _Cells) -> str:
    rows = [[NAMES[way], *cells(way)] for way in _ways(result, workload)]
    return f"**{title}**\n\n{table(['way', *heads], rows)}" if rows else ""


def _ways(result: Result, workload: str) -> list[str]:
    known = {run.way for run in result.runs if run.workload == workload}
    return [way for way in NAMES if way in known]


def _times(result: Result, workload: str, way: str, base: str) -> str:
    quotient = ratio(result.runs, workload, "throughput", way, base)
    return f"{quotient:.2f} ×" if quotient is not None else _ABSENT


def _cpu(found: Mapping[str, float]) -> str:
    if "cpu_seconds" not in found or not found.get("audio_seconds"):
        return _ABSENT
    return f"{1000 * found['cpu_seconds'] / found['audio_seconds']:.1f}"
