"""A session of tests that has a lab."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from lab.lab import Lab


@contextmanager
def lab_of(prepare: Path, command: str) -> Iterator[Lab]:
    """The lab. Whatever ends the tests, it is taken down; what SIGKILL leaves behind the next lab removes.

    Args:
        prepare: the script that installs the Debian packages it needs, and with ``--check`` lists those that are missing.
        command: what runs these tests, for who lacks something.
    """
    exit_unless_prepared(prepare, command)
    before = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM, signal.SIGHUP)}
    with Lab() as lab:
        yield lab
    for number, handler in before.items():
        signal.signal(number, handler)


def exit_unless_prepared(prepare: Path, command: str) -> None:
    """End the tests where there can be no lab, and say why; the arguments are those of :func:`lab_of`."""
    if os.geteuid() != 0:
        pytest.exit(f"the lab has networks and hosts of its own, which needs root: run {command} as root", returncode=2)
    missing = subprocess.run([prepare, "--check"], check=False, capture_output=True, text=True)
    if missing.returncode:
        pytest.exit(f"Debian packages are missing ({missing.stdout.strip()}): run {command}", returncode=2)


def _interrupted(number: int, _frame: FrameType | None) -> None:
    pytest.exit(f"interrupted by {signal.Signals(number).name}", returncode=128 + number)
