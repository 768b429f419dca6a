"""Progress bars on stderr, one per recording; nothing at all where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from metalscribe.cli.console import say

OnProgress = Callable[[str, float | None], None]
"""Called with what is being done and how many per cent of it are; None where that cannot be known."""


class Bars:
    """The bars of one command; a context manager.

    They go away when it ends. Output that may land on the same terminal belongs into :meth:`aside`.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # What is printed must not end up in stderr's bars.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not (sys.stderr.isatty() and console.is_interactive),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bars away while something else is written."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    @contextmanager
    def bar(self, name: str) -> Iterator[OnProgress]:
        """A bar for one recording, for as long as the block lasts."""
        task = self._progress.add_task(name, total=None)

        def show(doing: str, percent: float | None) -> None:
            self._progress.update(task, description=f"{name} {doing}".rstrip(), completed=percent or 0.0)
            self._set_total(task, None if percent is None else 100.0)

        try:
            yield show
        finally:
            self._progress.remove_task(task)

    def note(self, message: str) -> None:
        """A line above the bars, and on stderr also where there are none."""
        with self.aside():
            say(message)

    def _set_total(self, task: TaskID, total: float | None) -> None:
        # update() takes None for "unchanged", so a bar becomes endless again by assignment.
        for entry in self._progress.tasks:
            if entry.id == task:
                entry.total = total
