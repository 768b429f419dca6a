"""A PostgreSQL server that tests start for themselves."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 120.0


def binaries() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Server:
    """A PostgreSQL server on a socket of its own, without a network port."""

    def __init__(self, bin_dir: Path, directory: Path, user: str | None) -> None:
        self.bin, self.directory, self.user = bin_dir, directory, user

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), *arguments]
        done = subprocess.run(
            command, user=self.user, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def create(self) -> None:
        data = str(self.directory / "data")
        self._run("initdb", "-D", data, "-U", "metalscribe", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.directory}' -c fsync=off"
        log = str(self.directory / "log")
        self._run("pg_ctl", "start", "-w", "-D", str(self.directory / "data"), "-l", log, "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.directory / "data"))

    def url(self, name: str) -> str:
        return f"postgresql://metalscribe@/{name}?host={self.directory}"


@contextmanager
def postgresql() -> Iterator[Server]:
    """A running server with no databases but its own; what asks for it is skipped where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="psycopg, the driver for PostgreSQL, is not installed")
    bin_dir = binaries()
    if bin_dir is None:
        pytest.skip("PostgreSQL's initdb is not installed: apt install postgresql")
    user = unprivileged_user()
    directory = Path(tempfile.mkdtemp())
    if user is not None:
        shutil.chown(directory, user)
    server = Server(bin_dir, directory, user)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)
