"""What routes need, handed to them by the composition root."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from metalscribe.api.auth import Authenticator
from metalscribe.api.limits import RateLimits
from metalscribe.api.work import Desk
from metalscribe.engine.interface import Engine
from metalscribe.errors import ShuttingDown
from metalscribe.gpu.nvml import Nvml
from metalscribe.media.fetch import Fetcher


@dataclass(slots=True)
class Services:
    """The floors below, as far as HTTP needs them.

    Attributes:
        model_names: what callers may call the model that is served.
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
    draining: bool = field(default=False)

    def check_capacity(self) -> None:
        """Refuse work before its upload is read.

        Raises:
            ShuttingDown, QueueFull, ModelUnavailable: try again later.
        """
        if self.draining:
            raise ShuttingDown("the service is shutting down; send the request again in a moment", retry_after=10.0)
        self.engine.check_capacity()
