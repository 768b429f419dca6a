"""The database: SQLite in the state directory, or PostgreSQL by URL."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import URL, CursorResult, Result, make_url, text
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from metalscribe.errors import ConfigurationError, MetalscribeError, ShuttingDown
from metalscribe.store import sqlite
from metalscribe.store.failures import explained, unreachable
from metalscribe.store.migrate import migrate

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+pysqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
}
_URL_HINT = "METALSCRIBE_DATABASE_URL must look like postgresql+psycopg://user:password@host/metalscribe or sqlite:////path/to/file.db"

# Any number that others on the same PostgreSQL server are unlikely to take: "metalscr" in ASCII.
_ADVISORY_LOCK = int.from_bytes(b"metalscr", "big")

# Alembic keeps the migration under way in a variable of the process, so two databases of one process take turns.
_MIGRATING = threading.Lock()

_log = structlog.get_logger(__name__)


class Database:
    """One database and its connections.

    Args:
        url: SQLAlchemy URL of an SQLite file or a PostgreSQL database; the async driver may be left out.
        lock_timeout: seconds that a transaction waits for another process's one (SQLite).
        migration_timeout: seconds that :meth:`open` waits while another process migrates.

    Raises:
        ConfigurationError: the URL is malformed, or of a database that is not supported.
    """

    def __init__(self, url: str, *, lock_timeout: float = 20.0, migration_timeout: float = 120.0) -> None:
        self._url = _parsed(url)
        self._lock_timeout = lock_timeout
        self._migration_timeout = migration_timeout
        self._engine: AsyncEngine | None = None
        self._reading: AsyncEngine | None = None

    async def open(self) -> None:
        """Create what is missing and bring the tables up to date; safe in several processes at once.

        Raises:
            ConfigurationError: the place cannot be written, holds something else, or a newer version wrote it.
            TryLater: another process holds the lock for too long, or the server does not answer.
            StorageFull: the disk is full.
        """
        if self._engine is not None:
            return
        engine = self._create_engine()
        try:
            async with AsyncExitStack() as turns:
                await sqlite.wait_for_lock(lambda: _MIGRATING.acquire(blocking=False), self._migration_timeout)
                turns.callback(_MIGRATING.release)
                if self._file is not None:
                    sqlite.create_file(self._file)
                    await turns.enter_async_context(sqlite.lock_between_processes(self._file, self._migration_timeout))
                await self._migrate(engine)
        except BaseException as error:
            await engine.dispose()
            self._translate(error)
            raise
        self._engine = engine
        self._reading = engine.execution_options(**self._read_only_options)

    async def close(self) -> None:
        """Close the connections; :meth:`open` opens them again."""
        engine, self._engine, self._reading = self._engine, None, None
        if engine is not None:
            await engine.dispose()

    @asynccontextmanager
    async def session(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end of the block, rolled back when it raises.

        Writers take turns in SQLite, from the beginning of the block to its end: compute first, then open it. With
        ``read_only`` a transaction sees one state of the database, waits for nobody and must not write.

        Raises:
            ShuttingDown: the database is not open.
            TryLater: it is locked for too long or does not answer.
            StorageFull: the disk is full.
            ConfigurationError: its files cannot be written any more, or are damaged.
            sqlalchemy.exc.IntegrityError: a constraint forbids the change; the caller knows what it means.
        """
        engine = self._reading if read_only else self._engine
        if engine is None:
            raise ShuttingDown("The database is closed.")
        try:
            async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
                await session.connection()  # begin now rather than with the first statement
                yield session
        except SQLAlchemyError as error:
            self._translate(error)
            raise

    @property
    def _file(self) -> Path | None:
        return Path(self._url.database or "").absolute() if self._is_sqlite else None

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @property
    def _read_only_options(self) -> dict[str, bool]:
        return {sqlite.READ_ONLY: True} if self._is_sqlite else {"postgresql_readonly": True}

    def _create_engine(self) -> AsyncEngine:
        # Statements carry digests and transcripts, which an error message must not repeat.
        options = {"hide_parameters": True, "pool_pre_ping": not self._is_sqlite}
        try:
            engine = create_async_engine(self._url, **options)
        except ImportError as error:
            raise ConfigurationError(
                f"The database's driver {error.name} is not installed; install it beside metalscribe."
            ) from error
        except (NoSuchModuleError, InvalidRequestError) as error:
            raise ConfigurationError(
                f"The database's driver {self._url.drivername} is unknown or not asynchronous. {_URL_HINT}."
            ) from error
        if self._is_sqlite:
            sqlite.configure(engine, self._lock_timeout)
        return engine

    async def _migrate(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            if not self._is_sqlite:
                # Both end with the transaction.
                await connection.execute(text(f"SET LOCAL lock_timeout = {int(self._migration_timeout * 1000)}"))
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            await connection.run_sync(migrate)
        if self._is_sqlite:
            await sqlite.require_wal(engine)

    def _translate(self, error: BaseException) -> None:
        """Raise the failure in the words of :mod:`metalscribe.errors` where there are some."""
        meaning: MetalscribeError | None = None
        if isinstance(error, SQLAlchemyError):
            meaning = explained(error)
        elif isinstance(error, OSError) and not self._is_sqlite:
            meaning = unreachable()  # some drivers let the socket's own error through
        if meaning is not None:
            _log.warning("database_failed", code=meaning.code, reason=str(getattr(error, "orig", error)))
            raise meaning from error


def affected(result: Result[Any]) -> int:
    """How many rows an UPDATE or DELETE has changed."""
    return result.rowcount if isinstance(result, CursorResult) else 0


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"The database's URL cannot be read. {_URL_HINT}."
        ) from None  # the URL holds a password
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    backend = parsed.drivername.partition("+")[0]
    if backend not in {"sqlite", "postgresql"}:
        raise ConfigurationError(f"A {backend} database is not supported. {_URL_HINT}.")
    if backend == "sqlite" and (not parsed.database or parsed.database.startswith((":memory:", "file:"))):
        raise ConfigurationError(f"The SQLite database must be a file, since it must survive a restart. {_URL_HINT}.")
    return parsed
