"""Is it alive, is it ready, how is it: ``/healthz``, ``/readyz``, ``/health``."""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.engine.interface import EngineStatus, ModelState
from metalscribe.errors import ModelUnavailable
from metalscribe.gpu.health import GpuReport, ProblemCode

_FRESH_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 3.0
_NOT_READY: Final = frozenset({ModelState.LOADING, ModelState.UNLOADING, ModelState.WAITING_FOR_GPU, ModelState.FAILED})
_VERSIONS: Final = ("metalscribe", "faster-whisper", "ctranslate2", "av", "onnxruntime", "fastapi")


class GpuWatch:
    """NVML's report, asked for in a thread and kept for some seconds: a lost card can block its driver for long."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._asked = 0.0
        self._report: GpuReport | None = None
        self._asking: asyncio.Future[GpuReport] | None = None

    async def report(self) -> GpuReport | None:
        """The latest report; an old one (or None) while the driver does not answer."""
        if self._report is not None and time.monotonic() - self._asked < _FRESH_SECONDS:
            return self._report
        if self._asking is None or self._asking.done():
            self._asking = _in_daemon_thread(self._services.nvml.report)
        done, _ = await asyncio.wait({self._asking}, timeout=_PATIENCE_SECONDS)
        if done:
            self._report = self._asking.result()
            self._asked = time.monotonic()
        return self._report


def _in_daemon_thread(ask: Callable[[], GpuReport]) -> asyncio.Future[GpuReport]:
    """``ask`` in a thread that the process does not wait for at its end, as it would for one of asyncio's own."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[GpuReport] = loop.create_future()

    def settle(report: GpuReport | None, error: Exception | None) -> None:
        if answer.done():
            return
        if report is not None:
            answer.set_result(report)
        elif error is not None:
            answer.set_exception(error)

    def run() -> None:
        report, error = None, None
        try:
            report = ask()
        except Exception as failure:  # noqa: BLE001  (raised where the answer is awaited)
            error = failure
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, report, error)

    threading.Thread(target=run, daemon=True, name="nvml").start()
    return answer


def router(services: Services) -> APIRouter:
    """The routes; none of them counts against a rate limit."""
    routes = APIRouter(tags=["health"])
    watch = GpuWatch(services)

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", summary="Liveness: the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", summary="Readiness: a transcription sent now will be worked on", responses=documented(503))
    async def readyz() -> dict[str, str]:
        status = services.engine.status
        report = await watch.report() if status.device == "cuda" else None
        if services.draining or status.state in _NOT_READY or _gpu_lost(status, report):
            raise ModelUnavailable("not ready", retry_after=5.0)
        return {"status": "ready"}

    @routes.get("/health", summary="The model and the GPU; with an API key in detail", responses=documented(401, 429))
    async def health(request: Request) -> Response:
        key = await services.auth.identify(request)
        status = services.engine.status
        report = await watch.report()
        document = _summary(services, status, report)
        if key is not None:
            document |= _detail(status, report)
        return JSONResponse(document)

    return routes


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
