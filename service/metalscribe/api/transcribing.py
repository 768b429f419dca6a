"""A transcription for a caller: what every dialect does alike between its request and its answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from metalscribe.api.requests import note
from metalscribe.api.services import Services
from metalscribe.errors import EngineFailed, MetalscribeError
from metalscribe.store.identity import ApiKey
from metalscribe.transcript import Done, Event, TranscriptionRequest


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

    async def events(self, wanted: TranscriptionRequest) -> AsyncGenerator[Event]:
        """The engine's events as they come; what is to be known of the work goes into the request's line in the log.

        Raises:
            MetalscribeError: see :meth:`metalscribe.engine.interface.Engine.transcribe`.
        """
        try:
            async with aclosing(self.services.engine.transcribe(wanted)) as events:
                async for event in events:
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
