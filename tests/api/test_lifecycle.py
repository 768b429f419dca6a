"""Health, the model's life, and the end: SIGTERM, SIGKILL and what they leave behind."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest

from .harness import KEY, Caller, Service, Start, problem, send, silence, spawn, wait_for

pytestmark = pytest.mark.model


def state(service: Service) -> str:
    return str(httpx.get(f"{service.url}/health", trust_env=False).json()["model_state"])


def test_health_without_a_key_tells_what_monitors_need(service: Service) -> None:
    answer = service.client(None).get("/health")
    assert answer.status_code == 200
    assert '"status":"healthy"' in answer.text
    assert set(answer.json()) == {"status", "model", "device", "gpu_available", "model_state"}
    assert answer.json()["model"] == "demo"
    assert answer.json()["device"] == "cpu"


def test_health_with_a_key_tells_all(service: Service) -> None:
    document = service.health()
    assert set(document["queue"]) == {"requests", "chunks_waiting", "chunks_running", "audio_seconds_waiting"}
    assert document["versions"]["metalscribe"]
    assert isinstance(document["gpus"], list)
    problem(service.client("wrong").get("/health"), 401)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_key_and_tell_nothing(service: Service, path: str) -> None:
    for key in (None, "wrong", KEY):
        answer = service.client(key).get(path)
        assert answer.status_code == 200
        assert set(answer.json()) == {"status"}


def test_the_model_comes_with_the_first_request_and_goes_when_idle(start: Start) -> None:
    service = start(IDLE_TIMEOUT_SECS=1)
    assert state(service) == "unloaded"
    assert service.client().get("/readyz").status_code == 200
    assert not _workers(service)
    for _ in range(2):
        assert send(service.client(), silence()).status_code == 200
        wait_for(lambda: state(service) == "unloaded", "the model to be unloaded", 20)
        wait_for(lambda: not _workers(service), "the model's process to end", 10)


def test_preload(start: Start) -> None:
    service = start(PRELOAD="true")
    wait_for(lambda: state(service) == "ready", "the model to load")
    assert _workers(service)
    assert service.client().get("/readyz").status_code == 200


def test_reject_while_the_model_is_not_loaded(start: Start) -> None:
    service = start(WHEN_UNLOADED="reject")
    refused = send(service.client(), silence())
    problem(refused, 503, "model_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    wait_for(lambda: state(service) == "ready", "the model to load")
    assert send(service.client(), silence()).status_code == 200


def test_a_model_process_that_dies_is_replaced_and_the_request_answered(start: Start, long_wav: bytes) -> None:
    service = start()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(send, service.client(), long_wav[: 44 + 32_000 * 60], "a.wav")
        wait_for(lambda: service.queue()["chunks_running"], "the model to work")
        for worker in _workers(service):
            worker.kill()
        assert pending.result().status_code == 200


def test_a_sandbox_that_dies_is_replaced(start: Start) -> None:
    service = start()
    assert send(service.client(), silence()).status_code == 200
    for child in service.children():
        with suppress(psutil.NoSuchProcess):  # a decoder that ends meanwhile
            if "metalscribe.media.sandbox" in child.cmdline():
                child.kill()
    wait_for(lambda: send(service.client(), silence()).status_code == 200, "the sandbox to be replaced", 20)


def test_sigterm_lets_what_runs_finish(start: Start, long_wav: bytes) -> None:
    service = start()
    family = _family(service)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(send, service.client(), long_wav[: 44 + 32_000 * 60], "a.wav")
        wait_for(lambda: service.queue()["chunks_running"], "the model to work")
        family = _family(service)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not _ready(service), "the service not to be ready any more", 10)
        assert pending.result().status_code == 200
    assert service.process.wait(20) == 0
    _gone(family)
    assert service.uploads_are_gone()


@pytest.mark.parametrize(("grace", "mode"), [(0, "fast"), (1, "accurate")])
def test_sigterm_tells_those_who_cannot_finish(start: Start, long_wav: bytes, grace: int, mode: str) -> None:
    service = start(SHUTDOWN_GRACE_SECS=grace)
    callers = [Caller(service, long_wav, target=f"/transcribe?mode={mode}") for _ in range(3)]
    wait_for(lambda: service.queue()["chunks_running"], "the model to work")
    family = _family(service)
    service.process.send_signal(signal.SIGTERM)
    answers = [caller.answer() for caller in callers]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503"] * 3
    assert all(b"\r\nretry-after:" in answer.lower() for answer in answers)
    assert service.process.wait(20) == 0
    _gone(family)
    assert service.uploads_are_gone()


def test_sigterm_while_the_model_loads(start: Start, sample: bytes) -> None:
    service = start(SHUTDOWN_GRACE_SECS=0)
    caller = Caller(service, sample)
    wait_for(lambda: state(service) == "loading", "the model to begin loading")
    family = _family(service)
    service.process.send_signal(signal.SIGTERM)
    assert caller.answer()[:12] == b"HTTP/1.1 503"
    assert service.process.wait(20) == 0
    _gone(family)


def test_sigterm_twice_does_not_wait(start: Start, long_wav: bytes) -> None:
    service = start(SHUTDOWN_GRACE_SECS=300)
    caller = Caller(service, long_wav)
    wait_for(lambda: service.queue()["chunks_running"], "the model to work")
    family = _family(service)
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not _ready(service), "the service not to be ready any more", 10)
    service.process.send_signal(signal.SIGINT)
    service.process.wait(30)
    _gone(family)
    caller.leave()


def test_sigkill_leaves_no_process_behind(start: Start, long_wav: bytes) -> None:
    service = start()
    caller = Caller(service, long_wav)
    wait_for(lambda: service.queue()["chunks_running"], "the model to work")
    family = _family(service)
    assert len(family) >= 3  # the sandbox, a decoder, the model
    service.process.kill()
    service.process.wait()
    _gone(family)
    caller.leave()
    again = start()
    assert again.uploads_are_gone()
    assert send(again.client(), silence()).status_code == 200


def test_a_second_service_on_the_same_state_harms_nothing(start: Start, long_wav: bytes) -> None:
    """`metalscribe serve` typed by hand beside the unit: whatever it does, the first must not lose uploads."""
    service = start()
    with ThreadPoolExecutor(1) as pool:
        caller = Caller(service, long_wav)
        wait_for(lambda: service.queue()["requests"] == 1, "the first to work")
        before = service.recordings()
        assert before
        second = pool.submit(_second, service)
        assert second.result() != 0
        assert service.recordings() == before
        caller.leave()


def _second(service: Service) -> int:
    process = spawn(service.state_dir, service.log_path.with_suffix(".second"), {"PORT": service.port})
    return process.wait(30)


def _workers(service: Service) -> list[psutil.Process]:
    found = []
    for child in service.children():
        try:
            if "metalscribe.engine.worker" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _family(service: Service) -> list[psutil.Process]:
    return service.children()


def _gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
