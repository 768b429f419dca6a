"""The real service as a real process with the demo model, on loopback, and what the tests here do with it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

KEY = "an-api-key-for-the-tests-0123456789"
COMMAND = (sys.executable, "-m", "metalscribe")
SAMPLE = files("metalscribe") / "samples" / "sample.flac"
PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Poll until ``condition`` returns something true, and return that."""
    end = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f"waited {timeout:g} s in vain for: {what}"
        time.sleep(0.02)


def environment(state_dir: Path, settings: Mapping[str, object]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("METALSCRIBE_") and name not in {"CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"}
    }
    chosen = {
        "MODEL": "demo",
        "DEVICE": "cpu",
        "STATE_DIR": state_dir,
        "PORT": 0,
        "API_KEY": KEY,
        "RATE_LIMIT": "100000/minute",
        "OFFLINE": "true",
        **settings,
    }
    return kept | {f"METALSCRIBE_{name}": str(value) for name, value in chosen.items() if value is not None}


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    log_path: Path
    settings: dict[str, object]
    port: int = 0
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def uploads(self) -> Path:
        """Where the service keeps recordings in progress: a directory of its own below ``uploads``."""
        (mine,) = (entry for entry in (self.state_dir / "uploads").iterdir() if entry.is_dir())
        return mine

    def recordings(self) -> list[Path]:
        found = (self.state_dir / "uploads").rglob("*")
        return sorted(path for path in found if path.is_file() and path.name != ".lock")

    def client(self, key: str | None = KEY, **options: Any) -> httpx.Client:
        headers = {**({"X-API-Key": key} if key else {}), **options.pop("headers", {})}
        made = httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False, **options)
        self.clients.append(made)
        return made

    def log(self) -> list[dict[str, Any]]:
        """The service's lines; one that a full disk has cut off is none."""
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def requests_logged(self, request_id: str) -> list[dict[str, Any]]:
        """The request's own lines; written just after the answer, hence the wait."""

        def lines() -> list[dict[str, Any]]:
            return [
                line for line in self.log() if line.get("event") == "request" and line.get("request_id") == request_id
            ]

        found: list[dict[str, Any]] = wait_for(lines, f"a line in the log about {request_id}", 10)
        return found

    def health(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/health", headers={"X-API-Key": KEY}, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def queue(self) -> dict[str, float]:
        result: dict[str, float] = self.health()["queue"]
        return result

    def idle(self) -> bool:
        return not any(self.queue().values())

    def children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def resident(self) -> int:
        """Bytes of the service and all of its processes; what they share counts once for each."""
        total = 0
        for process in [psutil.Process(self.process.pid), *self.children()]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def uploads_are_gone(self) -> bool:
        return not self.recordings()

    def keys(self, *arguments: str) -> str:
        """Run ``metalscribe keys``, as an operator does beside the running service; returns its stdout."""
        return self.command("keys", *arguments)

    def command(self, *arguments: str) -> str:
        """Run ``metalscribe``, as an operator does beside the running service; returns its stdout."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(self.state_dir, self.settings),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def new_key(self, name: str, *arguments: str) -> str:
        printed = self.keys("create", name, "--json", *arguments)
        match = re.search(r"msk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", printed)
        assert match, printed
        return match[0]

    def terminate(self) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def spawn(state_dir: Path, log_path: Path, settings: Mapping[str, object]) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, "serve"],
            env=environment(state_dir, settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=state_dir.parent,
        )


def listening_port(process: subprocess.Popen[bytes], log_path: Path) -> int:
    assert process.poll() is None, log_path.read_text()
    with suppress(psutil.NoSuchProcess):
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
    return 0


@contextmanager
def running(state_dir: Path, **settings: object) -> Iterator[Service]:
    """A service that answers; ended with SIGTERM, and with SIGKILL where that does not help."""
    log_path = state_dir.parent / f"{state_dir.name}.log"
    process = spawn(state_dir, log_path, settings)
    service = Service(process, state_dir, log_path, dict(settings))
    family: list[psutil.Process] = []
    try:
        service.port = wait_for(lambda: listening_port(process, log_path), "the service to listen")
        assert httpx.get(f"{service.url}/healthz", timeout=30, trust_env=False).json() == {"status": "ok"}
        yield service
    finally:
        for client in service.clients:
            client.close()
        family = service.children()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for orphan in psutil.wait_procs(family, timeout=5)[1]:
            orphan.kill()


def wav(samples: np.ndarray[Any, Any], rate: int = 16_000) -> bytes:
    """16-bit mono."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return made.getvalue()


def silence(seconds: float = 0.5) -> bytes:
    """A WAV that costs the model nothing."""
    return wav(np.zeros(int(16_000 * seconds), np.int16))


def send(client: httpx.Client, content: bytes, name: str = "sample.flac", **options: Any) -> httpx.Response:
    """POST a recording to /transcribe."""
    return client.post("/transcribe", files={"file": (name, content)}, **options)


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check that ``answer`` is a whole problem document, and return it."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert set(document) - {"parameter"} == {"type", "title", "status", "detail", "instance", "request_id"}
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["detail"]
    if code is not None:
        assert document["type"] == f"urn:metalscribe:problem:{code}"
    return document


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def says(text: str, expected: str) -> bool:
    """Whether nearly all of the expected words are there; numbers may be written either way."""
    wanted = words(expected)
    heard = words(text)
    return sum(word in heard for word in wanted) >= 0.85 * len(wanted)


def fill(disk: Path) -> Path:
    """Take all that is free; returns the file that has it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            return filler


class Caller:
    """Someone who sends a recording and neither reads nor hangs up until told to."""

    def __init__(
        self, service: Service, content: bytes, headers: Mapping[str, str] | None = None, target: str = "/transcribe"
    ) -> None:
        self._connection = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
        request = service.client().build_request(
            "POST", target, files={"file": ("a.wav", content)}, headers=dict(headers or {})
        )
        head = f"POST {target} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in request.headers.items()
        )
        message = head.encode() + b"\r\n" + request.read()
        self._sending = threading.Thread(target=self._send, args=(message,), daemon=True)
        self._sending.start()

    def _send(self, message: bytes) -> None:
        with suppress(OSError):
            self._connection.sendall(message)

    def leave(self) -> None:
        """Hang up; what is still being sent is cut off."""
        self._sending.join()
        self._connection.close()

    def answer(self) -> bytes:
        """Read to the end of the connection, or of what comes within the patience of tests."""
        self._sending.join()
        received = b""
        with suppress(ConnectionError), self._connection:
            while piece := self._connection.recv(65536):
                received += piece
                head, _, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if length and len(body) >= int(length[1]):
                    break
        return received


Start = Callable[..., Service]
