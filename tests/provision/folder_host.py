"""A host in a folder: deploys executed, interrupted and repeated without a machine.

The commands run in a real shell, over real files below a folder that stands for ``/``. What cannot be there, packages and the
kernel's own tools, is one small shell script of the test's under their names, which keeps its state in files, as a host does.
pyinfra's ``@fake`` connector is where both are joined.
"""

# mypy: untyped-calls-exclude=pyinfra
from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes import HOST
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.operations import run_ops
from pyinfra.api.state import State, StateStage
from pyinfra.connectors.fake import FakeConnector
from pyinfra.connectors.util import CommandOutput, OutputLine
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state


class Cut(Exception):
    """The deploy was killed."""


class FolderHost:
    """A host whose root is a folder.

    Attributes:
        changes: how many commands of the latest deploy have changed something.
        cut_at: the change at which the next deploy is killed, counted from 1.
    """

    CHANGES: ClassVar[re.Pattern[str]]
    """Commands that change something."""

    PATHS: ClassVar[str] = "etc|sys|boot|lib/modules|proc|var/lib"
    """What is below the folder; programs are the machine's own."""

    def __init__(self, root: Path, script: str, tools: Iterable[str]) -> None:
        self.root = root
        self.changes = 0
        self.cut_at: int | None = None
        (root / "bin").mkdir(parents=True)
        (root / "bin/host").write_text(script)
        (root / "bin/host").chmod(0o755)
        for tool in tools:
            (root / "bin" / tool).symlink_to("host")

    def run(self, data: dict[str, Any]) -> None:
        """Plan the deploy for a host that has these variables."""
        raise NotImplementedError

    def _counted(self, command: str) -> None:
        self.changes += 1
        if self.changes == self.cut_at:
            raise Cut(command)

    def shell(self, command: str) -> tuple[bool, CommandOutput]:
        """Run a command, its paths turned to the folder's."""
        if "&& reboot )" in command:  # in the background, after a second
            command = "reboot"
        if self.CHANGES.search(command) and not command.startswith("! (test"):
            self._counted(command)
        below = re.sub(rf"(?<![\w/.])/({self.PATHS})(?=[/ )]|$)", rf"{self.root}/\1", command)
        environment = {"ROOT": str(self.root), "PATH": f"{self.root}/bin:/usr/bin:/bin"}
        run = subprocess.run(["sh", "-c", below], env=environment, capture_output=True, text=True, check=False)
        lines = [OutputLine("stdout", line.replace(f"{self.root}/", "/")) for line in run.stdout.splitlines()]
        lines += [OutputLine("stderr", line) for line in run.stderr.splitlines()]
        assert "not simulated" not in run.stderr, run.stderr
        return run.returncode == 0, CommandOutput(lines)

    def put(self, source: Any, path: str) -> bool:
        """Write a file."""
        self._counted(path)
        target = self.root / path.removeprefix("/")
        if isinstance(source, io.IOBase):
            source.seek(0)
            content = source.read()
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            shutil.copyfile(source, target)
        return True

    def write(self, path: str, text: str) -> None:
        """Lay a file there, as somebody else would."""
        file = self.root / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def text(self, path: str) -> str:
        """A file's text, empty if there is none."""
        file = self.root / path.removeprefix("/")
        return file.read_text() if file.exists() else ""

    def deploy(self, *, dry: bool = False, **data: Any) -> bool:
        """Run the deploy; whether it succeeded."""
        self.changes = 0
        inventory = Inventory(([(HOST, data)], {}))
        config = Config()
        state = State(inventory, config)
        (host,) = inventory
        contexts = ((ctx_state, state), (ctx_inventory, inventory), (ctx_config, config), (ctx_host, host))
        before = [(context, context.get()) for context, _ in contexts]
        for context, value in contexts:
            context.set(value)
        try:
            state.set_stage(StateStage.Connect)
            connect_all(state)
            state.set_stage(StateStage.Prepare)
            self.run(data)
            if not dry:
                state.set_stage(StateStage.Execute)
                run_ops(state)
        except PyinfraError as error:
            if str(error) != "No hosts remaining!":
                raise
        finally:
            for context, value in before:
                context.set(value)
        return host not in state.failed_hosts


def joined(monkeypatch: pytest.MonkeyPatch, current: Callable[[], FolderHost]) -> None:
    """Let pyinfra's @fake connector send everything to the host in a folder that ``current`` returns."""

    def run_shell_command(_: FakeConnector, command: Any, **__: Any) -> tuple[bool, CommandOutput]:
        return current().shell(command if isinstance(command, str) else command.get_raw_value())

    def put_file(_: FakeConnector, source: Any, path: str, *__: Any, **___: Any) -> bool:
        return current().put(source, path)

    monkeypatch.setattr(FakeConnector, "run_shell_command", run_shell_command)
    monkeypatch.setattr(FakeConnector, "put_file", put_file)
    monkeypatch.setattr("pyinfra.operations.server.sleep", lambda _: None)  # a host in a folder reboots at once
