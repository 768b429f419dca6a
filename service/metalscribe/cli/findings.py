"""What a check of ``metalscribe doctor`` comes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check came out; the values are stable and safe to script against."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``hint`` says how to mend it, where the detail does not."""

    status: Status
    detail: str
    hint: str = ""
