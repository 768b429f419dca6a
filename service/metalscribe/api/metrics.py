"""``GET /metrics``: the service's series, as Prometheus (or OpenMetrics, where the scraper asks for it) reads them.

``GET /queue-metrics``: the queue and the models as JSON, in the shape that clients of whisperx-asr-service read.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Depends
from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from metalscribe.api import examples
from metalscribe.api.documents import object_of
from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.api.whisperx import SERVE_MODE, device_of
from metalscribe.engine.interface import Engine
from metalscribe.gpu.collector import GpuCollector
from metalscribe.store.identity import Scope


def router(services: Services, registry: CollectorRegistry) -> APIRouter:
    """The routes; neither counts against a rate limit.

    ``/metrics`` wants a key with the scope ``metrics``. Any valid key may read ``/queue-metrics``: it tells no more than
    ``/health`` tells any key, and those who read it choose among several services where to send a recording.
    """
    routes = APIRouter(tags=["operation"])
    gpus = GpuCollector()
    registry.register(gpus)
    ProcessCollector(registry=registry)
    version = importlib.metadata.version("metalscribe")
    Info("metalscribe", "What serves", registry=registry).info({"version": version})

    @routes.get(
        "/metrics",
        summary="The service's series for Prometheus",
        response_class=Response,
        responses={
            200: {
                "description": "Text format of Prometheus, or of OpenMetrics",
                "content": {
                    "text/plain": {"schema": {"type": "string"}, "example": examples.METRICS},
                    "application/openmetrics-text": {
                        "schema": {"type": "string"},
                        "example": f"{examples.METRICS}# EOF\n",
                    },
                },
            },
            **documented(401, 403, 429),
        },
        dependencies=[Depends(services.auth.require(Scope.METRICS))],
    )
    async def metrics(request: Request) -> Response:
        await asyncio.gather(services.engine.measure(), services.jobs.measure())
        gpus.report = await services.gpu.present()
        encode, media_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})

    @routes.get(
        "/queue-metrics",
        summary="The queue and the models, as whisperx-asr-service tells them",
        dependencies=[Depends(services.auth.require(None))],
        responses={200: _QUEUE, **documented(401, 429)},
    )
    async def queue_metrics() -> dict[str, Any]:
        return _queue(services.engine)

    return routes


def _queue(engine: Engine) -> dict[str, Any]:
    status = engine.status
    # Requests are worked on side by side, all that there may be; one waits as a whole only while its model is not there.
    worked_on = sum(model.requests for model in engine.models if model.loaded)
    return {
        "serve_mode": SERVE_MODE,
        "device": device_of(status),
        "loaded_models": [model.model for model in engine.models if model.loaded],
        "queue": {
            "requests_queued": max(0, status.requests - worked_on),
            "requests_in_flight": worked_on,
            "gpu_concurrency": status.max_interactive,
            "max_queue_size": status.max_interactive,
            "chunks_waiting": status.chunks_waiting,
            "chunks_running": status.chunks_running,
            "audio_seconds_waiting": round(status.audio_seconds_waiting, 3),
        },
    }


# --- documentation ----------------------------------------------------------------------------------------------------

_COUNT: Final[Mapping[str, Any]] = {"type": "integer", "minimum": 0}

_QUEUE: Final[dict[str, Any]] = {
    "description": "As it is now",
    "content": {
        "application/json": {
            "schema": object_of(
                {
                    "serve_mode": {"type": "string", "enum": [SERVE_MODE]},
                    "device": {"type": "string", "description": "auto until a model was loaded once"},
                    "loaded_models": {"type": "array", "items": {"type": "string"}},
                    "queue": object_of(
                        {
                            "requests_queued": {**_COUNT, "description": "Transcriptions that wait for their model"},
                            "requests_in_flight": {**_COUNT, "description": "Those that are worked on, jobs included"},
                            "gpu_concurrency": {**_COUNT, "description": "How many callers' can be worked on together"},
                            "max_queue_size": {**_COUNT, "description": "How many callers' there may be in all"},
                            "chunks_waiting": _COUNT,
                            "chunks_running": _COUNT,
                            "audio_seconds_waiting": {"type": "number", "minimum": 0},
                        }
                    ),
                }
            ),
            "example": examples.QUEUE,
        }
    },
}
