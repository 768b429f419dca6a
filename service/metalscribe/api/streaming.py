"""A native transcription told while it is made: server-sent events in place of one answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any, Final

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from metalscribe.api.problems import document
from metalscribe.api.streams import event_stream
from metalscribe.errors import MetalscribeError
from metalscribe.render import segment_json
from metalscribe.transcript import ChunkDone, Done, Event, LanguageDetected, Progress, SegmentsReady

_NEWLINE: Final = "\n"


async def stream(
    request: Request,
    events: AsyncGenerator[Event],
    *,
    word_timestamps: bool,
    finish: Callable[[Done], dict[str, Any]],
    holding: AbstractContextManager[None],
) -> Response:
    """Answer with the engine's events as they come: ``language``, ``segment``, ``progress``, and ``done`` at the end.

    What is wrong before the first event is raised, and answered like any other error; what goes wrong later ends the stream
    with a ``failed`` event that holds the same problem document. Whoever leaves cancels the work.

    Args:
        request: whose answer this is.
        events: of one transcription; closed when the stream ends.
        word_timestamps: whether segments list their words.
        finish: the document of the ``done`` event.
        holding: entered now, left when the stream has ended, however that was; keeps the recording.
    """
    told = _told(request, events, word_timestamps, finish, holding)
    first = await anext(told)

    async def all_of_it() -> AsyncGenerator[ServerSentEvent]:
        async with aclosing(told):
            yield first
            async for event in told:
                yield event

    return event_stream(all_of_it())


async def _told(
    request: Request,
    events: AsyncGenerator[Event],
    word_timestamps: bool,
    finish: Callable[[Done], dict[str, Any]],
    holding: AbstractContextManager[None],
) -> AsyncGenerator[ServerSentEvent]:
    begun = False
    with holding:
        try:
            async with aclosing(events):
                async for event in events:
                    for message in _messages(event, word_timestamps, finish):
                        begun = True
                        yield message
        except MetalscribeError as error:
            if not begun:
                raise
            yield _message("failed", {"problem": document(error, request)})


def _messages(event: Event, word_timestamps: bool, finish: Callable[[Done], dict[str, Any]]) -> list[ServerSentEvent]:
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


def _message(kind: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps({"type": kind, **data}, ensure_ascii=False), event=kind, sep=_NEWLINE)
