"""The models' life over HTTP: state, orders, events, and several models at once."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from .harness import Caller, Service, Start, problem, send, silence, wait_for

pytestmark = pytest.mark.model

MIB = 1024 * 1024


def status(service: Service) -> dict[str, Any]:
    answer = service.client().get("/model/status")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def states(service: Service) -> dict[str, str]:
    return {model["model"]: model["state"] for model in status(service)["models"]}


def is_ready(service: Service) -> bool:
    return bool(status(service)["state"] == "ready")


class Stream:
    """Somebody who follows /model/events."""

    def __init__(self, service: Service, last: str | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.headers: httpx.Headers | None = None
        self._client = service.client()
        self._last = {"Last-Event-ID": last} if last is not None else {}
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        with (
            suppress(httpx.TransportError),  # the test is over
            self._client.stream("GET", "/model/events", headers=self._last) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            self.headers = answer.headers
            event: dict[str, Any] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if not line:
                    self.events.append(event)
                    event = {}
                elif name:
                    event[name] = json.loads(value) if name == "data" else value
            self.ended.set()

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def waits_for(self, *names: str) -> None:
        wait_for(lambda: self.names()[-len(names) :] == list(names), f"{names} after {self.names()}", 60)


@contextmanager
def transcribing(service: Service, content: bytes) -> Iterator[Future[httpx.Response]]:
    """A transcription under way."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(send, service.client(), content, "a.wav")
        wait_for(lambda: service.queue()["chunks_running"], "the model to work")
        yield pending


def minutes(long_wav: bytes, count: float) -> bytes:
    return long_wav[: 44 + int(32_000 * 60 * count)]


# --- state ------------------------------------------------------------------------------------------------------------


def test_loading_unloading_and_what_the_status_tells(start: Start) -> None:
    service = start(IDLE_TIMEOUT_SECS=300)
    client = service.client()
    before = status(service)
    assert before["state"] == "unloaded"
    assert before["models"] == [{name: before[name] for name in before["models"][0]}]
    assert (before["memory_bytes"], before["idle_seconds_left"], before["unloads_at"]) == (None, None, None)
    assert before["memory_estimate_bytes"] > 100 * MIB
    assert before["memory_budget_bytes"] is None

    for _ in range(2):
        answer = client.post("/model/load")
        assert answer.status_code == 202
        assert answer.json()["state"] in {"loading", "ready"}
    wait_for(lambda: is_ready(service), "the model to load")
    loaded = status(service)
    assert (loaded["device"], loaded["compute_type"], loaded["loads"]) == ("cpu", "int8_float32", 1)
    assert loaded["memory_bytes"] > 100 * MIB
    assert 0 < loaded["idle_seconds_left"] <= 300
    assert loaded["unloads_at"].endswith("Z")

    answer = client.post("/model/unload")
    assert (answer.status_code, answer.json()["state"]) == (200, "unloaded")
    assert client.post("/model/unload").json()["unloads"] == 1
    assert send(client, silence()).status_code == 200


def test_unloading_gives_back_what_loading_took(start: Start) -> None:
    service = start(IDLE_TIMEOUT_SECS=0)
    client = service.client()
    assert send(client, silence()).status_code == 200  # the sandbox, too, has done its work once
    client.post("/model/unload")
    before = service.resident()
    client.post("/model/load")
    wait_for(lambda: is_ready(service), "the model to load")
    taken = service.resident() - before
    assert taken > 100 * MIB
    assert client.post("/model/unload").json()["state"] == "unloaded"
    assert service.resident() - before <= 0.05 * taken
    assert not [child for child in service.children() if "metalscribe.engine.worker" in child.cmdline()]


def test_who_may_do_what(service: Service) -> None:
    plain = service.new_key("model-plain")
    metrics = service.new_key("model-metrics", "--scope", "metrics")
    for method, path in (("GET", "status"), ("GET", "events"), ("POST", "load"), ("POST", "unload")):
        problem(service.client(None).request(method, f"/model/{path}"), 401)
        problem(service.client("wrong").request(method, f"/model/{path}"), 401)
    for key in (plain, metrics):
        assert service.client(key).get("/model/status").status_code == 200
        with service.client(key).stream("GET", "/model/events") as answer:
            assert answer.status_code == 200
        for path in ("load", "unload"):
            problem(service.client(key).post(f"/model/{path}"), 403, "forbidden")


@pytest.mark.parametrize(
    ("path", "options", "parameter"),
    [
        ("load", {"params": {"model": "large"}}, "model"),
        ("load", {"json": {"model": "large"}}, "model"),
        ("load", {"params": {"force": "true"}}, "force"),
        ("load", {"params": {"model": ""}}, "model"),
        ("load", {"json": {"model": "a"}, "params": {"model": "b"}}, "model"),
        ("unload", {"params": {"force": "perhaps"}}, "force"),
        ("unload", {"json": {"when": "now"}}, "when"),
        ("unload", {"content": b"model=demo"}, "model"),
        ("unload", {"json": ["demo"]}, "model"),
    ],
)
def test_a_wrong_order_is_named(service: Service, path: str, options: dict[str, Any], parameter: str) -> None:
    refused = problem(service.client().post(f"/model/{path}", **options), 400, "invalid_parameter")
    assert refused["parameter"] == parameter
    problem(service.client().get("/model/status", params={"verbose": "1"}), 400)
    problem(service.client().get("/model/events", params={"verbose": "1"}), 400)


def test_an_order_may_come_in_the_query_or_in_json(service: Service) -> None:
    for options in ({"params": {"model": "demo"}}, {"json": {"model": "demo"}}, {"json": {"model": None}}, {}):
        assert service.client().post("/model/load", **options).status_code == 202


def test_unloading_waits_for_work(start: Start, long_wav: bytes) -> None:
    service = start()
    with transcribing(service, minutes(long_wav, 1)) as pending:
        answer = service.client().post("/model/unload")
        assert (answer.status_code, answer.json()["unloads"]) == (200, 1)
        assert pending.result().status_code == 200
        assert pending.result().json()["text"]


def test_unloading_by_force_tells_whose_work_it_ends(start: Start, long_wav: bytes) -> None:
    service = start()
    with transcribing(service, long_wav) as pending:
        answer = service.client().post("/model/unload", params={"force": "true"})
        assert (answer.status_code, answer.json()["state"]) == (200, "unloaded")
        told = pending.result()
        document = problem(told, 503, "model_unloaded")
        assert "unloaded by force" in document["detail"]
        assert int(told.headers["retry-after"]) >= 1
    assert service.idle()
    wait_for(service.uploads_are_gone, "the upload to be removed")
    assert send(service.client(), silence()).status_code == 200


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_begin_with_the_present_and_go_on_where_a_client_left(start: Start) -> None:
    service = start(IDLE_TIMEOUT_SECS=0)
    client = service.client()
    stream = Stream(service)
    stream.waits_for("model_unloaded")
    (first,) = stream.events
    assert first["data"] | {"at": ""} == {
        "type": "model_unloaded",
        "model": "demo",
        "state": "unloaded",
        "detail": "",
        "at": "",
        "current": True,
    }
    assert stream.headers is not None
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.headers["cache-control"] == "no-store"
    client.post("/model/load")
    stream.waits_for("model_unloaded", "model_loading", "model_ready")
    client.post("/model/unload")
    stream.waits_for("model_ready", "model_unloading", "model_unloaded")
    assert not any(event["data"]["current"] for event in stream.events[1:])
    assert len({event["id"] for event in stream.events}) == len(stream.events)

    loading = stream.events[1]
    resumed = Stream(service, loading["id"])
    resumed.waits_for("model_ready", "model_unloading", "model_unloaded")
    assert resumed.events == stream.events[2:]
    for unknown in ("0-0", "nonsense", f"{loading['id']}9", "9" * 400, "é"):
        anew = Stream(service, unknown) if unknown.isascii() else Stream(service)
        anew.waits_for("model_unloaded")
        assert anew.events[0]["data"]["current"] is True
        assert anew.events[0]["id"] == stream.events[-1]["id"]


def test_streams_do_not_hold_up_a_shutdown(start: Start) -> None:
    service = start(SHUTDOWN_GRACE_SECS=300)
    streams = [Stream(service) for _ in range(3)]
    for stream in streams:
        stream.waits_for("model_unloaded")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    assert all(stream.ended.wait(10) for stream in streams), "ended as an answer ends, not cut off"
    assert "rror" not in "".join(str(line) for line in service.log() if line.get("level") in {"error", "critical"})


def connected(process: psutil.Process, client: tuple[str, int]) -> bool:
    return any(connection.raddr == client for connection in process.net_connections("tcp"))


def test_a_client_that_leaves_leaves_nothing(service: Service) -> None:
    process = psutil.Process(service.process.pid)
    with service.client().stream("GET", "/model/events") as answer:
        chunks = answer.iter_raw()  # kept: an iterator that nobody holds closes the connection
        next(chunks)
        ours = answer.extensions["network_stream"].get_extra_info("client_addr")
        assert connected(process, ours)
    threads = process.num_threads()
    wait_for(lambda: not connected(process, ours), "the connection to be closed", 10)
    with service.client().stream("GET", "/model/events") as answer:
        next(answer.iter_raw())
        assert process.num_threads() <= threads


# --- several models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def second(demo_model: Path, tmp_path: Path) -> Path:
    """Another model: the same weights under another name."""
    return Path(shutil.copytree(demo_model, tmp_path / "second"))


def test_a_request_chooses_among_the_models(start: Start, second: Path, sample: bytes) -> None:
    service = start(MODELS=str(second), IDLE_TIMEOUT_SECS=0)
    client = service.client()
    assert states(service) == {"demo": "unloaded", "second": "unloaded"}
    assert send(client, sample, params={"model": "second"}).json()["model"] == "second"
    assert states(service) == {"demo": "unloaded", "second": "ready"}
    assert send(client, sample, data={"model": str(second)}).json()["model"] == "second"
    assert send(client, sample).json()["model"] == "demo"
    assert states(service) == {"demo": "ready", "second": "ready"}
    refused = problem(send(client, sample, params={"model": "third"}), 400, "invalid_parameter")
    assert "demo or second" in refused["detail"]
    assert str(second) not in refused["detail"], "a path of the server in a message"
    assert client.post("/model/unload", params={"model": "second"}).json()["state"] == "ready"
    assert states(service) == {"demo": "ready", "second": "unloaded"}
    assert service.health()["model"] == "demo"


def test_a_budget_for_one_model(start: Start, second: Path, sample: bytes) -> None:
    service = start(MODELS=str(second), MEMORY_BUDGET_MB=400, IDLE_TIMEOUT_SECS=0, PRELOAD="true")
    client = service.client()
    assert states(service) == {"demo": "ready", "second": "unloaded"}
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(
                lambda model: send(service.client(), sample, params={"model": model}).json()["model"],
                ["demo", "second"] * 3,
            )
        )
    assert answers == ["demo", "second"] * 3
    document = status(service)
    assert sorted(states(service).values()) == ["ready", "unloaded"]
    assert sum(model["evictions"] for model in document["models"]) >= 1
    taken = sum(model["memory_bytes"] or 0 for model in document["models"])
    assert 0 < taken <= document["memory_budget_bytes"] == 400 * MIB
    assert client.get("/healthz").status_code == 200


def test_a_shutdown_while_a_model_waits_for_memory(start: Start, second: Path, long_wav: bytes) -> None:
    service = start(MODELS=str(second), MEMORY_BUDGET_MB=400, SHUTDOWN_GRACE_SECS=0)
    with transcribing(service, long_wav):
        waiting = Caller(service, silence(), target="/transcribe?model=second&vad=false")
        wait_for(lambda: "waiting for memory" in status(service)["models"][1]["detail"], "the second to wait", 20)
        service.process.send_signal(signal.SIGTERM)
        assert waiting.answer()[:12] == b"HTTP/1.1 503"
        assert service.process.wait(20) == 0
