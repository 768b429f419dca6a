"""Is it alive, is it ready, how is it: ``/healthz``, ``/readyz``, ``/health``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api import examples
from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.engine.interface import EngineStatus, ModelState
from metalscribe.errors import ModelUnavailable
from metalscribe.gpu.health import GpuReport, ProblemCode

_NOT_READY: Final = frozenset({ModelState.LOADING, ModelState.UNLOADING, ModelState.WAITING_FOR_GPU, ModelState.FAILED})
_VERSIONS: Final = ("metalscribe", "faster-whisper", "ctranslate2", "av", "onnxruntime", "fastapi")


def router(services: Services) -> APIRouter:
    """The routes; none of them counts against a rate limit."""
    routes = APIRouter(tags=["health"])
    watch = services.gpu

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", summary="Liveness: the process answers", responses=_shown({"status": "ok"}))
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.head("/readyz", include_in_schema=False)
    @routes.get(
        "/readyz",
        summary="Readiness: a transcription sent now will be worked on",
        responses={**_shown({"status": "ready"}), **documented(503)},
    )
    async def readyz() -> dict[str, str]:
        status = services.engine.status
        report = await watch.report() if status.device == "cuda" else None
        if services.draining or status.state in _NOT_READY or _gpu_lost(status, report):
            raise ModelUnavailable("not ready", retry_after=5.0)
        return {"status": "ready"}

    @routes.get(
        "/health",
        summary="The model and the GPU; with an API key in detail",
        responses={**_shown(examples.HEALTH), **documented(401, 429)},
    )
    async def health(request: Request) -> Response:
        key = await services.auth.identify(request)
        status = services.engine.status
        report = await watch.report()
        document = _summary(services, status, report)
        if key is not None:
            document |= _detail(status, report) | {"jobs": await services.jobs.depth()}
        return JSONResponse(document)

    return routes


def _shown(example: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "As it is now", "content": {"application/json": {"example": example}}}}


def _summary(services: Services, status: EngineStatus, report: GpuReport | None) -> dict[str, Any]:
    lost = _gpu_lost(status, report)
    sick = lost or status.state in {ModelState.FAILED, ModelState.WAITING_FOR_GPU}
    name = next((gpu.name for gpu in report.gpus if gpu.name), None) if report else None
    device = status.device or ("cuda" if name else "cpu")
    return {
        "status": "shutting down" if services.draining else "degraded" if sick else "healthy",
        "model": status.model,
        "device": f"cuda ({name})" if device == "cuda" and name else device,
        "gpu_available": bool(report and any(gpu.problem is None for gpu in report.gpus)),
        "model_state": status.state.value,
    }


def _detail(status: EngineStatus, report: GpuReport | None) -> dict[str, Any]:
    return {
        "model_detail": status.detail,
        "compute_type": status.compute_type,
        "queue": {
            "requests": status.requests,
            "chunks_waiting": status.chunks_waiting,
            "chunks_running": status.chunks_running,
            "audio_seconds_waiting": round(status.audio_seconds_waiting, 3),
        },
        "driver_version": report.driver_version if report else None,
        "cuda_version": report.cuda_version if report else None,
        "gpus": [asdict(gpu) for gpu in report.gpus] if report else [],
        "gpu_problems": [asdict(problem) for problem in report.problems()] if report else [],
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def _gpu_lost(status: EngineStatus, report: GpuReport | None) -> bool:
    """On a GPU, and the driver says that something is wrong with it."""
    if status.device != "cuda" or report is None:
        return False
    return any(problem.code is not ProblemCode.NO_NVIDIA_DRIVER for problem in report.problems())
