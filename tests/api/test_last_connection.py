"""The connection that comes in the same moment as SIGTERM is answered, not reset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from .harness import PATIENCE, environment, listening_port, wait_for

TOLD_TO_STOP = """\
import signal
from uvicorn.protocols.http.h11_impl import H11Protocol
from metalscribe.cli.serve import serve

made = H11Protocol.__init__

def made_as_the_signal_comes(self, *arguments, **more):
    made(self, *arguments, **more)
    signal.raise_signal(signal.SIGTERM)

H11Protocol.__init__ = made_as_the_signal_comes
serve()
"""
"""The service, told to stop while its loop makes what is to speak on a connection that it has just accepted."""


@pytest.mark.model
def test_who_is_accepted_as_sigterm_comes_is_answered(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-c", TOLD_TO_STOP],
            env=environment(tmp_path / "state", {"PRELOAD": "false"}),
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            port = wait_for(lambda: listening_port(process, log), "the service to listen")
            answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE, trust_env=False)
            assert answer.json() == {"status": "ok"}
            assert process.wait(PATIENCE) == 0, log.read_text()
        finally:
            process.kill()
    assert "Unhandled exception" not in log.read_text()
