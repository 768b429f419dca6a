"""What takes a while: it runs beside the answer, which is its id."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from .errors import PveError
from .state import Cluster, Task

_UPID: Final = re.compile(r"UPID:[^:]+:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:[^:]+:[^:]*:[^:]+:")
_SECONDS: Final = 0.05

Work = Callable[[Task], Awaitable[None]]


class Tasks:
    """Runs tasks and remembers them."""

    def __init__(self, cluster: Cluster, save: Callable[[], None]) -> None:
        self._cluster = cluster
        self._save = save
        self._running: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        for task in cluster.tasks.values():
            if task.status == "running":  # the process that ran it is gone
                task.status, task.exitstatus = "stopped", "unexpected status"

    def start(self, node: str, kind: str, about: str, user: str, work: Work) -> str:
        """Run ``work``; returns the UPID."""
        now = int(time.time())
        upid = f"UPID:{node}:{next(self._numbers):08X}:{now & 0xFFFFFFF:08X}:{now:08X}:{kind}:{about}:{user}:"
        task = self._cluster.tasks[upid] = Task(node=node, type=kind, id=about, user=user, started=now)
        running = asyncio.create_task(self._run(task, work))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return upid

    async def _run(self, task: Task, work: Work) -> None:
        await asyncio.sleep(_SECONDS)
        faults = self._cluster.faults.get(task.type)
        try:
            if faults:
                raise PveError(500, faults.pop(0))
            await work(task)
            task.exitstatus = "OK"
        except PveError as error:
            task.log.append(f"TASK ERROR: {error.message}")
            task.exitstatus = error.message.splitlines()[0]
        task.status = "stopped"
        self._save()

    def find(self, node: str, upid: str) -> Task:
        """A node's task.

        Raises:
            PveError: there is none.
        """
        if _UPID.fullmatch(upid) is None:
            raise PveError(400, f"unable to parse worker upid '{upid}'")
        task = self._cluster.tasks.get(upid)
        if task is None or task.node != node:
            raise PveError(400, f"no such task '{upid}'")
        return task
