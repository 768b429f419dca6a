"""Typed messages and file descriptors between the service and the processes it starts.

A channel is one end of a ``SOCK_SEQPACKET`` Unix socket pair: the kernel keeps message boundaries and carries descriptors
(``SCM_RIGHTS``). Messages are msgspec structs in MessagePack, checked on arrival, because one of the two ends may be a
decoder that a hostile file has taken over; pickle would hand such a file the service.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

MESSAGE_BYTES: Final = 192 * 1024
"""Largest message; below Linux's default socket buffer (net.core.wmem_default), so that any one message fits."""

_DESCRIPTORS: Final = 4

In = TypeVar("In")


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel(Generic[In]):
    """One end of a message socket; receives messages of type ``In`` (a union of tagged structs).

    The service uses the async methods, the processes it starts use the blocking ones.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._sending = asyncio.Lock()
        self._waiting: dict[asyncio.Future[None], Callable[[int], object]] = {}

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected sockets: the first for the service (non-blocking), the second to give away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003  (the standard library's signature)
        return ours, theirs

    def fileno(self) -> int:
        """The socket's descriptor, for selectors."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up; the other end reads :class:`ChannelClosed`."""
        for ready, stop in self._waiting.items():
            stop(self._socket.fileno())  # while the descriptor is still ours
            if not ready.done():
                ready.set_exception(ChannelClosed())
        self._waiting.clear()
        self._socket.close()

    # --- blocking, for child processes ---

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Send; blocks while the other end is behind.

        Raises:
            ChannelClosed: the other end is gone.
        """
        try:
            self._send_now(message, descriptors)
        except OSError as error:
            raise ChannelClosed from error

    def receive(self) -> tuple[In, list[int]]:
        """Wait for the next message and the descriptors with it.

        Raises:
            ChannelClosed: the other end is gone.
        """
        try:
            return self._receive_now()
        except OSError as error:
            raise ChannelClosed from error

    def receive_waiting(self) -> In | None:
        """Take a message that has arrived already, or None."""
        try:
            data = self._socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        return self._decoder.decode(data)

    # --- async, for the service ---

    async def asend(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Send without blocking the event loop.

        Raises:
            ChannelClosed: the other end is gone.
        """
        async with self._sending:
            while True:
                try:
                    self._send_now(message, descriptors)
                except BlockingIOError:
                    await self._wait_for(writable=True)
                except OSError as error:
                    raise ChannelClosed from error
                else:
                    return

    async def areceive(self) -> tuple[In, list[int]]:
        """Wait for the next message without blocking the event loop; one receiver at a time.

        Raises:
            ChannelClosed: the other end is gone.
            msgspec.DecodeError: it sent something that is not one of the expected messages.
        """
        while True:
            try:
                return self._receive_now()
            except BlockingIOError:
                await self._wait_for(writable=False)
            except OSError as error:
                raise ChannelClosed from error

    # --- both ---

    def _send_now(self, message: msgspec.Struct, descriptors: Sequence[int]) -> None:
        data = self._encoder.encode(message)
        if len(data) > MESSAGE_BYTES:
            raise ValueError(f"a {type(message).__name__} of {len(data)} bytes exceeds a channel's {MESSAGE_BYTES}")
        if descriptors:
            socket.send_fds(self._socket, [data], list(descriptors))
        else:
            self._socket.send(data)

    def _receive_now(self) -> tuple[In, list[int]]:
        try:
            received = self._receive_raw()
        except ConnectionResetError:
            # The other end left without reading all of ours. The kernel says so once, before what it had sent to us.
            received = self._receive_raw()
        data, descriptors, flags, _ = received
        try:
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise msgspec.DecodeError("message or descriptors cut short")
            if not data:
                raise ChannelClosed
            return self._decoder.decode(data), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _receive_raw(self) -> tuple[bytes, list[int], int, Any]:
        received = socket.recv_fds(self._socket, MESSAGE_BYTES, _DESCRIPTORS)
        for descriptor in received[1]:
            os.set_inheritable(descriptor, False)  # noqa: FBT003  (recv_fds forgets its flags, MSG_CMSG_CLOEXEC among them)
        return received

    async def _wait_for(self, *, writable: bool) -> None:
        loop = asyncio.get_running_loop()
        if self._socket.fileno() < 0:
            raise ChannelClosed
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        descriptor = self._socket.fileno()
        add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
        add(descriptor, wake)
        self._waiting[ready] = remove
        try:
            await ready
        finally:
            if self._waiting.pop(ready, None) is not None:
                remove(descriptor)
