"""What the rest of the service sees of the engine: requests in, events out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from metalscribe.transcript import Event, ModelCard, TranscriptionRequest


class ModelState(StrEnum):
    """Where the model is in its life."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    WAITING_FOR_GPU = "waiting_for_gpu"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine at this moment.

    Attributes:
        device: ``cpu`` or ``cuda``; None until the model was loaded once and the choice is left to it.
        compute_type: CTranslate2's; None until loaded.
        detail: why the state is what it is, where there is something to tell.
        requests: transcriptions under way or waiting.
        chunks_waiting, chunks_running: pieces of theirs before and inside the model.
        audio_seconds_waiting: length of the waiting pieces.
    """

    model: str
    state: ModelState
    device: str | None
    compute_type: str | None
    detail: str
    requests: int
    chunks_waiting: int
    chunks_running: int
    audio_seconds_waiting: float


class Engine(Protocol):
    """Transcribes recordings; many at a time."""

    @property
    def card(self) -> ModelCard:
        """What the model can do."""

    @property
    def status(self) -> EngineStatus:
        """The engine at this moment."""

    async def start(self) -> None:
        """Make ready to serve; loads the model now if it is to be preloaded."""

    async def settled(self, patience: float) -> None:
        """Wait until the model is not loading any more, ready or not, for ``patience`` seconds at most."""

    def stuck(self) -> str | None:
        """Why the engine will not get on by itself any more, None while all is well; for whoever can restart it."""

    async def close(self) -> None:
        """Cancel everything and free everything."""

    def check_capacity(self) -> None:
        """Say no before an upload is read.

        Raises:
            QueueFull: as many requests are under way as may be.
            ModelUnavailable: the model is not loaded and requests are not to wait for it.
        """

    def check_request(self, request: TranscriptionRequest) -> None:
        """Say no before an upload is read.

        Raises:
            InvalidParameter: the model cannot do what is asked.
        """

    def transcribe(self, request: TranscriptionRequest) -> AsyncIterator[Event]:
        """Transcribe one recording; closing the iterator cancels the work.

        Yields:
            LanguageDetected once, Progress and SegmentsReady as they come, Done at the end.

        Raises:
            InvalidParameter: the model cannot do what is asked.
            QueueFull, ModelUnavailable: try again later.
            UnsupportedMedia, UndecodableMedia, NoAudioTrack, UploadTooLarge: what is wrong with the recording.
            EngineFailed: the model failed on this recording twice.
        """
