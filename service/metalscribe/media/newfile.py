"""A file that comes into being whole or not at all, written off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import anyio

from metalscribe.errors import StorageFull

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

PIECE = 1 << 20
"""Bytes gathered before they are written."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class NewFile:
    """A new file at ``path``, of mode 0600, kept if the ``async with`` block ends well and removed if it does not.

    Nothing that exists is opened, symbolic links included. Not safe for use by several tasks at a time.

    A thread of its own does everything to the file in the order it was asked for. So when the caller is cancelled
    while the disk is busy, the file is still closed and removed, after that write and never under it.

    Raises:
        FileExistsError: something is at ``path``.
        StorageFull: the disk, or the user's share of it, is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="new-file")
        self._created = False
        self._descriptor = -1
        self._gathered = bytearray()

    async def __aenter__(self) -> Self:
        try:
            await self._do(self._open)
        except BaseException:
            await self._give_up()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            await self._give_up()
            return
        try:
            await self._flush()
            await self._do(self._close)
        except BaseException:
            await self._give_up()
            raise
        self._thread.shutdown(wait=False)

    async def write(self, data: bytes) -> None:
        """Append ``data``; about a mebibyte at a time reaches the disk."""
        self._gathered += data
        if len(self._gathered) >= PIECE:
            await self._flush()

    async def _flush(self) -> None:
        data, self._gathered = self._gathered, bytearray()
        await self._do(self._append, data)

    async def _give_up(self) -> None:
        """Close and remove the file once the thread is through with it, waiting for that even when cancelled."""
        discarded = asyncio.get_running_loop().run_in_executor(self._thread, self._discard)
        self._thread.shutdown(wait=False)
        with anyio.CancelScope(shield=True):
            await asyncio.shield(discarded)

    async def _do(self, work: Callable[..., None], *arguments: bytearray) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull("The disk is full. Free some space in the service's state directory.") from error
            raise

    # --- in the thread ---

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._created = True

    def _append(self, data: bytearray) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _discard(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # a write that fails late matters no more
                self._close()
        if self._created:
            self._path.unlink(missing_ok=True)
