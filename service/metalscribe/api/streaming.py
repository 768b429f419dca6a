"""A transcription told while it is made: server-sent events in place of one answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a dialect tells of a transcription.

    Attributes:
        told: the messages for one of the engine's events.
        failed: the message for an error, where it is too late for a response of its own.
    """

    told: Callable[[Event], Iterable[ServerSentEvent]]
    failed: Callable[[MetalscribeError], ServerSentEvent]


async def stream(events: AsyncGenerator[Event], dialect: Dialect, holding: AbstractContextManager[None]) -> Response:
    """Answer with the engine's events as they come.

    What is wrong before the first message is raised, and answered like any other error; what goes wrong later ends the
    stream with a message. Whoever leaves cancels the work.

    Args:
        events: of one transcription; closed when the stream ends.
        dialect: how to tell them.
        holding: entered now, left when the stream has ended, however that was; keeps the recording.
    """
    told = _told(events, dialect, holding)
    first = await anext(told)

    async def all_of_it() -> AsyncGenerator[ServerSentEvent]:
        async with aclosing(told):
            yield first
            async for event in told:
                yield event

    return event_stream(all_of_it())


async def _told(
    events: AsyncGenerator[Event], dialect: Dialect, holding: AbstractContextManager[None]
) -> AsyncGenerator[ServerSentEvent]:
    begun = False
    with holding:
        try:
            async with aclosing(events):
                async for event in events:
                    for message in dialect.told(event):
                        begun = True
                        yield message
        except MetalscribeError as error:
            if not begun:
                raise
            yield dialect.failed(error)


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


def _message(kind: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps({"type": kind, **data}, ensure_ascii=False), event=kind, sep=_NEWLINE)
