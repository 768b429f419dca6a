"""The composition root: settings → store → engine → HTTP. The only place that wires things together."""

from __future__ import annotations

import asyncio
import importlib.metadata
import ipaddress
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from slowapi.errors import RateLimitExceeded
from starlette.requests import Request
from starlette.responses import Response

from metalscribe.api import asr, health, jobs, metrics, model, native, openai, problems
from metalscribe.api.allowances import Allowances
from metalscribe.api.auth import Authenticator
from metalscribe.api.documents import correct
from metalscribe.api.ledger import Ledger
from metalscribe.api.lifetime import Lifetime
from metalscribe.api.limits import RateLimits
from metalscribe.api.names import ModelNames
from metalscribe.api.requests import RequestLog
from metalscribe.api.services import Services
from metalscribe.api.traffic import TrafficMetrics, Witness
from metalscribe.api.whisperx import WhisperxCollector, WhisperxTraffic
from metalscribe.api.work import Desk
from metalscribe.engine.fleet import ServedModel
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.margins import adaptive_context
from metalscribe.engine.memory import MemoryGauge
from metalscribe.engine.metrics import EngineCollector, EngineMetrics
from metalscribe.engine.weights import describe, resolve
from metalscribe.errors import ConfigurationError, MetalscribeError
from metalscribe.gpu.nvml import Nvml
from metalscribe.gpu.watch import GpuWatch
from metalscribe.jobs.metrics import JobMetrics
from metalscribe.jobs.office import JobOffice, JobOptions, incoming_of
from metalscribe.media.addresses import AddressPolicy
from metalscribe.media.fetch import Fetcher
from metalscribe.settings import MetricsCompat, Settings, WhenUnloaded
from metalscribe.store.database import Database
from metalscribe.store.idempotency import IdempotencyStore
from metalscribe.store.job import Quota
from metalscribe.store.keys import KeyStore
from metalscribe.store.spool import spool
from metalscribe.store.usage import UsageStore

_PRELOAD_PATIENCE_SECONDS: Final = 120.0

_log = structlog.get_logger(__name__)


def build_engine(settings: Settings, gpu: GpuWatch | None = None, metrics: EngineMetrics | None = None) -> LocalEngine:
    """The engine for these settings; does not load a model yet.

    Args:
        settings: the service's.
        gpu: tells how much of a GPU's memory models take.
        metrics: where the engine counts.

    Raises:
        ModelMissing: a model is not on this machine, or is damaged.
        ConfigurationError: a model is there twice, or exceeds the memory budget even alone.
    """
    default, *further = (_served(settings, wanted) for wanted in (settings.model, *settings.models))
    return LocalEngine(
        default.card,
        EngineOptions(
            model=default.process,
            adaptive=default.adaptive,
            batch_size=settings.batch_size,
            beam_size=settings.beam_size,
            max_queue=settings.max_queue,
            max_audio_seconds=settings.max_audio_hours * 3600,
            load_timeout_secs=settings.load_timeout_secs,
            memory_budget=settings.memory_budget_bytes,
            preload=settings.preload,
            reject_when_unloaded=settings.when_unloaded is WhenUnloaded.REJECT,
        ),
        further=further,
        gauge=MemoryGauge(gpu),
        metrics=metrics,
    )


def _served(settings: Settings, wanted: str) -> ServedModel:
    files = resolve(wanted, settings.models_dir, offline=settings.offline)
    process = ModelProcessOptions(
        path=files.path,
        name=files.name,
        device=settings.device.value,
        compute_type=settings.compute_type,
        cpu_threads=settings.cpu_threads,
        idle_timeout_secs=settings.idle_timeout_secs,
        gpu_poll_interval_secs=settings.gpu_poll_interval_secs,
    )
    adaptive = adaptive_context(settings.context_margin, files.name, files.path)
    return ServedModel(describe(files.path, name=files.name), process, adaptive)


def _names(settings: Settings, engine: LocalEngine) -> dict[str, str]:
    """What callers may call each model: its own name, or as the operator wrote it."""
    own = [card.name for card in engine.cards]
    return dict(zip(own, own, strict=True)) | dict(zip((settings.model, *settings.models), own, strict=True))


@asynccontextmanager
async def _running(settings: Settings, app: FastAPI, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Everything that lives as long as the service does, started before it listens and closed after it stopped."""
    nvml = Nvml()
    gpu = GpuWatch(nvml)
    engine = build_engine(settings, gpu, EngineMetrics(registry))
    registry.register(EngineCollector(engine))
    if settings.metrics_compat is MetricsCompat.WHISPERX:
        registry.register(WhisperxCollector(engine))
    async with AsyncExitStack() as stack:
        stack.callback(nvml.close)
        uploads = stack.enter_context(_uploads(settings))
        incoming = stack.enter_context(_incoming(settings))
        database = Database(settings.sqlalchemy_url)
        await database.open()
        stack.push_async_callback(database.close)
        configured = settings.api_key.get_secret_value() if settings.api_key else None
        keys = KeyStore(database, configured=configured)
        stack.push_async_callback(keys.close)
        await _refuse_open_door(settings, keys)
        answers = IdempotencyStore(database)
        keeping = timedelta(hours=settings.idempotency_hours)
        desk = Desk(answers)
        usage = UsageStore(database)
        ledger = Ledger(usage)
        stack.push_async_callback(ledger.close)
        ledger.start()
        limits = RateLimits(settings.rate_limit, settings.rate_limit_storage.get_secret_value())
        policy = AddressPolicy(settings.allow_networks)
        office = JobOffice(engine, database, _job_options(settings), policy, incoming, JobMetrics(registry))
        model_names = _names(settings, engine)
        services = Services(
            engine=engine,
            auth=Authenticator(keys, limits),
            limits=limits,
            allowances=Allowances(desk, ledger),
            usage=ledger,
            desk=desk,
            jobs=office,
            fetcher=Fetcher(
                policy,
                max_bytes=settings.max_upload_bytes,
                timeout_secs=settings.fetch_timeout_secs,
            ),
            gpu=gpu,
            uploads=uploads,
            max_upload_bytes=settings.max_upload_bytes,
            max_receiving=2 * settings.max_queue,
            model_names=model_names,
            names=ModelNames(model_names),
        )
        app.state.services = services
        app.state.limits = limits
        app.state.routers = [
            *(part.router(services) for part in (native, openai, asr, jobs, health, model)),
            metrics.router(services, registry),
        ]
        for router in app.state.routers:
            app.include_router(router)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(desk.close)
        await engine.start()
        if settings.preload:
            # Whoever connects once the service listens finds it ready; if loading takes too long, it says so instead.
            await engine.settled(_PRELOAD_PATIENCE_SECONDS)
        stack.push_async_callback(office.close)
        await office.start()
        await stack.enter_async_context(_purging(lambda: answers.purge(keeping), usage.forget))
        yield


@contextmanager
def _uploads(settings: Settings) -> Iterator[Path]:
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with spool(settings.uploads_dir) as directory:
            yield directory
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"METALSCRIBE_STATE_DIR={settings.state_dir} cannot be used: {reason}") from None


@contextmanager
def _incoming(settings: Settings) -> Iterator[Path]:
    try:
        with incoming_of(_job_options(settings)) as directory:
            yield directory
    except OSError as error:
        name = "METALSCRIBE_JOBS_DIR" if settings.jobs_dir else "METALSCRIBE_STATE_DIR"
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"{name}: jobs cannot be kept in {settings.jobs_directory}: {reason}") from None


def _job_options(settings: Settings) -> JobOptions:
    def in_bytes(mebibytes: float) -> int:
        return int(mebibytes * 2**20)

    return JobOptions(
        directory=settings.jobs_directory,
        places=settings.jobs_running,
        quota=Quota(
            queued_per_key=settings.jobs_queued_per_key,
            bytes_per_key=in_bytes(settings.jobs_mb_per_key),
            bytes=in_bytes(settings.jobs_disk_mb),
        ),
        reserve_bytes=in_bytes(settings.min_free_disk_mb),
        max_upload_bytes=in_bytes(settings.jobs_max_upload_mb) or sys.maxsize,
        keep=timedelta(days=settings.jobs_keep_days),
    )


def create_app(settings: Settings) -> FastAPI:
    """The HTTP application; its lifespan starts and stops everything else."""
    registry = CollectorRegistry()
    app = FastAPIOffline(  # /docs works on a machine without internet
        title="metalscribe",
        version=importlib.metadata.version("metalscribe"),
        description="Private speech to text. Send an API key as `X-API-Key`, `Authorization: Bearer` or HTTP Basic's password.",
        lifespan=lambda app: _running(settings, app, registry),
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name whatever host the caller put into its request
    )
    problems.install(app)
    _document_keys(app)
    app.add_exception_handler(RateLimitExceeded, _rate_limited)
    app.add_middleware(Lifetime)
    app.add_middleware(RequestLog, on_error=problems.unexpected, witnesses=_witnesses(settings, registry))
    return app


def _witnesses(settings: Settings, registry: CollectorRegistry) -> Sequence[Witness]:
    """Who counts requests."""
    traffic = TrafficMetrics(registry)
    return (traffic, WhisperxTraffic(registry)) if settings.metrics_compat is MetricsCompat.WHISPERX else (traffic,)


def _document_keys(app: FastAPI) -> None:
    """The ways to send a key, in the OpenAPI document; /docs offers them under "Authorize"."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        correct(document, itertools.chain.from_iterable(router.routes for router in app.state.routers))
        document.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic", "description": "the key as the password"},
        }
        document["security"] = [{"key": []}, {"bearer": []}, {"basic": []}]
        for path in ("/healthz", "/readyz", "/health"):
            for operation in document["paths"].get(path, {}).values():
                operation["security"] = [{}, *document["security"]] if path == "/health" else []
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


async def _refuse_open_door(settings: Settings, keys: KeyStore) -> None:
    if await keys.any_exists():
        return
    if not _is_loopback(settings.host):
        raise ConfigurationError(
            f"METALSCRIBE_HOST={settings.host} is not loopback and no API key exists; make one with `metalscribe keys create NAME`"
        )
    _log.warning("no API key exists, every transcription will be refused; make one with `metalscribe keys create NAME`")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _rate_limited(request: Request, error: Exception) -> Response:
    if not isinstance(error, RateLimitExceeded):
        raise error
    limits: RateLimits = request.app.state.limits
    return problems.with_rate_limit(request, problems.problem(limits.refusal(request, error), request))


@asynccontextmanager
async def _purging(*purges: Callable[[], Awaitable[int]]) -> AsyncIterator[None]:
    """Forget what has been kept long enough, now and every hour.

    The task is told to end and waited for, not cancelled: a database call that is cut off midway can hang its connection.
    """
    stop = asyncio.Event()

    async def purge() -> None:
        while not stop.is_set():
            try:
                for forget in purges:
                    await forget()
            except MetalscribeError as error:
                _log.warning("old entries not purged; tried again in an hour", code=error.code, detail=error.detail)
            with suppress(TimeoutError):
                async with asyncio.timeout(3600):
                    await stop.wait()

    task = asyncio.create_task(purge(), name="purge")
    try:
        yield
    finally:
        stop.set()
        await task
