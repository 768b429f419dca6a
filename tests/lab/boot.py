"""Boots a container, and again whenever it asks for a reboot; SIGTERM halts it. One process per container, started by container.py.

``python -m lab.boot CGROUP… -- NSPAWN-OPTIONS``: ends with systemd-nspawn's status. SIGUSR1 says that this boot is the last one. If the
process that started it dies, it halts the container: no container outlives its lab.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab import cgroup

REBOOT: Final = 133
"""Status with which systemd-nspawn says that the container wants to be started again (systemd-nspawn(1), EXIT STATUS)."""

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_WATCHED: Final = frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD})


def main(arguments: Sequence[str]) -> int:
    """Boot until it halts."""
    parent = os.getppid()
    groups = [Path(name) for name in arguments[: arguments.index("--")]]
    options = arguments[arguments.index("--") + 1 :]
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    halting = os.getppid() != parent  # it died before the kernel knew that we want to be told
    status = REBOOT
    while status == REBOOT and not halting:
        nspawn = _start(groups, options)
        while not (ended := os.waitpid(nspawn, os.WNOHANG))[0]:
            received = signal.sigwait(_WATCHED)
            halting = halting or received != signal.SIGCHLD
            if received == signal.SIGTERM:
                os.kill(nspawn, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(ended[1])
    return status


def _start(groups: Sequence[Path], options: Sequence[str]) -> int:
    """One boot: in control groups of its own, in a time namespace whose uptime begins now; returns systemd-nspawn's process id."""
    for group in groups:
        cgroup.remove(group)  # what the boot before left there
        cgroup.create(group)
    uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    monotonic = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    clocks = ("--time", "--boottime", f"-{uptime}", "--monotonic", f"-{monotonic}")
    if pid := os.fork():
        return pid
    for group in groups:
        (group / "cgroup.procs").write_text("0", encoding="ascii")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    # A failure ends the fork with a traceback on the console.
    return os.execvp("unshare", ("unshare", *clocks, "systemd-nspawn", *options))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
