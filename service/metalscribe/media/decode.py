"""Decoding in sandboxed processes, one per recording, streaming into shared memory with back-pressure.

Nothing of a recording passes through the service: a decoder writes samples into a ring of shared memory (a sealed memfd)
and says so in a message; whoever needs the samples maps the ring's descriptor. A decoder that is ahead of its reader waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.errors import (
    EngineFailed,
    ShuttingDown,
    TryLater,
    UndecodableMedia,
)
from metalscribe.media.messages import (
    Confinement,
    Decode,
    DecoderMessage,
    Exited,
    Limits,
    Refused,
    SandboxMessage,
    Started,
)
from metalscribe.media.session import DecodeSession

EVERYTHING: Final = "metalscribe.media.sandbox:Everything"
"""The stage that passes every sample on."""

_CLOSING: Final = "the service is shutting down; send the request again in a moment"

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Decoder:
    """The service's side of one decoder process."""

    started: asyncio.Future[int]
    exited: asyncio.Future[int]


class DecoderPool:
    """The sandbox and its decoders.

    Args:
        stages: what may consume samples, as ``module:factory``; preloaded by the sandbox.
        limits: per recording.
        parallel: decoders that run at once. A decoder whose ring is full does not count: it is paced by its reader, and a
            long recording must not keep short ones out.
        stall_seconds: how long a decoder with room in its ring may be silent before it is killed.

    Attributes:
        confinement: how decoders are shut in on this machine; None before the sandbox has started.
    """

    def __init__(
        self,
        *,
        stages: Sequence[str] = (EVERYTHING,),
        limits: Limits | None = None,
        parallel: int | None = None,
        stall_seconds: float = 25.0,
    ) -> None:
        self._stages = tuple(stages)
        self._limits = limits or Limits()
        self._running = asyncio.Semaphore(parallel or max(2, os.cpu_count() or 2))
        self._stall_seconds = stall_seconds
        self._tickets = itertools.count(1)
        self._decoders: dict[int, _Decoder] = {}
        self._starting = asyncio.Lock()
        self._closed = False
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel[SandboxMessage] | None = None
        self._listener: asyncio.Task[None] | None = None
        self.confinement: Confinement | None = None

    async def start(self) -> None:
        """Start the sandbox; also done by the first :meth:`open`, and again should it ever die."""
        async with self._starting:
            self._refuse_if_closed()
            if self._listener is not None and not self._listener.done():
                return
            await self._stop()
            ours, theirs = Channel.pair()
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "metalscribe.media.sandbox", str(theirs.fileno()), *self._stages),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env=_environment(),
                )
            self._channel = Channel(ours, SandboxMessage)
            self._listener = asyncio.create_task(
                # A context of its own: the sandbox is nobody's request, and its log lines shall not say so.
                self._listen(self._channel),
                name="sandbox",
                context=contextvars.Context(),
            )

    async def close(self) -> None:
        """Kill the sandbox and with it every decoder."""
        self._closed = True
        async with self._starting:
            await self._stop()

    @asynccontextmanager
    async def open(
        self,
        path: Path,
        *,
        stage: str = EVERYTHING,
        options: Mapping[str, Any] | None = None,
        capacity: int,
        track: int = 0,
    ) -> AsyncIterator[DecodeSession]:
        """Decode a file; the decoder is killed when the block is left.

        Args:
            path: the media file.
            stage: one of the pool's stages.
            options: for the stage.
            capacity: of the ring, in samples; memory is taken as samples arrive.
            track: which audio stream, from 0.

        Raises (from within the block, too):
            UnsupportedMedia, UndecodableMedia, NoAudioTrack, UploadTooLarge: what is wrong with the recording.
            EngineFailed: the sandbox does not start.
            ShuttingDown: the pool is closed.
        """
        self._refuse_if_closed()
        await self._running.acquire()
        permit = _Permit(self._running)
        with ExitStack() as resources:
            resources.callback(permit.release)
            ring = _new_ring(capacity)
            resources.callback(os.close, ring)
            ours, theirs = Channel.pair()
            channel: Channel[DecoderMessage] = Channel(ours, DecoderMessage)
            resources.callback(channel.close)
            session = DecodeSession(channel, ring, capacity, self._stall_seconds, on_burst_over=permit.release)
            with theirs:
                decoder = await self._fork(path, theirs.fileno(), ring, stage, dict(options or {}), capacity, track)
            resources.callback(_kill_if_started, decoder)
            await decoder.started
            try:
                yield session
            except ChannelClosed:
                self._refuse_if_closed()
                raise UndecodableMedia(_epitaph(await _exit_status(decoder))) from None
            except msgspec.DecodeError:
                raise UndecodableMedia(_epitaph(-signal.SIGKILL)) from None
            except TimeoutError:
                raise UndecodableMedia(
                    f"the decoder made no progress on this file for {self._stall_seconds:g} seconds and was stopped"
                ) from None

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ShuttingDown(_CLOSING)

    async def _fork(
        self, path: Path, channel: int, ring: int, stage: str, options: dict[str, Any], capacity: int, track: int
    ) -> _Decoder:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise UndecodableMedia(f"the file cannot be opened: {(error.strerror or 'unknown').lower()}") from None
        try:
            return await self._order(file, channel, ring, stage, options, capacity, track)
        finally:
            os.close(file)

    async def _order(
        self, file: int, channel: int, ring: int, stage: str, options: dict[str, Any], capacity: int, track: int
    ) -> _Decoder:
        await self.start()
        loop = asyncio.get_running_loop()
        ticket = next(self._tickets)
        decoder = self._decoders[ticket] = _Decoder(loop.create_future(), loop.create_future())
        order = Decode(ticket, stage, options, capacity, track, self._limits)
        try:
            if self._channel is None:
                raise ChannelClosed
            await self._channel.asend(order, [channel, file, ring])
        except ChannelClosed:
            self._refuse_if_closed()
            raise EngineFailed("the decoder sandbox has died; it is started again with the next request") from None
        return decoder

    async def _listen(self, channel: Channel[SandboxMessage]) -> None:
        try:
            while True:
                message, descriptors = await channel.areceive()
                match message:
                    case Confinement(network_namespace=alone, reason=reason, seccomp=seccomp):
                        self.confinement = message
                        _log.info("sandbox started", network_namespace=alone, seccomp=seccomp, reason=reason or None)
                    case Started(ticket=ticket):
                        started = self._decoders[ticket].started
                        if started.cancelled():
                            _kill(descriptors[0])
                        else:
                            started.set_result(descriptors[0])
                    case Refused(ticket=ticket, reason=reason):
                        _log.error("decoder refused", reason=reason)
                        refused = self._decoders.pop(ticket).started
                        if not refused.done():
                            refused.set_exception(TryLater("this machine cannot start another decoder now"))
                    case Exited(ticket=ticket, status=status):
                        self._decoders.pop(ticket).exited.set_result(status)
        except ChannelClosed:
            _log.error("sandbox died")
        finally:
            for decoder in self._decoders.values():
                for future in (decoder.started, decoder.exited):
                    if not future.done():
                        future.set_exception(
                            ShuttingDown(_CLOSING)
                            if self._closed
                            else EngineFailed("the decoder sandbox died; send the request again")
                        )
                        future.exception()  # retrieved here: nobody may be waiting for it
            self._decoders.clear()

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})
            self._listener = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None


class _Permit:
    """A semaphore's place, given back once."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore: asyncio.Semaphore | None = semaphore

    def release(self) -> None:
        semaphore, self._semaphore = self._semaphore, None
        if semaphore is not None:
            semaphore.release()


def _new_ring(capacity: int) -> int:
    """Shared memory of ``capacity`` float32 samples whose size nobody can change.

    Without the seals a decoder could shrink the ring under the reader's feet (SIGBUS).
    """
    ring = os.memfd_create("metalscribe-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(ring, capacity * 4)
    fcntl.fcntl(ring, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return ring


def _kill(process: int) -> None:
    """Kill by pidfd, which cannot hit a stranger that got the same process id, and close it."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
    os.close(process)


def _kill_if_started(decoder: _Decoder) -> None:
    """End a decoder whoever it was started for has left; one that starts later is killed then (:meth:`_listen`)."""
    if not decoder.started.done():
        decoder.started.cancel()
    elif not decoder.started.cancelled() and decoder.started.exception() is None:
        _kill(decoder.started.result())


async def _exit_status(decoder: _Decoder) -> int:
    """How a decoder ended; it hung up, so that this is a matter of moments."""
    done, _ = await asyncio.wait({decoder.exited}, timeout=5.0)
    return decoder.exited.result() if done else -signal.SIGKILL


def _epitaph(status: int) -> str:
    if status == -signal.SIGXCPU:
        return "decoding this file takes more processor time than one recording may have"
    if status < 0:
        return f"the decoder crashed on this file ({signal_name(-status)}); it is damaged or made to do harm"
    return f"the decoder gave up on this file (status {status}); it is damaged or made to do harm"


def signal_name(number: int) -> str:
    """A signal's name; real-time ones have a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment() -> dict[str, str]:
    """What the sandbox may know: where Python is, and that numeric libraries shall start no threads. No secrets."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "TZ") if name in os.environ
    }
    return kept | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime reports to its maker otherwise
        "PYTHONDONTWRITEBYTECODE": "1",
    }
