"""A real ``metalscribe serve`` on loopback."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from bench.ways.settings import service_settings
from bench.ways.way import Setup

_STARTING_SECONDS: Final = 600.0
_STOPPING_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


class Service:
    """The service as a child process, with a state directory, a port and a key of its own.

    Attributes:
        key: the API key.
        log_path: where its stderr goes.
        port: 0 until started.
    """

    def __init__(self, setup: Setup) -> None:
        self.key = secrets.token_urlsafe(32)
        self.log_path = setup.scratch / "service.log"
        self.port = 0
        self._settings = {
            **service_settings(setup),
            "host": "127.0.0.1",
            "port": 0,
            "api_key": self.key,
            "rate_limit": "1000000/minute",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that listens."""
        if self._process is None:
            raise RuntimeError("the service is not started")
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when it listens, which it does when its model is loaded.

        Raises:
            RuntimeError: it ended; the message has its last words.
        """
        given = {f"METALSCRIBE_{name.upper()}": str(value) for name, value in self._settings.items()}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "metalscribe", "serve"],
                env={**os.environ, **given},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _STARTING_SECONDS
        while not self.port:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the service did not start: {self.log_path.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
            self.port = _listening_port(self._process.pid)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RequestLines:
    """The log's lines about requests, read as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> dict[str, dict[str, Any]]:
        """The new ones, by request id."""
        with self._path.open("rb") as log:
            log.seek(self._position)
            data = log.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return {line["request_id"]: line for line in lines if line.get("event") == "request" and "request_id" in line}


def _listening_port(pid: int) -> int:
    with suppress(psutil.NoSuchProcess):
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
    return 0
