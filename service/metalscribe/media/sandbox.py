"""The sandbox: a small process that forks one confined decoder per recording. Never imported by the service itself.

Why not :mod:`multiprocessing`'s fork server: a decoder must get its file as a descriptor, limits before the first hostile
byte, and an environment without the service's secrets; and one process per recording leaves nothing behind for the next.

The sandbox imports FFmpeg's libraries and the stages once, so that a fork costs milliseconds. A decoder

* holds three descriptors (its channel, the file, the ring) and, by ``RLIMIT_NOFILE``, cannot get a fourth: it can open no
  file and no socket, whatever a playlist or a takeover tells it;
* has bounded address space and processor time, writes no file, leaves no core, gains no privileges (``no_new_privs``);
* has no network: the sandbox moves into an empty network namespace where the kernel lets it;
* dies with the sandbox, which dies with the service.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import mmap
import os
import resource
import selectors
import signal
import socket
import sys
import wave
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.errors import MetalscribeError, UndecodableMedia, UploadTooLarge
from metalscribe.media.messages import (
    Chunk,
    Confinement,
    Decode,
    Decoded,
    Ended,
    Exited,
    Failed,
    Limits,
    Opened,
    Piece,
    Release,
    RingFull,
    Started,
)
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE, Recording

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_BACKSTOP_CPU_SECONDS: Final = 5
_SIGN_OF_LIFE: Final = 16 * BLOCK


class Output(Protocol):
    """Where a stage puts its samples."""

    def put(self, samples: NDArray[np.float32], pieces: list[Piece]) -> None:
        """Hand on a chunk, float32[n]; waits while the ring is full."""


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

    def put(self, samples: NDArray[np.float32], pieces: list[Piece]) -> None:
        if samples.size > self._capacity:
            raise ValueError(f"a chunk of {samples.size} samples does not fit a ring of {self._capacity}")
        self._make_room(samples.size)
        start = self._end % self._capacity
        first = min(samples.size, self._capacity - start)
        self._ring[start : start + first] = samples[:first]
        self._ring[: samples.size - first] = samples[first:]
        self._channel.send(Chunk(self._end, samples.size, pieces))
        self._end += samples.size

    def _make_room(self, wanted: int) -> None:
        while (release := self._channel.receive_waiting()) is not None:
            self._released = release.position
        told = False
        while self._end + wanted - self._released > self._capacity:
            if not told:
                self._channel.send(RingFull())
                told = True
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


def _confine(limits: Limits) -> None:
    """Shut this process in; from here on it has what it holds and nothing else."""
    present = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    space = present + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    # SIGXCPU at the soft limit names the cause in the exit status; the hard limit catches what ignores it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + _BACKSTOP_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.nice(5)  # the front end answers first


def _become_decoder(order: Decode, descriptors: list[int], factory: StageFactory) -> None:
    """The life of the forked process; never returns."""
    status = 70  # EX_SOFTWARE
    channel: Channel[Release] = Channel(socket.socket(fileno=descriptors[0]), Release)
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        keep = set(descriptors)
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (names, not paths)
            descriptor = int(name)
            if descriptor > 2 and descriptor not in keep:
                try:
                    os.close(descriptor)
                except OSError:
                    continue  # the listing's own descriptor, closed already
        # What needs a descriptor of its own (the ring's mapping, a stage's model file) comes before the doors close.
        stage = factory(order.options, _RingOutput(channel, descriptors[2], order.capacity))
        _confine(order.limits)
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

    def run(self) -> None:
        """Serve until the channel closes."""
        self._channel.send(_leave_network())
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
        process = os.fork()
        if process == 0:
            _become_decoder(order, descriptors, factory)
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


def _leave_network() -> Confinement:
    """Move into an empty network namespace: with privileges directly, without them through a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    reason = ""
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return Confinement(network_namespace=True, reason="")
        reason = os.strerror(ctypes.get_errno())
    return Confinement(network_namespace=False, reason=reason)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


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
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle
    stages: dict[str, StageFactory] = {}
    for name in sys.argv[2:]:
        module, _, attribute = name.partition(":")
        stages[name] = getattr(importlib.import_module(module), attribute)
    _rehearse()
    channel: Channel[Decode] = Channel(socket.socket(fileno=int(sys.argv[1])), Decode)
    Sandbox(channel, stages).run()


if __name__ == "__main__":
    main()
