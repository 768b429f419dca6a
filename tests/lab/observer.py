"""What any user of a machine can see while something goes on there: files that everybody may read, and the process list.

``python3 -I observer.py [--except FOLDER]… FOLDER…``, started as a user without rights by ``exposure.py``, on hosts too: nothing but the standard
library of Python 3.10. Prints ``watching``, watches the folders and all below them until its standard input ends, then prints a JSON object:
``commands`` and ``environments`` of processes, as far as they can be read, and ``files``, each content in base64 with a path where it was.

inotify(7) tells of every file as soon as it can be opened, and of every program that is started (its file is opened), so that a look at the process
list follows at once; there is one every two milliseconds anyway.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import hashlib
import json
import os
import select
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

# sys/inotify.h
_MODIFY, _ATTRIB, _CLOSE_WRITE, _OPEN, _MOVED_TO, _CREATE = 0x2, 0x4, 0x8, 0x20, 0x80, 0x100
_OVERFLOW, _IGNORED, _ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x4000, 0x8000, 0x1000000, 0x2000000, 0x40000000
_HEADER: Final = struct.Struct("iIII")

_WRITTEN: Final = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_TO | _CREATE | _ONLYDIR | _DONT_FOLLOW
_PROGRAMS: Final = ("/usr/bin", "/usr/sbin", "/usr/lib/openssh")
_BEAT_MS: Final = 2
_SPIN_SECONDS: Final = 0.004
_YOUNG_SECONDS: Final = 1.0
_OTHERS: Final = 64
_MOST_BYTES: Final = 1 << 20  # of a file: what is larger is no key

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Observer:
    """Sees what its user may see."""

    def __init__(self, excepted: set[str]) -> None:
        self.commands: set[bytes] = set()
        self.environments: set[bytes] = set()
        self.files: dict[str, tuple[str, bytes]] = {}
        self._excepted = excepted
        self._own = os.getpid()
        self._looks = 0
        self._born = dict.fromkeys(_processes(), -_YOUNG_SECONDS)
        self._folders: dict[int, str] = {}
        self._inotify = _checked(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def watch_programs(self) -> None:
        """Wake up whenever a program is started."""
        for folder in _PROGRAMS:
            self._add(folder, _OPEN | _ONLYDIR)

    def watch(self, folder: str, *, new: bool = False) -> None:
        """Watch a folder and all below it; take what is in it already if it is new."""
        if folder in self._excepted or not self._add(folder, _WRITTEN):
            return
        with suppress(OSError):  # gone, or not to be listed
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    self.watch(entry.path, new=new)
                elif new:
                    self._take(entry.path)

    def until_the_end_of(self, stdin: int) -> None:
        """Look until nothing more can come from ``stdin``."""
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        poll.register(stdin, select.POLLIN | select.POLLHUP)
        while stdin not in (ready := dict(poll.poll(_BEAT_MS))):
            self._look()
            # The program is opened before it is in the process list.
            until = time.monotonic() + _SPIN_SECONDS if self._inotify in ready else 0.0
            while time.monotonic() < until:
                self._look_at_processes()
        self._look()

    def _look(self) -> None:
        self._look_at_processes()
        for folder, mask, name in self._events():
            path = os.path.join(folder, name)  # noqa: PTH118  (thousands of them)
            if mask & _OVERFLOW:
                raise OverflowError("more happens than can be watched")
            if mask & _OPEN or not name:
                continue
            if mask & _ISDIR:
                self.watch(path, new=True)
            else:
                self._take(path)
            self._look_at_processes()

    def _look_at_processes(self) -> None:
        """Look at the young ones, and at one in so many of the others: a program that is started is in a young process, as a rule."""
        self._looks += 1
        now = time.monotonic()
        self._born = {pid: self._born.get(pid, now) for pid in _processes() if pid != self._own}
        for pid, born in self._born.items():
            if now - born < _YOUNG_SECONDS or (pid + self._looks) % _OTHERS == 0:
                with suppress(OSError):  # it has ended
                    self.commands.add(_read(f"/proc/{pid}/cmdline"))
                    self.environments.add(_read(f"/proc/{pid}/environ"))

    def _events(self) -> Iterator[tuple[str, int, str]]:
        try:
            events = os.read(self._inotify, 1 << 16)
        except BlockingIOError:
            return
        place = 0
        while place < len(events):
            watch, mask, _, length = _HEADER.unpack_from(events, place)
            place += _HEADER.size
            name = os.fsdecode(events[place : place + length].rstrip(b"\0"))
            place += length
            if mask & _IGNORED:
                self._folders.pop(watch, None)
            else:
                yield self._folders.get(watch, ""), mask, name

    def _add(self, folder: str, mask: int) -> bool:
        watch = _LIBC.inotify_add_watch(self._inotify, os.fsencode(folder), mask)
        if watch < 0:
            if ctypes.get_errno() == 28:  # ENOSPC
                raise OSError("no more watches: raise fs.inotify.max_user_watches")
            return False  # it cannot be read, or is gone
        self._folders[watch] = folder
        return True

    def _take(self, path: str) -> None:
        with suppress(OSError):  # it cannot be read, or is gone
            content = _read(path)
            self.files.setdefault(hashlib.sha256(content).hexdigest(), (path, content))


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208  (hundreds of times a second)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        content = b""
        while len(content) < _MOST_BYTES and (piece := os.read(descriptor, _MOST_BYTES)):
            content += piece
        return content
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def main() -> None:
    """Watch; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--except", dest="excepted", action="append", default=[])
    parser.add_argument("folders", nargs="+")
    arguments = parser.parse_args()
    observer = Observer(set(arguments.excepted))
    observer.watch_programs()
    for folder in arguments.folders:
        observer.watch(folder)
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    observer.until_the_end_of(sys.stdin.fileno())
    json.dump(
        {
            "commands": [command.replace(b"\0", b" ").decode(errors="replace") for command in observer.commands],
            "environments": [text.replace(b"\0", b"\n").decode(errors="replace") for text in observer.environments],
            "files": [[path, base64.b64encode(content).decode()] for path, content in observer.files.values()],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
