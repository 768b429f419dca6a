"""Which models may be in memory together: the least recently used idle one goes before another is loaded.

Whoever wants to load waits in one queue, first come, first served, so that a small model cannot overtake a large one for
ever. If all others are busy, the first in the queue waits until one of them is idle; after :data:`PATIENCE_SECONDS` it no
longer hopes for that, since a model under steady load never is: the one that has been loaded longest takes no further requests,
finishes those it has and goes, and its new requests queue for memory in their turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from metalscribe.engine.memory import MIB

PATIENCE_SECONDS: Final = 15.0

_log = structlog.get_logger(__name__)


class Tenant(Protocol):
    """A model, in the eyes of the budget."""

    @property
    def name(self) -> str:
        """Whom to name in messages."""

    @property
    def memory_needed(self) -> int:
        """Bytes that it takes now, or will take: as measured, and no less than estimated."""

    @property
    def evictable(self) -> bool:
        """Whether it is ready, so that it can be told to go."""

    @property
    def leaving(self) -> bool:
        """Whether it was told to go already."""

    @property
    def in_use(self) -> bool:
        """Whether requests hold it."""

    @property
    def last_used(self) -> float:
        """When the last of its requests ended, in the clock's seconds."""

    @property
    def ready_since(self) -> float:
        """When it was loaded, in the clock's seconds."""

    def explain(self, detail: str) -> None:
        """Say why it is not loading yet."""

    def evict(self, newcomer: str) -> None:
        """Take no more requests, finish those there are, and go."""


class TooLarge(Exception):
    """A model that does not fit even alone."""


class MemoryBudget:
    """The memory that all models share.

    Args:
        limit: bytes; 0 is no bound.
        clock: in seconds, monotonic.
        patience: seconds that a newcomer waits for a busy model to become idle.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float], patience: float = PATIENCE_SECONDS) -> None:
        self.limit = limit
        self._clock = clock
        self._patience = patience
        self._tenants: dict[str, Tenant] = {}
        self._queue: list[Tenant] = []
        self._departures: Counter[str] = Counter()
        self._change = asyncio.Event()

    @property
    def taken(self) -> int:
        """Bytes of the models that are loaded or being loaded."""
        return sum(tenant.memory_needed for tenant in self._tenants.values())

    async def enter(self, tenant: Tenant) -> None:
        """Wait for room, make some, and take it; cancelling leaves the queue.

        Raises:
            TooLarge: there can never be enough.
        """
        if not self.limit:
            self._tenants[tenant.name] = tenant
            return
        begin = self._clock()
        self._queue.append(tenant)
        try:
            while True:
                change = self._change  # before the question: what happens in answer to it must not be missed
                left = self._patience - (self._clock() - begin)
                if self._admitted(tenant, patient=left > 0):
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(left if left > 0 else None):
                        await change.wait()
        finally:
            self._queue.remove(tenant)
            self.changed()

    def leave(self, tenant: Tenant) -> None:
        """Its process is gone."""
        if self._tenants.pop(tenant.name, None) is not None:
            self._departures[tenant.name] += 1
            self.changed()

    def changed(self) -> None:
        """Something that a newcomer may be waiting for has happened: a model became idle, or was measured."""
        self._change.set()
        self._change = asyncio.Event()

    def rebalance(self, loaded: Tenant) -> None:
        """A model was measured: if it takes more than was thought, idle ones have to go after all.

        Raises:
            TooLarge: it does not fit even alone.
        """
        if not self.limit:
            return
        if loaded.memory_needed > self.limit:
            raise TooLarge(self._too_large(loaded))
        self._evict_idle(loaded, self.taken - self._leaving() - self.limit)
        self.changed()

    def grown(self, tenant: Tenant) -> None:
        """A model takes more than it ever did: idle ones have to go if all together are beyond the limit now."""
        if self.limit and tenant.name in self._tenants:
            self._evict_idle(tenant, self.taken - self._leaving() - self.limit)

    async def relieve(self, newcomer: Tenant) -> bool:
        """The machine had too little memory for a newcomer, whatever the budget says: send an idle model away.

        Returns:
            whether one went.
        """
        idle = self._idle(newcomer)
        if not idle:
            return False
        leaving = idle[0]
        # Counted, since it may be back by the time that this is told.
        departures = self._departures[leaving.name]
        self._evict(leaving, newcomer)
        while self._departures[leaving.name] == departures:
            await self._change.wait()
        return True

    # --- who goes ---

    def _admitted(self, tenant: Tenant, *, patient: bool) -> bool:
        if tenant.memory_needed > self.limit:
            raise TooLarge(self._too_large(tenant))
        missing = self.taken + tenant.memory_needed - self.limit
        if self._queue[0] is not tenant:
            tenant.explain(f"waiting for memory behind {self._queue[0].name}")
            return False
        if missing <= 0:
            self._tenants[tenant.name] = tenant
            return True
        missing -= self._leaving()
        missing -= self._evict_idle(tenant, missing)
        if missing > 0 and not patient:
            for other in sorted(self._others(tenant), key=lambda one: one.ready_since):
                if missing <= 0:
                    break
                missing -= other.memory_needed
                self._evict(other, tenant)
        tenant.explain(
            f"waiting for memory: it takes about {_mib(tenant.memory_needed)} MiB, and of the {_mib(self.limit)} MiB for all "
            f"models {_mib(self.taken)} are taken by {', '.join(self._tenants)}"
        )
        return False

    def _evict_idle(self, newcomer: Tenant, missing: int) -> int:
        """Send idle models away until ``missing`` bytes will be free; returns how many will be."""
        freed = 0
        for other in self._idle(newcomer):
            if freed >= missing:
                break
            freed += other.memory_needed
            self._evict(other, newcomer)
        return freed

    def _evict(self, tenant: Tenant, newcomer: Tenant) -> None:
        _log.info("model evicted", model=tenant.name, busy=tenant.in_use, newcomer=newcomer.name)
        tenant.evict(newcomer.name)

    def _idle(self, newcomer: Tenant) -> list[Tenant]:
        """Idle models other than the newcomer, least recently used first."""
        idle = [other for other in self._others(newcomer) if not other.in_use]
        return sorted(idle, key=lambda other: other.last_used)

    def _others(self, newcomer: Tenant) -> Iterable[Tenant]:
        return [other for other in self._tenants.values() if other is not newcomer and other.evictable]

    def _leaving(self) -> int:
        """Bytes of models that are on their way out."""
        return sum(other.memory_needed for other in self._tenants.values() if other.leaving)

    def _too_large(self, tenant: Tenant) -> str:
        return (
            f"the model {tenant.name} takes about {_mib(tenant.memory_needed)} MiB, more than "
            f"METALSCRIBE_MEMORY_BUDGET_MB={_mib(self.limit)} allows to all models together"
        )


def _mib(size: int) -> int:
    return round(size / MIB)
