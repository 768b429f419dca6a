"""Every setting of the service, documented once.

Each field below is an environment variable with the prefix ``METALSCRIBE_``; its docstring is its documentation, shown by
``metalscribe config``. A secret may instead be a file of the variable's name in lower case (``metalscribe_api_key``) in the
directory that systemd's ``LoadCredential=`` announces as ``CREDENTIALS_DIRECTORY``.
"""

from __future__ import annotations

import ipaddress
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from metalscribe.errors import ConfigurationError

PREFIX = "METALSCRIBE_"

COMPUTE_TYPES = (
    *("auto", "default", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16"),
    "float32",
)
"""CTranslate2's types for weights and activations, and auto; which of them work depends on the device."""


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class WhenUnloaded(StrEnum):
    """What a request finds while the model is not loaded."""

    QUEUE = "queue"
    REJECT = "reject"


class MetricsCompat(StrEnum):
    """Whose series ``/metrics`` exports beside its own."""

    NONE = ""
    WHISPERX = "whisperx"


def default_state_dir() -> Path:
    """systemd's ``StateDirectory=`` where there is one, else the user's own state directory."""
    systemd = os.environ.get("STATE_DIRECTORY")
    if systemd:
        return Path(systemd.split(":")[0])
    return platformdirs.user_state_path("metalscribe")


class Settings(BaseSettings):
    """The service's settings; read from the environment, never changed afterwards."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        env_ignore_empty=True,
    )

    # --- where it listens and keeps its state ---
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an API key to exist first; put nginx in front of it."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 picks a free one."""

    state_dir: Path = Field(default_factory=default_state_dir)
    """Directory for the database, uploads in progress and downloaded models."""

    database_url: SecretStr | None = None
    """SQLAlchemy URL of the database; by default SQLite in the state directory."""

    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1", "::1")
    """Addresses or networks, separated by commas, whose X-Forwarded-For is believed."""

    log_level: str = "info"
    """debug, info, warning or error."""

    metrics_compat: MetricsCompat = MetricsCompat.NONE
    """whisperx has /metrics export the series of whisperx-asr-service too, for dashboards that were made for it; empty does not."""

    # --- the model ---
    model: str = "large-v3-turbo"
    """A size (tiny, base, small, medium, large-v3, large-v3-turbo, …), a hub repository, a directory, or demo (bundled tiny.en)."""

    models: Annotated[tuple[str, ...], NoDecode] = ()
    """Further models that requests may choose by their `model` option: names as for METALSCRIBE_MODEL, separated by commas."""

    memory_budget_mb: float = Field(default=0.0, ge=0)
    """MiB that all loaded models may take together, on the GPU or else in memory; the least recently used idle one goes first. 0 is no bound."""

    device: Device = Device.AUTO
    """auto takes the GPU where there is one, else the CPU."""

    compute_type: str = "auto"
    """CTranslate2's type for the weights (int8, int8_float16, float16, float32, …); auto picks the best that the device supports."""

    cpu_threads: int = Field(default=0, ge=0)
    """Threads of the model on the CPU; 0 takes all cores."""

    batch_size: int = Field(default=0, ge=0, le=256)
    """Chunks decoded together; 0 chooses by device (8 on the CPU, 16 on a GPU)."""

    beam_size: int = Field(default=5, ge=1, le=16)
    """Hypotheses kept while decoding; 1 is greedy and fastest, 5 is the accuracy that Whisper is known for."""

    context_margin: str = "auto"
    """Seconds of silence that the encoder gets to see behind a chunk, in place of all the rest of its 30-second window; 0 shows
    it the whole window. auto takes what was measured for the model, and the whole window where nobody has measured.
    Several models: small=6,large-v3=0,auto."""

    preload: bool = False
    """Load the model at start instead of with the first request; further models as far as METALSCRIBE_MEMORY_BUDGET_MB reaches."""

    idle_timeout_secs: float = Field(default=300.0, ge=0)
    """Unload the model after so many seconds without work, freeing all of its memory; 0 keeps it."""

    gpu_poll_interval_secs: float = Field(default=30.0, gt=0)
    """Seconds between attempts to load the model while the GPU's memory is taken."""

    when_unloaded: WhenUnloaded = WhenUnloaded.QUEUE
    """queue waits for the model to load; reject answers 503 with Retry-After and starts loading."""

    load_timeout_secs: float = Field(default=600.0, gt=0)
    """How long a request waits for the model before it gets 503, and how long a model may take to load."""

    offline: bool = False
    """Never ask a model hub for anything; use only what is on this machine."""

    # --- limits ---
    api_key: SecretStr | None = None
    """One API key with every scope, beside those made by `metalscribe keys create`."""

    rate_limit: str = "30/minute"
    """Transcription requests per API key; a key may have its own limit. Also what one address may try without a valid key."""

    rate_limit_storage: SecretStr = SecretStr("memory://")
    """Where rate limits are counted: memory://, or a redis:// URL (extra `redis`) when several front ends share them."""

    max_upload_mb: float = Field(default=2048.0, gt=0)
    """Largest upload or download, in MiB."""

    max_audio_hours: float = Field(default=24.0, gt=0, le=1000)
    """Longest recording, in hours."""

    max_queue: int = Field(default=32, ge=1)
    """Transcriptions that may be under way or waiting together; the next one gets 503 with Retry-After."""

    allow_networks: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks, separated by commas, that /transcribe/url may reach although they are private (e.g. 10.20.0.0/16)."""

    fetch_timeout_secs: float = Field(default=600.0, gt=0)
    """How long fetching one URL may take in all."""

    shutdown_grace_secs: float = Field(default=30.0, ge=0, le=86400)
    """On SIGTERM: how long running requests may finish before they are cancelled."""

    # --- jobs ---
    jobs_dir: Path | None = None
    """Directory for the jobs' recordings, by default in the state directory; front ends that share a database share it."""

    jobs_running: int = Field(default=4, ge=0, le=256)
    """Jobs that one service runs at a time; interactive requests go first all the same. 0 accepts jobs and leaves them, and all
    webhooks, to other services on the same database."""

    jobs_queued_per_key: int = Field(default=1000, ge=0)
    """Jobs of one API key that may wait or run; the next one gets 429. 0 is no bound."""

    jobs_mb_per_key: float = Field(default=0.0, ge=0)
    """MiB of recordings that one API key's waiting jobs may take; 0 is no bound."""

    jobs_disk_mb: float = Field(default=0.0, ge=0)
    """MiB that all waiting recordings and kept results may take: the oldest results go first, then new jobs get 507. 0 is no bound."""

    jobs_max_upload_mb: float = Field(default=0.0, ge=0)
    """Largest recording of a job, in MiB; 0 takes any that the disk has room for."""

    jobs_keep_days: float = Field(default=30.0, gt=0)
    """How long finished jobs and their transcripts are kept."""

    min_free_disk_mb: float = Field(default=512.0, ge=0)
    """MiB that jobs leave free on the disk; what would take them gets 507."""

    idempotency_hours: float = Field(default=24.0, gt=0)
    """How long the answer to a request with an Idempotency-Key is kept."""

    @field_validator("trusted_proxies", "allow_networks", "models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies", "allow_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        networks = []
        for text in value:
            try:
                network = ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text!r} is not an address or network such as 10.0.0.0/8") from None
            # 10.0.0.5/8 means 10.0.0.0/8; what reads this setting later is not so lenient.
            networks.append(str(network) if network.num_addresses > 1 else str(network.network_address))
        return tuple(networks)

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str) -> str:
        from limits import parse_many  # noqa: PLC0415  (the vocabulary is slowapi's; loading it is its business)

        try:
            limits = parse_many(value)
        except ValueError:
            limits = []
        if not limits or any(limit.amount < 1 for limit in limits):
            raise ValueError(f"{value!r} is not a rate such as 30/minute or 500/hour")
        return value

    @field_validator("compute_type")
    @classmethod
    def _compute(cls, value: str) -> str:
        if value not in COMPUTE_TYPES:
            raise ValueError(f"must be one of {', '.join(COMPUTE_TYPES)}")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @field_validator("host", "model")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.strip()

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        if not self.state_dir.is_absolute():
            # The service may change directory, and messages about a relative path help nobody.
            object.__setattr__(self, "state_dir", self.state_dir.absolute())
        return self

    @property
    def max_upload_bytes(self) -> int:
        """The upload limit in bytes."""
        return int(self.max_upload_mb * 1024 * 1024)

    @property
    def memory_budget_bytes(self) -> int:
        """What all loaded models may take together, in bytes; 0 without a bound."""
        return int(self.memory_budget_mb * 1024 * 1024)

    @property
    def uploads_dir(self) -> Path:
        """Recordings in progress, in a directory per process."""
        return self.state_dir / "uploads"

    @property
    def jobs_directory(self) -> Path:
        """Where the jobs' recordings are, in progress and waiting."""
        return self.jobs_dir or self.state_dir / "jobs"

    @property
    def models_dir(self) -> Path:
        """Downloaded models, one directory each."""
        return self.state_dir / "models"

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL, with an async driver."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{self.state_dir / 'metalscribe.db'}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; ``overrides`` (by field name) win over it.

    Raises:
        ConfigurationError: a variable is unknown (with the nearest known name) or its value is wrong.
    """
    _refuse_unknown(os.environ.keys())
    secrets = os.environ.get("CREDENTIALS_DIRECTORY")
    try:
        # _secrets_dir is pydantic-settings' own argument, which its mypy plugin alone knows.
        return Settings(_secrets_dir=secrets if secrets and Path(secrets).is_dir() else None, **overrides)  # type: ignore[call-arg]
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(issue['loc'][0]).upper() if issue['loc'] else ''}: {issue['msg'].removeprefix('Value error, ')}"
            for issue in error.errors()
        ]
        raise ConfigurationError("; ".join(problems)) from None


def _refuse_unknown(names: Any) -> None:
    import difflib  # noqa: PLC0415

    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `metalscribe config` lists them"
            raise ConfigurationError(f"{name} is not a setting of this version{hint}")
