"""What a host says about itself, read from the output of ordinary commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

SECTION: Final = "== "
"""Begins the line before each part of the output that ``parse_machine`` reads."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A host's fixed facts; what a host did not say is None, or empty."""

    system: Mapping[str, str] = field(default_factory=dict)
    """``/etc/os-release``."""

    architecture: str | None = None
    """Debian's name of it: amd64, arm64, …"""

    booted_with_systemd: bool = False
    systemd: int | None = None
    """systemd's version, such as 252."""

    free_gb: Mapping[str, float] = field(default_factory=dict)
    """Path → free space of its file system, in GB (10⁹ bytes)."""

    memory_gb: float | None = None
    clock: float | None = None
    """Seconds since 1970."""

    cpu_flags: frozenset[str] = frozenset()
    deployed: bool = False
    """There is a release of the service already."""

    switches: bool = False
    """There is what switches releases: systemd may hold the socket of a release that serves, or of one on trial whose deploy was cut off."""


@dataclass(frozen=True, slots=True)
class Access:
    """Whom the deploy connects as, and what sudo says when it is asked for nothing; None if it does nothing."""

    uid: int
    user: str
    sudo: str | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that has a listening TCP socket; the unit is systemd's, such as nginx.service."""

    port: int
    process: str
    unit: str


def parse_machine(lines: Iterable[str]) -> Machine:
    """Read the sections that ``facts.Machine`` prints; what a section lacks is left at its default."""
    sections: dict[str, list[str]] = {}
    inside: list[str] = []
    for line in lines:
        if line.startswith(SECTION):
            inside = sections.setdefault(line.removeprefix(SECTION).strip(), [])
        elif line.strip():
            inside.append(line.strip())

    def first(section: str, pattern: str) -> str | None:
        found = re.search(pattern, "\n".join(sections.get(section, ())), re.MULTILINE)
        return found[1] if found else None

    systemd, memory, clock = (
        first("systemd", r"^systemd (\d+)"),
        first("memory", r"^MemTotal:\s+(\d+) kB"),
        first("clock", r"^(\d+)$"),
    )
    return Machine(
        system=_os_release(sections.get("system", ())),
        architecture=first("architecture", r"^(\S+)$"),
        booted_with_systemd="booted" in sections.get("systemd", ()),
        systemd=int(systemd) if systemd else None,
        free_gb=_free(sections.get("disk", ())),
        memory_gb=int(memory) * 1024 / 1e9 if memory else None,
        clock=float(clock) if clock else None,
        cpu_flags=frozenset((first("cpu", r"^flags\s*:(.*)$") or "").split()),
        deployed="yes" in sections.get("deployed", ()),
        switches="yes" in sections.get("switches", ()),
    )


def parse_access(lines: Sequence[str]) -> Access | None:
    """Read ``id -u``, ``id -un`` and what ``sudo`` printed after them; None if these are not such lines."""
    if len(lines) < 2 or not lines[0].isdecimal():
        return None
    said = " ".join(" ".join(lines[2:]).split())
    return Access(int(lines[0]), lines[1], said or None)


def parse_listeners(lines: Iterable[str]) -> list[Listener]:
    """Read ``ss -Hltnp``, and after it, for each process, ``pid PID`` and its ``/proc/PID/cgroup``; each process once per port."""
    sockets: list[tuple[int, str, str]] = []
    units: dict[str, str] = {}
    pid = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["LISTEN"] and len(words) >= 5:
            owners = re.findall(r'\("([^"]*)",pid=(\d+)', line) or [("a process", "")]
            sockets += [(int(words[3].rpartition(":")[2]), process, owner) for process, owner in owners]
        elif words[:1] == ["pid"] and len(words) == 2:
            pid = words[1]
        elif found := re.findall(r"/([^/]+\.(?:service|scope))(?=/|$)", line):  # 0::/system.slice/nginx.service
            units[pid] = found[-1]
    return list(dict.fromkeys(Listener(port, process, units.get(owner, "")) for port, process, owner in sockets))


def _os_release(lines: Iterable[str]) -> dict[str, str]:
    """os-release(5), without the shell's escapes, which no value that is read here has."""
    return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines) if value}


def _free(lines: Iterable[str]) -> dict[str, float]:
    """Lines of ``df -Pk`` with the path that was asked for before them."""
    columns = (line.split() for line in lines)
    return {words[0]: int(words[4]) * 1024 / 1e9 for words in columns if len(words) > 4 and words[4].isdecimal()}
