"""``metalscribe jobs``: look at jobs, call them off, send their webhooks again, take their transcripts out."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from metalscribe.cli.console import new_table, say, show_table, write_out
from metalscribe.cli.database import with_database
from metalscribe.errors import Conflict
from metalscribe.render import Format
from metalscribe.settings import load_settings
from metalscribe.store.job import Job, JobStatus

if TYPE_CHECKING:
    from metalscribe.store.deliveries import Delivery, DeliveryStore
    from metalscribe.store.jobs import JobStore
    from metalscribe.store.keys import KeyStore
    from metalscribe.transcript import Segment

app = typer.Typer(
    help="Jobs of all keys, in this service's database. Changes take effect within two seconds, without a restart.",
    no_args_is_help=True,
)

_Result = TypeVar("_Result")

_Id = Annotated[str, typer.Argument(help="The job's id.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class _Stores:
    """What the commands work on."""

    jobs: JobStore
    deliveries: DeliveryStore
    keys: KeyStore


@app.command("list")
def list_jobs(
    *,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 50,
    as_json: _Json = False,
) -> None:
    """Show jobs, newest first."""

    async def work(stores: _Stores) -> tuple[list[Job], dict[str, str]]:
        names = {key.id: key.name for key in await stores.keys.list()}
        return await stores.jobs.page(None, limit=limit, status=status), names

    jobs, names = _with_stores(work)
    if as_json:
        typer.echo(json.dumps([_as_json(job, names) for job in jobs], indent=2, ensure_ascii=False))
    elif jobs:
        _show_table(jobs, names)
    else:
        say("There are no such jobs.")


@app.command()
def show(job_id: _Id) -> None:
    """Show a job with its transcript and its webhooks, as JSON."""

    async def work(stores: _Stores) -> tuple[Job, tuple[Segment, ...], list[Delivery], dict[str, str]]:
        job = await stores.jobs.get(job_id)
        names = {key.id: key.name for key in await stores.keys.list()}
        return job, await stores.jobs.segments(job), list(await stores.deliveries.of_job(job_id)), names

    from metalscribe.jobs.documents import job_json  # noqa: PLC0415

    job, segments, deliveries, names = _with_stores(work)
    document = {**job_json(job, segments), "key": names.get(job.key_id, job.key_id)}
    document["webhooks"] = [
        {
            "id": delivery.id,
            "event": delivery.event,
            "target": delivery.target,
            "status": delivery.status.value,
            "attempts": delivery.attempts,
            "error": delivery.error,
        }
        for delivery in deliveries
    ]
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@app.command()
def cancel(job_id: _Id) -> None:
    """Cancel a job that has not ended; delete one that has, with its transcript."""
    from metalscribe.store.recordings import recording_of  # noqa: PLC0415

    was = _with_stores(lambda stores: stores.jobs.cancel(job_id))
    recording_of(load_settings().jobs_directory, was.id).unlink(missing_ok=True)
    say(f"The job {job_id} is {'deleted' if was.status.final else 'cancelled'}.")


@app.command()
def redeliver(job_id: _Id) -> None:
    """Send a finished job's webhook again, whatever became of it before."""
    count = _with_stores(lambda stores: stores.deliveries.redeliver(job_id))
    say(f"{count} webhook{'s' if count > 1 else ''} of the job {job_id} will be sent by the running service.")


@app.command()
def export(
    job_id: _Id,
    *,
    document: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.TEXT,
) -> None:
    """Print a finished job's transcript."""

    async def work(stores: _Stores) -> tuple[Job, tuple[Segment, ...]]:
        job = await stores.jobs.get(job_id)
        return job, await stores.jobs.segments(job)

    from metalscribe.jobs.documents import job_json, transcript_of  # noqa: PLC0415
    from metalscribe.render import render  # noqa: PLC0415

    job, segments = _with_stores(work)
    if job.status is not JobStatus.DONE:
        raise Conflict(f"The job is {job.status.value}; it has no transcript{' yet' if not job.status.final else ''}.")
    if document is Format.JSON:
        write_out(json.dumps(job_json(job, segments), ensure_ascii=False) + "\n")
    else:
        write_out(render(transcript_of(job, segments), document))


def _with_stores(work: Callable[[_Stores], Awaitable[_Result]]) -> _Result:
    from metalscribe.store.deliveries import DeliveryStore  # noqa: PLC0415
    from metalscribe.store.jobs import JobStore  # noqa: PLC0415
    from metalscribe.store.keys import KeyStore  # noqa: PLC0415

    return with_database(
        lambda database: work(_Stores(JobStore(database), DeliveryStore(database), KeyStore(database)))
    )


def _show_table(jobs: list[Job], names: dict[str, str]) -> None:
    table = new_table("Id", "Status", "%", "Key", "Recording", "Length", "Accepted", "Ended", "Error")
    for job in jobs:
        table.add_row(
            job.id,
            job.status.value,
            str(job.progress),
            names.get(job.key_id, job.key_id),
            job.name,
            "" if job.duration is None else f"{job.duration:.0f} s",
            _moment(job.created_at),
            _moment(job.completed_at),
            job.error_code or "",
        )
    show_table(table)


def _as_json(job: Job, names: dict[str, str]) -> dict[str, object]:
    from metalscribe.jobs.documents import job_json  # noqa: PLC0415

    return {**job_json(job, None), "key": names.get(job.key_id, job.key_id)}


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z"
