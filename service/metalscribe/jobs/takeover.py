"""Taking over what dead processes have left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Owned(Protocol):
    """A store whose things belong to processes."""

    async def owners(self) -> set[str]:
        """The processes that own something, dead ones among them."""

    async def give_back(self, owner: str) -> int:
        """Let others have what a process owns; returns how many things that are."""


async def taken_over(store: Owned, own: str, alive: Callable[[str], bool]) -> int:
    """Give back what the dead among the owners have; returns how many things there were.

    Args:
        store: knows the owners.
        own: this process.
        alive: whether another one lives; asks the disk.
    """
    count = 0
    for owner in await store.owners() - {own}:
        if not await asyncio.to_thread(alive, owner):
            count += await store.give_back(owner)
    return count
