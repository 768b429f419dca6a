"""The service's side of one recording that is being decoded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from metalscribe.channel import Channel, ChannelClosed
from metalscribe.errors import (
    EngineFailed,
    MetalscribeError,
    NoAudioTrack,
    UndecodableMedia,
    UnsupportedMedia,
    UploadTooLarge,
)
from metalscribe.media.messages import Chunk, DecoderMessage, Ended, Failed, Release, RingFull

_MEDIA_ERRORS: Final[dict[str, type[MetalscribeError]]] = {
    error.code: error for error in (UnsupportedMedia, UndecodableMedia, NoAudioTrack, UploadTooLarge)
}

_log = structlog.get_logger(__name__)


class DecodeSession:
    """One recording being decoded: iterate its messages, release what was read.

    A stage puts at most half a ring at a time: a decoder that says it waits for room while less than half of the ring is
    taken does not tell the truth.

    Attributes:
        ring: descriptor of the shared memory, float32[capacity].
        capacity: samples in the ring.
    """

    def __init__(
        self,
        channel: Channel[DecoderMessage],
        ring: int,
        capacity: int,
        stall_seconds: float,
        *,
        on_burst_over: Callable[[], None],
    ) -> None:
        self.ring = ring
        self.capacity = capacity
        self._channel = channel
        self._stall_seconds = stall_seconds
        self._waiting_for_room = False
        self._written = self._released = 0
        self._on_burst_over = on_burst_over

    @property
    def _unreleased(self) -> int:
        return self._written - self._released

    async def release(self, position: int) -> None:
        """Give the ring's samples before ``position`` back to the decoder."""
        self._waiting_for_room = False
        self._released = max(self._released, position)
        with suppress(ChannelClosed):
            await self._channel.asend(Release(position))

    async def __aiter__(self) -> AsyncIterator[DecoderMessage]:
        """The decoder's messages up to :class:`Ended`.

        Raises:
            UnsupportedMedia, UndecodableMedia, NoAudioTrack, UploadTooLarge: what is wrong with the recording.
            TimeoutError: no sign of life though there was room.
            ChannelClosed: the decoder died.
        """
        while True:
            message = await self._next()
            if isinstance(message, Failed):
                raise _failure(message)
            if isinstance(message, RingFull):
                self._waiting_for_room = True
                self._on_burst_over()
                continue
            if isinstance(message, Chunk):
                self._check(message)
                self._written = message.start + message.length
            yield message
            if isinstance(message, Ended):
                self._on_burst_over()
                return

    def _check(self, chunk: Chunk) -> None:
        """A decoder that a file has taken over may say anything; what it says must at least be possible."""
        sources = [piece.source for piece in chunk.pieces]
        sound = (
            chunk.start == self._written
            and 0 < chunk.length <= self.capacity - self._unreleased
            and sum(piece.length for piece in chunk.pieces) == chunk.length
            and all(piece.length > 0 for piece in chunk.pieces)
            and sources == sorted(sources)
            and sources[0] >= 0
            and (chunk.voiced is None or 0 <= chunk.voiced <= chunk.length)
        )
        if not sound:
            raise msgspec.DecodeError("a chunk that cannot be")

    async def _next(self) -> DecoderMessage:
        receive = asyncio.ensure_future(self._channel.areceive())
        try:
            while True:
                done, _ = await asyncio.wait({receive}, timeout=self._stall_seconds)
                if done:
                    message, descriptors = receive.result()
                    for descriptor in descriptors:
                        os.close(descriptor)  # none was asked for
                    return message
                if not (self._waiting_for_room and self._unreleased >= self.capacity // 2):
                    raise TimeoutError
        finally:
            receive.cancel()


def _failure(message: Failed) -> MetalscribeError:
    error = _MEDIA_ERRORS.get(message.code)
    if error is None:
        _log.error("decoder failed", detail=message.detail)
        return EngineFailed("the decoder failed for a reason of its own, which the log tells")
    return error(message.detail)
