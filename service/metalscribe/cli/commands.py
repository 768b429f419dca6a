"""Other programs, asked with a bound on the time: what a hanging driver or disk does to them it must not do to us."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from metalscribe.errors import MetalscribeError
from metalscribe.settings import PREFIX

_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not everybody's PATH has them
_LAST_WORDS_SECONDS: Final = 2.0


class CommandFailed(MetalscribeError):
    """A program is not there, or gave no answer in time."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended: ``status`` as :mod:`subprocess` gives it, negative for a signal."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line that it said about what went wrong."""
        return next((line for line in reversed((self.err or self.out).splitlines()) if line.strip()), "no reason given")


def run(
    arguments: Sequence[str], *, seconds: float, text: str = "", environment: Mapping[str, str] | None = None
) -> Completed:
    """Run a program with ``text`` on its stdin and wait for it, for ``seconds`` at most.

    It speaks English and does not get the service's settings, some of which are secrets. One that is stuck in the kernel,
    where not even SIGKILL ends it, is left behind.

    Raises:
        CommandFailed: it is not installed, or did not end in time.
    """
    try:
        process = subprocess.Popen(  # noqa: S603  (callers name the program, never a user)
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=plain_environment() if environment is None else environment,
            start_new_session=True,  # so that what it started ends with it
        )
    except FileNotFoundError:
        raise CommandFailed(f"{arguments[0]} is not installed.") from None
    try:
        out, err = process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        raise CommandFailed(f"`{shlex.join(arguments)}` gave no answer within {seconds:g} s.") from None
    return Completed(process.returncode, out, err)


def plain_environment() -> dict[str, str]:
    """Our environment without the settings; programs answer in English, and those of the administrator are found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "LC_", "LANGUAGE"))}
    path = [place for place in kept.get("PATH", os.defpath).split(os.pathsep) if place not in _SBIN]
    return kept | {"LC_ALL": "C.UTF-8", "PATH": os.pathsep.join((*path, *_SBIN))}


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_LAST_WORDS_SECONDS)
