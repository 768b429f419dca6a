"""``metalscribe config``: every setting, its value, where that comes from and what it means."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import SecretStr

from metalscribe.settings import PREFIX, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

MASK: Final = "********"
"""What is shown in place of a secret."""


class Source(StrEnum):
    """Where a value comes from."""

    ENVIRONMENT = "environment"
    CREDENTIAL_FILE = "credential file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting; ``value`` is ready for JSON, None where nothing is set, and :data:`MASK` for a secret that is."""

    name: str
    value: str | int | float | bool | list[str] | None
    source: Source
    description: str


def config(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the settings in force, with secrets masked."""
    entries = list(effective(load_settings()))
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
    elif sys.stdout.isatty():
        _print_table(entries)
    else:
        typer.echo("\n\n".join(_as_lines(entry) for entry in entries))


def effective(settings: Settings) -> Iterable[Entry]:
    """Every setting in the order in which they are documented."""
    environment = {name.upper() for name, value in os.environ.items() if value}
    for name, field in Settings.model_fields.items():
        variable = f"{PREFIX}{name.upper()}"
        if name not in settings.model_fields_set:
            source = Source.DEFAULT
        else:
            source = Source.ENVIRONMENT if variable in environment else Source.CREDENTIAL_FILE
        value = _plain(getattr(settings, name), secret_is_public=source is Source.DEFAULT)
        yield Entry(variable, value, source, " ".join((field.description or "").split()))


def _plain(value: Any, *, secret_is_public: bool) -> str | int | float | bool | list[str] | None:
    match value:
        case SecretStr():
            # A default stands in the source code for everybody to read.
            return value.get_secret_value() if secret_is_public else MASK
        case StrEnum():
            return value.value
        case Path():
            return str(value)
        case tuple():
            return [str(part) for part in value]
        case str() | int() | float() | None:  # a bool is an int
            return value
        case _:
            return str(value)


def _as_text(entry: Entry) -> str:
    match entry.value:
        case None:
            return ""
        case bool():
            return str(entry.value).lower()
        case float() if entry.value.is_integer():
            return str(int(entry.value))
        case list():
            return ",".join(entry.value)
        case _:
            return str(entry.value)


def _as_lines(entry: Entry) -> str:
    text = _as_text(entry)
    # Quoted where it must be, for a shell as for systemd's EnvironmentFile=.
    quoted = text if entry.value == MASK or not text else shlex.quote(text)
    return f"# {entry.description} ({entry.source})\n{entry.name}={quoted}"


def _print_table(entries: Iterable[Entry]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False)
    for heading in ("Setting", "Value", "Source", "Meaning"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "Setting")
    for entry in entries:
        changed = entry.source is not Source.DEFAULT
        table.add_row(
            entry.name, _as_text(entry), str(entry.source), entry.description, style="bold" if changed else None
        )
    Console(markup=False, highlight=False).print(table)
