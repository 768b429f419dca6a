"""Copies of the service's SQLite database, consistent while it runs.

The state directory belongs to the service's user. What root does there, it does as that user, so that a service that was
broken into cannot make root write elsewhere by a link.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from .layout import sync

USER = "metalscribe"


class DatabaseFailed(Exception):
    """A copy could not be made or put back; the message tells why."""


def copy(database: Path, target: Path, *, owner: str = "root") -> bool:
    """Copy a database that may be in use to ``target`` (mode 0600), whole or not at all.

    Returns:
        Whether there was a database.

    Raises:
        DatabaseFailed: it could not be read, or the copy not be written.
    """
    with tempfile.TemporaryDirectory(prefix="metalscribe-copy-", dir="/var/tmp") as scratch:
        account = pwd.getpwnam(USER)
        os.chown(scratch, account.pw_uid, account.pw_gid)
        made = Path(scratch) / "copy.db"
        if _as_service(lambda: _copy(database, made)) is None:
            return False
        part = target.with_name(f".{target.name}.part")
        descriptor = os.open(made, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as source, _private(part).open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.chown(part, owner, owner)
        part.rename(target)
    return True


def put_back(backup: Path, database: Path) -> None:
    """Replace a database by a backup; the service must not run.

    Raises:
        DatabaseFailed: it could not be written.
    """
    content = backup.read_bytes()

    def replace() -> str:
        part = database.with_name(".restored.db")
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        part.rename(database)
        sync(database.parent)
        return "put back"

    _as_service(replace)


def schema(database: Path) -> str | None:
    """The revision of the tables in a copy, None if there are none."""
    try:
        # immutable: SQLite would lay its -wal and -shm files beside the backup otherwise.
        return _schema(database, "mode=ro&immutable=1")
    except sqlite3.Error:
        return None


def schema_in_use(database: Path) -> str | None:
    """The same of the service's own database, which it may have open; None too if there is no such file.

    Raises:
        DatabaseFailed: it cannot be read.
    """
    found = _as_service(lambda: _schema(database, "mode=rw") if database.is_file() else None)
    return found or None


def back_up(database: Path, directory: Path, name: str) -> Path | None:
    """Copy the database into root's own ``directory``; returns the copy, None where there is no database.

    Raises:
        DatabaseFailed: see :func:`copy`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = directory / name
    return target if copy(database, target) else None


def forget_older_than(directory: Path, days: float) -> list[str]:
    """Remove backups older than ``days``, but never the newest; returns their names."""
    copies = sorted(directory.glob("*.db"), key=lambda path: path.stat().st_mtime)
    old = [path for path in copies[:-1] if time.time() - path.stat().st_mtime > days * 86_400]
    for path in old:
        path.unlink()
    return [path.name for path in old]


def _private(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return path


def _schema(database: Path, how: str) -> str:
    with closing(sqlite3.connect(f"file:{database}?{how}", uri=True, timeout=30)) as connection:
        rows = connection.execute("select version_num from alembic_version").fetchall()
    return ",".join(sorted(row[0] for row in rows))


def _copy(database: Path, target: Path) -> str | None:
    if not database.is_file():
        return None
    with (
        closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=30)) as source,
        closing(sqlite3.connect(target)) as copied,
    ):
        source.backup(copied)
    return "copied"


def _as_service(work: Callable[[], str | None]) -> str | None:
    """Do ``work`` in a child that is the service's user for good; what it returns comes back."""
    account = pwd.getpwnam(USER)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status, said = 70, ""
        try:
            os.close(reading)
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os.umask(0o077)
            done = work()
            status, said = (69, "") if done is None else (0, done)
        except (OSError, sqlite3.Error) as error:
            said = f"{error}"
        finally:
            os.write(writing, said.encode()[:1000])
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as channel:
        reason = channel.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 69):
        raise DatabaseFailed(reason or f"copying the database ended with status {code}")
    return reason if code == 0 else None
