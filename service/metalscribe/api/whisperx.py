"""The series of whisperx-asr-service, for dashboards that were made for it: ``METALSCRIBE_METRICS_COMPAT=whisperx``.

Names, labels and buckets are its own (https://github.com/murtaza-nasir/whisperx-asr-service, version 0.3.2). Where the two
services differ, a series says what comes closest here, and its text says what that is.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from metalscribe.api.traffic import Exchange, Surface
from metalscribe.engine.interface import Engine, EngineStatus

SERVE_MODE: Final = "simple"
"""What whisperx-asr-service calls a service that is one process, not replicas below Ray Serve."""

_SECONDS: Final = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
_AUDIO_SECONDS: Final = (10, 30, 60, 300, 600, 1800, 3600, 7200, 14400)
_MEGABYTES: Final = (1, 5, 10, 25, 50, 100, 250, 500, 1000)
_MEGABYTE: Final = 1024 * 1024


def device_of(status: EngineStatus) -> str:
    """``cpu`` or ``cuda``; ``auto`` until a model was loaded once, where the choice is left to it."""
    return status.device or "auto"


class WhisperxTraffic:
    """What that service counts of requests; a :class:`metalscribe.api.traffic.Witness`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "whisperx_requests",
            "Requests by path, and how they were answered: ok, http_<code>, or error",
            ("endpoint", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "whisperx_request_duration_seconds",
            "From a request's head to the end of its answer",
            ("endpoint",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._audio_seconds = Histogram(
            "whisperx_audio_duration_seconds", "Length of a recording", registry=registry, buckets=_AUDIO_SECONDS
        )
        self._megabytes = Histogram(
            "whisperx_audio_size_megabytes", "Size of a recording in MiB", registry=registry, buckets=_MEGABYTES
        )

    def began(self, surface: Surface) -> None:
        """Nothing of it is counted."""

    def ended(self, exchange: Exchange) -> None:
        """See :class:`metalscribe.api.traffic.Witness`."""
        self._requests.labels(exchange.template, _status(exchange.status)).inc()
        if not exchange.follows:
            self._seconds.labels(exchange.template).observe(exchange.seconds)
        if (seconds := exchange.facts.get("audio_seconds")) is not None:
            self._audio_seconds.observe(seconds)
        if (size := exchange.facts.get("audio_bytes")) is not None:
            self._megabytes.observe(size / _MEGABYTE)


class WhisperxCollector(Collector):
    """What that service tells of its state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The series; called with every scrape."""
        status, models = self._engine.status, self._engine.models
        yield GaugeMetricFamily(
            "whisperx_active_transcriptions", "Transcriptions under way or waiting", status.requests
        )
        yield GaugeMetricFamily(
            "whisperx_loaded_models", "Models that are loaded", sum(model.loaded for model in models)
        )
        evictions = CounterMetricFamily(
            "whisperx_model_evictions",
            "Times that a model was unloaded: idle, for another one, or by order",
            labels=["model"],
        )
        for model in models:
            evictions.add_metric([model.model], model.counters.unloads)
        yield evictions
        yield GaugeMetricFamily(
            "whisperx_vram_allocated_bytes",
            "What the models' processes take of the GPU's memory; 0 on the CPU",
            sum(model.memory_bytes or 0 for model in models if model.device == "cuda"),
        )
        labels = {
            "version": importlib.metadata.version("metalscribe"),
            "device": device_of(status),
            "compute_type": status.compute_type or "auto",
            "serve_mode": SERVE_MODE,
        }
        yield InfoMetricFamily("whisperx_service", "What serves; auto until a model was loaded once", labels)


def _status(status: int) -> str:
    if status < HTTPStatus.BAD_REQUEST:
        return "ok"
    return "error" if status == HTTPStatus.INTERNAL_SERVER_ERROR else f"http_{status}"
