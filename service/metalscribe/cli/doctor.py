"""``metalscribe doctor``: is everything there that the service needs, and does it work?

Exit status: 0 all is well, 1 there are warnings, 2 something has to be mended. The JSON is stable:
``{"status": …, "checks": [{"name", "status", "detail", "hint"}, …]}``, with the statuses ok, warn and fail.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metalscribe.errors import MetalscribeError
from metalscribe.settings import Settings, load_settings

if TYPE_CHECKING:
    from metalscribe.cli.findings import Finding

_EXIT: Final = {"ok": 0, "warn": 1, "fail": 2}
_COLOURS: Final = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
_INDENT: Final = 24

# In the order in which one thing builds upon another: name, and the module whose function of that name looks. They are
# imported one by one, since a broken installation is among what is to be found.
_CHECKS: Final = (
    ("state_directory", "checks"),
    ("disk_space", "checks"),
    ("database", "checks"),
    ("api_keys", "checks"),
    ("model", "checks"),
    ("device", "devices"),
    ("cublas", "devices"),
    ("compute_type", "devices"),
    ("decoder", "trial"),
    ("service", "checks"),
    ("transcription", "trial"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One check and how it came out: ``status`` is ok, warn or fail."""

    name: str
    status: str
    detail: str
    hint: str


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the real transcription.")] = False,
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


def examine(*, quick: bool) -> Iterator[Check]:
    """Carry the checks out, one after another; one that breaks is a failure like any other."""
    read: list[Settings] = []
    yield _carried_out("settings", lambda: _settings(read))
    yield _carried_out("libraries", lambda: _look("devices", "libraries"))
    for settings in read:  # without them there is nothing that the others could go by
        for name, module in _CHECKS:
            if not (quick and name == "transcription"):
                yield _carried_out(name, lambda: _look(module, name, settings))  # noqa: B023  (called at once)


def _settings(read: list[Settings]) -> Finding:
    from metalscribe.cli.findings import Finding, Status  # noqa: PLC0415

    settings = load_settings()
    read.append(settings)
    given, known = len(settings.model_fields_set), len(Settings.model_fields)
    return Finding(
        Status.OK, f"{given} of {known} are set, the others at their defaults; `metalscribe config` lists them"
    )


def _look(module: str, name: str, *arguments: Settings) -> Finding:
    look: Callable[..., Finding] = getattr(importlib.import_module(f"metalscribe.cli.{module}"), name)
    return look(*arguments)


def _carried_out(name: str, look: Callable[[], Finding]) -> Check:
    try:
        finding = look()
    except MetalscribeError as error:
        return Check(name, "fail", error.detail, "")
    except Exception as error:  # noqa: BLE001  (whatever breaks is what the doctor was called for)
        return Check(name, "fail", f"{type(error).__name__}: {error}", "")
    return Check(name, finding.status.value, finding.detail, finding.hint)


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
