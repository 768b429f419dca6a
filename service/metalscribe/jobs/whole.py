"""Work that is not cut off midway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


async def whole(work: Awaitable[_T]) -> _T:
    """Wait for a transaction to its end, also when cancelled: one that is cut off midway can hang its connection."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
