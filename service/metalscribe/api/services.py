"""What routes need, handed to them by the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from metalscribe.api.allowances import Allowances
from metalscribe.api.auth import Authenticator
from metalscribe.api.ledger import Ledger
from metalscribe.api.limits import RateLimits
from metalscribe.api.names import ModelNames
from metalscribe.api.options import served_names
from metalscribe.api.work import Desk
from metalscribe.engine.interface import Engine
from metalscribe.errors import InvalidParameter, QueueFull
from metalscribe.gpu.watch import GpuWatch
from metalscribe.jobs.office import JobOffice
from metalscribe.media.fetch import Fetcher


@dataclass(slots=True)
class Services:
    """The floors below, as far as HTTP needs them.

    Attributes:
        model_names: what callers may call the models, and each one's own name.
        names: what clients of the compatible dialects may call them.
        max_receiving: recordings that may be uploaded or fetched at one time.
        stopping: set when the service was told to stop and finishes what it has; ends streams that have no end.
    """

    engine: Engine
    auth: Authenticator
    limits: RateLimits
    allowances: Allowances
    usage: Ledger
    desk: Desk
    jobs: JobOffice
    fetcher: Fetcher
    gpu: GpuWatch
    uploads: Path
    max_upload_bytes: int
    model_names: Mapping[str, str]
    names: ModelNames
    max_receiving: int
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    receiving: int = field(default=0)

    @property
    def draining(self) -> bool:
        """The service was told to stop and finishes what it has."""
        return self.stopping.is_set()

    def model_called(self, name: str | None) -> str | None:
        """A model's own name for what a caller calls it; None, for the default one, stays None.

        Raises:
            InvalidParameter: no model is called so; names those that are served.
        """
        if name is None:
            return None
        known = self.model_names.get(name)
        if known is None:
            raise InvalidParameter(f"model={name} is not served here; {served_names(self.model_names)}", "model")
        return known

    def check_capacity(self, *, retry: bool, model: str | None = None) -> None:
        """Refuse work before its upload is read.

        Args:
            model: what the caller calls the model, where that is known before the upload is read.
            retry: the request may belong to work that is running already, and must not be refused because of it.

        Raises:
            QueueFull, ModelUnavailable: try again later.
        """
        # Not refused while draining: the service takes no connections any more, and whoever has one is let finish.
        if not retry:
            self.engine.check_capacity(self.model_names.get(model) if model is not None else None)

    @contextmanager
    def place_to_receive(self) -> Iterator[None]:
        """A place among the recordings that arrive at one time; they all take disk.

        Raises:
            QueueFull: there is none.
        """
        if self.receiving >= self.max_receiving:
            raise QueueFull(f"{self.receiving} recordings are arriving, the most allowed", retry_after=5.0)
        self.receiving += 1
        try:
            yield
        finally:
            self.receiving -= 1
