"""Memory and processor time of a tree of processes, from Linux's /proc."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

_GLANCE_SECONDS: Final = 0.5
_KIB: Final = 1024


@dataclass(slots=True)
class Peak:
    """The most that the tree held at a time, in bytes.

    Attributes:
        resident: RSS summed: what processes share counts for each of them.
        proportional: PSS summed: what they share counts once.
    """

    resident: int = 0
    proportional: int = 0


class Footprint:
    """Watches a tree of processes while the ``with`` block runs.

    Args:
        pid: the tree's root.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = Peak()
        self._cpu_before = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="footprint", daemon=True)
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._cpu_before = cpu_seconds(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.figures = {
            "cpu_seconds": cpu_seconds(self._pid) - self._cpu_before,
            "peak_rss_bytes": float(self._peak.resident),
            "peak_pss_bytes": float(self._peak.proportional),
        }

    def _watch(self) -> None:
        while True:
            rss = pss = 0
            for pid in tree(self._pid):
                one_rss, one_pss = memory(pid)
                rss += one_rss
                pss += one_pss
            self._peak.resident = max(self._peak.resident, rss)
            self._peak.proportional = max(self._peak.proportional, pss)
            if self._over.wait(_GLANCE_SECONDS):
                return


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants that live at this moment."""
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


def memory(pid: int) -> tuple[int, int]:
    """RSS and PSS of a process in bytes; zeros where it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return parse_rollup(text)


def parse_rollup(text: str) -> tuple[int, int]:
    """RSS and PSS in bytes out of ``smaps_rollup``; zeros for a process that has ended but was not waited for."""
    found = {"Rss": 0, "Pss": 0}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * _KIB
    return found["Rss"], found["Pss"]


def cpu_seconds(pid: int) -> float:
    """Processor time of a tree: of those who live, and of the children that they have waited for."""
    total = 0.0
    for one in tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(one).cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def own_cpu_seconds(pid: int) -> float:
    """Processor time of one process, without its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def thread_cpu_seconds(pid: int) -> dict[int, float]:
    """Processor time of each thread of a process that lives at this moment, by thread id."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}
