"""A transcription told while it is made: server-sent events in place of one answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Any, Final

from sse_starlette import ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from metalscribe.api.problems import document
from metalscribe.api.streams import event_stream
from metalscribe.api.work import disconnected
from metalscribe.errors import InvalidParameter, MetalscribeError
from metalscribe.render import segment_json
from metalscribe.transcript import ChunkDone, Done, Event, LanguageDetected, Progress, SegmentsReady

_NEWLINE: Final = "\n"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a dialect tells of a transcription.

    Attributes:
        told: the messages for one of the engine's events.
        failed: the message for an error, where it is too late for a response of its own.
    """

    told: Callable[[Event], Iterable[ServerSentEvent]]
    failed: Callable[[MetalscribeError], ServerSentEvent]


async def stream(
    request: Request, events: AsyncGenerator[Event], dialect: Dialect, holding: AbstractContextManager[None]
) -> Response:
    """Answer with the engine's events as they come.

    What is wrong before the first event is raised, and answered like any other error; what goes wrong later ends the
    stream with a message. Whoever leaves cancels the work, also before the answer has begun.

    Args:
        request: whose answer this is; its body has been read.
        events: of one transcription; closed when the stream ends.
        dialect: how to tell them.
        holding: entered now, left when the stream has ended, however that was; keeps the recording.

    Raises:
        ClientDisconnect: the caller left.
        MetalscribeError: what is wrong from the start.
    """
    told = _told(events, dialect, holding)
    first = await _unless_left(request, told)

    async def all_of_it() -> AsyncGenerator[ServerSentEvent]:
        async with aclosing(told):
            for message in first or ():
                yield message
            async for messages in told:
                for message in messages:
                    yield message

    return event_stream(all_of_it())


async def _unless_left(request: Request, told: AsyncGenerator[list[ServerSentEvent]]) -> list[ServerSentEvent] | None:
    """The first that is told, None where nothing is."""

    async def begin() -> list[ServerSentEvent] | None:
        return await anext(told, None)

    first, gone = asyncio.create_task(begin()), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            raise ClientDisconnect
        return first.result()
    finally:
        for task in (first, gone):
            task.cancel()
        await asyncio.wait({first, gone})


async def _told(
    events: AsyncGenerator[Event], dialect: Dialect, holding: AbstractContextManager[None]
) -> AsyncGenerator[list[ServerSentEvent]]:
    """The messages for each event; there may be none."""
    begun = False
    with holding:
        try:
            async with aclosing(events):
                async for event in events:
                    begun = True
                    yield list(dialect.told(event))
        except MetalscribeError as error:
            if not begun:
                raise
            yield [dialect.failed(error)]


def native(request: Request, *, word_timestamps: bool, finish: Callable[[Done], dict[str, Any]]) -> Dialect:
    """The native dialect: ``language``, ``segment``, ``progress``, ``done`` or ``failed``.

    Args:
        request: whose answer this is.
        word_timestamps: whether segments list their words.
        finish: the document of the ``done`` event.
    """

    def told(event: Event) -> list[ServerSentEvent]:
        match event:
            case LanguageDetected():
                return [_message("language", {"language": event.language, "probability": event.probability})]
            case Progress():
                return [_message("progress", {"percent": event.percent})]
            case SegmentsReady():
                return [
                    _message("segment", segment_json(segment, word_timestamps=word_timestamps))
                    for segment in event.segments
                ]
            case ChunkDone():
                return []  # for those who may come again
            case Done():
                return [_message("done", {"transcript": finish(event)})]

    return Dialect(told, lambda error: _message("failed", {"problem": document(error, request)}))


def refuse_idempotency(request: Request) -> None:
    """A stream is not kept, and nobody can be attached to it.

    Raises:
        InvalidParameter: the caller expects that.
    """
    if "Idempotency-Key" in request.headers:
        raise InvalidParameter("an answer that is streamed is not kept: leave Idempotency-Key out", "stream")


def _message(kind: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps({"type": kind, **data}, ensure_ascii=False), event=kind, sep=_NEWLINE)
