"""``metalscribe demo``: the whole service once, end to end, with a recording that it brings along."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console

from metalscribe.errors import ConfigurationError, MetalscribeError
from metalscribe.settings import Settings, load_settings
from metalscribe.store.database import Database
from metalscribe.store.identity import Scope
from metalscribe.store.keys import KeyStore

_START_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 300.0
_KEY_LIFE: Final = timedelta(days=7)


def demo() -> None:
    """Start the service on loopback, make a key, transcribe the sample, show how to go on, stop the service.

    Raises:
        MetalscribeError: some part of that did not work.
    """
    console = Console(highlight=False, soft_wrap=True)
    settings = load_settings()
    port = _free_port(settings)
    base = f"http://127.0.0.1:{port}"
    console.print("[bold]1.[/] Making an API key …")
    key = asyncio.run(_make_key(settings))
    console.print(f"[bold]2.[/] Starting the service on {base} …")
    log = settings.state_dir / "demo.log"
    with _service(port, log) as service:
        _wait_until_alive(base, service, log)
        console.print(f"[bold]3.[/] Loading the model {settings.model!r} and transcribing the sample …\n")
        with importlib.resources.as_file(
            importlib.resources.files("metalscribe") / "samples" / "sample.flac"
        ) as sample:
            answer, seconds = _transcribe(base, key, sample)
            again, seconds_again = _transcribe(base, key, sample)
    console.print(f"   [bold green]{again['text']}[/]\n")
    console.print(
        f"   {answer['duration']:.1f} s of speech in {seconds:.2f} s with loading the model, "
        f"{seconds_again:.2f} s without ({answer['duration'] / seconds_again:.0f} × realtime).\n"
    )
    console.print("The same by hand: start the service with [bold]make serve[/], then\n")
    console.print(
        f"   curl -H 'X-API-Key: {key}' -F 'file=@{_shown(sample)}' http://127.0.0.1:{settings.port}/transcribe\n"
    )
    console.print("That key ends in seven days. To go on:\n")
    console.print("   .venv/bin/metalscribe transcribe FILE…         without a service")
    console.print("   .venv/bin/metalscribe keys create NAME         a key of your own")
    console.print("   .venv/bin/metalscribe config                   every setting")
    console.print(f"   http://127.0.0.1:{settings.port}/docs                    the API, while make serve runs")


async def _make_key(settings: Settings) -> str:
    database = Database(settings.sqlalchemy_url)
    await database.open()
    keys = KeyStore(database)
    try:
        new = await keys.create(f"demo-{int(time.time())}-{os.getpid()}", [Scope.TRANSCRIBE], expires_in=_KEY_LIFE)
    finally:
        await keys.close()
        await database.close()
    return new.key_text


def _free_port(settings: Settings) -> int:
    """The configured port, or any free one where that is taken: a demo must not stumble over another service."""
    for port in (settings.port, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free TCP port on 127.0.0.1")


@contextlib.contextmanager
def _service(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process of its own, exactly as an operator starts it."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
            [sys.executable, "-m", "metalscribe", "serve", "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_alive(base: str, service: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and service.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{base}/healthz", timeout=2, trust_env=False).is_success:
                return
        time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise MetalscribeError(f"the service did not start; {log} ends with: {lines[-1] if lines else 'nothing'}")


def _transcribe(base: str, key: str, sample: Path) -> tuple[dict[str, float], float]:
    begin = time.perf_counter()
    with sample.open("rb") as file:
        response = httpx.post(
            f"{base}/transcribe",
            headers={"X-API-Key": key},
            files={"file": (sample.name, file)},
            timeout=_ANSWER_SECONDS,
            trust_env=False,
        )
    seconds = time.perf_counter() - begin
    if not response.is_success:
        raise MetalscribeError(f"the service answered {response.status_code}: {response.text}")
    return response.json(), seconds


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path)).strip("'")
