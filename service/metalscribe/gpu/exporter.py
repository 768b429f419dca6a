"""GPU metrics for Prometheus, apart from the service: ``python -m metalscribe.gpu.exporter [--port 9400]``.

A process of its own, so that the figures go on while the service is down or its GPU is what fails. It listens on loopback
and answers ``GET /metrics``; who may ask from elsewhere is nginx's business. Unlike exporters that list the processes on a
GPU with their users and command lines, it tells of the GPUs alone.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from metalscribe.gpu.exposition import CONTENT_TYPE, exposition
from metalscribe.gpu.nvml import Nvml
from metalscribe.systemd import Notifier

PORT: Final = 9400
"""Where NVIDIA's own exporter listens too: there is one or the other."""

_PATIENCE_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 30.0


class Exporter(ThreadingHTTPServer):
    """Answers ``GET /metrics`` on loopback.

    While the driver hangs, one thread hangs in it; the others answer 503 after ``patience`` seconds, and the scrape fails
    as it should.
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, port: int, *, patience: float = _PATIENCE_SECONDS) -> None:
        self._nvml = Nvml()
        self._asking = threading.Lock()
        self._patience = patience
        super().__init__(("127.0.0.1", port), _Handler)

    def metrics(self) -> str | None:
        """The metrics of this moment; None while the driver does not answer."""
        if not self._asking.acquire(timeout=self._patience):
            return None
        try:
            return exposition(self._nvml.report())
        finally:
            self._asking.release()

    def server_close(self) -> None:
        """Stop listening and let go of the driver."""
        super().server_close()
        self._nvml.close()


class _Handler(BaseHTTPRequestHandler):
    server: Exporter
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, explain="Ask for /metrics.")
            return
        metrics = self.server.metrics()
        if metrics is None:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain="The NVIDIA driver does not answer.")
            return
        body = metrics.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is no news."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="metalscribe-gpu-exporter", description="GPU metrics for Prometheus.")
    parser.add_argument("--port", type=int, default=PORT, help="TCP port on loopback (default: %(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Exporter(arguments.port) as exporter:
        Notifier.from_environment().notify("READY=1")
        with contextlib.suppress(KeyboardInterrupt):
            exporter.serve_forever()


if __name__ == "__main__":
    main()
