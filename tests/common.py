"""What tests import by name; fixtures are in conftest.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""The real recordings, beside the repository."""

MakeWav = Callable[..., Path]
Eventually = Callable[..., Awaitable[None]]
