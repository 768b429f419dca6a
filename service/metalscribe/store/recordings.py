"""The recordings of jobs that have not ended: one file each, in place and on the disk before its job is accepted.

A recording arrives in the spool of the process that receives it (:mod:`metalscribe.store.spool`) and gets a second name here
before its job is written down. So a file without a job is either on its way, and still has its first name, or left over.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from metalscribe.errors import StorageFull
from metalscribe.store.durable import sync

_FOLDER: Final = "recordings"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def recording_of(jobs: Path, job_id: str) -> Path:
    """Where a job's recording is, below the directory of jobs."""
    return jobs / _FOLDER / job_id


class Recordings:
    """The recordings, named by their jobs' ids; all processes that share the database share them.

    Args:
        jobs: the directory of jobs, which has the spools too; made with mode 0700 where it is missing.
        reserve: bytes that the disk shall keep free.
    """

    def __init__(self, jobs: Path, *, reserve: int = 0) -> None:
        self._jobs = jobs
        self._directory = jobs / _FOLDER
        self._reserve = reserve
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, job_id: str) -> Path:
        """Where a job's recording is."""
        return recording_of(self._jobs, job_id)

    def check_room(self, size: int) -> None:
        """Say no before ``size`` bytes are received.

        Raises:
            StorageFull: the disk would have less free than it shall keep.
        """
        free = shutil.disk_usage(self._directory).free
        if free - size < self._reserve:
            raise StorageFull(
                f"the disk that keeps the jobs' recordings has {free / 2**20:.0f} MiB free; {self._reserve / 2**20:g} MiB stay free"
            )

    def keep(self, job_id: str, upload: Path) -> None:
        """Give a whole upload its place; when this returns, a power cut does not take it away.

        Raises:
            StorageFull: the disk is full.
        """
        try:
            sync(upload)
            os.link(upload, self.path(job_id))
            sync(self._directory)
        except OSError as error:
            self.path(job_id).unlink(missing_ok=True)
            if error.errno in _FULL:
                raise StorageFull("The disk is full. Free some space in the service's state directory.") from error
            raise

    def remove(self, job_id: str) -> None:
        """Remove a recording, if it is there."""
        self.path(job_id).unlink(missing_ok=True)

    def candidates(self) -> set[str]:
        """The files that nobody else has; those among them without a job are left over. Ask for the jobs afterwards."""
        found = set()
        for entry in os.scandir(self._directory):
            try:
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_nlink == 1:
                    found.add(entry.name)
            except FileNotFoundError:
                continue  # its job has ended meanwhile
        return found

    def sweep(self, left_over: Collection[str]) -> None:
        """Remove these files."""
        for name in left_over:
            self.remove(name)
