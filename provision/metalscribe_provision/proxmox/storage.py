"""A storage for the cloud image and for what cloud-init is told: both are contents that Proxmox does not allow unasked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

NEEDED: Final = ("import", "snippets")
"""Disk images to make machines from, and cloud-init's files."""

SNIPPET: Final = "metalscribe.yaml"


@dataclass(frozen=True, slots=True)
class Storage:
    """What a storage may hold, and where.

    Attributes:
        contents: such as iso, import; in the cluster's order.
        path: its folder on the node; None for one that is no folder, or that there is not.
    """

    contents: tuple[str, ...] = ()
    path: PurePosixPath | None = None

    @property
    def lacking(self) -> tuple[str, ...]:
        """What is needed and not allowed."""
        return tuple(content for content in NEEDED if content not in self.contents)

    @property
    def snippet(self) -> PurePosixPath | None:
        """Where cloud-init's file belongs."""
        return None if self.path is None else self.path / "snippets" / SNIPPET


def parse_storage(printed: str) -> Storage:
    """What ``pvesh get /storage/NAME --output-format json`` printed.

    Raises:
        ValueError: it is not that.
    """
    told = json.loads(printed)
    if not isinstance(told, dict):
        raise ValueError(f"not an object: {printed[:80]!r}")  # noqa: TRY004  (of what was printed)
    contents = tuple(filter(None, str(told.get("content", "")).split(",")))
    return Storage(contents, PurePosixPath(str(told["path"])) if "path" in told else None)
