"""A transcription for a caller: what every dialect does alike between its request and its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from starlette.requests import Request

from metalscribe.api.ledger import Ledger
from metalscribe.api.requests import note
from metalscribe.api.services import Services
from metalscribe.api.uploads import Upload, receive
from metalscribe.errors import EngineFailed, MetalscribeError, TryLater
from metalscribe.store.identity import ApiKey
from metalscribe.store.usage import Usage
from metalscribe.transcript import Done, Event, SegmentsReady, TranscriptionRequest

_FIELDS: Final = 1024
"""Of a compatible dialect's form: hundreds of keywords may come, each as a field."""


@dataclass(frozen=True, slots=True)
class Transcribing:
    """One caller's transcription.

    Attributes:
        services: those that do it.
        key: the caller's.
        begin: when the request came, by :func:`time.perf_counter`.
    """

    services: Services
    key: ApiKey
    begin: float

    @property
    def seconds(self) -> float:
        """How long the request has taken so far."""
        return time.perf_counter() - self.begin

    @classmethod
    async def admitted(cls, services: Services, request: Request, key: ApiKey) -> Self:
        """Let a request of a compatible dialect in, before its upload is read.

        Raises:
            RateLimited, TryLater: not now.
        """
        work = cls(services, key, time.perf_counter())
        await services.allowances.admit(request, key)
        services.check_capacity(retry="Idempotency-Key" in request.headers or services.desk.abandoned(key))
        return work

    @asynccontextmanager
    async def upload(self, request: Request, field: str) -> AsyncIterator[Upload]:
        """The recording in the form's ``field``, and the other fields; see :func:`metalscribe.api.uploads.receive`."""
        services = self.services
        async with AsyncExitStack() as stack:
            with services.place_to_receive(), services.desk.receiving(self.key):
                upload = await stack.enter_async_context(
                    receive(
                        request,
                        services.uploads,
                        file_field=field,
                        max_bytes=services.max_upload_bytes,
                        max_fields=_FIELDS,
                    )
                )
            yield upload

    async def events(self, wanted: TranscriptionRequest) -> AsyncGenerator[Event]:
        """The engine's events as they come; the work is told of in the request's line in the log, and counted for the key.

        Raises:
            MetalscribeError: see :meth:`metalscribe.engine.interface.Engine.transcribe`.
        """
        try:
            with _Count(self.services.usage, self.key) as count:
                async with aclosing(self.services.engine.transcribe(wanted)) as events:
                    async for event in events:
                        count.take(event)
                        if isinstance(event, Done):
                            self._note(event)
                        yield event
        except MetalscribeError as error:
            note(problem=error.code)  # a stream that is under way has no status left to tell it by
            raise

    async def whole(self, wanted: TranscriptionRequest) -> Done:
        """The result, when all of it is there.

        Raises:
            MetalscribeError: as :meth:`events`.
        """
        async with aclosing(self.events(wanted)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event
        raise EngineFailed("the engine ended without a result")

    def _note(self, done: Done) -> None:
        statistics = done.statistics
        note(
            audio_seconds=round(statistics.audio_seconds, 3),
            queue_seconds=round(statistics.queue_seconds, 3),
            engine_seconds=round(statistics.engine_seconds, 3),
            real_time_factor=round(self.seconds / statistics.audio_seconds, 4) if statistics.audio_seconds else None,
        )


class _Count:
    """What a transcription adds to its key's usage, whichever way it ends; who is told to come later has used nothing."""

    def __init__(self, ledger: Ledger, key: ApiKey) -> None:
        self._ledger = ledger
        self._key = key
        self._told = 0.0
        self._done = False

    def take(self, event: Event) -> None:
        """Before its caller has it: who asks for more after the last event, asks with that counted."""
        match event:
            case SegmentsReady():
                self._told = event.segments[-1].end
            case Done():
                self._done = True
                seconds, engine_seconds = event.transcript.duration, event.statistics.engine_seconds
                self._ledger.add(self._key.id, Usage(requests=1, audio_seconds=seconds, engine_seconds=engine_seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._done or isinstance(error, TryLater):
            return
        left = isinstance(error, GeneratorExit | asyncio.CancelledError)
        self._ledger.add(self._key.id, Usage(requests=1, failed=int(not left), audio_seconds=self._told))
