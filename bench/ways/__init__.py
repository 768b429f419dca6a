"""The ways to transcribe that are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.ways.way import Answer, Setup, Way

__all__ = ["WAYS", "Answer", "Setup", "Way", "build"]


def _sequential(setup: Setup) -> Way:
    from bench.ways.bare import Sequential  # noqa: PLC0415

    return Sequential(setup)


def _batched(setup: Setup) -> Way:
    from bench.ways.bare import Batched  # noqa: PLC0415

    return Batched(setup)


def _engine(setup: Setup) -> Way:
    from bench.ways.engine import InProcess  # noqa: PLC0415

    return InProcess(setup)


def _http(setup: Setup) -> Way:
    from bench.ways.http import OverHttp  # noqa: PLC0415

    return OverHttp(setup)


# Imported late: a measured process holds what its own way needs, and nothing else.
WAYS: Final[dict[str, Callable[[Setup], Way]]] = {
    "sequential": _sequential,
    "batched": _batched,
    "engine": _engine,
    "http": _http,
}
"""``sequential`` and ``batched`` are bare faster-whisper, ``engine`` is metalscribe in process, ``http`` its service."""


def build(name: str, setup: Setup) -> Way:
    """A way by its name; not started yet."""
    return WAYS[name](setup)
