"""What a database's failure means to an operator."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from metalscribe.errors import ConfigurationError, MetalscribeError, StorageFull, TryLater

NOT_WRITABLE = (
    "The database cannot be created or written here. Give its directory and files to the user that runs metalscribe, "
    "or choose another place with METALSCRIBE_STATE_DIR or METALSCRIBE_DATABASE_URL."
)

# SQLSTATEs of PostgreSQL: https://www.postgresql.org/docs/current/errcodes-appendix.html
_DISK_FULL = "53100"
_LOCK_NOT_AVAILABLE = "55P03"


def explained(error: SQLAlchemyError) -> MetalscribeError | None:
    """Say what is wrong and how to mend it; None where it is the program's own fault, or the caller's to handle."""
    if isinstance(error, PoolTimeout):
        return TryLater("Every connection to the database is in use.")
    if not isinstance(error, DBAPIError):
        return None
    name = getattr(error.orig, "sqlite_errorname", None)
    return _explained_sqlite(name) if isinstance(name, str) else _explained_postgresql(error)


def locked() -> TryLater:
    """Name what to look for when somebody else holds the lock for longer than anybody should."""
    return TryLater("Another process keeps the database locked: a migration, a backup, or a program that hangs.")


def unreachable() -> TryLater:
    """Name what to look at; the server's own words may tell hosts and users, so they stay in the log."""
    return TryLater(
        "The database server does not answer or refuses the login; check METALSCRIBE_DATABASE_URL and the server's log."
    )


def _explained_postgresql(error: DBAPIError) -> MetalscribeError | None:
    state = getattr(error.orig, "sqlstate", None)
    if state == _DISK_FULL:
        return StorageFull("The disk of the database server is full.")
    if state == _LOCK_NOT_AVAILABLE:
        return locked()
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return unreachable()
    return None


def _explained_sqlite(name: str) -> MetalscribeError | None:
    # Extended result codes start with the primary one: https://www.sqlite.org/rescode.html
    meanings: dict[tuple[str, ...], MetalscribeError] = {
        ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"): locked(),
        ("SQLITE_FULL",): StorageFull("The disk that holds the database is full."),
        ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"): ConfigurationError(NOT_WRITABLE),
        ("SQLITE_NOTADB",): ConfigurationError(
            "The file where the database should be is not an SQLite database. Move it away, restore a backup, "
            "or name another with METALSCRIBE_DATABASE_URL."
        ),
        ("SQLITE_CORRUPT",): ConfigurationError(
            "The database is damaged. Stop the service and restore a backup, "
            "or save what can be read with `sqlite3 FILE .recover`."
        ),
        ("SQLITE_IOERR",): MetalscribeError(
            "The disk that holds the database reports errors; see the kernel's log (journalctl -k)."
        ),
    }
    return next((meaning for prefixes, meaning in meanings.items() if name.startswith(prefixes)), None)
