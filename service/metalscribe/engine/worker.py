"""The process that owns the model (and, with it, the GPU): rows in, words out, heartbeat. Never imported by the service.

Why a process: a CUDA error is sticky and poisons its process, a hung kernel can only be killed, and exiting is the only way
to give all of a GPU's memory back.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.engine.context import FULL_CONTEXT, MAX_TOKENS
from metalscribe.engine.cuda import free_memory, rows_that_fit
from metalscribe.engine.messages import (
    Batch,
    BatchDone,
    BatchFailed,
    Cancel,
    CloseSource,
    DecodeOptions,
    FromModel,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    OpenSource,
    Prepare,
    Row,
    Search,
    ToModel,
)
from metalscribe.engine.model import Clip, SpeechModel
from metalscribe.media.pcm import SAMPLE_RATE

HEARTBEAT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 1.0
_REMEMBERED: Final = 10_000

_Samples = NDArray[np.float32]


class Worker:
    """Reads messages on one thread, computes features ahead on another, runs batches on the main one, lives on the last.

    CTranslate2 releases Python's lock, so features of what comes next are computed while it works.
    """

    def __init__(self, channel: Channel[ToModel]) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._announced: queue.SimpleQueue[tuple[Row, Future[_Samples | None]]] = queue.SimpleQueue()
        self._prepared: dict[int, Future[_Samples | None]] = {}
        self._sources: dict[int, tuple[_Samples, int]] = {}
        self._cancelled: dict[int, None] = {}

    def run(self) -> None:
        """Load, then decode until the service hangs up."""
        first, _ = self._channel.receive()
        if not isinstance(first, Load):
            raise TypeError(f"the first message must be Load, not {type(first).__name__}")
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()
        model = self._load(first)
        if model is None:
            return
        threading.Thread(target=self._listen, daemon=True, name="listen").start()
        threading.Thread(target=self._prepare, args=[model], daemon=True, name="prepare").start()
        for number in range(1, model.parallel):
            threading.Thread(target=self._work, args=[model], daemon=True, name=f"decode {number}").start()
        self._work(model)

    def _work(self, model: SpeechModel) -> None:
        """Decode batches for ever."""
        while True:
            try:
                batch = self._batches.get(timeout=_PAUSE_SECONDS)
            except queue.Empty:
                # The C library keeps what batches have used, some 30 MB a row; in a pause the machine gets it back.
                _return_memory()
                batch = self._batches.get()
            self._decode(model, batch)

    def _load(self, order: Load) -> SpeechModel | None:
        begin = time.perf_counter()
        try:
            model = SpeechModel(
                order.path, device=order.device, compute_type=order.compute_type, cpu_threads=order.cpu_threads
            )
            loaded = time.perf_counter()
            # The first batch pays for what is set up late (CUDA kernels, memory pools): pay it here.
            silence = Clip(
                0, model.features(np.zeros(16_000, np.float32)), 1.0, "en", DecodeOptions(words=True), MAX_TOKENS
            )
            before = free_memory() if model.device == "cuda" else None
            for _ in model.decode([silence], Search(), FULL_CONTEXT):
                pass
            rows = rows_that_fit(before, free_memory()) if before is not None else None
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            self._send(LoadFailed(str(error) or type(error).__name__, _is_out_of_memory(error)))
            return None
        warm = time.perf_counter()
        gc.collect()
        gc.freeze()  # what is here stays, and need not be looked through again and again
        self._send(Loaded(model.device, model.compute_type, loaded - begin, warm - loaded, model.parallel, rows))
        return model

    def _decode(self, model: SpeechModel, batch: Batch) -> None:
        begin = time.perf_counter()
        model.take_seconds()
        try:
            clips = [clip for row in batch.rows if (clip := self._clip(model, row)) is not None]
            for result in model.decode(clips, batch.search, batch.context, wanted=self._wanted):
                self._send(result)
        except (RuntimeError, ValueError, MemoryError) as error:
            if model.device == "cuda" and isinstance(error, RuntimeError) and not _is_out_of_memory(error):
                # The CUDA context is lost and every later call would fail: die, and be started anew.
                raise
            self._send(BatchFailed(batch.batch, f"{type(error).__name__}: {error}"[:2000], _is_out_of_memory(error)))
            return
        self._send(BatchDone(batch.batch, time.perf_counter() - begin, model.take_seconds()))

    def _clip(self, model: SpeechModel, row: Row) -> Clip | None:
        """A row with its features, computed ahead or now; None where nobody wants it or its source is gone."""
        ahead = self._prepared.pop(row.row, None)
        if not self._wanted(row.row):
            return None
        # Not begun yet: then it is not waited for.
        features = self._features(model, row) if ahead is None or ahead.cancel() else ahead.result()
        if features is None:
            return None
        seconds = row.length / SAMPLE_RATE
        return Clip(row.row, features, seconds, row.language, row.options, row.max_tokens, row.align_below)

    def _prepare(self, model: SpeechModel) -> None:
        """Compute features of announced rows, in the order of their announcement, as long as somebody wants them."""
        while True:
            row, future = self._announced.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._features(model, row))
            except (ValueError, MemoryError) as error:
                future.set_exception(error)

    def _features(self, model: SpeechModel, row: Row) -> _Samples | None:
        samples = self._samples(row.source, row.start, row.length)
        return None if samples is None else model.features(samples)

    def _wanted(self, row: int) -> bool:
        return row not in self._cancelled

    def _samples(self, source: int, start: int, length: int) -> _Samples | None:
        """A copy of a row's samples, or None where its source is gone."""
        known = self._sources.get(source)  # once: the listener may remove it at any moment
        if known is None:
            return None
        ring, capacity = known
        at = start % capacity
        first = min(length, capacity - at)
        return np.concatenate([ring[at : at + first], ring[: length - first]])

    def _listen(self) -> None:
        try:
            while True:
                message, descriptors = self._channel.receive()
                match message:
                    case Batch():
                        self._batches.put(message)
                    case Prepare(rows=rows):
                        for row in rows:
                            future: Future[_Samples | None] = Future()
                            self._prepared[row.row] = future
                            self._announced.put((row, future))
                    case OpenSource(source=source, capacity=capacity):
                        shared = mmap.mmap(descriptors[0], capacity * 4, prot=mmap.PROT_READ)
                        os.close(descriptors[0])
                        self._sources[source] = (np.frombuffer(shared, np.float32), capacity)
                    case CloseSource(source=source):
                        self._sources.pop(source, None)
                    case Cancel(rows=rows):
                        self._cancelled.update(dict.fromkeys(rows))
                        for cancelled in rows:
                            if (ahead := self._prepared.pop(cancelled, None)) is not None:
                                ahead.cancel()
                        while len(self._cancelled) > _REMEMBERED:
                            self._cancelled.pop(next(iter(self._cancelled)))
        except ChannelClosed:
            os._exit(0)  # a batch may be running that nobody waits for

    def _beat(self) -> None:
        while True:
            self._send(Heartbeat())
            time.sleep(HEARTBEAT_SECONDS)

    def _send(self, message: FromModel) -> None:
        try:
            with self._sending:
                self._channel.send(message)
        except ChannelClosed:
            os._exit(0)


def _return_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries need no telling
    if trim is not None:
        trim(0)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "alloc_failed" in text


def _die(failed: threading.ExceptHookArgs) -> None:
    """A process that has lost one of its threads answers only half: it ends, and the service starts another."""
    sys.excepthook(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(70)  # EX_SOFTWARE


def main() -> None:
    """``python -m metalscribe.engine.worker DESCRIPTOR``: the descriptor is a channel's end."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        # Sent to the whole group by a terminal or by systemd; the service hangs up when it is done with this process.
        signal.signal(stop, signal.SIG_IGN)
    threading.excepthook = _die
    Worker(Channel(socket.socket(fileno=int(sys.argv[1])), ToModel)).run()


if __name__ == "__main__":
    main()
