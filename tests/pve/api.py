"""A cluster that answers: who asks, for what, and which part of the API it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from .access import Caller, caller
from .cluster_routes import ClusterRoutes
from .errors import PveError, missing_machine
from .machine_routes import MachineRoutes, PowerRoutes
from .machines import Hypervisor, Paper
from .state import Cluster, Machine, Volume
from .storage_routes import StorageRoutes
from .task_routes import TaskRoutes
from .tasks import Tasks


class Simulator:
    """A cluster that answers.

    Args:
        file: where its state is and stays.
        hypervisor: what runs its machines.

    Attributes:
        cluster: the state.
        app: to be served; ``routes`` are those of the API.
        asked: method, path and parameter names of every request, for checks against what is published.
    """

    def __init__(self, file: Path, hypervisor: Hypervisor | None = None) -> None:
        self.file = file
        self.cluster = Cluster.load(file)
        self.hypervisor = hypervisor or Paper()
        self.asked: list[tuple[str, str, frozenset[str]]] = []
        self.tasks = Tasks(self.cluster, self.save)
        self.app = FastAPI(lifespan=self._lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_exception_handler(PveError, _refused)
        self.routes = APIRouter()
        for group in (ClusterRoutes, StorageRoutes, MachineRoutes, PowerRoutes, TaskRoutes):
            for method, path, handler in group(self).table():
                self.routes.add_api_route(path, handler, methods=[method])
        self.app.include_router(self.routes, prefix="/api2/json")

    def save(self) -> None:
        """Keep the state."""
        self.cluster.save(self.file)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        self.save()

    def file_of(self, volume: str) -> Path:
        """Where the bytes of what was fetched into a storage are, beside the state; there whether or not they were right."""
        folder = self.file.parent / "volumes"
        folder.mkdir(exist_ok=True)
        return folder / volume.replace("/", "_")

    def node(self, name: str) -> None:
        """Raise unless there is such a node."""
        if name not in self.cluster.nodes:
            raise PveError(
                500,
                f"hostname lookup '{name}' failed - failed to get address info for: {name}: Name or service not known",
            )

    def machine(self, node: str, vmid: int) -> Machine:
        """A node's machine; raises where there is none."""
        self.node(node)
        found = self.cluster.machines.get(vmid)
        if found is None or found.node != node:
            raise missing_machine(node, vmid)
        return found

    def storage(self, node: str, name: str) -> dict[str, Volume]:
        """What lies in a node's storage; raises where there is none."""
        self.node(node)
        if name not in self.cluster.nodes[node].storages:
            raise PveError(500, f"storage '{name}' does not exist")
        return self.cluster.volumes_of(node, name)

    async def asked_by(self, request: Request) -> tuple[Caller, dict[str, Any]]:
        """Who asks, and with which parameters; those given several times are lists.

        Raises:
            PveError: nobody that is known.
        """
        who = caller(self.cluster, request.headers.get("authorization"))
        form = await request.form()
        pairs = [*request.query_params.multi_items(), *((name, str(value)) for name, value in form.multi_items())]
        parameters: dict[str, Any] = {}
        for name, value in pairs:
            known = parameters.get(name)
            parameters[name] = value if known is None else [*(known if isinstance(known, list) else [known]), value]
        self.asked.append((request.method, request.url.path, frozenset(parameters)))
        return who, parameters


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


async def _refused(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, PveError):
        raise error
    body: dict[str, Any] = {"data": None, "message": f"{error.message}\n"}
    if error.errors:
        body["errors"] = error.errors
    return JSONResponse(body, status_code=error.status)
