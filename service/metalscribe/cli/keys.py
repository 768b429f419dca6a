"""``metalscribe keys``: make, list, change, revoke and rotate API keys."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from metalscribe.cli.console import new_table, show_table
from metalscribe.cli.database import with_database
from metalscribe.cli.durations import duration_text, parse_duration
from metalscribe.errors import InvalidParameter, NotFound
from metalscribe.settings import load_settings
from metalscribe.store.identity import CONFIGURED, ApiKey, NewKey, Scope, utc_now

if TYPE_CHECKING:
    from metalscribe.store.database import Database
    from metalscribe.store.keys import KeySettings, KeyStore

app = typer.Typer(
    help="API keys: who may use the service, for what, and for how long. Changes take effect at once, without a restart.",
    no_args_is_help=True,
)

_Result = TypeVar("_Result")
_NO_LIMIT = "none"
_OF_THE_SERVICE = "default"
_WITHOUT_END = "never"

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
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that may be under way at one time. [default: any number]")
    ] = None,
    daily_audio: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Audio a day (UTC), such as 10h or 90m. [default: any amount]"),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Make a key and print it, this once; the notes about it go to the standard error."""
    life = None if expires is None else parse_duration(expires, "expires")
    audio = None if daily_audio is None else _seconds(daily_audio)
    new = _with_keys(
        lambda keys: keys.create(
            name,
            scope or [Scope.TRANSCRIBE],
            life,
            rate_limit,
            weight=weight,
            concurrency=concurrency,
            daily_audio_seconds=audio,
        )
    )
    _show_new(new, as_json=as_json)


@app.command("set")
def change(
    name: _Name,
    *,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What the key may do, and nothing else; repeat for several.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION|never", help="Life of the key from now, such as 90d; never: until it is revoked."
        ),
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(metavar="RATE|default", help="Such as 100/minute; default: METALSCRIBE_RATE_LIMIT again."),
    ] = None,
    weight: Annotated[float | None, typer.Option(help="Share of the machine; 1 is an equal one.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N|none", help="Requests that may be under way at one time; none: any number.")
    ] = None,
    daily_audio: Annotated[
        str | None,
        typer.Option(metavar="DURATION|none", help="Audio a day (UTC), such as 10h or 90m; none: any amount."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Change what a key may do, from its next request on. What is not given stays, and so does the key itself."""
    changes: KeySettings = {}
    if scope:
        changes["scopes"] = scope
    if expires is not None:
        changes["expires_in"] = None if expires == _WITHOUT_END else parse_duration(expires, "expires")
    if rate_limit is not None:
        changes["rate_limit"] = None if rate_limit == _OF_THE_SERVICE else rate_limit
    if weight is not None:
        changes["weight"] = weight
    if concurrency is not None:
        changes["concurrency"] = None if concurrency == _NO_LIMIT else _whole_number(concurrency)
    if daily_audio is not None:
        changes["daily_audio_seconds"] = None if daily_audio == _NO_LIMIT else _seconds(daily_audio)
    if not changes:
        raise InvalidParameter("Nothing to change is given; `metalscribe keys set --help` shows what can be.")
    key = _with_keys(lambda keys: keys.change(name, changes))
    if as_json:
        typer.echo(json.dumps(_as_json(key), indent=2))
    until = f"until {_moment(key.expires_at)}" if key.expires_at else "until it is revoked"
    typer.echo(
        f"{key.name} ({key.id}) may {', '.join(sorted(key.scopes))} {until}; rate {_rate(key)}, weight {key.weight:g}, "
        f"concurrency {_concurrency(key)}, daily audio {_daily_audio(key)}.",
        err=True,
    )


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
    typer.echo(with_database(lambda database: _webhook_secret(database, name)))


async def _webhook_secret(database: Database, name: str) -> str:
    from metalscribe.store.deliveries import DeliveryStore  # noqa: PLC0415
    from metalscribe.store.keys import KeyStore  # noqa: PLC0415

    return await DeliveryStore(database).secret(id_of(name, await KeyStore(database).list()))


def id_of(name: str, keys: Collection[ApiKey]) -> str:
    """The id of the key that an operator calls so; a name wins over an id that reads the same.

    Raises:
        NotFound: none of these is called so, and it is not the configured one either.
    """
    ids = {key.id: key.id for key in keys} | {key.name: key.id for key in keys} | {CONFIGURED: CONFIGURED}
    if name not in ids:
        raise NotFound(f"There is no key {name}; `metalscribe keys list` shows them.")
    return ids[name]


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidParameter(f"{text!r} is neither a number of requests nor {_NO_LIMIT!r}.", "concurrency")
    return int(text[:9])


def _seconds(text: str) -> float:
    return parse_duration(text, "daily_audio").total_seconds()


def _with_keys(work: Callable[[KeyStore], Awaitable[_Result]]) -> _Result:
    async def with_store(database: Database) -> _Result:
        from metalscribe.store.keys import KeyStore  # noqa: PLC0415

        return await work(KeyStore(database))

    return with_database(with_store)


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
    now = utc_now()
    table = new_table(
        *("Name", "Id", "State", "Scopes", "Rate", "Weight", "Concurrency", "Audio/day"),
        *("Created", "Expires", "Last used"),
    )
    for key in keys:
        table.add_row(
            key.name,
            key.id,
            key.state_at(now),
            " ".join(sorted(key.scopes)),
            _rate(key),
            f"{key.weight:g}",
            _concurrency(key),
            _daily_audio(key),
            _moment(key.created_at),
            _moment(key.expires_at),
            _moment(key.last_used_at),
            style=None if key.revoked_at is None else "dim",
        )
    show_table(table)


def _rate(key: ApiKey) -> str:
    return key.rate_limit or _OF_THE_SERVICE


def _concurrency(key: ApiKey) -> str:
    return _NO_LIMIT if key.concurrency is None else str(key.concurrency)


def _daily_audio(key: ApiKey) -> str:
    return _NO_LIMIT if key.daily_audio_seconds is None else duration_text(key.daily_audio_seconds)


def _as_json(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state_at(utc_now()),
        "scopes": sorted(key.scopes),
        "rate_limit": key.rate_limit,
        "weight": key.weight,
        "concurrency": key.concurrency,
        "daily_audio_seconds": key.daily_audio_seconds,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "last_used_at": _iso(key.last_used_at),
        "revoked_at": _iso(key.revoked_at),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}Z"
