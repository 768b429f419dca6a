"""``metalscribe submit``: hand recordings in as jobs, and wait for them if told to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from metalscribe.cli.arguments import Authority, Hotwords, Language, ModeOfWork, Prompt, ServiceKey, TaskToDo
from metalscribe.cli.console import complain, printable, say, write_out
from metalscribe.errors import MetalscribeError, TryLater
from metalscribe.render import Format
from metalscribe.transcript import Mode, Task

if TYPE_CHECKING:
    from metalscribe.cli.progress import Bars, OnProgress
    from metalscribe.cli.remote import JobClient

_AT_ONCE: Final = 4
_LOOK_SECONDS: Final = 1.0
_UNREACHABLE_FOR_SECONDS: Final = 600.0
"""How long a service may be away while somebody waits: a restart, an upgrade, a reboot."""


def submit(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Recordings, audio or video.", exists=True, dir_okay=False)
    ],
    *,
    url: Annotated[
        str, typer.Option(metavar="URL", help="The service, such as https://host.")
    ] = "http://127.0.0.1:8000",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the jobs, and print their transcripts.")] = False,
    document: Annotated[Format, typer.Option("--format", "-f", help="What to print, with --wait.")] = Format.TEXT,
    language: Language = None,
    task: TaskToDo = Task.TRANSCRIBE,
    mode: ModeOfWork = Mode.FAST,
    prompt: Prompt = None,
    hotwords: Hotwords = None,
    word_timestamps: Annotated[bool, typer.Option("--word-timestamps", help="Time every word.")] = False,
    model: Annotated[str | None, typer.Option(help="Which of the service's models.", show_default=False)] = None,
    webhook_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Address that each finished job is posted to.")
    ] = None,
    api_key: ServiceKey = None,
    ca_file: Authority = None,
) -> None:
    """Hand recordings in as jobs and print the jobs' ids.

    With --wait the transcripts are printed in place of the ids, in the order of the files. Whoever stops waiting loses
    nothing: the jobs go on, and `metalscribe jobs` or the API has them.
    """
    from metalscribe.cli.remote import Service, job_client  # noqa: PLC0415

    fields = {
        "language": language,
        "task": task.value if task is not Task.TRANSCRIBE else None,
        "mode": mode.value if mode is not Mode.FAST else None,
        "prompt": prompt,
        "hotwords": hotwords,
        "word_timestamps": "true" if word_timestamps else None,
        "model": model,
        "webhook_url": webhook_url,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    service = Service.at(url, api_key, ca_file)

    async def run() -> int:
        from metalscribe.cli.progress import Bars  # noqa: PLC0415

        with Bars() as bars:
            async with job_client(service) as client:
                return await _submit_all(client, files, given, document if wait else None, bars)

    if asyncio.run(run()):
        raise typer.Exit(1)


async def _submit_all(
    client: JobClient, files: list[Path], fields: dict[str, str], document: Format | None, bars: Bars
) -> int:
    """Hand all in, and wait for them where a document is wanted; returns how many failed."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(file: Path) -> str:
        with bars.bar(printable(file.name)) as progress:
            async with places:  # as many uploads at a time; waiting costs nothing
                job_id = await client.submit(file, fields, progress)
            return job_id if document is None else await _waited(client, job_id, document, progress)

    tasks = [asyncio.create_task(one(file)) for file in files]
    failures = 0
    for file, outcome in zip(files, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        with bars.aside():
            if isinstance(outcome, MetalscribeError):
                failures += 1
                complain(f"{file}: {outcome.detail}")
            elif isinstance(outcome, BaseException):
                raise outcome
            elif document is None:
                typer.echo(outcome)
                say(f"{file} is job {outcome}")
            else:
                write_out(outcome if outcome.endswith("\n") else f"{outcome}\n")
    return failures


async def _waited(client: JobClient, job_id: str, document: Format, progress: OnProgress) -> str:
    """A job's transcript when it is done; a service that is away is waited for.

    Raises:
        MetalscribeError: the job failed, was cancelled, or the service stays away.
    """
    away = 0.0
    while True:
        try:
            job: dict[str, Any] = await client.job(job_id)
            away = 0.0
        except TryLater as error:
            away += _LOOK_SECONDS
            if away > _UNREACHABLE_FOR_SECONDS:
                raise MetalscribeError(f"{error.detail}; the job {job_id} goes on when the service is back") from error
            progress("waiting for the service", None)
            await asyncio.sleep(_LOOK_SECONDS)
            continue
        if job["status"] == "done":
            return (
                json.dumps(job, ensure_ascii=False)
                if document is Format.JSON
                else await client.transcript(job_id, document)
            )
        if job["status"] in {"failed", "cancelled"}:
            raise MetalscribeError(job["error"] or f"the job {job_id} was cancelled")
        progress(job["status"], float(job["progress"]) if job["status"] == "running" else None)
        await asyncio.sleep(_LOOK_SECONDS)
