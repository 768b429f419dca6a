"""What is counted of jobs and webhooks: Prometheus series, in a registry of the caller's."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metalscribe.store.job import Job, JobStatus

_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

OUTCOMES: Final = ("delivered", "postponed", "given_up")
"""What becomes of an attempt to deliver a webhook; after one that was postponed comes another."""


class JobMetrics:
    """The series of one service.

    Attributes:
        jobs: that wait and run, in all services on the database, by status; NaN while it does not answer.
        ends: of jobs in this service, by status.
        wait_seconds: from a job's acceptance to its start.
        seconds: from a job's acceptance to its end.
        attempts: to deliver a webhook, by outcome, see :data:`OUTCOMES`.
        disk_free: bytes that are free where the jobs' recordings are kept; NaN where that cannot be told.
        disk_reserve: bytes that jobs leave free of them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge(
            "metalscribe_jobs",
            "Jobs that wait and run, in all services on the database",
            ("status",),
            registry=registry,
        )
        self.ends = Counter(
            "metalscribe_jobs_ended", "Jobs that came to their end here", ("status",), registry=registry
        )
        self.wait_seconds = Histogram(
            "metalscribe_job_wait_seconds", "From a job's acceptance to its start", registry=registry, buckets=_SECONDS
        )
        self.seconds = Histogram(
            "metalscribe_job_seconds", "From a job's acceptance to its end", registry=registry, buckets=_SECONDS
        )
        self.attempts = Counter(
            "metalscribe_webhook_attempts", "Attempts to deliver a webhook", ("outcome",), registry=registry
        )
        self.disk_free = Gauge(
            "metalscribe_disk_free_bytes", "Free on the disk that keeps the jobs' recordings", registry=registry
        )
        self.disk_reserve = Gauge(
            "metalscribe_disk_reserve_bytes",
            "What jobs leave free on that disk; a job that would take it is refused",
            registry=registry,
        )
        # There from the start: what first appears with a 1 has not grown in the eyes of Prometheus.
        for status in JobStatus:
            if status.final:
                self.ends.labels(status.value)
        for outcome in OUTCOMES:
            self.attempts.labels(outcome)

    def ended(self, job: Job) -> None:
        """A job has come to its end here. A clock that was set back in between counts as no time."""
        self.ends.labels(job.status.value).inc()
        if job.started_at is not None:
            self.wait_seconds.observe(max(0.0, (job.started_at - job.created_at).total_seconds()))
        if job.completed_at is not None:
            self.seconds.observe(max(0.0, (job.completed_at - job.created_at).total_seconds()))
