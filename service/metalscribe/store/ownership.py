"""Who owns what is made: the owner of the directory that it is made in, so that root may run a command before or beside the service."""

from __future__ import annotations

import os
from pathlib import Path


def create_directory(directory: Path) -> None:
    """Create a directory of mode 0700, with those above it, where it is missing; what exists keeps its mode and its owner.

    Raises:
        OSError: it cannot be made, or something else is there.
    """
    if directory.is_dir():
        return
    create_directory(directory.parent)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir():
            raise
        return  # another process was faster
    owner = owner_for(directory)
    if owner is not None:
        os.chown(directory, *owner, follow_symlinks=False)


def owner_for(path: Path) -> tuple[int, int] | None:
    """User and group that something new at ``path`` should have; None where it is right as it comes, or cannot be changed."""
    if os.geteuid() != 0:
        return None
    parent = path.parent.stat()
    # Not in a directory that everybody may write, such as /tmp: its owner has nothing to do with us.
    return None if parent.st_mode & 0o002 else (parent.st_uid, parent.st_gid)


def hand_over(path: Path, owner: tuple[int, int] | None) -> None:
    """Give a file, or a directory with all in it, to ``owner``."""
    if owner is None:
        return
    os.chown(path, *owner, follow_symlinks=False)
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            hand_over(entry, owner)
