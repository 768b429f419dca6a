"""Talking to whoever runs a command: complaints, names fit to print, documents and tables on stdout."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table


def complain(message: str) -> None:
    """One line on stderr, red on a terminal that wants colour (https://no-color.org)."""
    say(f"Error: {message}", colour=typer.colors.RED)


def warn(message: str) -> None:
    """One line on stderr, yellow on a terminal that wants colour."""
    say(f"Warning: {message}", colour=typer.colors.YELLOW)


def say(message: str, *, colour: str | None = None) -> None:
    """One line on stderr."""
    plain = printable(" ".join(message.splitlines()))
    typer.secho(plain, err=True, fg=colour, color=False if "NO_COLOR" in os.environ else None)


def printable(text: str) -> str:
    """``text`` with replacement characters for what would steer the terminal or is no text: file names are anything."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def write_out(document: str) -> None:
    """A document on stdout as it is, in UTF-8 whatever the locale says, at once."""
    typer.echo(document.encode("utf-8", "replace"), nl=False)


def new_table(*headings: str) -> Table:
    """A table with a heading for each column."""
    from rich.table import Table  # noqa: PLC0415  (slow to load, and few commands show one)

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def show_table(table: Table) -> None:
    """A table on stdout, as wide as the terminal, or as its cells where there is none."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 240  # a pipe has no width, and folded cells cannot be searched
    console.print(table)
