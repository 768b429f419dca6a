"""Durable jobs: ``/jobs``. Accepted means done: what was answered with 202 outlives the service."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api import examples
from metalscribe.api.documents import (
    IDEMPOTENCY,
    LAST_EVENT,
    LAST_EVENT_PARAMETER,
    SEGMENT,
    TEXT_OR_NULL,
    events_of,
    in_query,
    object_of,
    properties_of,
    texts,
)
from metalscribe.api.options import NoParameters, TranscriptionOptions, blank_is_none, parse_options, validated
from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.api.streams import event_stream, until
from metalscribe.api.uploads import declared_length, receive
from metalscribe.api.work import fingerprint
from metalscribe.errors import Conflict, Forbidden, InvalidParameter, NotFound
from metalscribe.jobs.documents import job_json, transcript_of
from metalscribe.jobs.feeds import Feed, Feeds
from metalscribe.jobs.webhooks import target_of
from metalscribe.render import MEDIA_TYPES, Format, render, segment_json
from metalscribe.store.identity import ApiKey, Scope
from metalscribe.store.job import Job, JobStatus
from metalscribe.transcript import Task, TranscriptionRequest

_ENDED: Final = "end"
_NEWLINE: Final = "\n"
_PROBLEMS: Final = (400, 401, 403, 408, 413, 422, 429, 500, 503, 507)


class JobParameters(TranscriptionOptions):
    """What a caller of ``/jobs`` may ask for; unknown names are refused."""

    webhook_url: Annotated[Annotated[str, Field(max_length=4096)] | None, BeforeValidator(blank_is_none)] = None
    """Address that the finished job is posted to."""


class _Page(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    limit: int = Field(default=50, ge=1, le=500)
    """How many."""

    cursor: int | None = Field(default=None, ge=1)
    """`next` of the page before."""

    status: JobStatus | None = None
    """Only jobs in this state."""

    all: bool = False
    """The jobs of every key, each with its `key_id`; for keys with the scope `admin`."""


class _Shape(BaseModel):
    """How to show a job."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: Format = Format.JSON
    """The job as JSON, or its transcript as text or subtitles once it is done."""


def router(services: Services) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(tags=["jobs"])
    authenticated = Depends(services.auth.require(Scope.TRANSCRIBE))
    office = services.jobs

    @routes.post(
        "/jobs",
        summary="Hand in a recording to be transcribed",
        status_code=202,
        responses={202: _ACCEPTED, **documented(*_PROBLEMS)},
        openapi_extra=_submit_documentation(),
    )
    @services.limits.transcription
    async def submit(request: Request, key: ApiKey = authenticated) -> Response:
        await services.allowances.require_audio(request, key)
        early = parse_options(JobParameters, request.query_params.multi_items(), {})
        _checked(services, early)
        await asyncio.to_thread(office.recordings.check_room, declared_length(request) or 0)
        async with AsyncExitStack() as stack:
            with services.place_to_receive():
                upload = await stack.enter_async_context(
                    receive(request, office.incoming, file_field="audio", max_bytes=office.options.max_upload_bytes)
                )
            parameters = parse_options(JobParameters, request.query_params.multi_items(), upload.fields)
            wanted = _checked(services, parameters)
            mark = fingerprint(upload.sha256, {"jobs": True, **parameters.model_dump()})

            async def accepted() -> Response:
                with upload.hand_over():
                    job = await office.accept(
                        key,
                        upload.path,
                        name=upload.name,
                        size=upload.size,
                        options=_kept(wanted),
                        webhook_url=parameters.webhook_url,
                    )
                return JSONResponse({"job_id": job.id}, status_code=202, headers={"Location": f"/jobs/{job.id}"})

            return await services.desk.serve(request, key, mark, accepted)

    @routes.get(
        "/jobs",
        summary="List your jobs, newest first",
        responses={200: _LIST, **documented(400, 401, 403, 429, 503)},
        openapi_extra={"parameters": in_query(_Page)},
    )
    async def listed(request: Request, key: ApiKey = authenticated) -> Response:
        page = validated(_Page, request.query_params)
        if page.all and Scope.ADMIN not in key.scopes:
            raise Forbidden(f"the key {key.name!r} lacks the scope 'admin', and sees its own jobs only: leave all out")
        whose = None if page.all else key.id
        jobs = await office.store.page(whose, limit=page.limit + 1, before=page.cursor, status=page.status)
        shown, more = jobs[: page.limit], len(jobs) > page.limit
        documents = [{**job_json(job, None), **({"key_id": job.key_id} if page.all else {})} for job in shown]
        return JSONResponse({"jobs": documents, "next": shown[-1].number if more else None})

    @routes.get(
        "/jobs/{job_id}",
        summary="A job with what is done of it",
        response_class=Response,
        responses={200: _SHOWN, **documented(400, 401, 403, 404, 409, 429, 503)},
        openapi_extra={"parameters": in_query(_Shape)},
    )
    async def shown(request: Request, job_id: str, key: ApiKey = authenticated) -> Response:
        shape = validated(_Shape, request.query_params)
        job = await office.store.get(_checked_id(job_id), _whose(key))
        if shape.format is Format.JSON:
            return JSONResponse(job_json(job, await office.store.segments(job)))
        if job.status is not JobStatus.DONE:
            raise Conflict(
                f"the job is {job.status.value}; its transcript can be had as {shape.format.value} when it is done"
            )
        transcript = transcript_of(job, await office.store.segments(job))
        return Response(render(transcript, shape.format), media_type=MEDIA_TYPES[shape.format])

    @routes.delete(
        "/jobs/{job_id}",
        summary="Cancel a job that has not ended; delete one that has",
        status_code=204,
        response_class=Response,
        responses=documented(400, 401, 403, 404, 429, 503),
    )
    async def cancelled(request: Request, job_id: str, key: ApiKey = authenticated) -> Response:
        validated(NoParameters, request.query_params)
        await office.cancel(_checked_id(job_id), _whose(key))
        return Response(status_code=204)

    @routes.get(
        "/jobs/{job_id}/stream",
        summary="Follow a job (server-sent events)",
        response_class=Response,
        responses={
            200: _EVENTS,
            204: {"description": "The end was seen already"},
            **documented(400, 401, 403, 404, 429, 503),
        },
        openapi_extra={"parameters": [LAST_EVENT_PARAMETER]},
    )
    async def followed(request: Request, job_id: str, key: ApiKey = authenticated) -> Response:
        validated(NoParameters, request.query_params)
        job = await office.store.get(_checked_id(job_id), _whose(key))
        seen, ended = _position(request.headers.get(LAST_EVENT))
        if ended:
            return Response(status_code=204)  # which tells a browser to stay away
        return event_stream(until(services.stopping, _follow(office.feeds, job, seen)))

    return routes


def _checked(services: Services, parameters: JobParameters) -> TranscriptionRequest:
    """What is asked of the engine, if it can do it and the webhook can be sent.

    Raises:
        InvalidParameter, AddressRefused: it cannot.
        ModelUnavailable: the model is not loaded and nothing is to wait for it.
    """
    wanted = parameters.to_request(services.uploads, name="", served=services.model_names, weight=1)
    services.engine.check_request(wanted)
    services.engine.check_loaded(wanted.model)
    if parameters.webhook_url is not None:
        try:
            target_of(parameters.webhook_url)
        except InvalidParameter as error:
            raise InvalidParameter(f"webhook_{error.detail}", "webhook_url") from None
    return wanted


def _kept(wanted: TranscriptionRequest) -> dict[str, Any]:
    """What is remembered of a request; :func:`metalscribe.jobs.runner.request_of` reads it."""
    return {
        "language": wanted.language,
        "task": wanted.task.value,
        "mode": wanted.mode.value,
        "prompt": wanted.prompt,
        "hotwords": wanted.hotwords,
        "vad": wanted.vad,
        "word_timestamps": wanted.word_timestamps,
        "audio_track": wanted.audio_track,
        "model": wanted.model,
    }


def _whose(key: ApiKey) -> str | None:
    """Whose jobs a key may look at and call off: its own, or with the scope ``admin`` (None) everybody's."""
    return None if Scope.ADMIN in key.scopes else key.id


def _checked_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise NotFound(f"there is no job {text[:64]!r}; a job's id is a UUID") from None


# --- events -----------------------------------------------------------------------------------------------------------


def _position(last_seen: str | None) -> tuple[int, bool]:
    """How many segments a client has seen, and whether it saw the end."""
    number, _, rest = (last_seen or "").partition("-")
    known = number.isascii() and number.isdigit() and len(number) < 10
    return (int(number) if known else 0), known and rest == _ENDED


async def _follow(feeds: Feeds, job: Job, seen: int) -> AsyncIterator[ServerSentEvent]:
    """What a client has not seen: segments and progress as they come, then the end."""
    words = bool(job.options["word_timestamps"])
    percent = -1
    async with feeds.follow(job) as feed:
        while not feed.gone:
            version = feed.version
            for segment in feed.segments[seen:]:
                seen += 1
                yield _event("segment", str(seen), segment_json(segment, word_timestamps=words))
            if feed.job.status.final:
                yield _end_of(feed, seen)
                return
            if feed.job.progress != percent:
                percent = feed.job.progress
                yield _event("progress", str(seen), {"percent": percent})
            await feed.changed(version)


def _end_of(feed: Feed, seen: int) -> ServerSentEvent:
    kind = feed.job.status.value
    return _event(kind, f"{seen}-{_ENDED}", {"job": job_json(feed.job, feed.segments)})


def _event(kind: str, mark: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps({"type": kind, **data}, ensure_ascii=False), event=kind, id=mark, sep=_NEWLINE)


# --- documentation ----------------------------------------------------------------------------------------------------

_FACTS: Final = {
    "id": {"type": "string", "format": "uuid"},
    "status": {"type": "string", "enum": [status.value for status in JobStatus]},
    "name": {"type": "string"},
    "language": TEXT_OR_NULL,
    "task": {"type": "string", "enum": [task.value for task in Task]},
    "model": TEXT_OR_NULL,
    "duration_secs": {"type": ["number", "null"]},
    "progress": {"type": "integer", "minimum": 0, "maximum": 100},
    "error": TEXT_OR_NULL,
    "error_code": TEXT_OR_NULL,
    "created_at": {"type": "string", "format": "date-time"},
    "started_at": TEXT_OR_NULL,
    "completed_at": TEXT_OR_NULL,
}
_ACCEPTED: Final[dict[str, Any]] = {
    "description": "Accepted: it will be done, whatever happens to the service",
    "headers": {"Location": {"description": "The job", "schema": {"type": "string"}}},
    "content": {
        "application/json": {
            "schema": object_of({"job_id": {"type": "string", "format": "uuid"}}),
            "example": {"job_id": examples.JOB_ID},
        }
    },
}
_LIST: Final[dict[str, Any]] = {
    "description": "A page of jobs without their transcripts, and where the next one begins",
    "content": {
        "application/json": {
            "schema": object_of(
                {
                    "jobs": {"type": "array", "items": object_of(_FACTS)},
                    "next": {"type": ["integer", "null"], "description": "The next page's `cursor`"},
                }
            ),
            "example": examples.JOBS,
        }
    },
}
_SHOWN: Final[dict[str, Any]] = {
    "description": "The job; while it runs, with the segments that are final",
    "content": {
        "application/json": {
            "schema": object_of(
                {**_FACTS, "text": {"type": "string"}, "segments": {"type": "array", "items": SEGMENT}}
            ),
            "example": examples.JOB_WITH_TRANSCRIPT,
        },
        **texts(),
    },
}
_EVENTS: Final[dict[str, Any]] = {
    "description": "`segment`, `progress`, and at the end `done`, `failed` or `cancelled` with the job",
    "content": {
        **events_of(examples.JOB_EVENTS),
    },
}


def _submit_documentation() -> dict[str, Any]:
    form = {
        "audio": {"type": "string", "format": "binary", "description": "Audio or video"},
        **properties_of(JobParameters),
    }
    schema = {"type": "object", "required": ["audio"], "properties": form, "additionalProperties": False}
    return {
        "parameters": [IDEMPOTENCY, *in_query(JobParameters)],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
    }
