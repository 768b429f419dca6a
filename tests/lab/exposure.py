"""Who gets to see a secret: what users without rights saw while something was going on, and which files have it at last."""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from lab.container import Container
from lab.network import Namespace

HOST_FOLDERS: Final = ("/tmp", "/var", "/run", "/dev/shm", "/etc", "/home", "/root", "/srv", "/opt", "/usr/local")
BUILT: Final = ("/opt/metalscribe/releases", "/opt/metalscribe/cache")
"""Thousands of files out of wheels, which nobody watches come and go; ``stored_on`` reads them all."""

_PROGRAM: Final = Path(__file__).with_name("observer.py").read_text(encoding="utf-8")
_NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
_END_WITHIN: Final = 60.0  # seconds
_LINE_OF_A_KEY: Final = 16
_SEARCHED: Final = (
    "/boot",
    "/dev/shm",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/var",
)
_SEARCH_WITHIN: Final = 300.0

Places = Mapping[str, tuple[str, ...]]
"""A file's path, and its mode and owner (``600 root``) with the names of the secrets that are in it."""


@dataclass(frozen=True)
class Secret:
    """What nobody is to see.

    Attributes:
        name: what it is called in messages.
        text: it; of a text with several lines, a key in PEM, every line is secret.
    """

    name: str
    text: str = field(repr=False)

    @property
    def forms(self) -> set[bytes]:
        """What it looks like: as it is, in a URL, in hexadecimal, and in base64 wherever it begins in what was encoded."""
        lines = [line.strip() for line in self.text.splitlines() if not line.startswith("-----")]
        found: set[bytes] = set()
        for line in lines if len(lines) == 1 else [line for line in lines if len(line) >= _LINE_OF_A_KEY]:
            plain = line.encode()
            found |= {plain, quote(line, safe="").encode(), plain.hex().encode(), *_encoded(plain)}
        assert found, f"there is nothing secret in {self.name}"
        return found


@dataclass(frozen=True, slots=True)
class Seen:
    """What a user without rights saw on a machine.

    Attributes:
        commands: command lines in the process list.
        environments: of processes, where they could be read.
        files: what could be read, with a path where it was at a time.
    """

    commands: tuple[str, ...]
    environments: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]

    def of(self, known: Iterable[Secret]) -> list[str]:
        """Where there was a secret."""
        places = [
            *((f"the process list: {command}", command.encode()) for command in self.commands),
            *((f"a process's environment: {text}", text.encode()) for text in self.environments),
            *((f"the file {path}", content) for path, content in self.files),
        ]
        return [f"{name} in {place}" for place, content in places for name in named(known, content)]


class Watch:
    """A context in which a user without rights watches a machine; afterwards ``seen`` is what it saw.

    Args:
        command: runs the observer.
    """

    seen: Seen

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "watching\n":
            _, said = self._process.communicate(timeout=_END_WITHIN)
            raise AssertionError(f"nobody watches: {said}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        try:
            printed, said = self._process.communicate(timeout=_END_WITHIN)
        finally:
            self._process.kill()
        assert self._process.returncode == 0, f"whoever watched has failed: {said}"
        found = json.loads(printed)
        files = tuple((path, base64.b64decode(content)) for path, content in found["files"])
        self.seen = Seen(tuple(found["commands"]), tuple(found["environments"]), files)


def watched_host(host: Container, controller: Namespace) -> Watch:
    """Watch a host, from where a deploy writes to what it runs."""
    command = _observer("/usr/bin/python3", HOST_FOLDERS, BUILT)
    return Watch(controller.enter(*host.ssh(shlex.join(command))))


def watched_controller(*folders: Path) -> Watch:
    """Watch this machine's process list, and folders of a controller."""
    # A virtual environment may be where nobody gets to; its interpreter is not.
    return Watch(_observer(str(Path(sys.executable).resolve()), map(str, folders)))


def named(known: Iterable[Secret], content: bytes) -> list[str]:
    """The names of the secrets that are in ``content``, in any form."""
    return [secret.name for secret in known if any(form in content for form in secret.forms)]


def stored_on(host: Container, known: Iterable[Secret]) -> Places:
    """Every file on a host that has a secret in it, whoever may read it."""
    return _places(
        lambda command, stdin: host.run(command, stdin=stdin, timeout=_SEARCH_WITHIN).stdout, _SEARCHED, known
    )


def stored_here(folders: Iterable[Path], known: Iterable[Secret]) -> Places:
    """Every file in folders of this machine that has a secret in it, whoever may read it."""

    def run(command: str, stdin: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], input=stdin, check=True, capture_output=True, text=True, timeout=_SEARCH_WITHIN
        )
        return done.stdout

    return _places(run, [str(folder) for folder in folders], known)


def _places(run: Callable[[str, str], str], folders: Sequence[str], known: Iterable[Secret]) -> Places:
    known = list(known)
    # The last folder gets a file with a secret of its own: a search that does not find it has not gone through all.
    marker = Secret("marker", secrets.token_urlsafe())
    planted = f"{folders[-1]}/.searched"
    run(f"install -m 600 /dev/stdin {shlex.quote(planted)}", marker.text)
    wanted = sorted(form.decode() for secret in [*known, marker] for form in secret.forms)
    search = f"grep -rlaFs --devices=skip --file=- -- {shlex.join(folders)} || true"  # a file that goes away meanwhile is an error to it
    listed = run(search, "".join(f"{form}\n" for form in wanted)).splitlines()
    run(f"rm {shlex.quote(planted)}", "")
    assert planted in listed, f"the search has not gone through {folders}"
    found = {}
    for path in sorted({*listed} - {planted}):
        about, _, content = run(f"stat --format='%a %U' {shlex.quote(path)}; base64 {shlex.quote(path)}", "").partition(
            "\n"
        )
        found[path] = (about, *named(known, base64.b64decode(content)))
    return found


def _observer(python: str, folders: Iterable[str], excepted: Iterable[str] = ()) -> list[str]:
    return [*_NOBODY, python, "-I", "-c", _PROGRAM, *(f"--except={folder}" for folder in excepted), *folders]


def _encoded(plain: bytes) -> set[bytes]:
    """The part of ``plain`` in base64 that does not depend on what stands before and after it, for each of the three places where it may begin."""
    found = set()
    for before in range(3):
        text = base64.b64encode(b"\0" * before + plain)
        # A digit has six bits: those that have a bit of a neighbour's are left out.
        found.add(text[-(-before * 8 // 6) : (before + len(plain)) * 8 // 6])
    return found
