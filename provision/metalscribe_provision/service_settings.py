"""What an operator may say about the service's own settings: ``metalscribe_<setting>`` in the inventory."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from metalscribe.settings import Settings

SETTING_PREFIX: Final = "metalscribe_"

SECRETS: Final = frozenset({"api_key", "database_url", "rate_limit_storage"})
"""Settings that host data has a field of its own for: they are never in a file that others than root can read."""

OWNED_SETTINGS: Final = frozenset({"host", "port", "state_dir", "model", "offline"})
"""Settings that the deploy itself decides."""

SERVER_SETTINGS: Final = {"preload": "true", "idle_timeout_secs": "0"}
"""Where a server differs from the service's defaults, unless the operator says otherwise: it loads its model at start and keeps it."""

OPEN_SETTINGS: Final = frozenset(Settings.model_fields) - SECRETS - OWNED_SETTINGS
"""Settings that are the operator's."""


def setting_text(value: Any) -> str:
    """Return a value of the inventory as the service's environment has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return str(value)


def setting_problems(settings: Mapping[str, str]) -> list[str]:
    """What the service itself would say of these settings at its start."""
    try:
        _GivenSettings.model_validate(settings)
    except ValidationError as error:
        return [f"{SETTING_PREFIX}{problem}" for problem in complaints(error)]
    bad = [name for name, value in settings.items() if any(character in value for character in "\n\r\0")]
    return [f"{SETTING_PREFIX}{name}: must be one line" for name in bad]


def complaints(error: ValidationError) -> list[str]:
    """Each of pydantic's complaints in one line, with the variable's name and without its value."""
    problems = []
    for issue in error.errors(include_input=False):
        path = ".".join(map(str, issue["loc"]))
        name = f"{SETTING_PREFIX}{path}" if path in SECRETS else path
        problems.append(f"{name}: {issue['msg'].removeprefix('Value error, ')}".removeprefix(": "))
    return problems


def refused_setting(variable: str, setting: str) -> str:
    """Return why a ``metalscribe_<setting>`` is not for the operator to set."""
    if setting in OWNED_SETTINGS:
        own = "model" if setting == "model" else None
        return f"{variable} is decided by the deploy" + (f"; set {own} instead" if own else "")
    near = difflib.get_close_matches(setting, Settings.model_fields, n=1)
    hint = f"; did you mean {SETTING_PREFIX}{near[0]}?" if near else ""
    return f"{variable} is not a setting of the service{hint}"


class _GivenSettings(Settings):
    """The service's settings from what is given alone: the environment of the machine that deploys is not the host's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
