from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from metalscribe.cli import checks, devices, doctor, trial
from metalscribe.cli.findings import Status
from metalscribe.gpu.health import GpuHealth, GpuProblem, GpuReport, ProblemCode
from metalscribe.settings import Device, Settings, load_settings

NAMES = [
    *("settings", "libraries", "state_directory", "disk_space", "database", "api_keys", "model", "device", "cublas"),
    *("compute_type", "decoder", "service", "transcription"),
]
GIB = 1024**3
GPU = GpuHealth(index=0, name="NVIDIA L40S", uuid="GPU-1", memory_total=48 * GIB, memory_free=40 * GIB)
NO_DRIVER = GpuProblem(ProblemCode.NO_NVIDIA_DRIVER, "No NVIDIA driver is installed.")

Adapt = Callable[..., Settings]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith("METALSCRIBE_"):
            monkeypatch.delenv(name)
    directory = tmp_path / "state"
    monkeypatch.setenv("METALSCRIBE_STATE_DIR", str(directory))
    monkeypatch.setenv("METALSCRIBE_MODEL", "demo")
    monkeypatch.setenv("METALSCRIBE_DEVICE", "cpu")
    return directory


def run(*arguments: str, **variables: str) -> tuple[int, Mapping[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "metalscribe", "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
        timeout=150,
    )
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"status", "checks"}
    assert all(set(check) == {"name", "status", "detail", "hint"} for check in document["checks"])
    return done.returncode, document


def statuses(document: Mapping[str, Any]) -> dict[str, str]:
    return {check["name"]: check["status"] for check in document["checks"]}


@contextmanager
def listening(answers: Mapping[str, int]) -> Iterator[int]:
    """A stand-in for the running service: a real HTTP server that answers these paths with these statuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.get(self.path, 404))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.model
def test_a_machine_on_which_all_is_well(demo_model: Path) -> None:
    with listening({"/healthz": 200, "/readyz": 200}) as port:
        status, document = run(METALSCRIBE_PORT=str(port), METALSCRIBE_API_KEY="a-key-that-nobody-guesses")
    found = statuses(document)
    assert list(found) == NAMES
    # Where the kernel allows no namespaces the sandbox has one wall less, which is a warning and no failure.
    expected = found["decoder"]
    assert expected in {"ok", "warn"}
    assert {name for name, outcome in found.items() if outcome != "ok"} <= {"decoder"}
    assert document["status"] == expected
    assert status == {"ok": 0, "warn": 1}[expected]
    details = {check["name"]: check["detail"] for check in document["checks"]}
    assert "int8" in details["compute_type"]
    assert " words from " in details["transcription"]
    assert "a-key-that-nobody-guesses" not in json.dumps(document)


@pytest.mark.model
def test_warnings_only_are_one(demo_model: Path) -> None:
    status, document = run("--quick", METALSCRIBE_PORT=str(free_port()))
    found = statuses(document)
    assert list(found) == NAMES[:-1]
    assert (found["api_keys"], found["service"]) == ("warn", "warn")
    assert (status, document["status"]) == (1, "warn")


def test_failures_are_two_and_tell_the_command_that_mends_them() -> None:
    status, document = run(
        "--quick", METALSCRIBE_MODEL="small", METALSCRIBE_COMPUTE_TYPE="int8_float16", METALSCRIBE_HOST="0.0.0.0"
    )
    found = statuses(document)
    assert (status, document["status"]) == (2, "fail")
    assert {name for name, outcome in found.items() if outcome == "fail"} == {"model", "compute_type", "api_keys"}
    details = {check["name"]: check["detail"] for check in document["checks"]}
    assert "`metalscribe model download small`" in details["model"]
    assert "int8_float16" in details["compute_type"]
    assert "int8" in details["compute_type"]
    assert "refuses to listen on 0.0.0.0" in details["api_keys"]


def test_settings_that_are_wrong_leave_only_what_needs_none() -> None:
    status, document = run(METALSCRIBE_PROT="1")
    assert (status, statuses(document)) == (2, {"settings": "fail", "libraries": "ok"})
    assert "did you mean METALSCRIBE_PORT?" in document["checks"][0]["detail"]


def test_people_get_a_line_for_each_check_and_its_hint() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metalscribe", "doctor", "--quick"],
        capture_output=True,
        text=True,
        env={**os.environ, "METALSCRIBE_MODEL": "small"},
        check=False,
        timeout=150,
    )
    assert done.returncode == 2
    lines = [line.split() for line in done.stdout.splitlines()]
    marks = [line[:2] for line in lines if line[0] != "→"]
    assert [name for _, name in marks] == NAMES[:-1]
    assert ["fail", "model"] in marks
    assert any(line[:4] == ["→", "`metalscribe", "keys", "create"] for line in lines)
    assert "\x1b" not in done.stdout


def test_a_check_that_breaks_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_: Settings) -> None:
        raise ZeroDivisionError("nobody thought of that")

    monkeypatch.setattr(checks, "disk_space", break_down)
    done = {check.name: check for check in doctor.examine(quick=True)}
    assert list(done) == NAMES[:-1]
    assert (done["disk_space"].status, done["disk_space"].detail) == (
        "fail",
        "ZeroDivisionError: nobody thought of that",
    )
    assert done["state_directory"].status == "ok"


def test_a_state_directory_that_is_no_directory_fails(state: Path) -> None:
    assert checks.state_directory(load_settings()).status is Status.OK
    state.write_text("")
    finding = checks.state_directory(load_settings())
    assert finding.status is Status.FAIL
    assert "Not a directory" in finding.detail


@pytest.mark.parametrize(
    ("free", "status"), [(6 * GIB, Status.OK), (5 * GIB - 1, Status.WARN), (500 * 1024**2 - 1, Status.FAIL)]
)
def test_disk_space_has_two_thresholds(monkeypatch: pytest.MonkeyPatch, free: int, status: Status) -> None:
    # No test can fill the disk to the byte, so its answer is made up.
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 * GIB, 0, free))
    assert checks.disk_space(load_settings()).status is status


def test_a_database_of_a_newer_version_fails(state: Path) -> None:
    import sqlite3

    assert checks.database(load_settings()).detail.startswith("SQLite, tables of revision ")
    with sqlite3.connect(state / "metalscribe.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    failed = {check.name: check for check in doctor.examine(quick=True)}["database"]
    assert (failed.status, "newer metalscribe" in failed.detail) == ("fail", True)


def test_keys_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        subprocess.run([sys.executable, "-m", "metalscribe", "keys", "create", name], capture_output=True, check=True)
    subprocess.run([sys.executable, "-m", "metalscribe", "keys", "revoke", "two"], capture_output=True, check=True)
    assert checks.api_keys(load_settings()).detail == "2 active"
    monkeypatch.setenv("METALSCRIBE_API_KEY", "a-key-that-nobody-guesses")
    assert checks.api_keys(load_settings()).detail == "2 active and METALSCRIBE_API_KEY"


@pytest.mark.model
def test_a_model_that_cannot_be_verified_warns_and_a_truncated_one_fails(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "my-model"
    shutil.copytree(demo_model, mine)
    monkeypatch.setenv("METALSCRIBE_MODEL", str(mine))
    finding = checks.model(load_settings())
    assert (finding.status, "cannot be verified" in finding.detail) == (Status.WARN, True)
    (mine / "tokenizer.json").unlink()
    failed = {check.name: check for check in doctor.examine(quick=True)}["model"]
    assert (failed.status, "tokenizer.json" in failed.detail) == ("fail", True)


@pytest.mark.parametrize(
    ("answers", "status", "expected"),
    [
        ({"/healthz": 200, "/readyz": 200}, Status.OK, "is ready"),
        ({"/healthz": 200, "/readyz": 503}, Status.WARN, "not ready (503)"),
        ({}, Status.FAIL, "/healthz answers 404"),
    ],
)
def test_the_running_service(
    monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, int], status: Status, expected: str
) -> None:
    with listening(answers) as port:
        monkeypatch.setenv("METALSCRIBE_PORT", str(port))
        monkeypatch.setenv("METALSCRIBE_HOST", "0.0.0.0")
        finding = checks.service(load_settings())
    assert (finding.status, expected in finding.detail) == (status, True)
    assert f"http://127.0.0.1:{port}" in finding.detail


def test_something_else_on_the_port_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("METALSCRIBE_PORT", str(server.getsockname()[1]))

        def talk_nonsense() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=talk_nonsense, daemon=True)
        thread.start()
        finding = checks.service(load_settings())
        thread.join(10)
    assert (finding.status, "does not answer" in finding.detail) == (Status.FAIL, True)


def test_a_sample_without_speech_fails(make_wav: Callable[..., Path], demo_model: Path) -> None:
    import numpy as np

    silence = make_wav(np.zeros(16_000 * 2, np.float32))
    finding = trial.transcription(load_settings(), silence)
    assert (finding.status, "no words" in finding.detail) == (Status.FAIL, True)
    assert trial.transcription(load_settings(), silence.with_name("absent.flac")).status is Status.WARN


# --- the device: reports as NVML gives them, made up here since no build machine has a GPU ----------------------------


def report(*gpus: GpuHealth, problem: GpuProblem | None = None) -> GpuReport:
    return GpuReport("580.95.05", "13.0", gpus, problem)


def test_a_healthy_gpu_is_described() -> None:
    finding = devices.judge_gpus(Device.AUTO, report(replace(GPU, temperature_celsius=41)), None)
    assert (finding.status, finding.hint) == (Status.OK, "")
    assert finding.detail == "driver 580.95.05 (CUDA 13.0): GPU 0 NVIDIA L40S, 40.0 of 48.0 GiB free, 41 °C"


def test_no_driver_fails_where_a_gpu_was_asked_for_and_warns_where_it_was_not() -> None:
    nothing = GpuReport(None, None, (), NO_DRIVER)
    assert devices.judge_gpus(Device.CUDA, nothing, None).status is Status.FAIL
    finding = devices.judge_gpus(Device.AUTO, nothing, None)
    assert finding.status is Status.WARN
    assert "the model runs on the CPU" in finding.detail
    assert "METALSCRIBE_DEVICE=cpu" in finding.hint
    assert NO_DRIVER.message in finding.hint


def test_one_lost_gpu_of_two_warns() -> None:
    lost = replace(GPU, index=1, uuid="GPU-2", problem=GpuProblem(ProblemCode.GPU_LOST, "GPU 1 fell off the bus."))
    finding = devices.judge_gpus(Device.CUDA, report(GPU, lost), None)
    assert (finding.status, finding.hint) == (Status.WARN, "GPU 1 fell off the bus.")
    assert devices.judge_gpus(Device.CUDA, report(lost), None).status is Status.FAIL


def test_a_gpu_that_is_slowed_down_or_forgetful_warns() -> None:
    hot = devices.judge_gpus(
        Device.AUTO, report(replace(GPU, clock_reasons=("sw_power_cap", "hw_thermal_slowdown"))), None
    )
    assert (hot.status, "hw_thermal_slowdown" in hot.hint, "sw_power_cap" in hot.hint) == (Status.WARN, True, False)
    forgetful = devices.judge_gpus(Device.AUTO, report(replace(GPU, ecc_uncorrected=3)), None)
    assert (forgetful.status, "3 uncorrected" in forgetful.hint) == (Status.WARN, True)


def test_gpus_hidden_from_cuda_do_not_count() -> None:
    finding = devices.judge_gpus(Device.CUDA, report(GPU), "")
    assert (finding.status, "CUDA_VISIBLE_DEVICES" in finding.detail) == (Status.FAIL, True)


def test_a_gpu_that_was_asked_for_but_is_not_there_fails_in_the_runtime_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_DEVICE", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = devices.compute_type(load_settings())
    assert finding.status is Status.FAIL
    assert "CUDA" in finding.detail
