"""Stages that do what a decoder taken over by a hostile file might do; the sandbox imports them through PYTHONPATH."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metalscribe.media.messages import Chunk, Decoded, Piece, RingFull

Samples = NDArray[np.float32]


class Idle:
    """Takes everything, puts nothing."""

    def __init__(self, options: Mapping[str, Any], output: Any) -> None:
        self.options = options
        self.output = output

    def feed(self, block: Samples) -> None:
        """Ignore it."""

    def finish(self) -> None:
        """Nothing to put."""


class BusyLoop(Idle):
    def feed(self, block: Samples) -> None:
        while True:
            pass


class Standstill(Idle):
    def feed(self, block: Samples) -> None:
        while True:
            signal.pause()


class FalseAlarm(Idle):
    """Claims that it waits for room, and then does nothing at all."""

    def feed(self, block: Samples) -> None:
        self.output._channel.send(RingFull())
        while True:
            signal.pause()


class Killed(Idle):
    def feed(self, block: Samples) -> None:
        os.kill(os.getpid(), self.options["signal"])


class Hoarder(Idle):
    def feed(self, block: Samples) -> None:
        self.hoard = np.ones(2**31, np.uint8)


class Raising(Idle):
    def feed(self, block: Samples) -> None:
        raise LookupError("a defect of the stage")


class Garbage(Idle):
    def feed(self, block: Samples) -> None:
        self.output._channel._socket.send(b"\xc1garbage")
        while True:
            signal.pause()


class Gifts(Idle):
    """Sends descriptors that nobody asked for, with messages that are in order."""

    def feed(self, block: Samples) -> None:
        for number in range(20):
            self.output._channel.send(Decoded(number + 1), [0, 1])


class Sizes(Idle):
    """Puts chunks of the sizes in ``options["sizes"]``, whatever the recording holds."""

    def finish(self) -> None:
        for number, size in enumerate(self.options["sizes"]):
            self.output.put(np.full(size, number, np.float32), [Piece(0, size)])


class Escape(Idle):
    """Tries every way out; puts one number per attempt: 0 where it failed, 1 where it succeeded."""

    def finish(self) -> None:
        attempts: list[Callable[[], object]] = [
            lambda: Path("/etc/hostname").read_text(),
            lambda: os.open("/", os.O_RDONLY),
            socket.socket,
            socket.socketpair,
            lambda: os.dup(0),
            os.pipe,
            lambda: os.memfd_create("more"),
            lambda: list(Path("/").iterdir()),
            run_a_program,
            lambda: next(name for name in os.environ if name.startswith("METALSCRIBE_")),
            lambda: os.environ["A_SECRET_OF_SOMEBODY_ELSE"],
            # a signal to the sandbox, by every call that sends one
            *(partial(system_call, number, os.getppid(), 0) for number in (_KILL, _TKILL)),
            partial(system_call, _TGKILL, os.getppid(), os.getppid(), 0),
            # files by path, without opening them
            lambda: os.utime(self.options["target"]),
            lambda: os.setxattr(self.options["target"], "user.marked", b"1"),
            lambda: Path(self.options["target"]).chmod(0o777),
            lambda: Path(self.options["target"]).unlink(),
            # the limits themselves
            lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
        ]
        results = [float(succeeds(attempt)) for attempt in attempts]
        self.output.put(np.array(results, np.float32), [Piece(0, len(results))])


_KILL, _TKILL, _TGKILL = 62, 200, 234  # on x86-64


def system_call(number: int, *arguments: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) != 0:
        raise OSError(ctypes.get_errno(), "refused")


class Impossible(Idle):
    """Tells of a chunk that cannot be."""

    def feed(self, block: Samples) -> None:
        start, length, pieces = self.options["chunk"]
        self.output._channel.send(Chunk(start, length, [Piece(*piece) for piece in pieces]))
        while True:
            signal.pause()


class Descend(Idle):
    """Forks a child that would outlive its decoder; puts 1 and the child's process id where that worked."""

    def finish(self) -> None:
        try:
            child = os.fork()
        except OSError:
            child = 0
        else:
            if child == 0:
                while True:
                    signal.pause()
        self.output.put(np.array([float(child > 0), float(child)], np.float32), [Piece(0, 2)])


class Account(Idle):
    """Puts what the decoder has: highest descriptor above the standard ones, limits, priority."""

    def finish(self) -> None:
        held = [descriptor for descriptor in range(3, 256) if is_open(descriptor)]
        numbers = [
            len(held),
            resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            resource.getrlimit(resource.RLIMIT_FSIZE)[1],
            resource.getrlimit(resource.RLIMIT_CORE)[1],
            resource.getrlimit(resource.RLIMIT_CPU)[0],
            os.nice(0),
        ]
        self.output.put(np.array(numbers, np.float32), [Piece(0, len(numbers))])


def succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (ValueError, OSError, LookupError, StopIteration):
        return False
    return True


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def run_a_program() -> None:
    """Replace a child by a program; an error where that fails, be it in the program's own start."""
    child = os.fork()
    if child == 0:
        try:
            os.execv("/bin/true", ["true"])
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise OSError("the program did not run")
