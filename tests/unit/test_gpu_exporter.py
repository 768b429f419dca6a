"""GPU metrics for Prometheus, from reports as NVML gives them and from the exporter as systemd starts it.

The reports are made up, since no build machine has a GPU; the exporter's process meets a machine without a driver.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from metalscribe.gpu.exporter import Exporter
from metalscribe.gpu.exposition import CONTENT_TYPE, exposition
from metalscribe.gpu.health import GpuHealth, GpuProblem, GpuReport, ProblemCode

GIB = 1024**3
GPU = GpuHealth(
    index=0,
    name='NVIDIA "L40S"\\',
    uuid="GPU-1",
    pci_bus_id="0000:c1:00.0",
    memory_total=48 * GIB,
    memory_free=40 * GIB,
    memory_used=7 * GIB,
    utilization_gpu=57,
    power_watts=299.512,
    clock_sm_mhz=2520,
    clock_reasons=("sw_power_cap", "sw_thermal_slowdown"),
    ecc_corrected=3,
    ecc_uncorrected=0,
)
LOST = GpuHealth(index=1, problem=GpuProblem(ProblemCode.GPU_LOST, "GPU 1 is lost."))
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the text format, as its specification has it."""
    assert text.endswith("\n")
    found = {}
    described: set[str] = set()
    for line in text.splitlines():
        if line.startswith("#"):
            _, keyword, name, _ = line.split(" ", 3)
            if keyword == "TYPE":
                assert name not in described, "a metric's samples stand together"
                described.add(name)
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match[1] in described
        key = match[1], frozenset(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
        assert key not in found, "no sample twice"
        found[key] = float(match[3])
    return found


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def test_a_healthy_and_a_lost_gpu() -> None:
    found = samples(exposition(GpuReport("580.95.05", "13.0", (GPU, LOST), None)))
    first, second = {"gpu": "0", "uuid": "GPU-1"}, {"gpu": "1", "uuid": ""}
    assert found["metalscribe_gpus", labelled()] == 2
    assert found["metalscribe_gpu_driver_info", labelled(version="580.95.05", cuda="13.0")] == 1
    assert found["metalscribe_gpu_driver_problem", labelled(code="")] == 0
    assert found["metalscribe_gpu_problem", labelled(**first, code="")] == 0
    assert found["metalscribe_gpu_problem", labelled(**second, code="gpu_lost")] == 1
    assert found["metalscribe_gpu_memory_total_bytes", labelled(**first)] == 48 * GIB, "to the byte"
    assert found["metalscribe_gpu_utilization_ratio", labelled(**first)] == 0.57
    assert found["metalscribe_gpu_power_watts", labelled(**first)] == 299.512
    assert found["metalscribe_gpu_clock_hertz", labelled(**first, clock="sm")] == 2_520_000_000
    assert found["metalscribe_gpu_clock_limit", labelled(**first, reason="sw_thermal_slowdown")] == 1
    assert found["metalscribe_gpu_ecc_errors_total", labelled(**first, kind="uncorrected")] == 0
    # What a GPU does not tell is left out.
    assert ("metalscribe_gpu_memory_total_bytes", labelled(**second)) not in found
    assert not any(name == "metalscribe_gpu_temperature_celsius" for name, _ in found)


def test_names_are_escaped() -> None:
    text = exposition(GpuReport(None, None, (replace(GPU, name='a"b\\c\nd'),), None))
    assert r'name="a\"b\\c\nd"' in text
    samples(text)


def test_a_machine_without_a_driver() -> None:
    problem = GpuProblem(ProblemCode.DRIVER_MISMATCH, "Reboot.")
    found = samples(exposition(GpuReport(None, None, (), problem)))
    assert found == {
        ("metalscribe_gpus", labelled()): 0,
        ("metalscribe_gpu_driver_problem", labelled(code="driver_mismatch")): 1,
    }


@contextmanager
def serving(exporter: Exporter) -> Iterator[int]:
    thread = threading.Thread(target=exporter.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield exporter.server_port
    finally:
        exporter.shutdown()
        thread.join()
        exporter.server_close()


def get(port: int, path: str = "/metrics") -> tuple[int, str | None, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.getheader("Content-Type"), body


def test_a_driver_that_hangs_fails_the_scrape_and_nothing_else() -> None:
    exporter = Exporter(0, patience=0.05)
    hanging, may_end = threading.Event(), threading.Event()

    class Driver:
        def report(self) -> GpuReport:
            hanging.set()
            may_end.wait(20)
            return GpuReport("580.95.05", "13.0", (GPU,), None)

        def close(self) -> None:
            pass

    exporter._nvml = Driver()  # type: ignore[assignment]  # the narrowest seam: what would hang is the driver's library
    with serving(exporter) as port:
        answers: list[tuple[int, str | None, str]] = []
        first = threading.Thread(target=lambda: answers.append(get(port)))
        first.start()
        assert hanging.wait(10)
        assert get(port)[0] == 503
        assert get(port, "/elsewhere")[0] == 404
        may_end.set()
        first.join(10)
        assert answers[0][0] == 200
        assert get(port)[0] == 200


def test_the_process_tells_systemd_that_it_is_ready_and_ends_on_sigterm(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, socket.socket() as probe:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "metalscribe.gpu.exporter", "--port", str(port)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.PIPE,
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            status, kind, body = get(port)
            assert (status, kind) == (200, CONTENT_TYPE)
            assert ("metalscribe_gpus", labelled()) in samples(body)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            _, complaints = process.communicate()
    assert complaints == b""


def test_nobody_but_loopback_is_answered() -> None:
    exporter = Exporter(0)
    with exporter:
        assert exporter.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/metrics?name=x", "/metrics"])
def test_the_query_is_ignored(path: str) -> None:
    with serving(Exporter(0)) as port:
        assert get(port, path)[0] == 200
