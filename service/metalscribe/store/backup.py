"""Backups of everything that must survive: the SQLite database and the recordings of the jobs in it, in one tar file.

Taken while the service runs. A recording goes away when its job has ended, so what is there is pinned by second names first;
then the database is copied, and the pinned recordings of the jobs that wait or run in the copy go into the file with it.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from metalscribe.errors import Conflict, MetalscribeError
from metalscribe.store.durable import sync
from metalscribe.store.ownership import create_directory, hand_over, owner_for
from metalscribe.store.spool import closed, spool

DATABASE: Final = "metalscribe.db"
RECORDINGS: Final = "recordings"

_ATTEMPTS: Final = 10
_RECORDING: Final = re.compile(r"[0-9A-Za-z-]+")
_OPEN_JOBS: Final = "SELECT id FROM jobs WHERE status IN ('queued', 'running')"


class BackupFailed(MetalscribeError):
    """A backup cannot be made, or is none."""

    code = "backup_failed"
    title = "Backup failed"


def back_up(database: Path, jobs: Path, target: Path | BinaryIO) -> int:
    """Write a backup; returns how many recordings are in it.

    Args:
        database: the SQLite file, in use or not.
        jobs: the jobs' directory.
        target: the tar file to make, of mode 0600; what is there is replaced when the new one is whole. Or where to write it to.

    Raises:
        BackupFailed: there is no database, it cannot be read, or the file cannot be written.
    """
    if not database.is_file():
        raise BackupFailed(f"there is no database at {database}; is METALSCRIBE_STATE_DIR right?")
    try:
        with spool(scratches(jobs)) as scratch:
            copied, kept = _consistent(database, jobs / RECORDINGS, scratch)
            if isinstance(target, Path):
                _write_file(target, copied, kept)
            else:
                _write(target, copied, kept)
    except OSError as error:
        raise BackupFailed(f"the backup cannot be made: {error.strerror}: {error.filename}{_hint(error)}") from error
    return len(kept)


def restore(backup: Path | BinaryIO, database: Path, jobs: Path) -> int:
    """Put a backup's database and recordings in place of those that are there; returns how many recordings it had.

    Raises:
        Conflict: a service runs on them.
        BackupFailed: it is not a backup, or cannot be written in its place; then do it again.
    """
    try:
        return _restore(backup, database, jobs)
    except OSError as error:
        raise BackupFailed(
            f"the backup cannot be put back: {error.strerror}: {error.filename}{_hint(error)}"
        ) from error


def _restore(backup: Path | BinaryIO, database: Path, jobs: Path) -> int:
    create_directory(database.parent)
    with closed(incoming(jobs)) as nobody, spool(scratches(jobs)) as scratch:
        if not nobody:
            raise Conflict("the service runs; stop it first (systemctl stop metalscribe)")
        name = str(backup) if isinstance(backup, Path) else "what was read"
        restored = scratch / RECORDINGS
        restored.mkdir(mode=0o700)
        try:
            with _opened(backup) as archive:
                _unpack(archive, scratch)
        except tarfile.TarError as error:
            raise BackupFailed(f"{name} is not a backup of metalscribe: {error}") from error
        _check(scratch / DATABASE, name)
        count = len(list(restored.iterdir()))
        hand_over(restored, owner_for(jobs / RECORDINGS))
        shutil.rmtree(jobs / RECORDINGS, ignore_errors=True)
        restored.rename(jobs / RECORDINGS)
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        part = database.with_name(f".{database.name}.part")
        shutil.copyfile(scratch / DATABASE, part)
        part.chmod(0o600)
        hand_over(part, owner_for(database))
        sync(part)
        part.rename(database)
        sync(database.parent)
    return count


def incoming(jobs: Path) -> Path:
    """Where the processes that share a directory of jobs receive recordings; a service that runs is known by it."""
    return jobs / "incoming"


def scratches(jobs: Path) -> Path:
    """Where backups are put together; what a killed one left is swept with the next one, and by the service."""
    return jobs / "backups"


def _write_file(target: Path, copied: Path, kept: list[Path]) -> None:
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _write(file, copied, kept)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _write(file: BinaryIO, copied: Path, kept: list[Path]) -> None:
    with tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add(copied, DATABASE)
        for recording in kept:
            archive.add(recording, f"{RECORDINGS}/{recording.name}")


def _opened(backup: Path | BinaryIO) -> tarfile.TarFile:
    return tarfile.open(backup) if isinstance(backup, Path) else tarfile.open(fileobj=backup, mode="r|")


def _unpack(archive: tarfile.TarFile, scratch: Path) -> None:
    """What :func:`_write` has packed, and nothing else. By hand: Python before 3.11.4 has no filters, and no name here is trusted."""
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        expected = folder == RECORDINGS and _RECORDING.fullmatch(name) if folder else name == DATABASE
        content = archive.extractfile(member) if member.isfile() and expected else None
        if content is None:
            raise tarfile.ExtractError(f"it has {member.name!r}")
        with (scratch / member.name).open("xb") as file:
            shutil.copyfileobj(content, file)


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


def _check(copied: Path, backup: str) -> None:
    try:
        with closing(sqlite3.connect(f"file:{copied}?mode=ro&immutable=1", uri=True)) as connection:
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (sound,) = connection.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        raise BackupFailed(f"{backup} holds no database of metalscribe: {error}") from error
    if sound != "ok":
        raise BackupFailed(f"the database in {backup} is damaged: {sound}")


def _hint(error: OSError) -> str:
    return "; run this as the service's user, or as root" if isinstance(error, PermissionError) else ""
