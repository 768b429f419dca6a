"""The model's state machine, with a process that does what its script says (scripted/scripted_model.py)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from scripts import FOLDER, Script

from common import Eventually
from metalscribe.engine import lifecycle
from metalscribe.engine.budget import MemoryBudget
from metalscribe.engine.interface import ModelState
from metalscribe.engine.lifecycle import ModelLifecycle, Surroundings
from metalscribe.engine.memory import MemoryGauge
from metalscribe.errors import ModelUnavailable, ModelUnloaded, ShuttingDown

pytestmark = pytest.mark.timeout(60)

PATIENCE = 30.0
LONG = 3600.0
U, L, R, X, W, F = (
    ModelState.UNLOADED,
    ModelState.LOADING,
    ModelState.READY,
    ModelState.UNLOADING,
    ModelState.WAITING_FOR_GPU,
    ModelState.FAILED,
)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model(ModelLifecycle):
    """A model and what became of it."""

    def __init__(
        self, script: Script, surroundings: Surroundings, load_timeout_secs: float, options: dict[str, object]
    ):
        self.script = script
        self.history = [U]
        super().__init__(
            script.options(**options),
            on_message=lambda _: None,
            on_change=self._changed_to,
            busy=lambda: False,
            load_timeout_secs=load_timeout_secs,
            surroundings=surroundings,
        )

    def _changed_to(self, state: ModelState) -> None:
        if state is not self.history[-1]:
            self.history.append(state)

    @property
    def process(self) -> psutil.Process | None:
        return psutil.Process(self._process.pid) if self._process is not None else None

    async def becomes(self, *states: ModelState) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.state not in states:
                await self._changed.wait()

    async def explains(self, pattern: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not re.search(pattern, self.detail):
                await self._changed.wait()


Make = Callable[..., Model]


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock) -> AsyncIterator[Make]:
    """Make a model with a script; closed, and its process gone, at the end."""
    made: list[Model] = []

    def make_one(
        *loads: str,
        name: str = "scripted",
        budget: MemoryBudget | None = None,
        load_timeout_secs: float = LONG,
        **options: object,
    ) -> Model:
        surroundings = Surroundings(MemoryGauge(), budget or MemoryBudget(0, clock=clock), clock=clock)
        options = {"gpu_poll_interval_secs": LONG, **options}
        made.append(Model(Script(tmp_path / name, loads), surroundings, load_timeout_secs, options))
        return made[-1]

    yield make_one
    for model in made:
        await model.close()
        assert model.state is U
    assert not psutil.Process().children()


@asynccontextmanager
async def held(model: Model) -> AsyncIterator[None]:
    """A request that holds the ready model."""
    async with model.lease(PATIENCE):
        await model.becomes(R)
        yield


async def leasing(model: Model) -> None:
    async with model.lease(PATIENCE):
        await model.becomes(R)


# --- loading ----------------------------------------------------------------------------------------------------------


async def test_the_first_request_loads_it(make: Make) -> None:
    model = make()
    assert (model.state, model.process) == (U, None)
    async with held(model):
        assert model.history == [U, L, R]
        assert model.counters.loads == 1
        assert model.memory
        assert model.in_use
    assert not model.in_use
    assert model.state is R


async def test_loading_twice_is_loading_once(make: Make) -> None:
    model = make("hold")
    model.load()
    model.load()
    model.script.release()
    await model.becomes(R)
    model.load()
    assert model.state is R
    assert model.script.count("loads") == 1


async def test_out_of_memory_is_tried_again_for_as_long_as_it_takes(make: Make) -> None:
    model = make(*["oom"] * 5, gpu_poll_interval_secs=0.01)
    async with held(model):
        assert model.history == [U, L, W, R]
        assert model.counters.load_failures == 5
        assert "out of memory" in model.last_error
        assert model.detail == ""


@pytest.mark.parametrize("trouble", ["oom", "fail", "die"])
async def test_an_order_to_load_does_not_wait_for_the_next_attempt(make: Make, trouble: str) -> None:
    model = make(trouble)
    model.load()
    await model.becomes(W, F)
    assert model.state is (W if trouble == "oom" else F)
    assert model.detail == model.last_error
    model.load()
    await model.becomes(R)


async def test_a_process_that_cannot_be_started(make: Make) -> None:
    model = make(worker="no_such_module")
    model.load()
    await model.becomes(F)
    assert "died while loading (status 1)" in model.detail


async def test_a_load_that_takes_too_long_is_ended(make: Make) -> None:
    model = make("hang", load_timeout_secs=0.5)
    model.load()
    await model.becomes(F)
    assert model.detail == "it was not ready within 0.5 s"
    assert model.process is None


# --- unloading --------------------------------------------------------------------------------------------------------


async def test_unloading_ends_the_process_and_with_it_its_memory(make: Make, clock: Clock) -> None:
    model = make()
    model.load()
    await model.becomes(R)
    process = model.process
    assert process is not None
    await model.unload()
    assert (model.state, model.process, model.memory) == (U, None, None)
    assert not process.is_running()
    assert model.history == [U, L, R, X, U]
    assert model.counters.unloads == 1
    await model.unload()
    assert model.history == [U, L, R, X, U]


async def test_unloading_waits_for_requests_and_those_that_come_meanwhile_load_it_again(make: Make) -> None:
    model = make()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(held(model))
        first = model.process
        orders = [asyncio.create_task(model.unload()) for _ in range(2)]
        await model.becomes(X)
        late = asyncio.create_task(leasing(model))
        assert model.serving, "the request under way is to be finished"
        assert "finish first: 1" in model.detail
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in (*orders, late))
        assert model.process == first
    await asyncio.gather(*orders, late)
    assert model.history == [U, L, R, X, U, L, R]
    assert model.process not in {None, first}


async def test_loading_while_unloading_loads_afterwards(make: Make) -> None:
    model = make()
    async with held(model):
        order = asyncio.create_task(model.unload())
        await model.becomes(X)
        model.load()
        assert model.state is X
    await order
    await model.becomes(R)
    assert model.history == [U, L, R, X, U, L, R]


async def test_the_last_order_counts(make: Make) -> None:
    model = make()
    async with held(model):
        first = asyncio.create_task(model.unload())
        await model.becomes(X)
        model.load()
        second = asyncio.create_task(model.unload())
        await asyncio.sleep(0)
    await asyncio.gather(first, second)
    assert model.state is U
    assert model.script.count("loads") == 1


@pytest.mark.parametrize("script", ["hang", "oom", "fail"])
async def test_unloading_calls_an_attempt_off(make: Make, script: str, eventually: Eventually) -> None:
    model = make(script)
    model.load()
    await model.becomes({"hang": L, "oom": W, "fail": F}[script])
    await eventually(lambda: model.script.count("loads") == 1)
    process = model.process
    await model.unload()
    assert (model.state, model.process) == (U, None)
    assert process is None or not process.is_running()
    model.load()
    await model.becomes(R)
    assert model.script.count("loads") == 2


async def test_a_request_that_waited_for_the_attempt_loads_it_again(make: Make) -> None:
    model = make("oom")
    async with model.lease(PATIENCE):
        await model.becomes(W)
        await model.unload()
        assert model.state is L
        await model.becomes(R)
    assert model.history == [U, L, W, X, U, L, R]


@pytest.mark.parametrize("script", ["ok", "hang", "oom", "fail"])
async def test_force_ends_requests_in_any_state(make: Make, script: str, eventually: Eventually) -> None:
    model = make(script)
    revoked = asyncio.Event()
    async with model.lease(PATIENCE) as lease:
        lease.on_revoked = revoked.set
        await model.becomes({"ok": R, "hang": L, "oom": W, "fail": F}[script])
        await eventually(lambda: model.script.count("loads") == 1)
        await model.unload(force=True)
        assert revoked.is_set()
        assert isinstance(lease.revoked, ModelUnloaded)
        assert model.state is U
        assert not model.in_use
    assert model.state is U
    await leasing(model)


async def test_force_overtakes_an_order_that_waits(make: Make) -> None:
    model = make()
    async with held(model):
        patient = asyncio.create_task(model.unload())
        await model.becomes(X)
        late = asyncio.create_task(leasing(model))
        await asyncio.sleep(0)
        await model.unload(force=True)
        await patient
        assert not model.serving
    await late  # it came while the model was being unloaded: not cancelled, but served by the next process
    assert model.history == [U, L, R, X, U, L, R]


async def test_a_caller_who_leaves_does_not_call_his_order_off(make: Make) -> None:
    model = make()
    async with held(model):
        order = asyncio.create_task(model.unload())
        await model.becomes(X)
        order.cancel()
        await asyncio.wait({order})
    await model.becomes(U)


async def test_who_waits_too_long_for_the_end_of_an_unloading_is_told(make: Make) -> None:
    model = make()
    async with held(model):
        order = asyncio.create_task(model.unload())
        await model.becomes(X)
        with pytest.raises(ModelUnavailable, match="is being unloaded"):
            async with model.lease(0.01):
                pytest.fail("a lease of a model that is being unloaded")
    await order


# --- idleness ---------------------------------------------------------------------------------------------------------


async def test_idle_time_counts_from_the_end_of_the_last_work(make: Make, clock: Clock) -> None:
    model = make(idle_timeout_secs=100.0)
    beats = 0

    def tend() -> None:
        nonlocal beats
        beats += 1
        ModelLifecycle._tend(model)

    model._tend = tend  # type: ignore[method-assign]

    async def some_beats() -> None:
        async with asyncio.timeout(PATIENCE):
            before = beats
            while beats < before + 3 and model.state is R:
                await asyncio.sleep(0.001)

    async with held(model):
        clock.now += 1000
        await some_beats()
        assert model.idle_seconds_left is None
    assert model.idle_seconds_left == 100
    clock.now += 99
    await some_beats()
    assert model.state is R
    assert model.idle_seconds_left == 1
    async with held(model):
        clock.now += 500
    clock.now += 99
    await some_beats()
    assert model.state is R
    clock.now += 1
    await model.becomes(U)
    assert model.history == [U, L, R, X, U]
    assert model.process is None


async def test_an_order_to_load_keeps_it(make: Make, clock: Clock) -> None:
    model = make(idle_timeout_secs=100.0)
    model.load()
    await model.becomes(R)
    clock.now += 99
    model.load()
    assert model.idle_seconds_left == 100


# --- death ------------------------------------------------------------------------------------------------------------


async def test_a_dead_process_is_replaced_for_those_who_need_it(make: Make) -> None:
    model = make()
    async with held(model):
        first = model.process
        assert first is not None
        first.kill()
        await model.becomes(U, L)
        await model.becomes(R)
        assert model.process != first
    assert model.counters.deaths == 1
    assert "SIGKILL" in model.last_error


async def test_a_dead_process_that_nobody_needs_is_not(make: Make) -> None:
    model = make()
    model.load()
    await model.becomes(R)
    assert model.process is not None
    model.process.kill()
    await model.becomes(U)
    assert "SIGKILL" in model.detail
    assert model.script.count("loads") == 1


async def test_a_process_without_a_heartbeat_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_SILENCE_SECONDS", 0.5)
    model = make()
    model.load()
    await model.becomes(R)
    assert model.process is not None
    model.process.suspend()
    await model.becomes(U)
    assert "no heartbeat" in model.detail


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_closing_tells_everybody(make: Make) -> None:
    model = make()
    async with held(model), model.lease(PATIENCE) as second:
        order = asyncio.create_task(model.unload())
        await model.becomes(X)
        late = asyncio.create_task(leasing(model))
        await asyncio.sleep(0)
        await model.close()
        assert isinstance(second.revoked, ShuttingDown)
        with pytest.raises(ShuttingDown):
            await late
        await order
        model.load()
        assert model.state is U


# --- memory -----------------------------------------------------------------------------------------------------------


async def test_a_model_that_finds_no_memory_sends_an_idle_one_away(make: Make, clock: Clock) -> None:
    budget = MemoryBudget(0, clock=clock)
    idle, busy, newcomer = (
        make(name="idle", budget=budget),
        make(name="busy", budget=budget),
        make("oom", budget=budget),
    )
    idle.load()
    await idle.becomes(R)
    async with held(busy), held(newcomer):
        assert (idle.state, busy.state) == (U, R)
        assert idle.counters.evictions == 1
        assert newcomer.history == [U, L, R]


async def test_within_a_budget_for_one_they_take_turns(make: Make, clock: Clock) -> None:
    one, other = make(name="one"), make(name="other")
    budget = MemoryBudget(300 * 2**20, clock=clock, patience=LONG)
    for model in (one, other):
        model._around = Surroundings(MemoryGauge(), budget, clock=clock)
        model.memory_estimate = 200 * 2**20
    one._around.gauge.used = other._around.gauge.used = _two_hundred  # type: ignore[method-assign]
    async with held(one):
        waiting = asyncio.create_task(leasing(other))
        await other.explains("waiting for memory.* 200 are taken by one")
        assert other.state is L
    await waiting
    assert (one.state, other.state) == (U, R)
    assert one.counters.evictions == 1
    waiting = asyncio.create_task(leasing(one))
    await waiting
    assert (one.state, other.state) == (R, U)
    assert budget.taken == 200 * 2**20


async def test_what_a_model_grows_to_counts(make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MemoryBudget(500 * 2**20, clock=clock, patience=LONG)
    idle, busy = make(name="idle", budget=budget), make(name="busy", budget=budget)
    sizes: dict[int, int] = {}
    monkeypatch.setattr(lifecycle, "resident", lambda pid: sizes.get(pid, 200 * 2**20))
    for model in (idle, busy):
        model.memory_estimate = 100 * 2**20
        model._around.gauge.used = _two_hundred  # type: ignore[method-assign]
    await leasing(idle)
    async with held(busy):
        assert busy.process is not None
        assert budget.taken == 400 * 2**20
        sizes[busy.process.pid] = 350 * 2**20
        await idle.becomes(U)
        assert busy.state is R
        assert budget.taken == 350 * 2**20
        sizes[busy.process.pid] = 800 * 2**20
        async with asyncio.timeout(PATIENCE):
            while busy.memory != 800 * 2**20:
                await asyncio.sleep(0.05)
        assert budget.taken == 500 * 2**20, "alone it has all of the budget"
    await busy.unload()
    await leasing(busy)
    assert busy.memory_needed == 500 * 2**20


async def test_a_model_that_turns_out_too_large_is_not_kept(make: Make, clock: Clock) -> None:
    model = make(budget=MemoryBudget(100 * 2**20, clock=clock))
    model._around.gauge.used = _two_hundred  # type: ignore[method-assign]
    model.load()
    await model.becomes(F)
    assert "takes about 200 MiB, more than METALSCRIBE_MEMORY_BUDGET_MB=100" in model.detail
    assert model.process is None
    model.load()
    await model.becomes(L)
    await model.becomes(F)
    assert model.script.count("loads") == 1, "known to be too large, it is not tried again"


async def _two_hundred(pid: int, device: str, baseline: int | None = None) -> int:
    return 200 * 2**20
