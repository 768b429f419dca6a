"""What the engine counts: Prometheus series, in a registry of the caller's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class EngineMetrics:
    """Series of one engine.

    Attributes:
        audio_seconds: of recordings that were transcribed to their end.
        queue_seconds: from a chunk's arrival in the queue to its batch.
        batch_seconds: from a batch's sending to its answer.
        batch_rows: chunks in a batch.
        batch_context_seconds: what the encoder saw of each.
        model_seconds: wall time inside CTranslate2; against the batches' seconds it says what the rest costs.
        verdicts: what the quality gate thought of decoded chunks, by context (short or full).
        halvings: batches that did not fit the memory.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.registry = registry
        self.audio_seconds = Counter(
            "metalscribe_audio_seconds", "Seconds of recordings transcribed to their end", registry=registry
        )
        self.queue_seconds = Histogram(
            "metalscribe_queue_wait_seconds",
            "Seconds from a chunk's arrival in the queue to its batch",
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_seconds = Histogram(
            "metalscribe_batch_seconds",
            "Seconds from handing a batch to the model to its answer",
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_rows = Histogram(
            "metalscribe_batch_rows", "Chunks decoded in one batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.batch_context_seconds = Histogram(
            "metalscribe_batch_context_seconds",
            "Encoder context of the chunks of a batch; 30 without adaptive context",
            registry=registry,
            buckets=(5, 10, 15, 20, 25, 30),
        )
        self.model_seconds = Counter(
            "metalscribe_model_seconds", "Seconds that the model's process spent inside CTranslate2", registry=registry
        )
        self.verdicts = Counter(
            "metalscribe_gate_verdicts",
            "What the quality gate thought of decoded chunks",
            ["verdict", "context"],
            registry=registry,
        )
        self.halvings = Counter(
            "metalscribe_batch_halvings", "Batches that did not fit the memory and were halved", registry=registry
        )
