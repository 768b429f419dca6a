"""What the engine counts: Prometheus series, in a registry of the caller's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from metalscribe.engine.context import Verdict
from metalscribe.engine.interface import Engine, ModelState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class EngineMetrics:
    """The series of one engine, each by model.

    Attributes:
        audio_seconds: of recordings that were transcribed to their end.
        queue_seconds: from a chunk's arrival in the queue to its batch.
        batch_seconds: from a batch's sending to its answer.
        batch_rows: chunks in a batch.
        batch_context_seconds: what the encoder saw of each.
        model_seconds: wall time inside CTranslate2; against ``batch_seconds`` it says what all the rest costs.
        verdicts: what the quality gate thought of decoded chunks, also by context (short or full).
        halvings: batches that did not fit the memory.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"metalscribe_{name}", documentation, ("model", *labels), registry=registry)

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"metalscribe_{name}", documentation, ("model",), registry=registry, buckets=buckets)

        self.audio_seconds = counter("audio_seconds", "Seconds of recordings transcribed to their end")
        self.queue_seconds = histogram(
            "queue_wait_seconds", "Seconds from a chunk's arrival in the queue to its batch", _SECONDS
        )
        self.batch_seconds = histogram(
            "batch_seconds", "Seconds from handing a batch to the model to its answer", _SECONDS
        )
        self.batch_rows = histogram("batch_rows", "Chunks decoded in one batch", (1, 2, 4, 8, 16, 32, 64))
        self.batch_context_seconds = histogram(
            "batch_context_seconds",
            "Seconds of audio and margin that the encoder saw of a chunk",
            (5, 10, 15, 20, 25, 30),
        )
        self.model_seconds = counter("model_seconds", "Seconds that the model's process spent inside CTranslate2")
        self.verdicts = counter(
            "gate_verdicts", "What the quality gate thought of decoded chunks", "verdict", "context"
        )
        self.halvings = counter("batch_halvings", "Batches that did not fit the memory and were halved")


class ModelMetrics:
    """The same series for one model, as :class:`EngineMetrics` names them."""

    def __init__(self, metrics: EngineMetrics, model: str) -> None:
        self._verdicts = metrics.verdicts
        self._model = model
        self.audio_seconds = metrics.audio_seconds.labels(model)
        self.queue_seconds = metrics.queue_seconds.labels(model)
        self.batch_seconds = metrics.batch_seconds.labels(model)
        self.batch_rows = metrics.batch_rows.labels(model)
        self.batch_context_seconds = metrics.batch_context_seconds.labels(model)
        self.model_seconds = metrics.model_seconds.labels(model)
        self.halvings = metrics.halvings.labels(model)
        # There from the start: what first appears with a 1 has not grown in the eyes of Prometheus.
        for verdict, context in itertools.product(Verdict, ("short", "full")):
            self._verdicts.labels(model, verdict.value, context)

    def judged(self, verdict: str, *, full: bool) -> None:
        """The quality gate has judged a chunk that was decoded with the whole window, or a shortened one."""
        self._verdicts.labels(self._model, verdict, "full" if full else "short").inc()


class EngineCollector(Collector):
    """What an engine is like at the moment of the scrape, and what its models have been through."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The series; called with every scrape."""
        status = self._engine.status
        yield GaugeMetricFamily("metalscribe_requests", "Transcriptions under way or waiting", status.requests)
        yield GaugeMetricFamily(
            "metalscribe_interactive_requests", "Those of them that a caller waits for", status.interactive
        )
        yield GaugeMetricFamily(
            "metalscribe_interactive_requests_limit",
            "How many of those there may be; the next one is refused",
            status.max_interactive,
        )
        yield GaugeMetricFamily(
            "metalscribe_audio_seconds_waiting", "Seconds of audio in the queue", status.audio_seconds_waiting
        )
        state = StateSetMetricFamily("metalscribe_model_state", "Where each model is in its life", labels=["model"])
        waiting = GaugeMetricFamily("metalscribe_chunks_waiting", "Chunks in the queue", labels=["model"])
        running = GaugeMetricFamily("metalscribe_chunks_running", "Chunks inside the model", labels=["model"])
        memory = GaugeMetricFamily(
            "metalscribe_model_memory_bytes", "What the model's process takes of its device's memory", labels=["model"]
        )
        events = CounterMetricFamily(
            "metalscribe_model_events", "Loads, failures, unloads, evictions and deaths", labels=["model", "event"]
        )
        for model in self._engine.models:
            state.add_metric([model.model], {one.value: one is model.state for one in ModelState})
            waiting.add_metric([model.model], model.chunks_waiting)
            running.add_metric([model.model], model.chunks_running)
            if model.memory_bytes is not None:
                memory.add_metric([model.model], model.memory_bytes)
            for name, count in asdict(model.counters).items():
                events.add_metric([model.model, name], count)
        yield from (state, waiting, running, memory, events)
