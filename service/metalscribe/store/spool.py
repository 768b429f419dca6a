"""Where recordings lie while they are worked on: a directory per process, swept when the process is gone."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from metalscribe.store.ownership import create_directory, owner_for

_LOCK: Final = ".lock"


@contextmanager
def spool(parent: Path) -> Iterator[Path]:
    """A directory of mode 0700 below ``parent`` for as long as the block runs.

    What earlier processes left behind is removed first. A process holds a lock (``flock``) on its directory while it lives,
    so that two services may share ``parent`` and a killed one's recordings do not stay.

    Raises:
        OSError: the directory cannot be made.
    """
    create_directory(parent)
    mine = parent / uuid.uuid4().hex
    # One sweeper at a time: a new directory must not be swept before its lock is held.
    with _locked(parent):
        _sweep(parent)
        create_directory(mine)
        lock = _lock(mine, wait=True)
    try:
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)
        os.close(lock)


def alive(parent: Path, name: str) -> bool:
    """Whether the process lives that has the directory ``name`` below ``parent``."""
    try:
        lock = _lock(parent / name, wait=False)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False  # swept
    os.close(lock)
    return False


def sweep(parent: Path) -> int:
    """Remove what dead processes have left below ``parent``; returns how many there were."""
    if not parent.is_dir():
        return 0
    with _locked(parent):
        return _sweep(parent)


@contextmanager
def closed(parent: Path) -> Iterator[bool]:
    """Let no process come to ``parent`` while the block runs; says whether none was there."""
    create_directory(parent)
    with _locked(parent):
        yield not any(alive(parent, entry.name) for entry in parent.iterdir() if entry.is_dir())


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = _lock(directory, wait=True)
    try:
        yield
    finally:
        os.close(lock)


def _sweep(parent: Path) -> int:
    dead = 0
    for entry in parent.iterdir():
        if not entry.is_dir() or entry.is_symlink():
            if entry.name != _LOCK:
                entry.unlink()
            continue
        try:
            lock = _lock(entry, wait=False)
        except BlockingIOError:
            continue  # its process lives
        shutil.rmtree(entry, ignore_errors=True)
        os.close(lock)
        dead += 1
    return dead


def _lock(directory: Path, *, wait: bool) -> int:
    path = directory / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        owner = owner_for(path)
        if owner is not None:
            os.fchown(descriptor, *owner)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
