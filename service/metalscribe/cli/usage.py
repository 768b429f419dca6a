"""``metalscribe usage``: what each key has had transcribed, day by day."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metalscribe.cli.console import new_table, say, show_table
from metalscribe.cli.database import with_database
from metalscribe.cli.keys import id_of
from metalscribe.errors import InvalidParameter
from metalscribe.store.identity import utc_now

if TYPE_CHECKING:
    from metalscribe.store.database import Database
    from metalscribe.store.usage import DayOfUse, Usage

_DAYS: Final = 30


def usage(
    *,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this key, by name or id. [default: all]")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="First day, such as 2026-11-01.")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=100_000, help=f"How many days, with today. [default: {_DAYS}]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what each key has had transcribed, by days of UTC, with sums. Entries are kept for 400 days."""
    if since is not None and days is not None:
        raise InvalidParameter("Give either --since or --days.", "since")
    last = utc_now().date()
    first = since.date() if since is not None else last - timedelta(days=(days or _DAYS) - 1)
    entries, names = with_database(lambda database: _between(database, first, last, key))
    if as_json:
        typer.echo(json.dumps(_as_json(first, last, entries, names), indent=2))
    elif entries:
        _show_table(entries, names)
    else:
        say(f"Nothing was transcribed since {first}{'' if key is None else f' with the key {key}'}.")


async def _between(
    database: Database, first: date, last: date, name: str | None
) -> tuple[list[DayOfUse], dict[str, str]]:
    """The entries by day and name, and the keys' names by their ids, those of revoked keys too."""
    from metalscribe.store.keys import KeyStore  # noqa: PLC0415
    from metalscribe.store.usage import UsageStore  # noqa: PLC0415

    keys = await KeyStore(database).list()
    key_id = None if name is None else id_of(name, keys)
    names = {key.id: key.name for key in keys}
    entries = await UsageStore(database).between(first, last, key_id)
    return sorted(entries, key=lambda entry: (entry.day, names.get(entry.key_id, entry.key_id))), names


def _sums(entries: list[DayOfUse]) -> dict[str, Usage]:
    """What each key has used on all of the days, by its id."""
    from metalscribe.store.usage import Usage  # noqa: PLC0415

    sums: defaultdict[str, Usage] = defaultdict(Usage)
    for entry in entries:
        sums[entry.key_id] += entry.usage
    return sums


def _total(sums: dict[str, Usage]) -> Usage:
    from metalscribe.store.usage import Usage  # noqa: PLC0415

    return sum(sums.values(), start=Usage())


def _show_table(entries: list[DayOfUse], names: dict[str, str]) -> None:
    table = new_table("Day", "Key", "Requests", "Jobs", "Failed", "Audio", "Engine")
    for column in table.columns[2:]:
        column.justify = "right"
    for entry in entries:
        table.add_row(str(entry.day), names.get(entry.key_id, entry.key_id), *_cells(entry.usage))
    sums = _sums(entries)
    if len(entries) > len(sums) > 1:
        for key_id, usage in sums.items():
            table.add_row("all days", names.get(key_id, key_id), *_cells(usage), style="bold")
    if len(entries) > 1:
        table.add_row("all days", "all keys" if len(sums) > 1 else "", *_cells(_total(sums)), style="bold")
    show_table(table)


def _cells(usage: Usage) -> tuple[str, ...]:
    counts = (usage.requests, usage.jobs, usage.failed)
    return *(str(count) for count in counts), _hours(usage.audio_seconds), _hours(usage.engine_seconds)


def _hours(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _as_json(first: date, last: date, entries: list[DayOfUse], names: dict[str, str]) -> dict[str, object]:
    def of(key_id: str, usage: Usage) -> dict[str, object]:
        return {"key": names.get(key_id, key_id), "key_id": key_id, **_numbers(usage)}

    sums = _sums(entries)
    return {
        "first": str(first),
        "last": str(last),
        "days": [{"day": str(entry.day), **of(entry.key_id, entry.usage)} for entry in entries],
        "keys": [of(key_id, usage) for key_id, usage in sums.items()],
        "total": _numbers(_total(sums)),
    }


def _numbers(usage: Usage) -> dict[str, float]:
    return {name: round(amount, 3) for name, amount in asdict(usage).items()}
