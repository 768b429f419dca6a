"""``metalscribe keys``: make, list, revoke and rotate API keys."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from metalscribe.errors import InvalidParameter, NotFound
from metalscribe.settings import Settings, load_settings
from metalscribe.store.identity import CONFIGURED, ApiKey, NewKey, Scope, utc_now

if TYPE_CHECKING:
    from metalscribe.store.database import Database
    from metalscribe.store.keys import KeyStore

app = typer.Typer(
    help="API keys: who may use the service, for what, and for how long. Changes take effect at once, without a restart.",
    no_args_is_help=True,
)

_Result = TypeVar("_Result")
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

_Name = Annotated[str, typer.Argument(help="The key's name or id.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Expires = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Life of the key from now, such as 90d, 12h or 30m.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call the key: letters, digits, dot, underscore, hyphen.")],
    *,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What the key may do; repeat for several. [default: transcribe]")
    ] = None,
    expires: _Expires = None,
    rate_limit: Annotated[
        str | None, typer.Option(metavar="RATE", help="In place of METALSCRIBE_RATE_LIMIT, such as 100/minute.")
    ] = None,
    weight: Annotated[float, typer.Option(help="Share of the machine against other keys.")] = 1.0,
    as_json: _Json = False,
) -> None:
    """Make a key and print it, this once; the notes about it go to the standard error."""
    life = None if expires is None else parse_duration(expires, "expires")
    new = _with_keys(lambda keys: keys.create(name, scope or [Scope.TRANSCRIBE], life, rate_limit, weight=weight))
    _show_new(new, as_json=as_json)


@app.command("list")
def list_keys(*, as_json: _Json = False) -> None:
    """Show all keys, without their secrets."""
    keys = _with_keys(lambda store: store.list())
    if load_settings().api_key is not None:
        typer.echo("METALSCRIBE_API_KEY is set: it opens everything, beside these keys.", err=True)
    if as_json:
        typer.echo(json.dumps([_as_json(key) for key in keys], indent=2))
    elif keys:
        _show_table(keys)
    else:
        typer.echo("There are no keys yet; `metalscribe keys create NAME` makes one.", err=True)


@app.command()
def revoke(name: _Name) -> None:
    """Stop a key at once and for good."""
    key = _with_keys(lambda keys: keys.revoke(name))
    typer.echo(f"{key.name} ({key.id}) is revoked since {_moment(key.revoked_at)}.", err=True)


@app.command()
def rotate(
    name: _Name,
    *,
    grace: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the old secret goes on working, such as 1h.")
    ] = "0s",
    expires: _Expires = None,
    as_json: _Json = False,
) -> None:
    """Give a key a new secret and print it, this once. Name, id and settings stay, and so do the key's jobs."""
    period = parse_duration(grace, "grace")
    life = None if expires is None else parse_duration(expires, "expires")
    new = _with_keys(lambda keys: keys.rotate(name, grace=period, expires_in=life))
    _show_new(new, as_json=as_json)
    typer.echo(
        f"The old secret works for another {grace}." if period else "The old secret has stopped working.", err=True
    )


@app.command()
def webhook_secret(name: _Name) -> None:
    """Print what a key's webhooks are signed with; `configured` is the key in METALSCRIBE_API_KEY."""
    typer.echo(_with_database(lambda database: _webhook_secret(database, name)))


async def _webhook_secret(database: Database, name: str) -> str:
    from metalscribe.store.deliveries import DeliveryStore  # noqa: PLC0415
    from metalscribe.store.keys import KeyStore  # noqa: PLC0415

    key_id = name
    if name != CONFIGURED:
        known = [key.id for key in await KeyStore(database).list() if name in {key.name, key.id}]
        if not known:
            raise NotFound(f"There is no key {name}; `metalscribe keys list` shows them.")
        key_id = known[0]
    return await DeliveryStore(database).secret(key_id)


def parse_duration(text: str, parameter: str) -> timedelta:
    """Read a duration such as 90d, 12h or 30m; the units are s, m, h, d and w.

    Raises:
        InvalidParameter: it is not one; ``parameter`` names the option.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidParameter(f"{text!r} is not a duration such as 90d, 12h or 30m.", parameter)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _with_keys(work: Callable[[KeyStore], Awaitable[_Result]]) -> _Result:
    async def with_store(database: Database) -> _Result:
        from metalscribe.store.keys import KeyStore  # noqa: PLC0415

        return await work(KeyStore(database))

    return _with_database(with_store)


def _with_database(work: Callable[[Database], Awaitable[_Result]]) -> _Result:
    # The database is slow to import, and `metalscribe --help` does not need it.
    from metalscribe.store.database import Database  # noqa: PLC0415

    async def run(settings: Settings) -> _Result:
        database = Database(settings.sqlalchemy_url)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run(load_settings()))


def _show_new(new: NewKey, *, as_json: bool) -> None:
    key = new.api_key
    if as_json:
        typer.echo(json.dumps({"key": new.key_text, **_as_json(key)}, indent=2))
    else:
        typer.echo(new.key_text)
    settings = load_settings()
    place = "METALSCRIBE_DATABASE_URL" if settings.database_url else str(settings.state_dir)
    until = f"until {_moment(key.expires_at)}" if key.expires_at else "until it is revoked"
    typer.echo(f"{key.name} ({key.id}) may {', '.join(sorted(key.scopes))} {until}; kept in {place}.", err=True)
    typer.echo("The key is shown this once and stored nowhere: put it in a safe place.", err=True)


def _show_table(keys: tuple[ApiKey, ...]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    now = utc_now()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Name", "Id", "State", "Scopes", "Rate", "Weight", "Created", "Expires", "Last used"):
        table.add_column(heading, overflow="fold")
    for key in keys:
        table.add_row(
            key.name,
            key.id,
            key.state_at(now),
            " ".join(sorted(key.scopes)),
            key.rate_limit or "default",
            f"{key.weight:g}",
            _moment(key.created_at),
            _moment(key.expires_at),
            _moment(key.last_used_at),
            style=None if key.revoked_at is None else "dim",
        )
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 240  # a pipe has no width, and folded cells cannot be searched
    console.print(table)


def _as_json(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state_at(utc_now()),
        "scopes": sorted(key.scopes),
        "rate_limit": key.rate_limit,
        "weight": key.weight,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "last_used_at": _iso(key.last_used_at),
        "revoked_at": _iso(key.revoked_at),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}Z"
