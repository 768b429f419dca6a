"""How tasks fare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Request

from .access import Caller
from .routing import Table
from .state import Task

if TYPE_CHECKING:
    from .api import Simulator


class TaskRoutes:
    """How tasks fare."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._cluster = simulator.cluster

    def table(self) -> Table:
        """Method, path, handler."""
        return (
            ("GET", "/nodes/{node}/tasks/{upid}/status", self.status),
            ("GET", "/nodes/{node}/tasks/{upid}/log", self.log),
            ("DELETE", "/nodes/{node}/tasks/{upid}", self.cancel),
        )

    def _find(self, who: Caller, node: str, upid: str) -> Task:
        self._simulator.node(node)
        task = self._simulator.tasks.find(node, upid)
        if task.user != who.name:
            who.need(f"/nodes/{node}", "Sys.Audit")
        return task

    async def status(self, request: Request, node: str, upid: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        task = self._find(who, node, upid)
        ended = {} if task.exitstatus is None else {"exitstatus": task.exitstatus}
        return {
            "data": {
                "upid": upid,
                "node": node,
                "type": task.type,
                "id": task.id,
                "user": task.user,
                "starttime": task.started,
                "status": task.status,
                "pid": 1,
                "pstart": 1,
                **ended,
            }
        }

    async def log(self, request: Request, node: str, upid: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        task = self._find(who, node, upid)
        return {"data": [{"n": number, "t": line} for number, line in enumerate(task.log, 1)]}

    async def cancel(self, request: Request, node: str, upid: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        task = self._find(who, node, upid)
        if task.user != who.name:
            who.need(f"/nodes/{node}", "Sys.Modify")
        return {"data": None}
