"""Between the queue and the model's process: one dispatcher per process owns the order of its work."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from metalscribe.channel import ChannelClosed
from metalscribe.engine.context import FULL_CONTEXT
from metalscribe.engine.interface import ModelState
from metalscribe.engine.lifecycle import ModelLifecycle, ModelProcessOptions, Surroundings
from metalscribe.engine.messages import (
    Batch,
    BatchDone,
    BatchFailed,
    Cancel,
    CloseSource,
    DecodeOptions,
    FromModel,
    OpenSource,
    Prepare,
    Row,
    RowDone,
    Search,
)
from metalscribe.engine.metrics import EngineMetrics, ModelMetrics
from metalscribe.engine.scheduler import BatchLimits, Scheduler, Ticket, WaitingRow
from metalscribe.errors import EngineFailed, ModelUnavailable, ShuttingDown, TryLater
from metalscribe.media.pcm import SAMPLE_RATE

_MAX_ATTEMPTS: Final = 2
_LIMITS: Final = {
    # On a processor a batch is hardly faster than its rows one after another, but it keeps whoever comes next waiting: no
    # longer than one full window. On a GPU rows are nearly free, up to a point.
    "cpu": BatchLimits(rows=8, frames=FULL_CONTEXT, step=100),
    "cuda": BatchLimits(rows=16, frames=16 * FULL_CONTEXT, step=500),
}
_CUDA_DEPTH: Final = 2
"""Batches inside the process: on a GPU the next one's features are on it while this one runs."""

_AHEAD: Final = 8
"""Rows whose features are computed before their batch."""

_FIRST_RATE: Final = 10.0
"""Audio seconds per second that the model is taken to decode before it has shown what it can."""

_OVERDUE_SECONDS: Final = 60.0

_CLOSING: Final = "the service is shutting down; send the request again in a moment"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A decoded row, with how long it waited and its share of its batch's time, in seconds."""

    result: RowDone
    queue_seconds: float
    engine_seconds: float


@dataclass(slots=True, eq=False)
class _Running:
    """A batch inside the process."""

    rows: dict[int, WaitingRow]
    size: int
    context: int
    sent: float
    deadline: float
    seconds: float


@dataclass(slots=True)
class _Source:
    ring: int
    capacity: int
    known_to: object = field(default=None)  # the Loaded message of the process that has mapped it


class Dispatcher:
    """Feeds one model's process with batches of all requests' rows.

    Args:
        options: of the process.
        batch_size: rows per batch at most; 0 chooses by device.
        load_timeout_secs: how long rows wait for the model.
        surroundings: what the model shares with others.
        metrics: where to count.

    Attributes:
        model: its life. Whoever decodes holds a lease of it: rows alone do not have it loaded.
    """

    def __init__(
        self,
        options: ModelProcessOptions,
        *,
        batch_size: int = 0,
        load_timeout_secs: float = 600.0,
        surroundings: Surroundings | None = None,
        metrics: EngineMetrics | None = None,
    ) -> None:
        self.metrics = ModelMetrics(metrics or EngineMetrics(), options.name)
        self._batch_size = batch_size
        self._shrunk: BatchLimits | None = None
        self._load_timeout = load_timeout_secs
        self._scheduler = Scheduler(time.monotonic)
        self._ids = itertools.count(1)
        self._futures: dict[int, asyncio.Future[Outcome]] = {}
        self._running: dict[int, _Running] = {}
        self._sources: dict[int, _Source] = {}
        self._wake = asyncio.Event()
        self._announced: set[int] = set()
        self._rate = 0.0
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.sessions = 0
        self.model = ModelLifecycle(
            options,
            on_message=self._receive,
            on_change=self._model_changed,
            busy=lambda: self.busy,
            load_timeout_secs=load_timeout_secs,
            surroundings=surroundings,
        )

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self.sessions > 0 or bool(self._futures)

    @property
    def rows_waiting(self) -> int:
        """Rows in the queue."""
        return len(self._scheduler)

    @property
    def rows_running(self) -> int:
        """Rows inside the model's process."""
        return sum(len(batch.rows) for batch in self._running.values())

    @property
    def audio_seconds_waiting(self) -> float:
        """Length of the rows in the queue."""
        return self._scheduler.audio_seconds

    def seconds_to_drain(self) -> float:
        """How long the queue takes at the measured rate."""
        return self.audio_seconds_waiting / (self._rate * self._depth) if self._rate else 5.0

    def stuck(self) -> str | None:
        """What should have happened long ago and has not, None while all is well.

        A process that hangs is killed by the dispatcher itself; this is for what even that does not mend, such as a
        process that the kernel cannot end while a driver holds it.
        """
        now = time.monotonic()
        if any(batch.deadline + _OVERDUE_SECONDS <= now for batch in self._running.values()):
            return "a batch hangs, and its process could not be ended"
        return self.model.stuck()

    def start(self) -> None:
        """Begin dispatching."""
        self._task = asyncio.create_task(self._dispatch(), name="dispatcher")
        self._task.add_done_callback(self._dispatcher_ended)

    async def close(self) -> None:
        """Fail what waits and end the process."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.model.close()
        self._fail_all(ShuttingDown(_CLOSING, retry_after=10.0))
        for source in list(self._sources):
            self._forget_source(source)

    def open_source(self, ring: int, capacity: int) -> int:
        """Make a ring known to the model's process, now and after any restart; returns its id."""
        source = next(self._ids)
        self._sources[source] = _Source(os.dup(ring), capacity)
        return source

    async def close_source(self, source: int) -> None:
        """Forget a ring."""
        if self._forget_source(source):
            try:
                await self.model.send(CloseSource(source))
            except ChannelClosed:
                return  # unmapped with its process

    async def decode(
        self,
        *,
        source: int,
        start: int,
        length: int,
        language: str | None,
        options: DecodeOptions,
        search: Search,
        context: int,
        max_tokens: int,
        align_below: int,
        ticket: Ticket,
    ) -> Outcome:
        """Queue samples [start, start + length) of a source and wait for what they say; cancelling takes them out again.

        Raises:
            ModelUnavailable: the model cannot be loaded.
            ShuttingDown: the dispatcher is closed.
            EngineFailed: the model's process died or failed on this row twice.
        """
        if self._closed:
            raise ShuttingDown(_CLOSING)
        row = Row(next(self._ids), source, start, length, language, options, max_tokens, align_below)
        waiting = WaitingRow(row, search, context, ticket, length / SAMPLE_RATE, time.monotonic())
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._futures[row.row] = future
        self._scheduler.add(waiting)
        self._wake.set()
        try:
            return await future
        finally:
            self._futures.pop(row.row, None)
            if not future.done() or future.cancelled():
                await self._cancel(row.row)

    async def _cancel(self, row: int) -> None:
        self._scheduler.remove([row])
        if row in self._announced or any(row in batch.rows for batch in self._running.values()):
            self._announced.discard(row)
            try:
                await self.model.send(Cancel([row]))
            except ChannelClosed:
                return  # gone with its process

    # --- dispatching ---

    async def _dispatch(self) -> None:
        while True:
            timeout = self._until_next_check()
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that arrives together with the event.
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            self._wake.clear()
            self._kill_if_hung()
            if len(self._scheduler) and not self.model.serving:
                self._wait_for_model()
                continue
            while len(self._scheduler) and len(self._running) < self._depth:
                if not await self._send_batch():
                    break
            await self._announce()

    def _dispatcher_ended(self, task: asyncio.Task[None]) -> None:
        """A defect must neither pass in silence nor leave callers waiting."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("dispatcher failed", exc_info=error)
        for row in list(self._futures):
            self._fail(row, EngineFailed("the engine met an unexpected error, which the log tells"))
        self._scheduler.drain()
        self.start()

    def _until_next_check(self) -> float | None:
        if self._running:
            return max(0.1, min(batch.deadline for batch in self._running.values()) - time.monotonic())
        return 1.0 if len(self._scheduler) else None

    def _wait_for_model(self) -> None:
        if self.model.state is ModelState.FAILED:
            self._fail_all(ModelUnavailable(f"the model could not be loaded: {self.model.detail}", retry_after=30.0))
            return
        late = self._scheduler.take_older_than(self._load_timeout)
        if not late:
            return
        reason = f"the model was not ready within {self._load_timeout:g} s ({self.model.state}: {self.model.detail})"
        for waiting in late:
            self._fail(waiting.row.row, ModelUnavailable(reason, retry_after=30.0))

    async def _send_batch(self) -> bool:
        """Hand the next batch over; False where the process did not take it."""
        rows, context = self._scheduler.take(self.limits, self._rate or _FIRST_RATE)
        batch = next(self._ids)
        now = time.monotonic()
        running = _Running(
            {row.row.row: row for row in rows},
            len(rows),
            context,
            now,
            now + self._patience(len(rows)),
            sum(row.seconds for row in rows),
        )
        self._running[batch] = running
        self.metrics.batch_rows.observe(len(rows))
        for row in rows:
            self.metrics.queue_seconds.observe(now - row.since)
            self.metrics.batch_context_seconds.observe(context / 100)
        self._announced.difference_update(running.rows)
        try:
            for source in {row.row.source for row in rows}:
                await self._introduce(source)
            await self.model.send(Batch(batch, rows[0].search, context, [row.row for row in rows]))
        except ChannelClosed:
            # The process is gone: its end has queued the rows again, or is about to be noticed.
            if self._running.pop(batch, None) is not None:
                self._put_back(running)
            return False
        except ValueError as error:
            # Too large for a message: prompts beyond reason, of one row or of all together.
            self._running.pop(batch, None)
            if len(rows) > 1:
                for row in rows:
                    row.alone = True
                self._put_back(running)
            else:
                self._fail(rows[0].row.row, EngineFailed(f"the request cannot be handed to the model: {error}"))
        return True

    async def _announce(self) -> None:
        """Tell the process which rows are likely to come next, so that it has their features ready."""
        if not self.model.serving:
            return
        soon = [
            waiting
            for waiting in self._scheduler.next(_AHEAD, self._rate or _FIRST_RATE)
            if waiting.row.row not in self._announced and not waiting.alone
        ]
        try:
            for waiting in soon:
                self._announced.add(waiting.row.row)
                await self._introduce(waiting.row.source)
                await self.model.send(Prepare([waiting.row]))
        except ChannelClosed:
            return  # whoever comes next computes its features when it is decoded
        except ValueError:
            return  # too large for a message; said when it is its turn

    async def _introduce(self, source: int) -> None:
        known = self._sources.get(source)
        if known is not None and known.known_to is not self.model.loaded:
            await self.model.send(OpenSource(source, known.capacity), [known.ring])
            known.known_to = self.model.loaded

    @property
    def _device(self) -> str:
        return self.model.loaded.device if self.model.loaded else "cpu"

    @property
    def _depth(self) -> int:
        loaded = self.model.loaded
        return 1 if loaded is None else _CUDA_DEPTH if loaded.device == "cuda" else loaded.parallel

    @property
    def chunks_ahead(self) -> int:
        """How many chunks of one recording may be decoded and wait: what batches want, and some to choose from."""
        limits = self.limits
        return max(6, 2 * min(limits.rows, limits.frames // FULL_CONTEXT))

    @property
    def limits(self) -> BatchLimits:
        """Of a batch, at present."""
        if self._shrunk is not None:
            return self._shrunk
        limits = _LIMITS[self._device]
        if self._batch_size:
            return dataclasses.replace(limits, rows=self._batch_size)
        fitting = self.model.loaded.rows if self.model.loaded else None
        if fitting is None or fitting >= limits.rows:
            return limits
        return dataclasses.replace(limits, rows=fitting, frames=fitting * FULL_CONTEXT)

    def _patience(self, rows: int) -> float:
        """When a batch counts as hung: far beyond what the warm-up says it can take on this machine."""
        warm_up = self.model.loaded.warm_up_seconds if self.model.loaded else 1.0
        return 60.0 + 40.0 * warm_up * rows * (1 + len(self._running))

    def _kill_if_hung(self) -> None:
        now = time.monotonic()
        if any(batch.deadline <= now for batch in self._running.values()):
            self.model.kill("a batch hangs")

    # --- what the process says ---

    def _receive(self, message: FromModel) -> None:
        match message:
            case RowDone(row=row):
                for batch in self._running.values():
                    if (waiting := batch.rows.pop(row, None)) is not None:
                        self._settle(waiting, message, batch)
            case BatchDone(batch=number, model_seconds=model_seconds):
                self.metrics.model_seconds.inc(model_seconds)
                self._batch_done(number)
            case BatchFailed(batch=number, detail=detail, out_of_memory=out_of_memory):
                self._batch_failed(number, detail, out_of_memory=out_of_memory)

    def _settle(self, waiting: WaitingRow, result: RowDone, batch: _Running) -> None:
        future = self._futures.get(result.row)
        if future is not None and not future.done():
            engine_seconds = (time.monotonic() - batch.sent) / batch.size
            future.set_result(Outcome(result, batch.sent - waiting.since, engine_seconds))

    def _batch_done(self, number: int) -> None:
        batch = self._running.pop(number, None)
        if batch is not None:
            took = time.monotonic() - batch.sent
            self.metrics.batch_seconds.observe(took)
            rate = batch.seconds / max(1e-3, took)
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
            self._queue_again(batch, "no answer")  # rows that were cancelled, and no others
        self.model.worked()
        self._wake.set()

    def _batch_failed(self, number: int, detail: str, *, out_of_memory: bool) -> None:
        batch = self._running.pop(number, None)
        if batch is not None:
            if out_of_memory and batch.size > 1:
                rows = batch.size // 2
                self._shrunk = dataclasses.replace(self.limits, rows=rows, frames=rows * batch.context)
                self.metrics.halvings.inc()
                _log.warning("batch size halved", rows=rows, frames=rows * batch.context, reason=detail)
                self._put_back(batch)
            else:
                _log.error("batch failed", rows=batch.size, reason=detail)
                self._queue_again(batch, detail)
        self._wake.set()

    def _model_changed(self, state: ModelState) -> None:
        if not self.model.serving:
            # Whatever was inside a process that is gone has to be decoded by the next one.
            for batch in self._running.values():
                if state is ModelState.UNLOADING:
                    self._put_back(batch)
                else:
                    self._queue_again(batch, self.model.detail)
            self._running.clear()
            self._announced.clear()
        self._wake.set()

    def _put_back(self, batch: _Running) -> None:
        """Queue rows again that are not to blame."""
        for waiting in batch.rows.values():
            if waiting.row.row in self._futures:
                self._scheduler.add(waiting)

    def _queue_again(self, batch: _Running, reason: str) -> None:
        """Queue rows again, one of which may be to blame."""
        for waiting in batch.rows.values():
            waiting.attempts += 1
            waiting.alone = True
            if waiting.attempts >= _MAX_ATTEMPTS:
                self._fail(waiting.row.row, EngineFailed(f"the model failed on this recording twice: {reason}"))
            elif waiting.row.row in self._futures:
                self._scheduler.add(waiting)

    def _fail_all(self, error: TryLater) -> None:
        self._scheduler.drain()
        for row in list(self._futures):
            self._fail(row, error)

    def _fail(self, row: int, error: Exception) -> None:
        future = self._futures.get(row)
        if future is not None and not future.done():
            future.set_exception(error)

    def _forget_source(self, source: int) -> bool:
        known = self._sources.pop(source, None)
        if known is not None:
            os.close(known.ring)
        return known is not None
