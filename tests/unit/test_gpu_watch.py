"""The GPUs among the service's own series, and a driver that hangs.

The driver is simulated at its narrowest seam, a reporter that answers when the test lets it: no build machine has one to hang.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from common import Eventually
from metalscribe.gpu.collector import GpuCollector
from metalscribe.gpu.exposition import exposition
from metalscribe.gpu.health import GpuHealth, GpuProblem, GpuReport, ProblemCode
from metalscribe.gpu.watch import GpuWatch

GPU = GpuHealth(
    index=0,
    name="NVIDIA L40S",
    uuid="GPU-1",
    memory_total=48 * 1024**3,
    utilization_gpu=57,
    temperature_celsius=71,
    clock_sm_mhz=2520,
    clock_reasons=("sw_power_cap",),
    ecc_corrected=3,
    ecc_uncorrected=0,
)
REPORT = GpuReport("580.95.05", "13.0", (GPU, GpuHealth(index=1)), None)


@dataclass
class Driver:
    """Answers at once, or when it is let; ``now`` is the watch's time."""

    hangs: bool = False
    asked: int = 0
    now: float = 1000.0
    let: threading.Event = field(default_factory=threading.Event)

    def report(self) -> GpuReport:
        self.asked += 1
        if self.hangs:
            self.let.wait(60)
        return REPORT


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.let.set()


@pytest.fixture
def watch(driver: Driver) -> GpuWatch:
    return GpuWatch(driver, clock=lambda: driver.now)


async def test_a_report_serves_for_some_seconds(driver: Driver, watch: GpuWatch) -> None:
    assert await watch.present() is REPORT
    assert await watch.report() is REPORT
    assert driver.asked == 1
    assert await watch.report(fresh=True) is REPORT
    assert driver.asked == 2
    driver.now += 60
    assert await watch.present() is REPORT
    assert driver.asked == 3


async def test_a_driver_that_hangs_holds_up_nobody_who_comes_later(
    driver: Driver, watch: GpuWatch, eventually: Eventually
) -> None:
    assert await watch.present() is REPORT
    driver.hangs = True
    driver.now += 60
    first = asyncio.create_task(watch.present())
    await eventually(lambda: driver.asked == 2)
    driver.now += 60
    assert await watch.present() is None, "an old report is not the present"
    assert await watch.report() is REPORT, "but better than none to whoever takes it"
    assert await watch.report(fresh=True) is REPORT
    assert driver.asked == 2, "one thread hangs, no more"
    assert not first.done(), "nobody has waited as long as the first"
    driver.let.set()
    assert await first is REPORT
    assert await watch.present() is REPORT


def test_the_service_tells_what_the_exporter_tells() -> None:
    registry, collector = CollectorRegistry(), GpuCollector()
    registry.register(collector)
    collector.report = REPORT

    def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (one.name, frozenset(one.labels.items())): one.value
            for family in prometheus(text)
            for one in family.samples
        }

    ours = samples(generate_latest(registry).decode())
    assert ours.pop(("metalscribe_gpu_driver_answers", frozenset())) == 1
    assert ours == samples(exposition(REPORT))
    kinds = {
        family.name: family.type
        for family in openmetrics(generate_openmetrics(registry).decode())  # type: ignore[no-untyped-call]
    }
    assert kinds["metalscribe_gpu_ecc_errors"] == "counter"
    assert kinds["metalscribe_gpu_temperature_celsius"] == "gauge"


def test_nothing_is_made_up_while_the_driver_hangs() -> None:
    registry, collector = CollectorRegistry(), GpuCollector()
    registry.register(collector)
    (family,) = registry.collect()
    assert [(one.name, one.value) for one in family.samples] == [("metalscribe_gpu_driver_answers", 0)]
    collector.report = GpuReport(None, None, (), GpuProblem(ProblemCode.NO_NVIDIA_DRIVER, "There is none."))
    found = {(one.name, one.labels.get("code")): one.value for family in registry.collect() for one in family.samples}
    assert found["metalscribe_gpu_driver_answers", None] == 1, "that there is none is an answer"
    assert found["metalscribe_gpu_driver_problem", "no_nvidia_driver"] == 1
