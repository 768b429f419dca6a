"""The native dialect: ``POST /transcribe`` and ``POST /transcribe/url``."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api import examples
from metalscribe.api.bodies import read_json
from metalscribe.api.documents import IDEMPOTENCY, SEGMENT, events_of, in_query, properties_of, texts
from metalscribe.api.options import NativeOptions, parse_options, validated
from metalscribe.api.problems import documented
from metalscribe.api.requests import note
from metalscribe.api.services import Services
from metalscribe.api.streaming import native, refuse_idempotency, stream
from metalscribe.api.transcribing import Transcribing
from metalscribe.api.uploads import receive
from metalscribe.api.work import fingerprint
from metalscribe.errors import InvalidParameter
from metalscribe.render import MEDIA_TYPES, Format, debug_json, render, to_json
from metalscribe.store.identity import ApiKey, Scope
from metalscribe.transcript import Done, TranscriptionRequest

_PROBLEMS: Final = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 507)


class UrlOptions(NativeOptions):
    """The body of ``/transcribe/url``."""

    url: Annotated[str, Field(min_length=1, max_length=4096)]
    """Address of the recording, http or https, on the public internet."""


def router(services: Services) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(tags=["transcription"])
    authenticated = Depends(services.auth.require(Scope.TRANSCRIBE))

    @routes.post(
        "/transcribe",
        summary="Transcribe an uploaded recording",
        response_class=Response,
        responses={200: _ANSWER, **documented(*_PROBLEMS)},
        openapi_extra=_upload_documentation(),
    )
    @services.limits.transcription
    async def transcribe(request: Request, key: ApiKey = authenticated) -> Response:
        work = Transcribing(services, key, time.perf_counter())
        await services.allowances.admit(request, key)
        services.check_capacity(retry="Idempotency-Key" in request.headers, model=request.query_params.get("model"))
        # What the query asks for is judged before the upload is read.
        early = parse_options(NativeOptions, request.query_params.multi_items(), {})
        services.engine.check_request(
            early.to_request(services.uploads, name="", served=services.model_names, weight=1)
        )
        limit = services.max_upload_bytes
        async with AsyncExitStack() as stack:
            with services.place_to_receive():
                upload = await stack.enter_async_context(
                    receive(request, services.uploads, file_field="file", max_bytes=limit)
                )
            options = parse_options(NativeOptions, request.query_params.multi_items(), upload.fields)
            wanted = options.to_request(upload.path, name=upload.name, served=services.model_names, weight=key.weight)
            mark = fingerprint(upload.sha256, options.model_dump())

            if options.stream:
                refuse_idempotency(request)
                await services.desk.make_way(request, key)
                return await _stream(work, request, wanted, options, upload.hand_over())

            async def answer() -> Response:
                with upload.hand_over():
                    return await _answer(work, wanted, options)

            return await services.desk.serve(request, key, mark, answer)

    @routes.post(
        "/transcribe/url",
        summary="Transcribe a recording from an address",
        response_class=Response,
        responses={200: _ANSWER, **documented(*_PROBLEMS)},
        openapi_extra=_url_documentation(),
    )
    @services.limits.transcription
    async def transcribe_url(request: Request, key: ApiKey = authenticated) -> Response:
        work = Transcribing(services, key, time.perf_counter())
        await services.allowances.admit(request, key)
        services.check_capacity(retry="Idempotency-Key" in request.headers)
        if request.query_params:
            raise InvalidParameter("send every parameter in the JSON body", next(iter(request.query_params)))
        options = validated(UrlOptions, await read_json(request, '{"url": "https://…"}', "url"))
        path = services.uploads / uuid.uuid4().hex
        wanted = options.to_request(path, name="recording", served=services.model_names, weight=key.weight)
        services.engine.check_request(wanted)

        async def fetch() -> None:
            with services.place_to_receive():
                await asyncio.to_thread(services.uploads.mkdir, mode=0o700, exist_ok=True)
                fetched = await services.fetcher.fetch(options.url, path)
            note(audio_bytes=fetched.bytes)

        if options.stream:
            refuse_idempotency(request)
            await services.desk.make_way(request, key)
            await fetch()  # removes what is incomplete itself
            return await _stream(work, request, wanted, options, _removed_at_the_end(path))

        async def fetch_and_answer() -> Response:
            with _removed_at_the_end(path):
                await fetch()
                return await _answer(work, wanted, options)

        return await services.desk.serve(request, key, fingerprint(options.url, options.model_dump()), fetch_and_answer)

    return routes


@contextmanager
def _removed_at_the_end(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def _stream(
    work: Transcribing,
    request: Request,
    wanted: TranscriptionRequest,
    options: NativeOptions,
    holding: AbstractContextManager[None],
) -> Response:
    dialect = native(
        request,
        word_timestamps=options.word_timestamps,
        finish=lambda done: _document(done, options, work.seconds),
    )
    return await stream(request, work.events(wanted), dialect, holding)


async def _answer(work: Transcribing, wanted: TranscriptionRequest, options: NativeOptions) -> Response:
    done = await work.whole(wanted)
    if options.format is not Format.JSON:
        return Response(render(done.transcript, options.format), media_type=MEDIA_TYPES[options.format])
    return JSONResponse(_document(done, options, work.seconds))


def _document(done: Done, options: NativeOptions, seconds: float) -> dict[str, Any]:
    document = to_json(
        done.transcript,
        id=str(uuid.uuid4()),
        processing_time=seconds,
        include_segments=options.include_segments,
        word_timestamps=options.word_timestamps,
    )
    return document | {"debug": debug_json(done)} if options.debug else document


# --- documentation ----------------------------------------------------------------------------------------------------

_TRANSCRIPT: Final = {
    "type": "object",
    "required": ["id", "text", "language", "language_probability", "duration", "processing_time", "segments", "model"],
    "properties": {
        "id": {"type": "string"},
        "text": {"type": "string"},
        "language": {"type": "string"},
        "language_probability": {"type": ["number", "null"]},
        "duration": {"type": "number"},
        "processing_time": {"type": "number"},
        "segments": {"type": ["array", "null"], "items": SEGMENT},
        "model": {"type": "string"},
        "debug": {
            "type": "object",
            "required": ["statistics", "decisions"],
            "properties": {
                "statistics": {"type": "object"},
                "decisions": {"type": "array", "items": {"type": "object"}},
            },
        },
    },
}
_ANSWER: Final[dict[str, Any]] = {
    "description": "The transcript, in the format asked for",
    "content": {
        "application/json": {"schema": _TRANSCRIPT, "example": examples.TRANSCRIPT},
        **texts(),
        **events_of(examples.TRANSCRIPT_EVENTS),
    },
}


def _upload_documentation() -> dict[str, Any]:
    form = {
        "file": {"type": "string", "format": "binary", "description": "Audio or video"},
        **properties_of(NativeOptions),
    }
    schema = {"type": "object", "required": ["file"], "properties": form, "additionalProperties": False}
    return {
        "parameters": [IDEMPOTENCY, *in_query(NativeOptions)],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
    }


def _url_documentation() -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["url"],
        "properties": properties_of(UrlOptions, nullable=True),
        "additionalProperties": False,
    }
    return {
        "parameters": [IDEMPOTENCY],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": examples.URL_REQUEST}},
        },
    }
