"""What the arguments of ``metalscribe transcribe`` name: files, pipes and stdin."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalscribe.cli.console import printable

if TYPE_CHECKING:
    from metalscribe.cli.documents import Documents

STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording to transcribe.

    Attributes:
        given: the argument, which names its document.
        path: a regular file and no link.
    """

    given: str
    path: Path

    @property
    def shown(self) -> str:
        """The argument, fit to print."""
        return shown(self.given)

    @property
    def name(self) -> str:
        """The last part of it, fit to print."""
        return printable(base_name(self.given))


def base_name(given: str) -> str:
    """The file's name without its directories; ``stdin`` for that."""
    return "stdin" if given == STDIN else Path(given).name


def shown(given: str) -> str:
    """An argument, fit to print."""
    return "stdin" if given == STDIN else printable(given)


def find(files: Sequence[str], spool: Path, documents: Documents) -> Iterator[Recording]:
    """Yield those that can be read and whose document can be written, and report the others.

    What can be read only once (stdin, a pipe) is copied into the directory ``spool``.
    """
    for number, given in enumerate(files):
        try:
            path = _regular(given, spool / str(number))
        except OSError as error:
            documents.fail(shown(given), error.strerror or str(error))
            continue
        recording = Recording(given, path)
        problem = documents.obstacle(recording)
        if problem is None:
            yield recording
        else:
            documents.fail(recording.shown, problem)


def _regular(given: str, copy: Path) -> Path:
    if given == STDIN:
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return copy
    with open(given, "rb") as source:  # noqa: PTH123  (the argument as it is: Path would lose a trailing slash)
        if stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            return Path(given).resolve()
        with copy.open("wb") as file:
            shutil.copyfileobj(source, file)
    return copy
