"""Options that several commands have alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metalscribe.transcript import Mode, Task

Language = Annotated[
    str | None, typer.Option("--language", "-l", help="Spoken language, such as en or English. [default: detected]")
]
TaskToDo = Annotated[Task, typer.Option(help="The words as spoken, or in English.")]
ModeOfWork = Annotated[Mode, typer.Option(help="accurate reads one window after another.")]
Prompt = Annotated[str | None, typer.Option(help="Text before the recording, for spelling and style.")]
Hotwords = Annotated[str | None, typer.Option(help="Words to expect.")]
ServiceKey = Annotated[
    str | None,
    typer.Option(
        envvar="METALSCRIBE_API_KEY",
        help="Key for the service; the variable is safer, since others see a command's arguments.",
        show_default=False,
    ),
]
Authority = Annotated[
    Path | None, typer.Option(help="Certificate authority (PEM) that signed the service's certificate.")
]
