"""``metalscribe serve``: the settings, then the service."""

from __future__ import annotations

import gc
from typing import Any

from metalscribe.errors import ConfigurationError
from metalscribe.log import configure_logging
from metalscribe.settings import load_settings
from metalscribe.systemd import Notifier, let_go_unread


def serve(host: str | None = None, port: int | None = None) -> None:
    """Run the service.

    Raises:
        ConfigurationError: a setting is wrong, or the address is taken.
        MetalscribeError: a part of the service does not start.
    """
    overrides: dict[str, Any] = {}
    if host is not None:
        overrides["host"] = host
    if port is not None:
        overrides["port"] = port
    try:
        settings = load_settings(**overrides)
    except ConfigurationError:
        let_go_unread(Notifier.from_environment())
        raise
    configure_logging(settings.log_level)
    # What is loaded stays: it need not be looked through for garbage while it is loaded, nor ever after.
    gc.disable()
    from metalscribe.cli.server import run  # noqa: PLC0415  (takes a second, and who mistyped a setting is told before)

    gc.freeze()
    gc.enable()
    run(settings)
