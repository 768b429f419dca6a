"""``metalscribe backup`` and ``metalscribe restore``: everything that must survive, in one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metalscribe.cli.console import say
from metalscribe.errors import ConfigurationError, InvalidParameter
from metalscribe.settings import load_settings

if TYPE_CHECKING:
    from metalscribe.settings import Settings

_STANDARD: Final = Path("-")


def backup(file: Annotated[Path, typer.Argument(help="The tar file to write; - is the standard output.")]) -> None:
    """Copy keys, jobs, transcripts and waiting recordings into a file, also while the service runs."""
    from metalscribe.store.backup import back_up  # noqa: PLC0415

    settings = load_settings()
    if file == _STANDARD and sys.stdout.isatty():
        raise InvalidParameter(
            "a terminal is no place for a tar file; send it into a file: metalscribe backup - > FILE", "file"
        )
    count = back_up(_sqlite(settings), settings.jobs_directory, sys.stdout.buffer if file == _STANDARD else file)
    say(f"{_named(file)} has the database and {_recordings(count)} of jobs that wait or run.")


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `metalscribe backup` wrote; - is the standard input.")],
) -> None:
    """Put a backup in place of what is there; the service must be stopped."""
    from metalscribe.store.backup import restore as put_back  # noqa: PLC0415

    settings = load_settings()
    count = put_back(sys.stdin.buffer if file == _STANDARD else file, _sqlite(settings), settings.jobs_directory)
    say(
        f"{settings.state_dir} is as it was when {_named(file)} was written, with {_recordings(count)} of waiting jobs."
    )


def _named(file: Path) -> str:
    return "the backup" if file == _STANDARD else str(file)


def _recordings(count: int) -> str:
    return f"{count} recording{'' if count == 1 else 's'}"


def _sqlite(settings: Settings) -> Path:
    from sqlalchemy import make_url  # noqa: PLC0415

    url = make_url(settings.sqlalchemy_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise ConfigurationError(
            "METALSCRIBE_DATABASE_URL is a server's: back it up with its own tools (pg_dump), and "
            f"{settings.jobs_directory}/recordings after it"
        )
    return Path(url.database)
