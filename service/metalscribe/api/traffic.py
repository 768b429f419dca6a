"""What is counted of HTTP: requests by surface, how long they take, what is sent in, how fast it is transcribed.

Every label has a bounded set of values: a surface is one of :class:`Surface`, a path the template of a route and never what a
caller wrote, a method one that HTTP defines, a problem one of the service's own codes. API keys are no label: their number has
no bound, and whoever may read metrics need not know who uses the service, and how much; the log tells an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Surface(StrEnum):
    """A part of the API, as clients see it."""

    NATIVE = "native"
    JOBS = "jobs"
    MODEL = "model"
    OPENAI = "openai"
    ASR = "asr"
    OPERATION = "operation"
    OTHER = "other"


_SURFACES: Final[Mapping[str, Surface]] = {
    "transcribe": Surface.NATIVE,
    "jobs": Surface.JOBS,
    "model": Surface.MODEL,
    "v1": Surface.OPENAI,
    "asr": Surface.ASR,
    "detect-language": Surface.ASR,
    "healthz": Surface.OPERATION,
    "readyz": Surface.OPERATION,
    "health": Surface.OPERATION,
    "metrics": Surface.OPERATION,
    "queue-metrics": Surface.OPERATION,
    "docs": Surface.OPERATION,
    "openapi.json": Surface.OPERATION,
    "static-offline-docs": Surface.OPERATION,
}
"""By a path's first part, which no template leaves open."""

UNMATCHED: Final = "unmatched"
"""In place of a template, for every path that is no route's; templates begin with a slash."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})

CLASSES: Final = ("2xx", "4xx", "5xx")
"""Of statuses; beside these there are only the 304s of documentation that a browser has already."""

WAITED_FOR: Final = (Surface.NATIVE, Surface.OPENAI, Surface.ASR)
"""Surfaces whose callers wait for a transcription."""

DEFECTS: Final = ("engine_failed", "internal_error")
"""Problems that no caller can be blamed for, and that go away neither by themselves nor by waiting."""

# From a refusal to a recording of hours; the service's clients give up after ten minutes unless told otherwise.
_SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_AUDIO_SECONDS: Final = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
_REAL_TIME_FACTORS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BYTES: Final = tuple(float(2**power) for power in range(14, 35, 2))  # 16 KiB to 16 GiB


def surface_of(path: str) -> Surface:
    """The surface that a path, or a route's template, belongs to."""
    return _SURFACES.get(path.lstrip("/").partition("/")[0], Surface.OTHER)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer, both over.

    Attributes:
        template: of the route that it met, such as ``/jobs/{job_id}``, or :data:`UNMATCHED`.
        method: as it was sent.
        status: as it was answered; 499 where the caller left before that.
        seconds: from the request's head to the end of the answer.
        follows: the answer was a stream of what happens, which goes on for as long as its reader likes.
        facts: what the routes have noted of it (:func:`metalscribe.api.requests.note`).
    """

    surface: Surface
    template: str
    method: str
    status: int
    seconds: float
    follows: bool
    facts: Mapping[str, Any]


class Witness(Protocol):
    """Who is told of every request; each that began is told of again when it ends."""

    def began(self, surface: Surface) -> None:
        """A request's head is there."""

    def ended(self, exchange: Exchange) -> None:
        """Its answer is over."""


class TrafficMetrics:
    """The series of all surfaces; a :class:`Witness`.

    Attributes:
        requests: by surface, method, template and status.
        problems: what went wrong, by the code that problem documents carry; also in streams that had begun well.
        in_progress: requests whose answer is not over.
        seconds: to the end of the answer, by class of status; without those that follow something.
        upload_bytes: of recordings that have arrived, uploaded or fetched.
        audio_seconds: of recordings that were transcribed while their callers waited.
        real_time_factor: seconds that such a caller waited for each second of the recording.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            labels = ("surface", *labels)
            return Histogram(f"metalscribe_{name}", documentation, labels, registry=registry, buckets=buckets)

        self.requests = Counter(
            "metalscribe_http_requests",
            "Requests that were answered",
            ("surface", "method", "path", "status"),
            registry=registry,
        )
        self.problems = Counter(
            "metalscribe_http_problems",
            "What went wrong with requests, by the code that their answers carried",
            ("surface", "problem"),
            registry=registry,
        )
        self.in_progress = Gauge(
            "metalscribe_http_requests_in_progress",
            "Requests whose answer is not over",
            ("surface",),
            registry=registry,
        )
        self.seconds = histogram(
            "http_request_seconds", "From a request's head to the end of its answer", _SECONDS, "class"
        )
        self.upload_bytes = histogram("upload_bytes", "Size of a recording that has arrived", _BYTES)
        self.audio_seconds = histogram(
            "recording_seconds", "Length of a recording that was transcribed for a caller who waited", _AUDIO_SECONDS
        )
        self.real_time_factor = histogram(
            "real_time_factor", "Seconds that a caller waited for each second of the recording", _REAL_TIME_FACTORS
        )
        # There from the start: what first appears with a 1 has not grown in the eyes of Prometheus.
        for surface in Surface:
            self.in_progress.labels(surface.value)
            for kind in CLASSES:
                self.seconds.labels(surface.value, kind)
            for problem in DEFECTS:
                self.problems.labels(surface.value, problem)
        for surface in WAITED_FOR:
            self.audio_seconds.labels(surface.value)
            self.real_time_factor.labels(surface.value)
        for surface in (*WAITED_FOR, Surface.JOBS):
            self.upload_bytes.labels(surface.value)

    def began(self, surface: Surface) -> None:
        """See :class:`Witness`."""
        self.in_progress.labels(surface.value).inc()

    def ended(self, exchange: Exchange) -> None:
        """See :class:`Witness`."""
        surface, facts = exchange.surface.value, exchange.facts
        self.in_progress.labels(surface).dec()
        method = exchange.method if exchange.method in _METHODS else "other"
        self.requests.labels(surface, method, exchange.template, str(exchange.status)).inc()
        if not exchange.follows:
            self.seconds.labels(surface, f"{exchange.status // 100}xx").observe(exchange.seconds)
        if (problem := facts.get("problem")) is not None:
            self.problems.labels(surface, problem).inc()
        for name, series in (
            ("audio_bytes", self.upload_bytes),
            ("audio_seconds", self.audio_seconds),
            ("real_time_factor", self.real_time_factor),
        ):
            if (value := facts.get(name)) is not None:
                series.labels(surface).observe(value)
