"""Who may be in memory: the budget with models that are only numbers, and with a clock that stands still."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalscribe.engine.budget import MemoryBudget, TooLarge

MIB = 2**20


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Tenant:
    """A model that is ready as soon as it may be, and leaves when it is told to and nobody uses it."""

    name: str
    memory_needed: int
    budget: MemoryBudget
    in_use: bool = False
    last_used: float = 0.0
    ready_since: float = 0.0
    loaded: bool = False
    leaving: bool = False
    details: list[str] = field(default_factory=list)
    evictions: int = 0

    @property
    def evictable(self) -> bool:
        return self.loaded and not self.leaving

    def explain(self, detail: str) -> None:
        self.details.append(detail)

    def evict(self, newcomer: str) -> None:
        assert self.evictable
        self.leaving = True
        self.evictions += 1
        self.end_if_unused()

    def end_if_unused(self) -> None:
        if self.leaving and not self.in_use:
            self.loaded = self.leaving = False
            self.budget.leave(self)

    async def load(self) -> None:
        await self.budget.enter(self)
        self.loaded = True

    def release(self) -> None:
        self.in_use = False
        self.end_if_unused()
        self.budget.changed()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def budget_of(mib: int, clock: Clock | None = None, patience: float = 1e9) -> MemoryBudget:
    return MemoryBudget(mib * MIB, clock=clock or Clock(), patience=patience)


async def test_the_least_recently_used_idle_ones_go_and_no_more_than_must() -> None:
    budget = budget_of(100)
    models = [Tenant(name, 30 * MIB, budget, last_used=used) for name, used in (("a", 2), ("b", 1), ("c", 3))]
    for model in models:
        await model.load()
    await Tenant("d", 30 * MIB, budget, last_used=4).load()
    assert [model.loaded for model in models] == [True, False, True]
    await Tenant("e", 40 * MIB, budget).load()
    assert [model.loaded for model in models] == [False, False, True]
    assert budget.taken == 100 * MIB


async def test_one_that_grows_sends_idle_ones_away_and_no_more_than_must() -> None:
    budget = budget_of(100)
    models = [Tenant(name, 30 * MIB, budget, last_used=used) for name, used in (("a", 2), ("b", 1), ("c", 3))]
    for model in models:
        await model.load()
    models[0].in_use = True
    models[0].memory_needed = 40 * MIB
    budget.grown(models[0])
    assert [model.loaded for model in models] == [True, True, True]
    models[0].memory_needed = 60 * MIB
    budget.grown(models[0])
    assert [model.loaded for model in models] == [True, False, True]


async def test_a_newcomer_waits_for_the_busy_and_says_so() -> None:
    budget = budget_of(100)
    busy = Tenant("busy", 80 * MIB, budget, in_use=True)
    await busy.load()
    newcomer = Tenant("newcomer", 50 * MIB, budget)
    loading = asyncio.create_task(newcomer.load())
    await turns()
    assert not loading.done()
    assert not busy.leaving
    assert "takes about 50 MiB, and of the 100 MiB for all models 80 are taken by busy" in newcomer.details[-1]
    busy.release()
    await loading
    assert not busy.loaded


async def test_nobody_overtakes() -> None:
    budget = budget_of(100)
    busy = Tenant("busy", 80 * MIB, budget, in_use=True)
    await busy.load()
    large, small = Tenant("large", 100 * MIB, budget), Tenant("small", 10 * MIB, budget)
    waiting = [asyncio.create_task(model.load()) for model in (large, small)]
    await turns()
    assert small.details == ["waiting for memory behind large"]
    busy.release()
    await waiting[0]
    assert not waiting[1].done() or large.evictions
    await waiting[1]


async def test_after_its_patience_the_longest_loaded_busy_one_is_told_to_go() -> None:
    clock = Clock()
    budget = budget_of(100, clock, patience=0.001)
    old = Tenant("old", 40 * MIB, budget, in_use=True, ready_since=1)
    young = Tenant("young", 60 * MIB, budget, in_use=True, ready_since=2)
    for model in (young, old):
        await model.load()
    newcomer = Tenant("newcomer", 40 * MIB, budget)
    loading = asyncio.create_task(newcomer.load())
    await turns()
    assert not old.leaving
    clock.now = 1
    budget.changed()
    await turns()
    assert (old.leaving, young.leaving, loading.done()) == (True, False, False)
    old.release()
    await loading
    assert young.loaded


async def test_one_that_can_never_fit() -> None:
    with pytest.raises(
        TooLarge, match=r"the model huge takes about 101 MiB, more than METALSCRIBE_MEMORY_BUDGET_MB=100"
    ):
        await Tenant("huge", 101 * MIB, budget_of(100)).load()


async def test_who_gives_up_lets_the_next_one_in() -> None:
    budget = budget_of(100)
    busy = Tenant("busy", 60 * MIB, budget, in_use=True)
    await busy.load()
    first = asyncio.create_task(Tenant("first", 100 * MIB, budget).load())
    second = asyncio.create_task(Tenant("second", 40 * MIB, budget).load())
    await turns()
    first.cancel()
    await second
    assert busy.loaded


async def test_one_that_takes_more_than_was_thought_pushes_an_idle_one_out() -> None:
    budget = budget_of(100)
    idle, grown = Tenant("idle", 50 * MIB, budget), Tenant("grown", 40 * MIB, budget, in_use=True)
    for model in (idle, grown):
        await model.load()
    grown.memory_needed = 60 * MIB
    budget.rebalance(grown)
    assert not idle.loaded
    grown.memory_needed = 101 * MIB
    with pytest.raises(TooLarge):
        budget.rebalance(grown)


async def test_without_a_bound_everybody_comes_in_and_the_machine_may_still_ask_one_to_go() -> None:
    budget = MemoryBudget(0, clock=Clock())
    models = [Tenant(str(number), 10**12, budget, last_used=-number) for number in range(3)]
    for model in models:
        await model.load()
    models[2].in_use = True
    assert await budget.relieve(Tenant("newcomer", 1, budget))
    assert [model.loaded for model in models] == [True, False, True]
    assert await budget.relieve(models[0]) is False, "neither itself nor a busy one"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(100, 150), st.integers(0, 2**32))
def test_never_too_much_and_everybody_gets_in(sizes: list[int], limit: int, seed: int) -> None:
    async def run() -> None:
        dice = random.Random(seed)
        clock = Clock()
        budget = budget_of(limit, clock, patience=5)
        models = [Tenant(str(number), size * MIB, budget) for number, size in enumerate(sizes)]
        served = dict.fromkeys(models, 0)

        async def work(model: Tenant) -> None:
            for _ in range(3):
                if not model.loaded or model.leaving:
                    while model.leaving:
                        await asyncio.sleep(0)
                    await model.load()
                    model.ready_since = clock.now
                assert budget.taken <= limit * MIB
                model.in_use = True
                served[model] += 1
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                clock.now += dice.random() * 5
                model.last_used = clock.now
                model.release()

        async with asyncio.timeout(20):
            await asyncio.gather(*map(work, models))
        assert set(served.values()) == {3}

    asyncio.run(run())
