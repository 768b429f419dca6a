"""A receiver of webhooks that checks signatures, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Received:
    """A webhook as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def event(self) -> str:
        return self.headers["X-Metalscribe-Event"]

    def signed_with(self, secret: str) -> bool:
        """Whether the signature is that of the documentation: HMAC-SHA256 over the time, a dot and the body."""
        parts = dict(part.split("=", 1) for part in self.headers["X-Metalscribe-Signature"].split(","))
        expected = hmac.new(secret.encode(), f"{parts['t']}.".encode() + self.body, hashlib.sha256).hexdigest()
        return hmac.compare_digest(parts["v1"], expected) and abs(time.time() - int(parts["t"])) < 3600


Behaviour = Callable[[Received, int], tuple[int, Mapping[str, str]]]
"""A webhook and how many came to its path before, to the status and the headers of the answer."""


@dataclass
class Receiver:
    """What has come."""

    url: str
    received: list[Received] = field(default_factory=list)
    behaviour: Behaviour = field(default=lambda _, __: (200, {}))

    def at(self, path: str) -> list[Received]:
        return [one for one in list(self.received) if one.path == path]


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    """A web server on loopback that takes webhooks."""
    made = Receiver("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            one = Received(self.path, dict(self.headers.items()), body, time.monotonic())
            before = len(made.at(self.path))
            made.received.append(one)
            status, headers = made.behaviour(one, before)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()
