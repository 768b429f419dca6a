"""What a host has of ours: releases, and files that were brought to it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase
from typing_extensions import override

from metalscribe_provision.common import RELEASES


class CompleteReleases(FactBase[list[str]]):
    """Ids of the releases that are complete, those with a ``release.json``, sorted."""

    @override
    def command(self) -> StringCommand:
        found = StringCommand("find", QuoteString(str(RELEASES)), "-mindepth 2 -maxdepth 2 -name release.json -type f")
        return StringCommand(found, "2>/dev/null || true")

    @staticmethod
    @override
    def default() -> list[str]:
        return []

    @override
    def process(self, output: list[str]) -> list[str]:
        return sorted(PurePosixPath(line).parent.name for line in output)


class FilesIn(FactBase[dict[str, tuple[int, str]]]):
    """The files in a folder and below: relative name → size in bytes and SHA-256 (reads them all); empty if there is none.

    Only for names without line breaks and backslashes, which ``sha256sum`` would write otherwise.
    """

    @override
    def command(self, path: str) -> StringCommand:
        listed = StringCommand(
            "cd", QuoteString(path), r"2>/dev/null && find . -type f -printf '%s ' -exec sha256sum {} \;"
        )
        return StringCommand(listed, "|| true")

    @staticmethod
    @override
    def default() -> dict[str, tuple[int, str]]:
        return {}

    @override
    def process(self, output: list[str]) -> dict[str, tuple[int, str]]:
        return parse_listing(output)


class PythonVersion(FactBase[str | None]):
    """Version of an interpreter, such as 3.11; None if it is not there (yet)."""

    @override
    def command(self, path: str) -> StringCommand:
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        return StringCommand(QuoteString(path), "-I", "-c", QuoteString(ask), "2>/dev/null || true")

    @override
    def process(self, output: list[str]) -> str | None:
        return output[0].strip() if output else None


def parse_listing(lines: list[str]) -> dict[str, tuple[int, str]]:
    """Read lines of ``<size> <sha256>  ./<name>``."""
    found = {}
    for line in lines:
        matched = re.fullmatch(r"(\d+) ([0-9a-f]{64})  \./(.+)", line)
        if matched:
            found[matched[3]] = (int(matched[1]), matched[2])
    return found
