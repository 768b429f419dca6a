"""The sandbox: a small process that forks one confined decoder per recording. Never imported by the service itself.

Why not :mod:`multiprocessing`'s fork server: a decoder must get its file as a descriptor, limits before the first hostile
byte, and an environment without the service's secrets; and one process per recording leaves nothing behind for the next.

The sandbox imports FFmpeg's libraries and the stages once, so that a fork costs milliseconds. A decoder

* holds its channel, the file and the ring, and nothing else;
* is confined before it reads the first byte of the file (:mod:`metalscribe.media.confinement`);
* dies with the sandbox, which dies with the service.
"""

from __future__ import annotations

import gc
import importlib
import io
import mmap
import os
import selectors
import signal
import socket
import sys
import wave
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.errors import MetalscribeError, UndecodableMedia, UploadTooLarge
from metalscribe.media.confinement import confine, die_with_parent, leave_network, load_seccomp
from metalscribe.media.messages import (
    Chunk,
    Decode,
    Decoded,
    Ended,
    Exited,
    Failed,
    Opened,
    Piece,
    Refused,
    Release,
    RingFull,
    Started,
)
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE
from metalscribe.media.recording import Recording

_SIGN_OF_LIFE: Final = 8 * BLOCK


class Output(Protocol):
    """Where a stage puts its samples."""

    def put(
        self,
        samples: NDArray[np.float32],
        pieces: list[Piece],
        *,
        voiced: float | None = None,
    ) -> None:
        """Hand on a chunk, float32[n]; waits while the ring is full. See :class:`metalscribe.media.messages.Chunk`."""


class Stage(Protocol):
    """What consumes a recording's samples inside the decoder; made by ``factory(options, output)``."""

    def feed(self, block: NDArray[np.float32]) -> None:
        """Take the next block, float32[n], 16 kHz mono."""

    def finish(self) -> None:
        """The recording is over: put what is left."""


StageFactory = Callable[[Mapping[str, Any], Output], Stage]


class Everything:
    """The plain stage: every sample, a block at a time."""

    def __init__(self, options: Mapping[str, Any], output: Output) -> None:
        del options
        self._output = output
        self._position = 0

    def feed(self, block: NDArray[np.float32]) -> None:
        """Put the block as it is."""
        self._output.put(block, [Piece(self._position, block.size)])
        self._position += block.size

    def finish(self) -> None:
        """Nothing is held back."""


# --- the decoder ------------------------------------------------------------------------------------------------------


class _RingOutput:
    """The ring: shared memory, float32[capacity], addressed by an endless axis modulo its capacity."""

    def __init__(self, channel: Channel[Release], descriptor: int, capacity: int) -> None:
        self._channel = channel
        self._ring = np.frombuffer(mmap.mmap(descriptor, capacity * 4), dtype=np.float32)
        self._capacity = capacity
        self._end = 0
        self._released = 0

    def put(
        self,
        samples: NDArray[np.float32],
        pieces: list[Piece],
        *,
        voiced: float | None = None,
    ) -> None:
        if samples.size > self._capacity:
            raise ValueError(f"a chunk of {samples.size} samples does not fit a ring of {self._capacity}")
        self._make_room(samples.size)
        start = self._end % self._capacity
        first = min(samples.size, self._capacity - start)
        self._ring[start : start + first] = samples[:first]
        self._ring[: samples.size - first] = samples[first:]
        self._channel.send(Chunk(self._end, samples.size, pieces, voiced))
        self._end += samples.size

    def _make_room(self, wanted: int) -> None:
        while (release := self._channel.receive_waiting()) is not None:
            self._released = release.position
        while self._end + wanted - self._released > self._capacity:
            self._channel.send(RingFull())
            release, _ = self._channel.receive()
            self._released = release.position


def _decode(order: Decode, channel: Channel[Release], file: BinaryIO, stage: Stage) -> None:
    """Decode one recording into the ring; everything that is wrong with it becomes a :class:`Failed`."""
    try:
        recording = Recording(file, track=order.track)
        opening = recording.opening
        channel.send(Opened(opening.container, opening.codec, opening.duration, opening.tracks))
        limit = int(order.limits.audio_seconds * SAMPLE_RATE)
        samples = told = 0
        for block in recording.blocks():
            samples += block.size
            if samples > limit:
                raise UploadTooLarge(
                    f"the recording is longer than the {order.limits.audio_seconds / 3600:g} hours allowed"
                )
            stage.feed(block)
            if samples - told >= _SIGN_OF_LIFE:
                channel.send(Decoded(samples))
                told = samples
        stage.finish()
        channel.send(Ended(samples, recording.damaged))
    except MetalscribeError as error:
        channel.send(Failed(error.code, error.detail))
    except MemoryError:
        channel.send(Failed(UndecodableMedia.code, "decoding needs more memory than one recording may have"))


def _become_decoder(order: Decode, descriptors: list[int], factory: StageFactory, seccomp: ModuleType | None) -> None:
    """The life of the forked process; never returns."""
    status = 70  # EX_SOFTWARE
    channel: Channel[Release] = Channel(socket.socket(fileno=descriptors[0]), Release)
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        keep = set(descriptors)
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (names, not paths)
            descriptor = int(name)
            if descriptor > 2 and descriptor not in keep:
                try:
                    os.close(descriptor)
                except OSError:
                    continue  # the listing's own descriptor, closed already
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)  # nobody may forge the service's log
        # What needs a descriptor of its own (the ring's mapping, a stage's model file) comes before the doors close.
        stage = factory(order.options, _RingOutput(channel, descriptors[2], order.capacity))
        confine(order.limits, seccomp)
        with os.fdopen(descriptors[1], "rb", buffering=0) as file:
            _decode(order, channel, file, stage)
        status = 0
    except ChannelClosed:
        status = 0  # nobody wants the rest
    except BaseException as error:  # noqa: BLE001  (a forked process must not run its parent's code)
        with suppress(ChannelClosed):
            channel.send(Failed("internal_error", f"{type(error).__name__}: {error}"))
    finally:
        os._exit(status)


# --- the sandbox ------------------------------------------------------------------------------------------------------


class Sandbox:
    """Forks decoders on request and tells how they ended; runs until the service hangs up."""

    def __init__(self, channel: Channel[Decode], stages: Mapping[str, StageFactory]) -> None:
        self._channel = channel
        self._stages = stages
        self._selector = selectors.DefaultSelector()
        self._seccomp = load_seccomp()

    def run(self) -> None:
        """Serve until the channel closes."""
        self._channel.send(leave_network(self._seccomp))
        self._selector.register(self._channel.fileno(), selectors.EVENT_READ)
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        self._fork(*self._channel.receive())
                    else:
                        self._reap(key.fd, *key.data)
        except ChannelClosed:
            return

    def _fork(self, order: Decode, descriptors: list[int]) -> None:
        factory = self._stages[order.stage]
        try:
            process = os.fork()
        except OSError as error:
            # No process or memory left on this machine: this recording has to wait, the others go on.
            for descriptor in descriptors:
                os.close(descriptor)
            self._channel.send(Refused(order.ticket, os.strerror(error.errno or 0)))
            return
        if process == 0:
            _become_decoder(order, descriptors, factory, self._seccomp)
        for descriptor in descriptors:
            os.close(descriptor)
        handle = os.pidfd_open(process)
        self._selector.register(handle, selectors.EVENT_READ, (order.ticket, process))
        self._channel.send(Started(order.ticket), [handle])

    def _reap(self, handle: int, ticket: int, process: int) -> None:
        self._selector.unregister(handle)
        os.close(handle)
        _, status = os.waitpid(process, 0)
        self._channel.send(Exited(ticket, os.waitstatus_to_exitcode(status)))


def _rehearse() -> None:
    """Decode a made-up file once: what FFmpeg's binding and numpy load late must be loaded before the doors close."""
    tone = (np.sin(np.arange(BLOCK, dtype=np.float32)) * 3000).astype("<i2").repeat(2).tobytes()
    made_up = io.BytesIO()
    with wave.open(made_up, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(tone)
    made_up.seek(0)
    recording = Recording(made_up)
    for _ in recording.blocks():
        _ = recording.opening
    with suppress(MetalscribeError):
        Recording(io.BytesIO(b"neither audio nor video"))


def main() -> None:
    """``python -m metalscribe.media.sandbox DESCRIPTOR STAGE…``: the descriptor is a channel's end."""
    die_with_parent()
    for stop in (signal.SIGINT, signal.SIGTERM):
        # Sent to the whole group by a terminal or by systemd; the service ends this process when it is done with it.
        signal.signal(stop, signal.SIG_IGN)
    stages: dict[str, StageFactory] = {}
    for name in sys.argv[2:]:
        module, _, attribute = name.partition(":")
        loaded = importlib.import_module(module)
        stages[name] = getattr(loaded, attribute)
        # What a stage sets up once is then there in every process that is forked, and costs no recording its time.
        getattr(loaded, "prepare", lambda: None)()
    _rehearse()
    # What is here stays: a decoder that looks it through for garbage would copy all of it.
    gc.collect()
    gc.freeze()
    channel: Channel[Decode] = Channel(socket.socket(fileno=int(sys.argv[1])), Decode)
    Sandbox(channel, stages).run()


if __name__ == "__main__":
    main()
