"""The models that a host has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase
from typing_extensions import override

from metalscribe_provision.common import MODELS, ROOT

RECORDS: Final = ROOT / "models"
"""What was verified of the models: root's own notes, where the service cannot write."""

_LISTED: Final = re.compile(r"(\d+) (\d+)\.(\d{9})\d* (.+)")


@dataclass(frozen=True, slots=True)
class ModelOnHost:
    """A model's files as they are, and as they were when they were verified: name → size in bytes and time of change in ns."""

    now: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def intact(self) -> bool:
        """Whether it was verified and not touched since."""
        return bool(self.verified) and self.now == self.verified


class HostModel(FactBase[ModelOnHost]):
    """A model in its folder, by the folder's name."""

    @override
    def command(self, folder: str) -> StringCommand:
        listed = StringCommand(
            "find", QuoteString(str(MODELS / folder)), r"-mindepth 1 -maxdepth 1 -printf '%s %T@ %f\n' 2>/dev/null;"
        )
        return StringCommand(listed, "cat", QuoteString(str(RECORDS / f"{folder}.json")), "2>/dev/null || true")

    @staticmethod
    @override
    def default() -> ModelOnHost:
        return ModelOnHost()

    @override
    def process(self, output: list[str]) -> ModelOnHost:
        return parse_model(output)


def parse_model(lines: Sequence[str]) -> ModelOnHost:
    """Read lines of ``<size> <seconds.nanoseconds> <name>``, then a record of :mod:`metalscribe_provision.model.record`.

    A record that makes no sense counts as none: then the model is verified again.
    """
    now = {}
    rest = list(lines)
    while rest and (matched := _LISTED.fullmatch(rest[0])):
        now[matched[4]] = (int(matched[1]), int(matched[2]) * 10**9 + int(matched[3]))
        rest.pop(0)
    try:
        files = json.loads("\n".join(rest))["files"]
        verified = {name: (int(entry["size"]), int(entry["mtime_ns"])) for name, entry in files.items()}
        digests = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return ModelOnHost(now)
    return ModelOnHost(now, verified, digests)
