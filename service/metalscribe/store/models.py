"""The tables. Every change here needs a migration beside it in ``migrations/versions``; a test compares the two.

Only what SQLite and PostgreSQL both understand.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets the time zone, so a naive time is refused on the way in and UTC added on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert to UTC.

        Raises:
            ValueError: the time has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Put UTC back."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Base(DeclarativeBase):
    """Parent of all tables; constraints have names because a migration can only drop what has one."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ApiKeyRow(Base):
    """An API key: who it is and what it may do. Kept after revocation, so that a name in old logs stays unambiguous."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(64))
    """Separated by blanks, as in OAuth (RFC 6749, section 3.3)."""
    rate_limit: Mapped[str | None] = mapped_column(String(128))
    weight: Mapped[float] = mapped_column(Double)
    concurrency: Mapped[int | None]
    daily_audio_seconds: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ApiKeySecretRow(Base):
    """A secret that opens a key. One as a rule; more while rotated ones live out their grace period.

    A table of its own, so that a rotated key keeps its id and with it its jobs, limits and kept answers.
    """

    __tablename__ = "api_key_secrets"

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    """SHA-256 of the key's whole text."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """End of the grace period; None for the current secret."""


class UsageRow(Base):
    """What an API key has used on one day of UTC; see :class:`metalscribe.store.usage.Usage`."""

    __tablename__ = "usage"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    """First in the primary key, which so serves those who ask for a stretch of days as well."""
    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """No foreign key: the configured API key has no row."""
    requests: Mapped[int]
    jobs: Mapped[int]
    failed: Mapped[int]
    audio_seconds: Mapped[float] = mapped_column(Double)
    engine_seconds: Mapped[float] = mapped_column(Double)


class IdempotencyRow(Base):
    """The first answer to a request that carried an Idempotency-Key."""

    __tablename__ = "idempotency"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """No foreign key: the configured API key has no row."""
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(128))
    status: Mapped[int]
    media_type: Mapped[str | None] = mapped_column(String(255))
    headers: Mapped[dict[str, str]] = mapped_column(JSON)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up in INTEGER PRIMARY KEY only


class JobRow(Base):
    """A transcription that nobody waits for."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(_NUMBER, primary_key=True, autoincrement=True)
    """The order of acceptance: what comes first is told by it and not by a clock, which may jump."""
    id: Mapped[str] = mapped_column(String(36), unique=True)
    key_id: Mapped[str] = mapped_column(String(16), index=True)
    """No foreign key: the configured API key has no row."""
    status: Mapped[str] = mapped_column(String(16), index=True)
    owner: Mapped[str | None] = mapped_column(String(32))
    """The process that runs it."""
    weight: Mapped[float] = mapped_column(Double)
    name: Mapped[str] = mapped_column(String(128))
    """What the caller calls the recording."""
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    webhook_url: Mapped[str | None] = mapped_column(String(4096))
    audio_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of its recording, while that is kept: until the job has ended."""
    result_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of its text and segments, once it is done."""
    model: Mapped[str | None] = mapped_column(String(255))
    language: Mapped[str | None] = mapped_column(String(16))
    language_probability: Mapped[float | None] = mapped_column(Double)
    duration: Mapped[float | None] = mapped_column(Double)
    progress: Mapped[int]
    text: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)


class JobSegmentRow(Base):
    """A segment of a job's transcript; there as soon as it is final."""

    __tablename__ = "job_segments"

    job: Mapped[int] = mapped_column(_NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    start: Mapped[float] = mapped_column(Double)
    end: Mapped[float] = mapped_column(Double)
    text: Mapped[str] = mapped_column(Text)
    words: Mapped[list[Any]] = mapped_column(JSON)
    """[start, end, text, probability] of each."""
    avg_logprob: Mapped[float] = mapped_column(Double)
    no_speech_prob: Mapped[float] = mapped_column(Double)
    compression_ratio: Mapped[float] = mapped_column(Double)
    speaker: Mapped[str | None] = mapped_column(String(64))


class JobCheckpointRow(Base):
    """A chunk of a running job that is done, in the engine's own words; gone when the job has ended."""

    __tablename__ = "job_checkpoints"

    job: Mapped[int] = mapped_column(_NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True)
    chunk: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class WebhookSecretRow(Base):
    """What a key's webhooks are signed with."""

    __tablename__ = "webhook_secrets"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    secret: Mapped[str] = mapped_column(String(64))


class WebhookAddressRow(Base):
    """An address that got a job's webhook once, and since then is told of the models' lives too."""

    __tablename__ = "webhook_addresses"

    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    """SHA-256 of the URL, which is too long for an index."""
    url: Mapped[str] = mapped_column(String(4096))


class DeliveryRow(Base):
    """A webhook that is to be delivered, or was, or could not be."""

    __tablename__ = "webhook_deliveries"

    number: Mapped[int] = mapped_column(_NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    key_id: Mapped[str] = mapped_column(String(16))
    job_id: Mapped[str | None] = mapped_column(String(36), index=True)
    """None for what concerns a model."""
    event: Mapped[str] = mapped_column(String(32))
    url: Mapped[str] = mapped_column(String(4096))
    target: Mapped[str] = mapped_column(String(300))
    """Scheme, host and port of the URL: what is up or down."""
    body: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(String(16), index=True)
    owner: Mapped[str | None] = mapped_column(String(32))
    """The process that sends it."""
    attempts: Mapped[int]
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
