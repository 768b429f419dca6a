"""Prometheus and promtool as Debian packages them; Prometheus on loopback, with its data in a folder of the test's."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

PATIENCE = 90.0


def installed(program: str) -> str:
    """The path of a program; what asks for it is skipped where it is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt install prometheus")
    return found


def promtool(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; its complaints are in both outputs."""
    command = [installed("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)


@dataclass(frozen=True)
class Prometheus:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=PATIENCE, trust_env=False)
        document = answer.json()
        assert document["status"] == "success", (parameters, document)
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression at this moment."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


def _listens_on(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        time.sleep(0.05)
    raise AssertionError(f"Prometheus does not listen: {log.read_text()}")


@contextmanager
def prometheus(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Prometheus]:
    """A server with this configuration, on a free port of loopback."""
    program = installed("prometheus")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(configuration)))
    log = folder / "prometheus.log"
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=warn",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield Prometheus(process, f"http://127.0.0.1:{_listens_on(process, log)}")
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
