"""Control groups of the lab: each container's systemd has a subtree to itself, and a subtree says which processes are left."""

from __future__ import annotations

import re
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from os import close, pidfd_open
from pathlib import Path
from typing import Final

_V1: Final = frozenset({"name=systemd", "pids"})
"""What a systemd needs of the hierarchies of cgroup v1; it manages nothing by the others in a container."""

_KILL_WITHIN: Final = 30.0  # seconds; SIGKILL takes effect when a system call ends


def hierarchies(mountinfo: str) -> list[Path]:
    """Where the control groups are mounted that a container needs its own of: the one of cgroup v2, and of v1 some (proc(5), mountinfo)."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and _V1 & set(options.split(","))):
            found.append(Path(_unescaped(before.split()[4])))
    return found


def mounts_below(folder: Path, mountinfo: str) -> list[Path]:
    """What is mounted in ``folder``, innermost and latest first: the order in which it can be unmounted."""
    points = [Path(_unescaped(line.split()[4])) for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if point.is_relative_to(folder)]


def create(group: Path) -> None:
    """Make a group that has the controllers of the group above it (cgroup v2; in v1 they are hierarchies of their own)."""
    group.mkdir(parents=True, exist_ok=True)
    for above in (group.parent.parent, group.parent):
        controllers = above / "cgroup.controllers"
        if controllers.exists() and (wanted := controllers.read_text(encoding="ascii").split()):
            (above / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted), encoding="ascii")


def processes(group: Path) -> set[int]:
    """The ids of all processes in a group and below it."""
    found: set[int] = set()
    for file in group.rglob("cgroup.procs"):
        with suppress(FileNotFoundError, NotADirectoryError):  # the group went away meanwhile
            found |= {int(pid) for pid in file.read_text(encoding="ascii").split()}
    return found - {0}  # 0: a process of another pid namespace


def remove(group: Path) -> None:
    """Remove a group and all below it; there must be no process in it any more."""
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    if group.is_dir():
        group.rmdir()


def kill(pids: Iterable[int]) -> None:
    """Kill processes and wait until they are gone.

    Raises:
        TimeoutError: one is still there half a minute later.
    """
    handles = []
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = pidfd_open(pid)
            handles.append(handle)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    try:
        for handle in handles:
            ended = select.poll()
            ended.register(handle, select.POLLIN)
            if not ended.poll(_KILL_WITHIN * 1000):
                raise TimeoutError(f"a process of the lab is still there {_KILL_WITHIN:g} s after SIGKILL")
    finally:
        for handle in handles:
            close(handle)


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
