"""faster-whisper as it comes, one recording after another, behind a queue: what most services around it do."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.transcribe import Segment
from typing_extensions import override

from bench.recordings import Recording
from bench.ways.way import Answer, Setup, Way

_BEAM_SIZE: Final = 5
_BATCH_SIZE: Final = 8


class _Bare(Way):
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._thread = ThreadPoolExecutor(1)

    @override
    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    @override
    async def close(self) -> None:
        self._thread.shutdown()

    @override
    async def transcribe(self, recording: Recording) -> Answer:
        arrived = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, recording, arrived)

    def _work(self, recording: Recording, arrived: float) -> Answer:
        begin = time.perf_counter()
        texts: list[str] = []
        first: float | None = None
        for segment in self._segments(str(recording.path)):
            first = first if first is not None else time.perf_counter() - arrived
            texts.append(segment.text)
        return Answer(
            recording=recording,
            text="".join(texts),
            latency_seconds=time.perf_counter() - arrived,
            queue_seconds=begin - arrived,
            first_segment_seconds=first,
        )

    def _load(self) -> None:
        setup = self._setup
        self._model = WhisperModel(
            str(setup.model), device=setup.device, compute_type=setup.compute_type, local_files_only=True
        )

    @abstractmethod
    def _segments(self, path: str) -> Iterable[Segment]: ...


class Sequential(_Bare):
    """``WhisperModel.transcribe(beam_size=5)`` with its default options."""

    def _segments(self, path: str) -> Iterable[Segment]:
        segments, _ = self._model.transcribe(path, beam_size=_BEAM_SIZE, language=self._setup.language)
        return segments  # type: ignore[no-any-return]


class Batched(_Bare):
    """``BatchedInferencePipeline.transcribe(batch_size=8)`` with its default options: batches within one file."""

    def _segments(self, path: str) -> Iterable[Segment]:
        pipeline = BatchedInferencePipeline(self._model)
        segments, _ = pipeline.transcribe(path, batch_size=_BATCH_SIZE, language=self._setup.language)
        return segments  # type: ignore[no-any-return]
