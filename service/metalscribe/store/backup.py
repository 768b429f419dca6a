"""Backups of everything that must survive: the SQLite database and the recordings of the jobs in it, in one tar file.

Taken while the service runs. A recording goes away when its job has ended, so what is there is pinned by second names first;
then the database is copied, and the pinned recordings of the jobs that wait or run in the copy go into the file with it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from metalscribe.errors import ConfigurationError, Conflict, MetalscribeError
from metalscribe.store.spool import alive

DATABASE: Final = "metalscribe.db"
RECORDINGS: Final = "recordings"

_ATTEMPTS: Final = 10
_OPEN_JOBS: Final = "SELECT id FROM jobs WHERE status IN ('queued', 'running')"


class BackupFailed(MetalscribeError):
    """A backup cannot be made, or is none."""

    code = "backup_failed"
    title = "Backup failed"


def back_up(database: Path, jobs: Path, target: Path) -> int:
    """Write a backup; returns how many recordings are in it.

    Args:
        database: the SQLite file, in use or not.
        jobs: the jobs' directory.
        target: the tar file to make, of mode 0600; what is there is replaced when the new one is whole.

    Raises:
        BackupFailed: there is no database, or it cannot be read.
    """
    if not database.is_file():
        raise BackupFailed(f"there is no database at {database}; is METALSCRIBE_STATE_DIR right?")
    with _scratch(jobs) as scratch:
        copied, kept = _consistent(database, jobs / RECORDINGS, scratch)
        part = target.with_name(f".{target.name}.part")
        part.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                with tarfile.open(fileobj=file, mode="w") as archive:
                    archive.add(copied, DATABASE)
                    for recording in kept:
                        archive.add(recording, f"{RECORDINGS}/{recording.name}")
                file.flush()
                os.fsync(file.fileno())
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
    return len(kept)


def restore(backup: Path, database: Path, jobs: Path) -> int:
    """Put a backup's database and recordings in place of those that are there; returns how many recordings it had.

    Raises:
        Conflict: a service runs on them.
        BackupFailed: it is not a backup.
    """
    incoming = jobs / "incoming"
    if incoming.is_dir() and any(alive(incoming, entry.name) for entry in incoming.iterdir() if entry.is_dir()):
        raise Conflict("the service runs; stop it first (systemctl stop metalscribe)")
    for directory in (database.parent, jobs):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _scratch(jobs) as scratch:
        try:
            with tarfile.open(backup) as archive:
                archive.extractall(scratch, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise BackupFailed(f"{backup} is not a backup of metalscribe: {error}") from error
        _check(scratch / DATABASE, backup)
        restored = scratch / RECORDINGS
        restored.mkdir(mode=0o700, exist_ok=True)
        count = len(list(restored.iterdir()))
        shutil.rmtree(jobs / RECORDINGS, ignore_errors=True)
        restored.rename(jobs / RECORDINGS)
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        part = database.with_name(f".{database.name}.part")
        shutil.copyfile(scratch / DATABASE, part)
        part.chmod(0o600)
        _sync(part)
        part.rename(database)
        _sync(database.parent)
    return count


def _consistent(database: Path, recordings: Path, scratch: Path) -> tuple[Path, list[Path]]:
    """A copy of the database and, pinned, every recording that it knows of."""
    pinned = scratch / RECORDINGS
    pinned.mkdir()
    for _ in range(_ATTEMPTS):
        _pin(recordings, pinned)
        copied = scratch / DATABASE
        copied.unlink(missing_ok=True)
        try:
            with (
                closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=30)) as source,
                closing(sqlite3.connect(copied)) as copy,
            ):
                source.backup(copy)
                jobs = {row[0] for row in copy.execute(_OPEN_JOBS)}
        except sqlite3.Error as error:
            raise BackupFailed(f"the database cannot be copied: {error}") from error
        _pin(recordings, pinned)  # those of jobs that were accepted meanwhile
        kept = [pinned / job for job in sorted(jobs) if (pinned / job).is_file()]
        # One that is missing was accepted and ended between two breaths, or is lost: the next copy tells.
        if len(kept) == len(jobs) or not any(
            (recordings / job).exists() for job in jobs - {path.name for path in kept}
        ):
            return copied, kept
    raise BackupFailed("the jobs change faster than they can be copied; try again")


def _pin(recordings: Path, pinned: Path) -> None:
    for entry in os.scandir(recordings) if recordings.is_dir() else ():
        try:
            os.link(entry.path, pinned / entry.name)
        except (FileExistsError, FileNotFoundError):
            continue  # pinned already, or gone


def _check(copied: Path, backup: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{copied}?mode=ro&immutable=1", uri=True)) as connection:
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (sound,) = connection.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        raise BackupFailed(f"{backup} holds no database of metalscribe: {error}") from error
    if sound != "ok":
        raise BackupFailed(f"the database in {backup} is damaged: {sound}")


@contextmanager
def _scratch(jobs: Path) -> Iterator[Path]:
    """A directory beside the recordings, so that they can be linked and moved."""
    try:
        jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".backup-", dir=jobs)
    except PermissionError as error:
        raise ConfigurationError(f"{jobs}: {error.strerror}; run this as the service's user, or as root") from error
    with scratch as path:
        yield Path(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
