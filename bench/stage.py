"""A way in a process of its own, which does the workloads that it is sent.

One process per way keeps their memory apart, and lets them take turns on a machine that drifts.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, Self

import uvloop

from bench.errors import BenchmarkError
from bench.footprint import Footprint
from bench.recordings import Recordings
from bench.ways import Setup, Way, build
from bench.workloads import Groups, Workload

_STOPPING_SECONDS: Final = 120.0
_WARM_UP_CLIPS: Final = 3


@dataclass(frozen=True, slots=True)
class _Ready:
    pid: int
    model_pid: int | None


@dataclass(frozen=True, slots=True)
class _Failed:
    reason: str


@dataclass(frozen=True, slots=True)
class _Done:
    groups: Groups
    figures: dict[str, float]


class StageFailed(BenchmarkError):
    """A way could not be started, or failed at a workload; the message has its own words."""


class Stage:
    """One way, loaded and warm; a context manager.

    Attributes:
        pid: the root of the processes that count.
        model_pid: the process that runs CTranslate2.
    """

    def __init__(self, way: str, setup: Setup, recordings: Recordings) -> None:
        self._way = way
        self._recordings = recordings
        # spawn: a fresh interpreter, without the threads and the memory of this one
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, way, setup, recordings), name=f"bench {way}")
        self._process.start()
        theirs.close()
        try:
            ready = self._hear()
        except StageFailed:
            self.close()
            raise
        if not isinstance(ready, _Ready):
            raise TypeError(f"the first word must be _Ready, not {type(ready).__name__}")
        self.pid = ready.pid
        self.model_pid = ready.model_pid

    def run(self, workload: Workload) -> tuple[Groups, dict[str, float]]:
        """Carry out a workload; returns its answers, and all other figures.

        Raises:
            StageFailed: the way failed.
        """
        with Footprint(self.pid) as footprint:
            self._ours.send(workload)
            done = self._hear()
        if not isinstance(done, _Done):
            raise TypeError(f"the answer must be _Done, not {type(done).__name__}")
        return done.groups, {**footprint.figures, **done.figures}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and all that it has started, whatever it is doing: it notices that its orders come to an end."""
        self._ours.close()
        self._process.join(_STOPPING_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _hear(self) -> object:
        try:
            message: object = self._ours.recv()
        except EOFError:
            self._process.join()
            raise StageFailed(f"{self._way}: the process ended with {self._process.exitcode}") from None
        if isinstance(message, _Failed):
            raise StageFailed(f"{self._way}: {message.reason}")
        return message


def _serve(connection: Connection, name: str, setup: Setup, recordings: Recordings) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_perform(connection, name, setup, recordings))


async def _perform(connection: Connection, name: str, setup: Setup, recordings: Recordings) -> None:
    way: Way | None = None
    try:
        way = build(name, setup)
        await way.start()
        for clip in recordings.clips[:_WARM_UP_CLIPS]:
            await way.transcribe(clip)
        connection.send(_Ready(way.pid, way.model_pid))
        await _obey(connection, way, recordings)
    except Exception:  # noqa: BLE001  (told to the process that asked, which raises it)
        connection.send(_Failed(traceback.format_exc()))
    finally:
        if way is not None:
            await way.close()


async def _obey(connection: Connection, way: Way, recordings: Recordings) -> None:
    """Carry out workloads until the other side hangs up, or dies, be it midway."""
    while True:
        # In a thread: the engine listens to its model's heartbeat on this loop, work or no work.
        order = asyncio.ensure_future(asyncio.to_thread(_next_order, connection))
        if (workload := await order) is None:
            return
        gone = asyncio.ensure_future(asyncio.to_thread(connection.poll, None))  # nothing is sent meanwhile but the end
        work = asyncio.create_task(_carry_out(way, workload, recordings))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            return
        connection.send(work.result())
        await gone


def _next_order(connection: Connection) -> Workload | None:
    try:
        order: Workload = connection.recv()
    except EOFError:
        return None
    return order


async def _carry_out(way: Way, workload: Workload, recordings: Recordings) -> _Done:
    await way.begin()
    groups, figures = await workload.run(way, recordings)
    observed = await way.end()
    completed = {name: [way.completed(answer) for answer in answers] for name, answers in groups.items()}
    return _Done(completed, {**figures, **observed})
