"""One model's life: when its process is started and ended, and who may count on it.

::

    unloaded ──want──▶ loading ──loaded──▶ ready ──idle, told to unload──▶ unloading ──process gone──▶ unloaded
                        │   ▲                │                                ▲
         out of memory, │   │ poll interval, └─process died─▶ unloaded        │ told to unload
         or failure     ▼   │ load order                                      │
                 waiting_for_gpu, failed ─────────────────────────────────────┘ (also from loading)

- A request takes a *lease* (:meth:`ModelLifecycle.lease`) before it does anything, and gives it back at its end. A lease wants
  the model; idle time counts from when the last one was given back.
- *Told to unload* while ready: no further lease is given; requests that have one finish first, then the process is ended. A
  request that comes meanwhile waits, and loads the model again once it is unloaded.
- *Told to unload* while loading, waiting or failed: the attempt is called off at once. Requests that were waiting for it are
  not lost: they load the model again, immediately.
- *Unload by force*, in any state: leases are revoked (their requests end with ModelUnloaded), the process is ended at once.
- Unloading twice is unloading once: both callers wait for the same end. Loading twice is loading once; loading while
  unloading loads afterwards, loading while waiting or failed tries again at once.
- A process that dies, hangs (no heartbeat) or is killed leaves the model unloaded; leases load it again.

One task (:meth:`ModelLifecycle._live`) sees a life through from loading to unloaded. It alone starts and ends processes; others
tell it what is wanted through ``_stop``, and never cancel it.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
import structlog

from metalscribe.channel import ChannelClosed
from metalscribe.engine.budget import MemoryBudget, TooLarge
from metalscribe.engine.interface import LifecycleCounters, ModelState
from metalscribe.engine.memory import MemoryGauge, estimate, resident
from metalscribe.engine.messages import FromModel, Heartbeat, Loaded, LoadFailed
from metalscribe.engine.process import ModelProcess, ModelProcessOptions
from metalscribe.errors import ModelUnavailable, ModelUnloaded, ShuttingDown, TryLater

__all__ = ["Lease", "ModelLifecycle", "ModelProcessOptions", "Surroundings"]

_SILENCE_SECONDS: Final = 20.0
"""A process that sends no heartbeat for so long is stuck (stopped, swapping, its interpreter blocked)."""

_LOADING_SECONDS: Final = 1800.0
"""No model takes so long to load or to unload, be it from a network drive."""

_CLOSING: Final = "the service is shutting down; send the request again in a moment"

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")


def _nobody(model: str, state: ModelState, detail: str) -> None:
    """Who listens where nobody does."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a model shares with the others.

    Attributes:
        on_event: told of every change of state: model, state, detail.
        clock: in seconds, monotonic.
    """

    gauge: MemoryGauge = field(default_factory=MemoryGauge)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(0, clock=time.monotonic))
    on_event: Callable[[str, ModelState, str], None] = _nobody
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True, eq=False)
class Lease:
    """A request's hold on a model.

    Attributes:
        on_revoked: called when it is taken away.
        revoked: why it was, None while it holds.
    """

    on_revoked: Callable[[], object] = field(default=lambda: None)
    revoked: TryLater | None = field(default=None)


class _Stopped(Exception):
    """This life is to end."""


class ModelLifecycle:
    """A model and its state; a :class:`metalscribe.engine.budget.Tenant`.

    Args:
        on_message: called with what the loaded model says.
        on_change: called after every change of :attr:`state` or :attr:`serving`; when a process that served is lost, what
            was inside has to be given to the next one.
        busy: whether there is work beside that of leases; an idle model is unloaded, a busy one is not.
        load_timeout_secs: a process that takes longer to load is killed.

    Attributes:
        state, detail: where it is in its life and, where there is something to tell, why.
        last_error: why it last failed to load or died; empty where it never did.
        loaded: what the process said when it was ready, of the latest one that ever was.
        serving: there is a process that takes batches; so in ``ready``, and in ``unloading`` while leases are waited for.
        memory: bytes that the process took when it was measured last; None while there is none.
    """

    def __init__(
        self,
        options: ModelProcessOptions,
        *,
        on_message: Callable[[FromModel], None],
        on_change: Callable[[ModelState], None],
        busy: Callable[[], bool],
        load_timeout_secs: float = 600.0,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._options = options
        self._load_timeout = load_timeout_secs
        self._on_message = on_message
        self._on_change = on_change
        self._busy = busy
        self._around = surroundings or Surroundings()
        self.name = options.name
        self.state = ModelState.UNLOADED
        self.detail = ""
        self.last_error = ""
        self.loaded: Loaded | None = None
        self.serving = False
        self.counters = LifecycleCounters()
        self.memory: int | None = None
        self.memory_estimate = estimate(options.path, options.compute_type)
        self._memory_when_loaded = self._memory_most = 0
        self._baseline: int | None = None
        self._leases: set[Lease] = set()
        self._process: ModelProcess | None = None
        self._life: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._retry = asyncio.Event()
        self._again = False
        self._closed: TryLater | None = None
        self._killed = ""
        self._has_served = False
        self._changed = asyncio.Event()
        self._last_sign = 0.0
        self._since: float | None = None  # when a process was begun to be loaded or ended
        self.last_used = 0.0
        self.ready_since = 0.0

    # --- what callers want ---

    @asynccontextmanager
    async def lease(self, patience: float) -> AsyncIterator[Lease]:
        """Hold the model; loads it unless that is under way or done.

        Entering waits while the model is being unloaded, not for it to be loaded: a recording can be decoded meanwhile.

        Args:
            patience: seconds to wait for the end of an unloading.

        Raises:
            ModelUnavailable: that took longer.
            ShuttingDown: the model is closed.
        """
        await self._not_unloading(patience)
        lease = Lease()
        self._leases.add(lease)
        self.want()
        try:
            yield lease
        finally:
            self._leases.discard(lease)
            self.worked()
            if not self.in_use:
                self._drained()
                self._around.budget.changed()

    def want(self) -> None:
        """Load the model unless that is under way or done; a load that fails is tried again and again."""
        if self._closed is not None:
            return
        if self.state is ModelState.UNLOADING:
            self._again = True
        elif self._life is None:
            self._stop.clear()
            self._again = False
            self._change(ModelState.LOADING)
            # A context of its own: the model outlives the request that wanted it, and its log lines shall not name that one.
            self._life = asyncio.create_task(self._live(), name="model", context=contextvars.Context())

    def load(self) -> None:
        """An order to load: like :meth:`want`, and does not wait for the next attempt where one has failed.

        Idle time counts from now.
        """
        self.worked()
        self._retry.set()
        self.want()

    async def unload(self, *, force: bool = False) -> None:
        """End the process and with it free all of its memory; no-op where there is none.

        Args:
            force: do not wait for requests; they end with ModelUnloaded.
        """
        self._again = False  # the last word counts
        life = self._life
        if life is None:
            return
        self._begin_unloading("by force" if force else "by order", at_once=force)
        if force:
            self._revoke(ModelUnloaded(f"the model {self.name} was unloaded by force; send the request again"))
        await asyncio.wait({life})

    def evict(self, newcomer: str) -> None:
        """Make room for another model: no further leases; when the last is given back, the process ends."""
        if self.state is ModelState.READY:
            self.counters.evictions += 1
            self._begin_unloading(f"to make room for {newcomer}")

    async def close(self) -> None:
        """End everything for good; whoever holds or waits for the model gets ShuttingDown."""
        self._closed = ShuttingDown(_CLOSING, retry_after=10.0)
        self._wake()
        self._revoke(self._closed)
        if self._life is not None:
            self._begin_unloading("the service stops", at_once=True)
            await asyncio.wait({self._life})

    # --- what the dispatcher does with it ---

    async def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Say something to the model.

        Raises:
            ChannelClosed: it is not there.
        """
        if self._process is None or not self.serving:  # one that is still loading does not listen
            raise ChannelClosed
        await self._process.send(message, descriptors)

    def worked(self) -> None:
        """Idle time counts from now."""
        self.last_used = self._around.clock()

    def kill(self, reason: str) -> None:
        """End a process that hangs; leases have a new one started."""
        if self._process is not None:
            _log.error("model process killed", model=self.name, reason=reason)
            self._killed = reason
            self._process.kill()

    # --- what others see ---

    @property
    def requests(self) -> int:
        """Leases given."""
        return len(self._leases)

    @property
    def in_use(self) -> bool:
        """Whether somebody holds the model, or it has work."""
        return bool(self._leases) or self._busy()

    @property
    def evictable(self) -> bool:
        """Whether it is ready, so that it can be told to go."""
        return self.state is ModelState.READY

    @property
    def leaving(self) -> bool:
        """Whether it was told to go already."""
        return self.state is ModelState.UNLOADING

    @property
    def memory_needed(self) -> int:
        """Bytes that it takes now, or will take: as measured after it was last loaded, and no less than estimated.

        What was measured right after loading grows with the first long recordings: the most that it ever took counts, as far
        as that is within the budget. Beyond, it has the budget to itself.
        """
        budget = self._around.budget
        return max(self._memory_when_loaded, self.memory_estimate, min(self._memory_most, budget.limit or sys.maxsize))

    @property
    def idle_seconds_left(self) -> float | None:
        """Seconds until it is unloaded for want of work; None while it works, is not loaded, or is kept."""
        timeout = self._options.idle_timeout_secs
        if self.state is not ModelState.READY or timeout <= 0 or self.in_use:
            return None
        return max(0.0, timeout - (self._around.clock() - self.last_used))

    def explain(self, detail: str) -> None:
        """Say why it is not loading yet."""
        if self.state in {ModelState.LOADING, ModelState.WAITING_FOR_GPU}:
            self._change(self.state, detail)

    async def measure(self) -> None:
        """Measure how much memory the process takes now; None where there is none, or that is not known."""
        process, loaded = self._process, self.loaded
        if process is None or loaded is None or not self.serving:
            return
        used = await self._around.gauge.used(process.pid, loaded.device, self._baseline)
        if used is not None and self._process is process:
            self._measured(used)

    def _measured(self, used: int) -> None:
        self.memory = used
        if used > self._memory_most:
            self._memory_most = used
            self._around.budget.grown(self)

    async def settled(self, patience: float) -> None:
        """Wait until the model is not loading any more, for ``patience`` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self.state is ModelState.LOADING:
                    await self._changed.wait()

    def stuck(self) -> str | None:
        """What should have ended long ago and has not, None while all is well."""
        now = self._around.clock()
        since = self._since
        if since is not None and now - since > _LOADING_SECONDS:
            return f"the model {self.name} has been {self.state} for {now - since:.0f} s"
        if self.serving and now - self._last_sign > 4 * _SILENCE_SECONDS:
            return f"the process of the model {self.name} was silent for {now - self._last_sign:.0f} s and could not be ended"
        return None

    # --- leases and the end ---

    async def _not_unloading(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                while self.state is ModelState.UNLOADING and self._closed is None:
                    await self._changed.wait()
        except TimeoutError:
            raise ModelUnavailable(
                f"the model {self.name} is being unloaded ({self.detail}), and was not within {patience:g} s",
                retry_after=30.0,
            ) from None
        if self._closed is not None:
            raise self._closed

    def _begin_unloading(self, reason: str, *, at_once: bool = False) -> None:
        """Give no further leases; end the life now, or when the last lease is given back."""
        if self.state is ModelState.UNLOADING:
            if at_once:
                self._end_life()
        elif self.serving and self.in_use and not at_once:
            self._change(ModelState.UNLOADING, f"{reason}; requests that finish first: {self.requests}")
        else:
            self.serving = False
            self._change(ModelState.UNLOADING, reason)
            self._end_life()

    def _drained(self) -> None:
        """Nobody holds the model any more: if that was waited for, the life ends."""
        if self.state is ModelState.UNLOADING:
            self._end_life()

    def _end_life(self) -> None:
        self._stop.set()
        if self.serving:
            self.serving = False
            self._on_change(self.state)
        if self._process is not None:
            self._process.hang_up()  # wakes whoever waits for its next message

    def _revoke(self, error: TryLater) -> None:
        leases, self._leases = self._leases, set()
        for lease in leases:
            lease.revoked = error
            lease.on_revoked()

    # --- one life ---

    async def _live(self) -> None:
        detail = ""
        try:
            await self._bring_up()
            detail = await self._serve()
        except _Stopped:
            pass  # nothing to tell: whoever stopped it knows
        except Exception as error:  # noqa: BLE001  (a defect must neither pass in silence nor leave anybody waiting)
            _log.exception("model lifecycle failed", model=self.name)
            detail = self.last_error = f"an unexpected error, which the log tells ({type(error).__name__})"
        finally:
            self.serving = False
            await self._end_process()
            self._life = None
            if self.state is ModelState.UNLOADING:
                _log.info("model unloaded", model=self.name, reason=self.detail)
                self.counters.unloads += 1
            self._change(ModelState.UNLOADED, detail)
            if self._again or self._leases:
                self.want()

    async def _bring_up(self) -> None:
        """Try to load until that succeeds.

        Raises:
            _Stopped: it is not wanted any more.
        """
        while (failure := await self._attempt()) is not None:
            self.counters.load_failures += 1
            self.last_error = failure.detail
            _log.error("model failed to load", model=self.name, reason=failure.detail)
            if failure.out_of_memory and await self._unless_stopped(self._around.budget.relieve(self)):
                continue
            self._retry.clear()
            self._change(ModelState.WAITING_FOR_GPU if failure.out_of_memory else ModelState.FAILED, failure.detail)
            # Whatever it was, it may be over by then: memory given back, a driver reloaded, a model mended.
            await self._unless_stopped(self._pause(self._options.gpu_poll_interval_secs))
            if self.state is ModelState.FAILED:
                self._change(ModelState.LOADING)
        self.counters.loads += 1
        self._last_sign = self.ready_since = self._around.clock()
        self.worked()
        self.serving = self._has_served = True
        self._change(ModelState.READY)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._retry.wait()

    async def _attempt(self) -> LoadFailed | None:
        """Load once; returns what went wrong, and has ended the process then.

        Raises:
            _Stopped: it is not wanted any more.
        """
        self._killed = ""
        try:
            await self._unless_stopped(self._around.budget.enter(self))
            if self.state is ModelState.LOADING:
                self._change(ModelState.LOADING)  # and no longer waiting for memory
            failure = await self._load()
        except TooLarge as error:
            failure = LoadFailed(str(error), out_of_memory=False)
        except OSError as error:
            failure = LoadFailed(
                f"the model's process could not be started: {error.strerror or error}",
                out_of_memory=error.errno in {errno.ENOMEM, errno.EAGAIN},
            )
        except (ChannelClosed, msgspec.DecodeError):
            status = await self._end_process()
            failure = LoadFailed(
                self._killed or f"the model's process died while loading ({status})", out_of_memory=False
            )
        if self._stop.is_set():
            raise _Stopped
        if failure is not None:
            await self._end_process()
        return failure

    async def _load(self) -> LoadFailed | None:
        gauge = self._around.gauge
        self._baseline = None
        if self._options.device != "cpu":
            self._baseline = await self._unless_stopped(gauge.card_used())
        self._since = self._around.clock()
        # Not given up when told to stop: a process that is half started could not be ended.
        process = self._process = await ModelProcess.start(self._options)
        if self._stop.is_set():
            raise _Stopped
        reason = f"it was not ready within {self._load_timeout:g} s"
        deadline = asyncio.get_running_loop().call_later(self._load_timeout, self.kill, reason)
        try:
            while not isinstance(message := await process.receive(), Loaded):
                if isinstance(message, LoadFailed):
                    return message
        finally:
            deadline.cancel()
        self._since = None
        self.loaded = message
        _log.info(
            "model loaded",
            model=self.name,
            device=message.device,
            compute_type=message.compute_type,
            load_seconds=round(message.load_seconds, 3),
        )
        # Now and not later: batches add to it, and what they take is not what the model needs to be loaded.
        self.memory = await self._unless_stopped(gauge.used(process.pid, message.device, self._baseline))
        self._memory_when_loaded = self.memory or 0
        self._memory_most = max(self._memory_most, self._memory_when_loaded)
        self._around.budget.rebalance(self)
        return None

    async def _serve(self) -> str:
        """Pass on what the process says until it is gone; returns why, where that was not by order."""
        process = self._process
        if process is None:
            raise _Stopped
        watch = asyncio.create_task(self._watch(), name="model watch")
        try:
            while True:
                message = await process.receive()
                self._last_sign = self._around.clock()
                if isinstance(message, Heartbeat):
                    self._tend()
                else:
                    self._on_message(message)
        except (ChannelClosed, msgspec.DecodeError):
            if self._stop.is_set():
                return ""
            self.serving = False
            status = await self._end_process()
            self.counters.deaths += 1
            self.last_error = f"the model's process died ({self._killed or status})"
            _log.error("model process died", model=self.name, status=status, reason=self._killed or None)
            return self.last_error
        finally:
            watch.cancel()

    def _tend(self) -> None:
        """Once a second: has it grown, is it idle?"""
        if self._process is not None and self.loaded is not None and self.loaded.device == "cpu":
            self._measured(resident(self._process.pid) or self.memory or 0)
        if self.in_use:
            self.worked()
        elif self.state is ModelState.UNLOADING:
            self._drained()
        elif self.idle_seconds_left == 0:
            self._begin_unloading(f"idle for {self._options.idle_timeout_secs:g} s")

    async def _watch(self) -> None:
        """Kill the process when its heartbeat stops; a clock that jumps (suspend) costs one extra round."""
        while True:
            seen = self._last_sign
            await asyncio.sleep(_SILENCE_SECONDS)
            if self._last_sign == seen:
                self.kill(f"no heartbeat for {_SILENCE_SECONDS:g} s")

    async def _end_process(self) -> str:
        """End the process and give its memory back to the budget; returns the exit status in words."""
        process, self._process = self._process, None
        status = "no status"
        if process is not None:
            self._since = self._around.clock()
            # One that is still loading does not notice that it was hung up on; one that has served ends itself.
            status = await process.end(at_once=self._stop.is_set() and not self._has_served)
        self._since = None
        self.memory = None
        self._has_served = False
        self._around.budget.leave(self)
        return status

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do work; leave off when this life is to end.

        Raises:
            _Stopped: it is.
        """
        task = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                raise _Stopped
            return task.result()
        finally:
            task.cancel()
            stopping.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)

    def _change(self, state: ModelState, detail: str = "") -> None:
        if (state, detail) == (self.state, self.detail):
            return
        news = state is not self.state
        self.state, self.detail = state, detail
        self._wake()
        self._on_change(state)
        if news:
            self._around.on_event(self.name, state, detail)
            self._around.budget.changed()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
