"""systemd's units, through systemctl."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

_PATIENCE = 60.0


class SystemdFailed(Exception):
    """systemctl did not do what it was asked for; the message is its own."""


def systemctl(*arguments: str, patience: float = _PATIENCE) -> str:
    """Run systemctl and return what it printed.

    Raises:
        SystemdFailed: it failed, or took longer than ``patience`` seconds.
    """
    try:
        done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        raise SystemdFailed(f"systemctl {' '.join(arguments)} took longer than {patience:g} s") from None
    if done.returncode:
        # Without its advice where to look further: that is looked up here.
        reason = " ".join(done.stderr.split()).partition(". See ")[0]
        raise SystemdFailed(reason or f"systemctl {' '.join(arguments)}: status {done.returncode}")
    return done.stdout


def properties(unit: str, names: Sequence[str]) -> dict[str, str]:
    """Properties of a unit, empty where it has none."""
    printed = systemctl("show", "--property", ",".join(names), "--", unit)
    found = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    return {name: found.get(name, "") for name in names}


def is_active(unit: str) -> bool:
    """Whether the unit runs and has said that it is ready."""
    return properties(unit, ["ActiveState"])["ActiveState"] == "active"


def is_enabled(unit: str) -> bool:
    """Whether the unit starts with the machine."""
    return properties(unit, ["UnitFileState"])["UnitFileState"] == "enabled"


def needs_reload(unit: str) -> bool:
    """Whether the unit's file has changed since systemd read it."""
    return properties(unit, ["NeedDaemonReload"])["NeedDaemonReload"] == "yes"


def last_words(unit: str, lines: int = 15) -> str:
    """The end of a unit's log, of its last start only: what an earlier release has said explains nothing."""
    invocation = properties(unit, ["InvocationID"])["InvocationID"]
    # Its own lines, and systemd's about it.
    which = [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"]
    command = ["journalctl", "--lines", str(lines), "--output", "cat", "--no-pager", "--quiet"]
    command += which if invocation else ["--unit", unit]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False).stdout.rstrip()
    except subprocess.TimeoutExpired:
        return "(journalctl does not answer)"
