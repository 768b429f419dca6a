"""The models' life over HTTP: ``/model/status``, ``/model/load``, ``/model/unload``, ``/model/events``.

Loading and unloading take an admin's key. Any valid key may read the state and follow it: ``/health`` shows as much to any key,
and whoever may send transcriptions has reason to know why they wait.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api import examples
from metalscribe.api.bodies import read_json
from metalscribe.api.documents import (
    LAST_EVENT,
    LAST_EVENT_PARAMETER,
    TEXT_OR_NULL,
    events_of,
    in_query,
    object_of,
    properties_of,
)
from metalscribe.api.options import NoParameters, validated
from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.api.streams import event_stream, until
from metalscribe.engine.interface import Engine, Happenings, LifecycleEvent, ModelState, ModelStatus, event_name
from metalscribe.errors import InvalidParameter
from metalscribe.gpu.health import GpuReport
from metalscribe.render.times import utc_text
from metalscribe.store.identity import Scope


class LoadOrder(BaseModel):
    """The parameters of ``/model/load``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    model: str | None = Field(default=None, min_length=1, max_length=4096)
    """Which model; the default one where it is left out."""


class UnloadOrder(LoadOrder):
    """The parameters of ``/model/unload``."""

    force: bool = False
    """Do not wait for transcriptions under way: cancel them."""


def router(services: Services) -> APIRouter:
    """The routes; none of them counts against a rate limit."""
    routes = APIRouter(tags=["model"])
    anybody = Depends(services.auth.require(None))
    admin = Depends(services.auth.require(Scope.ADMIN))
    engine = services.engine

    @routes.get(
        "/model/status",
        summary="The models' states and memory",
        dependencies=[anybody],
        responses={200: _STATUS, **documented(400, 401, 429)},
    )
    async def status(request: Request) -> Response:
        validated(NoParameters, request.query_params)
        return JSONResponse(await _status(services))

    @routes.post(
        "/model/load",
        summary="Load a model",
        status_code=202,
        dependencies=[admin],
        responses={202: _STATUS, **documented(*_PROBLEMS)},
        openapi_extra=_documentation(LoadOrder, services.names.default),
    )
    async def load(request: Request) -> Response:
        order = await _order(LoadOrder, request)
        engine.load(services.model_called(order.model))
        return JSONResponse(await _status(services), status_code=202)

    @routes.post(
        "/model/unload",
        summary="Unload a model; answers when its memory is free",
        dependencies=[admin],
        responses={200: _STATUS, **documented(*_PROBLEMS)},
        openapi_extra=_documentation(UnloadOrder, services.names.default),
    )
    async def unload(request: Request) -> Response:
        order = await _order(UnloadOrder, request)
        await engine.unload(services.model_called(order.model), force=order.force)
        return JSONResponse(await _status(services))

    @routes.get(
        "/model/events",
        summary="Follow the models' states (server-sent events)",
        dependencies=[anybody],
        response_class=Response,
        responses={200: _EVENTS, **documented(400, 401, 429)},
        openapi_extra={"parameters": [LAST_EVENT_PARAMETER]},
    )
    async def events(request: Request) -> Response:
        validated(NoParameters, request.query_params)
        after = _position(engine.events, request.headers.get(LAST_EVENT))
        return event_stream(until(services.stopping, _follow(engine, after)))

    return routes


async def _order(model: type[Any], request: Request) -> Any:
    """The order in the query, or in the JSON body, or in both alike."""
    given: dict[str, Any] = await read_json(request, '{"model": "…"}', "model")
    for name, value in request.query_params.multi_items():
        if given.setdefault(name, value) != value:
            raise InvalidParameter(f"{name} is given twice with different values", name)
    return validated(model, given)


# --- status -----------------------------------------------------------------------------------------------------------


async def _status(services: Services) -> dict[str, Any]:
    engine = services.engine
    await engine.measure()
    models = [_model(model) for model in engine.models]
    return {
        **models[0],
        "memory_budget_bytes": engine.memory_budget or None,
        "gpus": _cards(await services.gpu.report()),
        "models": models,
    }


def _model(status: ModelStatus) -> dict[str, Any]:
    left = status.idle_seconds_left
    return {
        "model": status.model,
        "state": status.state.value,
        "device": status.device,
        "compute_type": status.compute_type,
        "detail": status.detail,
        "last_error": status.last_error,
        "memory_bytes": status.memory_bytes,
        "memory_estimate_bytes": status.memory_estimate_bytes,
        "idle_seconds_left": None if left is None else round(left, 1),
        "unloads_at": None if left is None else utc_text(datetime.now(UTC) + timedelta(seconds=left)),
        "requests": status.requests,
        "chunks_waiting": status.chunks_waiting,
        "chunks_running": status.chunks_running,
        **asdict(status.counters),
    }


def _cards(report: GpuReport | None) -> list[dict[str, Any]]:
    return [
        {
            "index": gpu.index,
            "name": gpu.name,
            "memory_total": gpu.memory_total,
            "memory_used": gpu.memory_used,
            "memory_free": gpu.memory_free,
        }
        for gpu in (report.gpus if report is not None else ())
    ]


# --- events -----------------------------------------------------------------------------------------------------------


def _position(events: Happenings, last_seen: str | None) -> int | None:
    """The number of the event that a client saw last; None if it saw none of this process's."""
    run, _, number = (last_seen or "").rpartition("-")
    if run != events.run or not number.isascii() or not number.isdigit() or len(number) > 18:
        return None
    return int(number) if int(number) <= events.last else None


async def _follow(engine: Engine, after: int | None) -> AsyncIterator[ServerSentEvent]:
    """What a client has not seen: the states as they are now for one who comes anew or late, then every change."""
    history = engine.events
    listener = history.listen(after)
    if after is None:
        for now in _now(engine):
            yield now
    async for event in listener:
        if listener.missed:
            # The history goes back less far than this client's last event: the present says more than a part of it.
            listener.position, listener.missed = history.last, 0
            for now in _now(engine):
                yield now
            continue
        yield _sent(history.run, event)


def _sent(run: str, event: LifecycleEvent) -> ServerSentEvent:
    data = _data(event.name, event.model, event.state, event.detail, event.at, current=False)
    return ServerSentEvent(data, event=event.name, id=f"{run}-{event.number}", sep="\n")


def _now(engine: Engine) -> list[ServerSentEvent]:
    """Every model's state as an event; their id is the newest event's, after which a client goes on."""
    at, mark = datetime.now(UTC), f"{engine.events.run}-{engine.events.last}"
    told = []
    for model in engine.models:
        name = event_name(model.state)
        data = _data(name, model.model, model.state, model.detail, at, current=True)
        told.append(ServerSentEvent(data, event=name, id=mark, sep="\n"))
    return told


def _data(name: str, model: str, state: ModelState, detail: str, at: datetime, *, current: bool) -> str:
    facts = {
        "type": name,
        "model": model,
        "state": state.value,
        "detail": detail,
        "at": utc_text(at),
        "current": current,
    }
    return json.dumps(facts, ensure_ascii=False)


# --- documentation ----------------------------------------------------------------------------------------------------

_PROBLEMS: Final = (400, 401, 403, 408, 413, 429)

_COUNT: Final = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Final = {"type": ["integer", "null"], "minimum": 0}
_STATES: Final = {"type": "string", "enum": [state.value for state in ModelState]}

_MODEL: Final[Mapping[str, Any]] = {
    "model": {"type": "string"},
    "state": _STATES,
    "device": TEXT_OR_NULL,
    "compute_type": TEXT_OR_NULL,
    "detail": {"type": "string", "description": "Why the state is what it is"},
    "last_error": {"type": "string", "description": "Why it last failed to load, or died"},
    "memory_bytes": {**_COUNT_OR_NULL, "description": "What its process takes of its device's memory"},
    "memory_estimate_bytes": {**_COUNT, "description": "What it was expected to take"},
    "idle_seconds_left": {"type": ["number", "null"], "description": "Until it is unloaded for want of work"},
    "unloads_at": {**TEXT_OR_NULL, "description": "The same as a time"},
    "requests": _COUNT,
    "chunks_waiting": _COUNT,
    "chunks_running": _COUNT,
    "loads": _COUNT,
    "load_failures": _COUNT,
    "unloads": _COUNT,
    "evictions": _COUNT,
    "deaths": _COUNT,
}
_CARD: Final[Mapping[str, Any]] = {
    "index": _COUNT,
    "name": TEXT_OR_NULL,
    "memory_total": _COUNT_OR_NULL,
    "memory_used": _COUNT_OR_NULL,
    "memory_free": _COUNT_OR_NULL,
}


_STATUS: Final[dict[str, Any]] = {
    "description": "The default model at the top, and all of them in `models`; memory in bytes",
    "content": {
        "application/json": {
            "schema": object_of(
                {
                    **_MODEL,
                    "memory_budget_bytes": _COUNT_OR_NULL,
                    "gpus": {"type": "array", "items": object_of(_CARD)},
                    "models": {"type": "array", "items": object_of(_MODEL)},
                }
            ),
            "example": examples.MODELS,
        }
    },
}
_EVENTS: Final[dict[str, Any]] = {
    "description": "`model_loading`, `model_ready`, `model_unloading`, `model_unloaded`, `model_waiting_for_gpu`, `model_failed`",
    "content": events_of(examples.MODEL_EVENTS),
}


def _documentation(order: type[LoadOrder], model: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties_of(order, nullable=True), "additionalProperties": False}
    return {
        "parameters": in_query(order),
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": schema, "example": {"model": model}}},
        },
    }
