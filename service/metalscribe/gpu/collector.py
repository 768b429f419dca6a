"""The GPUs among a service's own series: the exporter's metrics, from reports that somebody else has asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metalscribe.gpu.exposition import families
from metalscribe.gpu.health import GpuReport


class GpuCollector(Collector):
    """The series of one report.

    Asking the driver can take without end, and a collector is not awaited: whoever answers a scrape asks first.

    Attributes:
        report: of this moment; None while the driver does not answer, and then no figure is made up from older ones.
    """

    def __init__(self) -> None:
        self.report: GpuReport | None = None

    def collect(self) -> Iterator[Metric]:
        """The series; called with every scrape."""
        yield GaugeMetricFamily(
            "metalscribe_gpu_driver_answers",
            "1 if the NVIDIA driver, or its absence, could be read in time; 0 while it hangs.",
            int(self.report is not None),
        )
        for family in families(self.report) if self.report is not None else ():
            made: Metric = _KINDS[family.kind](family.name, family.meaning)
            for labels, value in family.samples:
                made.add_sample(family.name, dict(labels), value)
            yield made


_KINDS = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
