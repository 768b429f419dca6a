"""What a part of the API is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Table = tuple[tuple[str, str, Callable[..., Awaitable[dict[str, Any]]]], ...]
"""Method, path, handler."""


def as_list(value: Any) -> list[str]:
    """A parameter that may be given several times."""
    return value if isinstance(value, list) else [value]
