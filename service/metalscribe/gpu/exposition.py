"""A GPU report as Prometheus reads it: metric by metric, and as the text format 0.0.4.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/; names and base units:
https://prometheus.io/docs/practices/naming/. What a GPU does not tell has no sample, never a made-up zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from metalscribe.gpu.health import GpuHealth, GpuReport

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_MHZ: Final = 1_000_000

# What one GPU tells about one thing: labels beside those that name the GPU, and the value.
_Samples = Iterator[tuple[Mapping[str, str], float | None]]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its samples, labels and value of each.

    Attributes:
        kind: ``gauge`` or ``counter``, as the format calls it.
        meaning: one line.
    """

    name: str
    kind: str
    meaning: str
    samples: tuple[tuple[Mapping[str, str], float], ...]


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str
    kind: str
    meaning: str
    read: Callable[[GpuHealth], _Samples]


def families(report: GpuReport) -> Iterator[Family]:
    """All that a report tells: of the driver, then of every GPU, metric by metric."""
    yield from _driver(report)
    for metric in _METRICS:
        samples = tuple(
            ({"gpu": str(gpu.index), "uuid": gpu.uuid or ""} | dict(labels), float(value))
            for gpu in report.gpus
            for labels, value in metric.read(gpu)
            if value is not None
        )
        if samples:
            yield Family(metric.name, metric.kind, metric.meaning, samples)


def exposition(report: GpuReport) -> str:
    """Return the whole report, a trailing newline included."""
    lines: list[str] = []
    for family in families(report):
        lines += _header(family.name, family.kind, family.meaning)
        lines += [_sample(family.name, labels, value) for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _driver(report: GpuReport) -> Iterator[Family]:
    yield Family("metalscribe_gpus", "gauge", "GPUs that the NVIDIA driver lists.", (({}, len(report.gpus)),))
    code = "" if report.problem is None else report.problem.code.value
    yield Family(
        "metalscribe_gpu_driver_problem",
        "gauge",
        "1 if no GPU can be used, or one has gone missing; the code says why.",
        (({"code": code}, int(report.problem is not None)),),
    )
    if report.driver_version is not None:
        versions = {"version": report.driver_version, "cuda": report.cuda_version or ""}
        meaning = "The NVIDIA driver, and the newest CUDA that it runs."
        yield Family("metalscribe_gpu_driver_info", "gauge", meaning, ((versions, 1),))


def _info(gpu: GpuHealth) -> _Samples:
    yield {"name": gpu.name or "", "pci_bus_id": gpu.pci_bus_id or ""}, 1


def _problem(gpu: GpuHealth) -> _Samples:
    yield {"code": gpu.problem.code.value if gpu.problem else ""}, int(gpu.problem is not None)


def _clocks(gpu: GpuHealth) -> _Samples:
    for clock, mhz in (("sm", gpu.clock_sm_mhz), ("memory", gpu.clock_memory_mhz)):
        yield {"clock": clock}, None if mhz is None else mhz * _MHZ


def _limits(gpu: GpuHealth) -> _Samples:
    for reason in gpu.clock_reasons or ():
        yield {"reason": reason}, 1


def _errors(gpu: GpuHealth) -> _Samples:
    yield {"kind": "corrected"}, gpu.ecc_corrected
    yield {"kind": "uncorrected"}, gpu.ecc_uncorrected


def _of(field: str, per: int = 1) -> Callable[[GpuHealth], _Samples]:
    def read(gpu: GpuHealth) -> _Samples:
        value = getattr(gpu, field)
        yield {}, None if value is None else value / per

    return read


_METRICS: Final = (
    _Metric("metalscribe_gpu_info", "gauge", "The GPU's name and place.", _info),
    _Metric(
        "metalscribe_gpu_problem", "gauge", "1 if the GPU cannot be used or fully read; the code says why.", _problem
    ),
    _Metric("metalscribe_gpu_memory_total_bytes", "gauge", "Memory of the card.", _of("memory_total")),
    _Metric("metalscribe_gpu_memory_used_bytes", "gauge", "Memory that programs hold.", _of("memory_used")),
    _Metric("metalscribe_gpu_memory_free_bytes", "gauge", "Memory that is left.", _of("memory_free")),
    _Metric(
        "metalscribe_gpu_utilization_ratio",
        "gauge",
        "Share of time with a kernel at work.",
        _of("utilization_gpu", 100),
    ),
    _Metric(
        "metalscribe_gpu_memory_utilization_ratio",
        "gauge",
        "Share of time with the memory being read or written.",
        _of("utilization_memory", 100),
    ),
    _Metric("metalscribe_gpu_temperature_celsius", "gauge", "Temperature of the die.", _of("temperature_celsius")),
    _Metric("metalscribe_gpu_power_watts", "gauge", "Power drawn.", _of("power_watts")),
    _Metric("metalscribe_gpu_power_limit_watts", "gauge", "Power that may be drawn.", _of("power_limit_watts")),
    _Metric("metalscribe_gpu_clock_hertz", "gauge", "Clock of the cores or the memory.", _clocks),
    _Metric("metalscribe_gpu_clock_limit", "gauge", "1 for each reason why the clocks are not higher.", _limits),
    _Metric("metalscribe_gpu_ecc_errors_total", "counter", "Memory errors since the driver was loaded.", _errors),
    _Metric(
        "metalscribe_gpu_last_xid",
        "gauge",
        "Number of the last XID error seen, none before the first.",
        _of("last_xid"),
    ),
    _Metric("metalscribe_gpu_pcie_link_generation", "gauge", "PCI Express generation in use.", _of("pcie_generation")),
    _Metric("metalscribe_gpu_pcie_link_lanes", "gauge", "PCI Express lanes in use.", _of("pcie_width")),
)


def _header(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{pairs}}} {value:.15g}" if pairs else f"{name} {value:.15g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
