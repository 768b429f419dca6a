"""What routes need, handed to them by the composition root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from metalscribe.api.auth import Authenticator
from metalscribe.api.limits import RateLimits
from metalscribe.api.work import Desk
from metalscribe.engine.interface import Engine
from metalscribe.errors import QueueFull
from metalscribe.gpu.nvml import Nvml
from metalscribe.media.fetch import Fetcher


@dataclass(slots=True)
class Services:
    """The floors below, as far as HTTP needs them.

    Attributes:
        model_names: what callers may call the model that is served.
        max_receiving: recordings that may be uploaded or fetched at one time.
        draining: the service was told to stop and finishes what it has.
    """

    engine: Engine
    auth: Authenticator
    limits: RateLimits
    desk: Desk
    fetcher: Fetcher
    nvml: Nvml
    uploads: Path
    max_upload_bytes: int
    model_names: tuple[str, ...]
    max_receiving: int
    draining: bool = field(default=False)
    receiving: int = field(default=0)

    def check_capacity(self, *, retry: bool) -> None:
        """Refuse work before its upload is read.

        Args:
            retry: the request may belong to work that is running already, and must not be refused because of it.

        Raises:
            QueueFull, ModelUnavailable: try again later.
        """
        # Not refused while draining: the service takes no connections any more, and whoever has one is let finish.
        if not retry:
            self.engine.check_capacity()

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
