"""Where the documents of ``metalscribe transcribe`` go: stdout, or a file each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalscribe.cli.console import complain, write_out
from metalscribe.cli.recordings import STDIN, Recording, base_name, shown
from metalscribe.errors import InvalidParameter
from metalscribe.render import Format

if TYPE_CHECKING:
    from metalscribe.cli.work import Answer

_ALONE: Final = frozenset({Format.SRT, Format.VTT, Format.TSV})
"""Formats of which two in a row make no sense."""

_TEXT_EXTENSION: Final = "txt"


class Documents:
    """Writes each finished document, and counts what failed.

    Args:
        document: the format of all.
        several: whether more than one recording was given.
        directory: for a file each; None for stdout.
        overwrite: whether files that are there may be replaced.
    """

    def __init__(self, document: Format, *, several: bool, directory: Path | None, overwrite: bool) -> None:
        self._format = document
        self._several = several
        self._directory = directory
        self._overwrite = overwrite
        self._written = 0
        self.failures = 0

    def check(self, files: Sequence[str]) -> None:
        """Find out what cannot work before any work is done, and make the directory.

        Raises:
            InvalidParameter: the arguments contradict each other.
        """
        if files.count(STDIN) > 1:
            raise InvalidParameter("stdin (-) can be read only once.", "files")
        if self._directory is None:
            if self._several and self._format in _ALONE:
                raise InvalidParameter(
                    f"Several recordings as {self._format} do not fit into one stream: use --output-dir.", "format"
                )
            return
        owners: dict[Path, str] = {}
        for given in files:
            target = self._target(given)
            other = owners.setdefault(target, given)
            if other != given:
                raise InvalidParameter(
                    f"{shown(other)} and {shown(given)} would both be written to {shown(str(target))}: "
                    "transcribe them separately, into different directories.",
                    "output_dir",
                )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidParameter(f"--output-dir {self._directory}: {error.strerror}", "output_dir") from error

    def obstacle(self, recording: Recording) -> str | None:
        """Why the recording's document could not be written, or None."""
        if self._directory is None:
            return None
        target = self._target(recording.given)
        if target.resolve() == recording.path:
            return f"its {self._format} would be written over the recording itself; choose another --output-dir"
        if not self._overwrite and target.exists():
            return _is_there(target)
        return None

    def put(self, recording: Recording, answer: Answer) -> None:
        """Write one document; a file that cannot be written counts as a failure."""
        if self._directory is None:
            write_out(self._headline(recording) + self._text(recording, answer))
            self._written += 1
            return
        target = self._target(recording.given)
        try:
            with target.open("w" if self._overwrite else "x", encoding="utf-8", errors="replace", newline="") as file:
                file.write(self._text(recording, answer))
        except FileExistsError:
            self.fail(recording.shown, _is_there(target))
        except OSError as error:
            self.fail(recording.shown, f"{target}: {error.strerror or error}")

    def fail(self, name: str, reason: str) -> None:
        """Report one recording that has no document."""
        self.failures += 1
        complain(f"{name}: {reason}")

    def _target(self, given: str) -> Path:
        extension = _TEXT_EXTENSION if self._format is Format.TEXT else self._format.value
        return (self._directory or Path()) / f"{Path(base_name(given)).stem}.{extension}"

    def _text(self, recording: Recording, answer: Answer) -> str:
        if isinstance(answer, str):
            return answer
        indent = 2 if self._directory is not None else None  # on stdout a document is a line
        return json.dumps({"file": recording.shown, **answer}, ensure_ascii=False, indent=indent) + "\n"

    def _headline(self, recording: Recording) -> str:
        if not self._several or self._format is not Format.TEXT:
            return ""
        gap = "\n" if self._written else ""
        return f"{gap}==> {recording.shown} <==\n"


def _is_there(target: Path) -> str:
    return f"{target} is there already; --force overwrites it"
