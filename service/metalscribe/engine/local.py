"""The engine of one machine: a decoder sandbox, models in processes of their own, and pipelines between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from metalscribe.engine.chunker import STAGE
from metalscribe.engine.context import AdaptiveContext
from metalscribe.engine.events import LifecycleEvents
from metalscribe.engine.fleet import Fleet, FleetOptions, ServedModel
from metalscribe.engine.interface import EngineStatus, ModelState, ModelStatus
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.memory import MemoryGauge
from metalscribe.engine.metrics import EngineMetrics
from metalscribe.engine.pipeline import Pipeline
from metalscribe.engine.relay import relay
from metalscribe.errors import InvalidParameter, ModelUnavailable, QueueFull
from metalscribe.media.decode import DecoderPool
from metalscribe.media.messages import Limits
from metalscribe.transcript import Done, Event, Latency, ModelCard, Task, TranscriptionRequest

_RETRY_WHILE_LOADING: Final = 10.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine serves; see the settings of the same names.

    Attributes:
        model: the default model's process.
        adaptive: the default model's, see :class:`metalscribe.engine.fleet.ServedModel`.
        memory_budget: bytes for all models together, 0 without a bound.
    """

    model: ModelProcessOptions
    adaptive: AdaptiveContext | None = None
    batch_size: int = 0
    beam_size: int = 5
    max_queue: int = 32
    max_audio_seconds: float = 24 * 3600.0
    load_timeout_secs: float = 600.0
    memory_budget: int = 0
    preload: bool = False
    reject_when_unloaded: bool = False


class LocalEngine:
    """See :class:`metalscribe.engine.interface.Engine`.

    Args:
        card: the default model's.
        options: how to serve.
        further: models that requests may choose instead.
        gauge: measures memory; by default that of the CPU alone.
        metrics: where to count.

    Raises:
        ConfigurationError: a model is there twice, or exceeds the memory budget even alone.
    """

    def __init__(
        self,
        card: ModelCard,
        options: EngineOptions,
        *,
        further: Sequence[ServedModel] = (),
        gauge: MemoryGauge | None = None,
        metrics: EngineMetrics | None = None,
    ) -> None:
        self._options = options
        # A minute, and a second for every 50 of audio: decoding and voice activity run at several hundred × realtime.
        limits = Limits(cpu_seconds=60 + int(options.max_audio_seconds / 50), audio_seconds=options.max_audio_seconds)
        self._pool = DecoderPool(stages=(STAGE,), limits=limits)
        self._fleet = Fleet(
            (ServedModel(card, options.model, options.adaptive), *further),
            FleetOptions(
                batch_size=options.batch_size,
                load_timeout_secs=options.load_timeout_secs,
                memory_budget=options.memory_budget,
                gauge=gauge or MemoryGauge(),
                metrics=metrics or EngineMetrics(),
            ),
        )
        self._dispatcher = self._fleet.default.dispatcher
        self._under_way: Counter[Latency] = Counter()

    @property
    def card(self) -> ModelCard:
        """What the default model can do."""
        return self._fleet.default.card

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """What each model can do, the default one first."""
        return tuple(model.card for model in self._fleet)

    @property
    def status(self) -> EngineStatus:
        """The engine at this moment."""
        default = self._fleet.default.status
        dispatchers = [model.dispatcher for model in self._fleet]
        return EngineStatus(
            model=default.model,
            state=default.state,
            device=default.device,
            compute_type=default.compute_type,
            detail=default.detail,
            requests=self._under_way.total(),
            interactive=self._under_way[Latency.INTERACTIVE],
            max_interactive=self._options.max_queue,
            chunks_waiting=sum(dispatcher.rows_waiting for dispatcher in dispatchers),
            chunks_running=sum(dispatcher.rows_running for dispatcher in dispatchers),
            audio_seconds_waiting=sum(dispatcher.audio_seconds_waiting for dispatcher in dispatchers),
        )

    @property
    def models(self) -> tuple[ModelStatus, ...]:
        """Each model at this moment, the default one first; memory as it was measured last."""
        return tuple(model.status for model in self._fleet)

    @property
    def memory_budget(self) -> int:
        """Bytes for all models together, 0 without a bound."""
        return self._options.memory_budget

    @property
    def events(self) -> LifecycleEvents:
        """What happens to the models."""
        return self._fleet.events

    async def start(self) -> None:
        """Start the sandbox and the dispatchers; load the models now if they are to be preloaded."""
        await self._pool.start()
        self._fleet.start()
        if self._options.preload:
            self._fleet.preload()

    async def settled(self, patience: float) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.settled`."""
        await self._dispatcher.model.settled(patience)

    def stuck(self) -> str | None:
        """See :meth:`metalscribe.engine.interface.Engine.stuck`."""
        return next((reason for model in self._fleet if (reason := model.dispatcher.stuck())), None)

    async def close(self) -> None:
        """End the models' processes and the sandbox."""
        await self._fleet.close()
        await self._pool.close()

    def load(self, model: str | None = None) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.load`."""
        self._fleet[model].dispatcher.model.load()

    async def unload(self, model: str | None = None, *, force: bool = False) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.unload`."""
        await self._fleet[model].dispatcher.model.unload(force=force)

    async def measure(self) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.measure`."""
        await self._fleet.measure()

    def check_capacity(self, model: str | None = None) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.check_capacity`."""
        waited_for = self._under_way[Latency.INTERACTIVE]
        if waited_for >= self._options.max_queue:
            wait = max(model.dispatcher.seconds_to_drain() for model in self._fleet)
            raise QueueFull(
                f"{waited_for} transcriptions are under way or waiting, the most allowed",
                retry_after=min(600.0, max(1.0, wait)),
            )
        if model is not None or len(self._fleet) == 1:
            self.check_loaded(model)

    def check_loaded(self, model: str | None = None) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.check_loaded`."""
        lifecycle = self._fleet[model].dispatcher.model
        if self._options.reject_when_unloaded and lifecycle.state is not ModelState.READY:
            lifecycle.want()
            raise ModelUnavailable(
                f"the model is {lifecycle.state}; it is being loaded", retry_after=_RETRY_WHILE_LOADING
            )

    def check_request(self, request: TranscriptionRequest) -> None:
        """See :meth:`metalscribe.engine.interface.Engine.check_request`."""
        _language(self._fleet[request.model].card, request)

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Event]:
        """See :meth:`metalscribe.engine.interface.Engine.transcribe`."""
        model = self._fleet[request.model]
        language = _language(model.card, request)
        if request.latency is Latency.INTERACTIVE:  # of the others there are as many as whoever hands them in wants
            self.check_capacity(model.card.name)
        self._under_way[request.latency] += 1
        try:
            # Taking a lease has the model loaded, while the recording is being decoded.
            async with model.dispatcher.model.lease(self._options.load_timeout_secs) as lease:
                pipeline = Pipeline(
                    request,
                    pool=self._pool,
                    dispatcher=model.dispatcher,
                    model=model.card.name,
                    language=language,
                    beam_size=self._options.beam_size,
                    adaptive=model.adaptive,
                )
                async with aclosing(relay(pipeline.run(), lease)) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            model.dispatcher.metrics.audio_seconds.inc(event.statistics.audio_seconds)
                        yield event
        finally:
            self._under_way[request.latency] -= 1


def _language(card: ModelCard, request: TranscriptionRequest) -> str | None:
    """The language to decode with, None to detect it.

    Raises:
        InvalidParameter: the model does not know the language, or cannot translate.
    """
    if request.language is not None and request.language not in card.languages:
        known = "English only" if not card.multilingual else f"{len(card.languages)} languages"
        raise InvalidParameter(
            f"language={request.language}: the model {card.name} knows {known}; leave it out, or choose another model",
            "language",
        )
    if request.languages and not set(request.languages) & set(card.languages):
        raise InvalidParameter(
            f"languages={','.join(request.languages)}: the model {card.name} knows none of them", "languages"
        )
    if request.task is Task.TRANSLATE and not card.multilingual:
        raise InvalidParameter(f"task=translate: the model {card.name} knows English only", "task")
    return request.language if card.multilingual else "en"
