"""The engine of one machine: a decoder sandbox, a model process, and pipelines between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from metalscribe.engine.chunker import STAGE
from metalscribe.engine.dispatch import Dispatcher
from metalscribe.engine.interface import EngineStatus, ModelState
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.pipeline import Pipeline
from metalscribe.errors import InvalidParameter, ModelUnavailable, QueueFull
from metalscribe.media.decode import DecoderPool
from metalscribe.media.messages import Limits
from metalscribe.transcript import Event, ModelCard, Task, TranscriptionRequest

_RETRY_WHILE_LOADING: Final = 10.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine serves; see the settings of the same names."""

    model: ModelProcessOptions
    batch_size: int = 0
    beam_size: int = 5
    max_queue: int = 32
    max_audio_seconds: float = 24 * 3600.0
    load_timeout_secs: float = 600.0
    preload: bool = False
    reject_when_unloaded: bool = False


class LocalEngine:
    """See :class:`metalscribe.engine.interface.Engine`."""

    def __init__(self, card: ModelCard, options: EngineOptions) -> None:
        self._card = card
        self._options = options
        # A minute, and a second for every 50 of audio: decoding and voice activity run at several hundred × realtime.
        limits = Limits(cpu_seconds=60 + int(options.max_audio_seconds / 50), audio_seconds=options.max_audio_seconds)
        self._pool = DecoderPool(stages=(STAGE,), limits=limits)
        self._dispatcher = Dispatcher(
            options.model, batch_size=options.batch_size, load_timeout_secs=options.load_timeout_secs
        )
        self._requests = 0

    @property
    def card(self) -> ModelCard:
        """What the model can do."""
        return self._card

    @property
    def status(self) -> EngineStatus:
        """The engine at this moment."""
        model = self._dispatcher.model
        wanted = self._options.model.device
        return EngineStatus(
            model=self._card.name,
            state=model.state,
            device=model.loaded.device if model.loaded else (None if wanted == "auto" else wanted),
            compute_type=model.loaded.compute_type if model.loaded else None,
            detail=model.detail,
            requests=self._requests,
            chunks_waiting=self._dispatcher.rows_waiting,
            chunks_running=self._dispatcher.rows_running,
            audio_seconds_waiting=self._dispatcher.audio_seconds_waiting,
        )

    async def start(self) -> None:
        """Start the sandbox and the dispatcher; load the model now if it is to be preloaded."""
        await self._pool.start()
        self._dispatcher.start()
        if self._options.preload:
            self._dispatcher.model.want()

    async def settled(self, patience: float) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.settled`."""
        await self._dispatcher.model.settled(patience)

    def stuck(self) -> str | None:
        """See :meth:`metalscribe.engine.interface.Engine.stuck`."""
        return self._dispatcher.stuck()

    async def close(self) -> None:
        """End the model's process and the sandbox."""
        await self._dispatcher.close()
        await self._pool.close()

    def check_capacity(self) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.check_capacity`."""
        if self._requests >= self._options.max_queue:
            wait = min(600.0, max(1.0, self._dispatcher.seconds_to_drain()))
            raise QueueFull(
                f"{self._requests} transcriptions are under way or waiting, the most allowed", retry_after=wait
            )
        model = self._dispatcher.model
        if self._options.reject_when_unloaded and model.state is not ModelState.READY:
            model.want()
            raise ModelUnavailable(f"the model is {model.state}; it is being loaded", retry_after=_RETRY_WHILE_LOADING)

    def check_request(self, request: TranscriptionRequest) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.check_request`."""
        self._language(request)

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Event]:
        """See :meth:`metalscribe.engine.interface.Engine.transcribe`."""
        language = self._language(request)
        self.check_capacity()
        self._requests += 1
        try:
            pipeline = Pipeline(
                request,
                pool=self._pool,
                dispatcher=self._dispatcher,
                model=self._card.name,
                language=language,
                beam_size=self._options.beam_size,
            )
            self._dispatcher.model.want()  # load while the recording is being decoded
            async with aclosing(pipeline.run()) as events:
                async for event in events:
                    yield event
        finally:
            self._requests -= 1

    def _language(self, request: TranscriptionRequest) -> str | None:
        """The language to decode with, None to detect it.

        Raises:
            InvalidParameter: the model does not know the language, or cannot translate.
        """
        card = self._card
        if request.language is not None and request.language not in card.languages:
            known = "English only" if not card.multilingual else f"{len(card.languages)} languages"
            raise InvalidParameter(
                f"language={request.language}: the model {card.name} knows {known}; leave it out, or choose another model",
                "language",
            )
        if request.task is Task.TRANSLATE and not card.multilingual:
            raise InvalidParameter(f"task=translate: the model {card.name} knows English only", "task")
        return request.language if card.multilingual else "en"
