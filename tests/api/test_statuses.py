"""Every status that the OpenAPI document has for the paths that take recordings is one that they do answer with."""

from __future__ import annotations

import http.server
import socket
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from models import ModelNotInstalled, base_model

from .harness import Service, fill, running, silence, wait_for

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

FIELDS = {
    "/transcribe": "file",
    "/jobs": "audio",
    "/v1/audio/transcriptions": "file",
    "/v1/audio/translations": "file",
    "/asr": "audio_file",
    "/detect-language": "audio_file",
}
URL = "/transcribe/url"
STALL_SECONDS = 60
MIB = 2**20

Reached = dict[str, set[int]]


@pytest.fixture
def service(small_disk: Path) -> Iterator[Service]:
    """A multilingual service on a small disk; its model is not loaded, and it does not wait for it."""
    try:
        model = base_model()
    except ModelNotInstalled as missing:
        pytest.skip(str(missing))
    limits = {"MAX_UPLOAD_MB": 4, "JOBS_MAX_UPLOAD_MB": 4, "MIN_FREE_DISK_MB": 0}
    with running(
        small_disk / "state",
        MODEL=model,
        WHEN_UNLOADED="reject",
        ALLOW_NETWORKS="127.0.0.0/8",
        IDLE_TIMEOUT_SECS=0,
        **limits,
    ) as made:
        yield made


@pytest.fixture
def elsewhere(long_wav: bytes) -> Iterator[Callable[[bytes], str]]:
    """Put a recording onto a web server on loopback; returns its address."""
    contents: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents[self.path])))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(contents[self.path])

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def put(content: bytes) -> str:
            path = f"/{uuid.uuid4().hex}"
            contents[path] = content
            return f"http://127.0.0.1:{server.server_port}{path}"

        yield put
        server.shutdown()


def test_every_documented_status_is_one_that_occurs(
    service: Service, small_disk: Path, elsewhere: Callable[[bytes], str], long_wav: bytes
) -> None:
    document = service.client(None).get("/openapi.json").json()
    reached: Reached = defaultdict(set)
    client = service.client()
    observer = service.new_key("observer", "--scope", "metrics")
    slow = service.new_key("slow", "--rate-limit", "1/minute")

    def send(content: bytes, of: httpx.Client = client, headers: dict[str, str] | None = None) -> None:
        """The recording to every path at once."""

        def one(path: str) -> None:
            if path == URL:
                answer = of.post(path, json={"url": elsewhere(content)}, headers=headers)
            else:
                answer = of.post(path, files={FIELDS[path]: ("a.wav", content)}, headers=headers)
            reached[path].add(answer.status_code)

        with ThreadPoolExecutor(len(FIELDS) + 1) as pool:
            list(pool.map(one, (*FIELDS, URL)))

    send(silence())  # 503: the model is not loaded, and now it is being
    wait_for(lambda: service.health()["model_state"] == "ready", "the model")
    stalling = [_begun(service, path, FIELDS.get(path)) for path in (*FIELDS, URL)]
    send(silence())  # 200, 202
    send(b"no sound at all" * 100)  # 415; of a job it is told later
    send(silence()[:44])  # 422
    send(silence(), service.client("msk_wrong"))  # 401
    send(silence(), service.client(observer))  # 403
    for _ in range(2):
        send(silence(), service.client(slow))  # 429, since all of them share one count
    send(bytes(9 * MIB))  # 413
    again = {"Idempotency-Key": "the same"}
    for seconds in (0.5, 0.7):
        send(silence(seconds), headers=again)  # 422, where the first has taken the key
    for path, field in FIELDS.items():
        reached[path].add(client.post(path, files={f"not-{field}": b""}).status_code)  # 400
        reached[path].add(client.post(path, files={field: silence()}, data={"model": "gpt-5"}).status_code)  # 400, 404
        reached[path].add(_sent(client, path, field, "other", silence(0.9)))
        reached[path].add(_sent(client, path, field, "other", silence(0.8)))  # 422
    reached[URL].add(client.post(URL, json={"url": "ftp://example.org/a.mp3"}).status_code)  # 400
    reached[URL].add(client.post(URL, content=b"{" + bytes(100_000)).status_code)  # 413
    for path, connection in zip((*FIELDS, URL), stalling, strict=True):
        reached[path].add(_status(connection))  # 408

    _fail(service, send, long_wav[: 44 + 2 * 16_000 * 60])  # 500

    wait_for(lambda: service.health()["model_state"] == "ready", "the model")
    fill(small_disk)
    send(bytes(2 * MIB))  # 507

    missing = {
        path: sorted(
            {int(status) for status in document["paths"][path]["post"]["responses"]} - reached[path] - _by_defect(path)
        )
        for path in (*FIELDS, URL)
    }
    assert missing == {path: [] for path in (*FIELDS, URL)}
    undocumented = {
        path: sorted(reached[path] - {int(status) for status in document["paths"][path]["post"]["responses"]})
        for path in (*FIELDS, URL)
    }
    assert undocumented == {path: [] for path in (*FIELDS, URL)}


def _by_defect(path: str) -> set[int]:
    """500 says that the engine failed on a recording twice. Taking one in does not ask the engine: there it is for defects."""
    return {500} if path == "/jobs" else set()


def _sent(client: httpx.Client, path: str, field: str, key: str, content: bytes) -> int:
    return client.post(
        path, files={field: content}, headers={"Idempotency-Key": f"{path} {key}".replace(" ", "-")}
    ).status_code


def _begun(service: Service, path: str, field: str | None) -> socket.socket:
    """A request whose body never comes to its end."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=2 * STALL_SECONDS)
    kind = "application/json" if field is None else "multipart/form-data; boundary=x"
    key = service.client().headers["X-API-Key"]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: {kind}\r\nContent-Length: 5000\r\n\r\n"
    )
    begin = (
        '{"url": '
        if field is None
        else f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a"\r\n\r\nabc'
    )
    connection.sendall(head.encode() + begin.encode())
    return connection


def _status(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(1000).split()[1])


def _fail(service: Service, send: Callable[[bytes], Any], recording: bytes) -> None:
    """Kill the model's process whenever it works, until every recording was in two deaths."""
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(send, recording)
        while not answers.done():
            if service.queue()["chunks_running"]:
                for child in service.children():
                    with suppress(psutil.NoSuchProcess):
                        if "metalscribe.engine.worker" in child.cmdline():
                            child.kill()
            threading.Event().wait(0.2)
        answers.result()
