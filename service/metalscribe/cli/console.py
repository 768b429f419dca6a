"""Talking to whoever runs a command: complaints, names fit to print, documents on stdout."""

from __future__ import annotations

import os

import typer


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
