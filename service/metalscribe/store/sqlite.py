"""What an SQLite database needs that a server does not: a private file, a lock between processes, and its pragmas."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from metalscribe.errors import ConfigurationError, StorageFull
from metalscribe.store.failures import NOT_WRITABLE, locked
from metalscribe.store.ownership import create_directory, owner_for

READ_ONLY = "metalscribe_read_only"
"""Execution option of a connection that will only read."""

_POLL_SECONDS = 0.02


def create_file(path: Path) -> None:
    """Create the directory (0700) and the file (0600) where they are missing; what exists keeps its modes.

    Both go to the owner of the directory they are made in, so that root may run a command before the service's own user
    has started for the first time.

    Raises:
        ConfigurationError: the place cannot be written, or something else than a file is there.
        StorageFull: the disk is full.
    """
    try:
        create_directory(path.parent)
        _create_private(path)
    except OSError as error:
        raise _explained(error) from error
    if not path.is_file():
        raise ConfigurationError("Something that is not a file is where the database should be; move it away.")


def configure(engine: AsyncEngine, lock_timeout: float) -> None:
    """Set up each connection, and make every transaction real.

    Left to itself, Python's driver begins a transaction only before the first change, and a transaction that first reads
    and then writes fails at once, without waiting, when somebody else wrote in between. So those that may write take the
    write lock at their beginning (https://www.sqlite.org/lang_transaction.html).
    """

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            # First of all, since turning WAL on needs a lock itself.
            cursor.execute(f"PRAGMA busy_timeout = {int(lock_timeout * 1000)}")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
        finally:
            cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


async def require_wal(engine: AsyncEngine) -> None:
    """Make sure that the file system can do what write-ahead logging needs.

    Raises:
        ConfigurationError: it cannot, as network file systems cannot.
    """
    async with engine.connect() as connection:
        mode = (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
    if mode != "wal":
        raise ConfigurationError(
            "The file system that holds the database cannot share memory between processes, which SQLite's write-ahead log needs. "
            "Put METALSCRIBE_STATE_DIR on a local disk, or use PostgreSQL by METALSCRIBE_DATABASE_URL."
        )


@asynccontextmanager
async def lock_between_processes(path: Path, timeout: float) -> AsyncIterator[None]:  # noqa: ASYNC109
    """Hold the lock file beside the database; the kernel lets go of it when the process dies.

    A file of its own, because closing any descriptor of the database would drop SQLite's own locks on it
    (https://www.sqlite.org/howtocorrupt.html, section 2.2).

    Raises:
        ConfigurationError: the place cannot be written.
        TryLater: somebody else has held it for ``timeout`` seconds.
    """
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        _create_private(lock_path)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _explained(error) from error
    try:
        await wait_for_lock(lambda: _try_lock(descriptor), timeout)
        yield
    finally:
        os.close(descriptor)


async def wait_for_lock(attempt: Callable[[], bool], timeout: float) -> None:  # noqa: ASYNC109
    """Try until it works, without blocking the event loop and without a thread that cancellation would leave behind.

    Raises:
        TryLater: it did not work for ``timeout`` seconds.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    while not attempt():
        if clock() >= deadline:
            raise locked()
        await asyncio.sleep(_POLL_SECONDS)


def _create_private(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        owner = owner_for(path)
        if owner is not None:
            os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _explained(error: OSError) -> ConfigurationError | StorageFull:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("The disk that holds the database is full.")
    return ConfigurationError(f"{NOT_WRITABLE} ({error.strerror})")
