"""``metalscribe model``: which models there are, bringing one here, and checking that it is what it was."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metalscribe.engine import catalog, weights
from metalscribe.errors import ModelMissing
from metalscribe.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

app = typer.Typer(help="List, download and verify models.", no_args_is_help=True)

_PIPE_WIDTH = 200
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command("list")
def list_models(*, as_json: _AsJson = False) -> None:
    """Show the models known by name, and those on this machine."""
    entries = _entries(load_settings().models_dir)
    if as_json:
        _print_json(entries)
        return
    from rich.console import Console  # noqa: PLC0415  (tables are for people; scripts do not wait for them)
    from rich.filesize import decimal  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("Name", "Repository", "Size", "Languages", "Here", "Pinned revision", box=None, header_style="bold")
    for entry in entries:
        table.add_row(
            entry["name"],
            entry["repository"] or "-",
            decimal(entry["size_bytes"]) if entry["size_bytes"] is not None else "-",
            {True: "many", False: "English", None: "-"}[entry["multilingual"]],
            ", ".join(here["revision"] or "yes" for here in entry["here"]) or "no",
            (entry["revision"] or "-")[:12],
        )
    # Into a pipe a row stays a line, for grep.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


@app.command()
def download(
    name: Annotated[
        str, typer.Argument(help="A name from `metalscribe model list`, owner/name or owner/name@revision on the hub.")
    ],
    *,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag instead of the pinned revision.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Download a model and verify it; an interrupted download is continued, a damaged model mended."""
    from metalscribe.engine.download import download as bring  # noqa: PLC0415  (nothing else needs the hub)

    settings = load_settings()
    with _progress_bar() as progress:
        found = bring(name, settings.models_dir, revision=revision, offline=settings.offline, progress=progress)
    commit = found.manifest.commit if found.manifest is not None else None
    if as_json:
        _print_json({"name": found.name, "revision": commit, "path": str(found.path)})
        return
    at = f" at {commit[:12]}" if commit is not None else ""
    typer.echo(f"{found.name}{at} is here and verified.")


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to verify; by default all downloaded ones, and demo if installed.", metavar="[NAME]..."
        ),
    ] = None,
    *,
    as_json: _AsJson = False,
) -> None:
    """Read every file of the models again and compare checksums; exit status 1 if anything is damaged."""
    models_dir = load_settings().models_dir
    if names:
        models = [weights.locate(name, models_dir) for name in names]
    else:
        models = [*weights.downloaded(models_dir), *_installed_demo(models_dir)]
    reports = [(model, weights.verify(model.path)) for model in models]
    if as_json:
        _print_json([_report(model, checks) for model, checks in reports])
    else:
        for model, checks in reports:
            problems = [check for check in checks if not check.ok]
            typer.echo(f"{model.name}: {'damaged' if problems else f'{len(checks)} files verified'}")
            for check in problems:
                typer.echo(f"  {check.name} {check.problem}")
            if problems:
                typer.echo(f"  {_mend(model, models_dir)}")
        if not reports:
            typer.echo("There is no model on this machine; `metalscribe model download NAME` brings one.")
    if any(not check.ok for _, checks in reports for check in checks):
        raise typer.Exit(1)


def _entries(models_dir: Path) -> list[dict[str, Any]]:
    here = weights.downloaded(models_dir)
    entries: list[dict[str, Any]] = [
        {
            "name": known.name,
            "aliases": list(known.aliases),
            "repository": known.repository,
            "size_bytes": known.size_bytes,
            "multilingual": known.multilingual,
            "mel_bands": known.mel_bands,
            "revision": known.revision,
            "sha256": known.sha256,
            "here": [_here(model) for model in here if model.name == known.name],
        }
        for known in catalog.KNOWN_MODELS
    ]
    demo = _installed_demo(models_dir)
    entries.append(_unlisted(catalog.DEMO, None, demo) | {"multilingual": False, "mel_bands": 80})
    others = dict.fromkeys(model.name for model in here if catalog.find(model.name) is None)
    entries.extend(_unlisted(name, name, [model for model in here if model.name == name]) for name in others)
    return entries


def _unlisted(name: str, repository: str | None, here: list[weights.ModelFiles]) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in here[0].path.iterdir() if path.is_file()) if here else None
    return {
        "name": name,
        "aliases": [],
        "repository": repository,
        "size_bytes": size,
        "multilingual": None,
        "mel_bands": None,
        "revision": None,
        "sha256": None,
        "here": [_here(model) for model in here],
    }


def _here(model: weights.ModelFiles) -> dict[str, Any]:
    commit = model.path.name.rpartition("@")[2] if "@" in model.path.name else None
    downloaded_at = model.manifest.downloaded_at if model.manifest is not None else None
    return {"revision": commit, "path": str(model.path), "downloaded_at": downloaded_at}


def _report(model: weights.ModelFiles, checks: list[weights.FileCheck]) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "ok": all(check.ok for check in checks),
        "files": [{"name": check.name, "ok": check.ok, "problem": check.problem} for check in checks],
    }


def _mend(model: weights.ModelFiles, models_dir: Path) -> str:
    if model.manifest is not None:
        return f"mend it with `metalscribe model download {model.name}@{model.manifest.commit}`"
    if model.path.parent == models_dir:
        return f"mend it with `metalscribe model download {model.name}`"
    return "mend it by installing or copying it again"


def _installed_demo(models_dir: Path) -> list[weights.ModelFiles]:
    try:
        return [weights.locate(catalog.DEMO, models_dir)]
    except ModelMissing:
        return []  # an extra that one need not have


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield show


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
