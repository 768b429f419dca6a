"""What the rest of the service sees of the engine: requests in, events out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from metalscribe.transcript import Event, ModelCard, TranscriptionRequest


class ModelState(StrEnum):
    """Where a model is in its life; :mod:`metalscribe.engine.lifecycle` says what leads from one to another."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    WAITING_FOR_GPU = "waiting_for_gpu"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """A model has changed its state.

    Attributes:
        number: 1, 2, 3 … over all models of this process.
        at: when, in UTC.
        state: the new one.
        detail: why, where there is something to tell.
    """

    number: int
    at: datetime
    model: str
    state: ModelState
    detail: str

    @property
    def name(self) -> str:
        """``model_ready``, ``model_unloaded`` …: what streams and webhooks call it."""
        return event_name(self.state)


def event_name(state: ModelState) -> str:
    """What the event that tells of a state is called."""
    return f"model_{state.value}"


@dataclass(slots=True)
class LifecycleCounters:
    """What has happened to a model since the service started; each only grows.

    Attributes:
        loads: that ended in a ready model.
        load_failures: attempts that did not, for want of memory or for another reason.
        unloads: by order, by idleness or by eviction; the processes that were ended in good order.
        evictions: unloads that made room for another model.
        deaths: processes that died, or had to be killed, while they were ready.
    """

    loads: int = 0
    load_failures: int = 0
    unloads: int = 0
    evictions: int = 0
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model at this moment.

    Attributes:
        device: ``cpu`` or ``cuda``; None until the model was loaded once and the choice is left to it.
        compute_type: CTranslate2's; None until loaded.
        detail: why the state is what it is, where there is something to tell.
        last_error: why it last failed to load or died; empty where it never did.
        memory_bytes: what its process takes of its device's memory; None while there is no process, or it is not known.
        memory_estimate_bytes: what it is expected to take.
        idle_seconds_left: until it is unloaded for want of work; None while it works, is not loaded, or is kept.
        requests: transcriptions that hold it.
        chunks_waiting, chunks_running: pieces of theirs before and inside the model.
    """

    model: str
    state: ModelState
    device: str | None
    compute_type: str | None
    detail: str
    last_error: str
    memory_bytes: int | None
    memory_estimate_bytes: int
    idle_seconds_left: float | None
    requests: int
    chunks_waiting: int
    chunks_running: int
    counters: LifecycleCounters

    @property
    def loaded(self) -> bool:
        """It is in memory; those who hold it are being served."""
        return self.state in {ModelState.READY, ModelState.UNLOADING}


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine at this moment: its default model, and the queue of all models.

    Attributes:
        device: ``cpu`` or ``cuda``; None until the model was loaded once and the choice is left to it.
        compute_type: CTranslate2's; None until loaded.
        detail: why the state is what it is, where there is something to tell.
        requests: transcriptions under way or waiting.
        interactive: those of them that a caller waits for, of which there may be ``max_interactive``.
        chunks_waiting, chunks_running: pieces of theirs before and inside the models.
        audio_seconds_waiting: length of the waiting pieces.
    """

    model: str
    state: ModelState
    device: str | None
    compute_type: str | None
    detail: str
    requests: int
    interactive: int
    max_interactive: int
    chunks_waiting: int
    chunks_running: int
    audio_seconds_waiting: float


class Listener(Protocol):
    """Lifecycle events as they come; an asynchronous iterator that ends with the engine.

    However slow, a listener costs nobody anything: what it does not come to in time is forgotten, and ``missed`` counts it.
    """

    position: int
    missed: int

    def __aiter__(self) -> AsyncIterator[LifecycleEvent]:
        """The events after ``position``."""

    async def __anext__(self) -> LifecycleEvent:
        """The next one."""


class Happenings(Protocol):
    """The lifecycle events of all models.

    Attributes:
        run: tells this history from that of an earlier process, whose numbers began at 1 as well.
        last: number of the newest event, 0 before the first.
    """

    run: str
    last: int

    def listen(self, after: int | None = None) -> Listener:
        """Listen to what follows event number ``after``; by default, to what is yet to come."""


class Engine(Protocol):
    """Transcribes recordings; many at a time. ``model`` is a card's name everywhere, None the default model's."""

    @property
    def card(self) -> ModelCard:
        """What the default model can do."""

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """What each model can do, the default one first."""

    @property
    def status(self) -> EngineStatus:
        """The engine at this moment."""

    @property
    def models(self) -> tuple[ModelStatus, ...]:
        """Each model at this moment, the default one first; memory as it was measured last."""

    @property
    def memory_budget(self) -> int:
        """Bytes for all models together, 0 without a bound."""

    @property
    def events(self) -> Happenings:
        """What happens to the models."""

    async def start(self) -> None:
        """Make ready to serve; loads the model now if it is to be preloaded."""

    async def settled(self, patience: float) -> None:
        """Wait until the default model is not loading any more, ready or not, for ``patience`` seconds at most."""

    def stuck(self) -> str | None:
        """Why the engine will not get on by itself any more, None while all is well; for whoever can restart it."""

    async def close(self) -> None:
        """Cancel everything and free everything."""

    def load(self, model: str | None = None) -> None:
        """Have a model loaded, at once where that has failed and would be tried again later; no-op where it is."""

    async def unload(self, model: str | None = None, *, force: bool = False) -> None:
        """End a model's process and with it free all of its memory.

        While the model is ready, requests under way are waited for; a load that is under way is called off. Requests that
        come meanwhile wait, and have the model loaded again.

        Args:
            model: which one.
            force: do not wait: whoever holds the model gets :class:`metalscribe.errors.ModelUnloaded`.
        """

    async def measure(self) -> None:
        """Measure how much memory the models take."""

    def check_capacity(self, model: str | None = None) -> None:
        """Say no before an upload is read.

        Args:
            model: which one it will be for, where that is known already.

        Raises:
            QueueFull: as many requests are under way as may be.
            ModelUnavailable: the model is not loaded and requests are not to wait for it.
        """

    def check_loaded(self, model: str | None = None) -> None:
        """Say no where requests are not to wait for a model, and have it loaded.

        Raises:
            ModelUnavailable: it is not loaded.
        """

    def check_request(self, request: TranscriptionRequest) -> None:
        """Say no before an upload is read.

        Raises:
            InvalidParameter: the model cannot do what is asked.
        """

    def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Event]:
        """Transcribe one recording; closing the iterator cancels the work.

        Yields:
            LanguageDetected once, Progress and SegmentsReady as they come, Done at the end; ChunkDone where checkpoints are
            wanted.

        Raises:
            InvalidParameter: the model cannot do what is asked.
            QueueFull, ModelUnavailable: try again later.
            ModelUnloaded: the model was unloaded by force meanwhile.
            UnsupportedMedia, UndecodableMedia, NoAudioTrack, UploadTooLarge: what is wrong with the recording.
            EngineFailed: the model failed on this recording twice.
        """
