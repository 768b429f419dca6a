"""``metalscribe doctor``: is everything there that the service needs, and does it work?

Exit status: 0 all is well, 1 there are warnings, 2 something has to be mended. The JSON is stable:
``{"status": …, "checks": [{"name", "status", "detail", "hint"}, …]}``, with the statuses ok, warn and fail.

On a host that the deploy of ``provision/`` made, it looks at the host as well: driver, units, nginx, certificate, and a
transcription by HTTPS. Root is needed for all of that; the service's own part is then done as the service's user.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metalscribe.cli import examination
from metalscribe.cli.examination import Check, carried_out

if TYPE_CHECKING:
    from metalscribe.cli.findings import Finding
    from metalscribe.cli.host.deployment import Host, HostDocument

_EXIT: Final = {"ok": 0, "warn": 1, "fail": 2}
_COLOURS: Final = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
_INDENT: Final = 24

_TRANSCRIPTION: Final = examination.NAMES[-1]
_HTTPS: Final = "https"

# Name, the module whose function of that name looks, and whether a host has such a thing; None where that needs no saying.
_HOST_CHECKS: Final[tuple[tuple[str, str, Callable[[HostDocument], bool] | None], ...]] = (
    ("driver", "driver", lambda document: document.gpu),
    ("device_nodes", "driver", lambda document: document.gpu),
    ("unit", "units", None),
    ("unit_security", "units", None),
    ("release", "upkeep", None),
    ("release_space", "upkeep", None),
    ("backup", "upkeep", lambda _: True),
    ("clock", "upkeep", None),
    ("exporters", "units", lambda document: bool(document.exporters)),
    ("firewall", "edge", lambda document: document.firewall),
    ("nginx", "edge", None),
    ("certificate", "certificate", lambda _: True),
    (_HTTPS, "edge", lambda _: True),
)


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out real transcriptions, and the model's checksums.")
    ] = False,
) -> None:
    """Check everything that the service needs.

    That goes down to a real transcription of a recording that comes along. The exit status is 0 if all is well, 1 if
    there are warnings, 2 if something has to be mended.
    """
    done: list[Check] = []
    for check in examine(quick=quick):
        done.append(check)
        if not as_json:
            _print(check)
    status = max((check.status for check in done), key=_EXIT.__getitem__)
    if as_json:
        typer.echo(json.dumps({"status": status, "checks": [asdict(check) for check in done]}, indent=2))
    raise typer.Exit(_EXIT[status])


def examine(*, quick: bool, host: Host | None = None) -> Iterator[Check]:
    """Carry the checks out, one after another; one that breaks is a failure like any other.

    Args:
        quick: leave out what takes long.
        host: this machine, unless a test says otherwise.
    """
    from metalscribe.cli.host.deployment import Host  # noqa: PLC0415

    host = host or Host()
    names = examination.NAMES[:-1]
    if not host.is_deployed:
        yield from examination.examine(names if quick else examination.NAMES, quick=quick)
        return
    moot = quick
    for check in itertools.chain(_service(host, *names, quick=quick), _host(host, quick=quick)):
        moot = moot or (check.name, check.status) in {(_HTTPS, "ok"), ("settings", "fail")}
        yield check
    if not moot:
        # Last, since it loads a second model: where the way by HTTPS fails, it shows whether the model is to blame.
        yield from _service(host, _TRANSCRIPTION, quick=quick)


def _service(host: Host, *names: str, quick: bool) -> Iterator[Check]:
    from metalscribe.cli.host.service_user import examine_as_service, is_service_user  # noqa: PLC0415

    if os.geteuid() == 0:
        yield from examine_as_service(host, names, quick=quick)
    elif is_service_user():
        yield from examination.examine(names, quick=quick)
    elif names[0] == "settings":
        # Of this user's settings, database and model nothing follows for the service's.
        detail = "the service's settings, database and model are not for this user to see"
        yield Check("settings", "warn", detail, "Run it as root: `sudo metalscribe doctor`.")
        yield from examination.examine(("libraries", "service"))


def _host(host: Host, *, quick: bool) -> Iterator[Check]:
    deployment = carried_out("deployment", lambda: _look("deployment", "deployment", host))
    yield deployment
    document = host.document() if deployment.status == "ok" else None
    for name, module, exists in _HOST_CHECKS:
        if quick and name == _HTTPS:
            continue
        if exists is None or (document is not None and exists(document)):
            yield carried_out(name, lambda: _look(module, name, host))  # noqa: B023  (called at once)


def _look(module: str, name: str, host: Host) -> Finding:
    from metalscribe.cli.findings import Finding, Status  # noqa: PLC0415

    look: Callable[[Host], Finding] = getattr(importlib.import_module(f"metalscribe.cli.host.{module}"), name)
    try:
        return look(host)
    except PermissionError as error:
        return Finding(Status.WARN, f"{error.filename} is not for this user to see", "Run it as root.")


def _print(check: Check) -> None:
    typer.secho(f"{check.status:<6}", nl=False, fg=_COLOURS[check.status], bold=True)
    typer.echo(_wrapped(f"{check.name:<16}  {check.detail}", _INDENT, taken=6))
    if check.hint:
        typer.echo(" " * _INDENT + _wrapped(f"→ {check.hint}", _INDENT + 2, taken=_INDENT))


def _wrapped(text: str, indent: int, *, taken: int) -> str:
    """``text`` in lines that fit the terminal; whole where there is none, so that it can be searched."""
    line = " ".join(text.splitlines())
    if not sys.stdout.isatty():
        return line
    width = max(60, shutil.get_terminal_size().columns)
    return textwrap.fill(
        line,
        width,
        initial_indent=" " * taken,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )[taken:]
