"""A host for single operations: their commands run in a shell of this machine, on paths of a test's own.

For operations whose commands are what is to be proven, rather than the plan. It stands in for the SSH connection, and
``runuser`` for root's right to act as somebody else; everything else is real. ``stop_after`` cuts an operation off like a deploy
that is killed between two commands.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.util import get_file_io

_RUNUSER = """#!/bin/sh
[ "$1" = -u ] && [ "$3" = -- ] || { echo "runuser: $*" >&2; exit 64; }
shift 3
exec "$@"
"""


class CommandFailed(Exception):
    """A command of an operation failed; the message is what it wrote to stderr."""


class ShellHost:
    """Runs what operations yield; ``sent`` counts the bytes that were uploaded, ``commands`` notes everything."""

    name = "shell"

    def __init__(self, programs: Path) -> None:
        programs.mkdir(parents=True, exist_ok=True)
        runuser = programs / "runuser"
        runuser.write_text(_RUNUSER, encoding="utf-8")
        runuser.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        self.sent = 0
        self.commands: list[str] = []

    def get_fact(self, fact: type[FactBase[Any]], **arguments: Any) -> Any:
        """Ask the shell, as pyinfra asks a host."""
        asked = fact()
        command = asked.command(**arguments)
        output = self._shell(command.get_raw_value() if isinstance(command, StringCommand) else command)
        return asked.process(output.splitlines()) if output else asked.default()

    def noop(self, description: str) -> None:
        """Take note that there was nothing to do."""

    def log(self, message: str) -> None:
        """Take note of what is being done."""

    def run(self, commands: Iterable[Any], stop_after: int | None = None) -> int:
        """Run an operation's commands, at most ``stop_after`` of them; returns how many ran.

        Raises:
            CommandFailed: one failed, which ends the operation.
        """
        done = 0
        for command in commands:
            if done == stop_after:
                break
            self.commands.append(str(command))
            if isinstance(command, FileUploadCommand):
                self._upload(command)
            else:
                self._shell(command.get_raw_value())
            done += 1
        return done

    def _upload(self, command: FileUploadCommand) -> None:
        target = Path(command.dest)
        with get_file_io(command.src) as source, target.open("wb") as copy:  # as pyinfra's connectors read it
            shutil.copyfileobj(source, copy)
        self.sent += target.stat().st_size

    def _shell(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], check=False, capture_output=True, text=True, env=self.environment, timeout=120
        )
        if done.returncode:
            raise CommandFailed(done.stderr)
        return done.stdout


@pytest.fixture
def shell_host(tmp_path: Path) -> ShellHost:
    return ShellHost(tmp_path / "programs")
