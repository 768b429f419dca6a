"""A session that waits to be interrupted, run by test_lab.py; its name keeps it from being collected."""

from __future__ import annotations

import signal

from lab.conftest import MakeContainer
from lab.lab import Lab


def test_until_a_signal_comes(lab: Lab, make_container: MakeContainer) -> None:
    # What a shell starts in its background ignores SIGINT, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    make_container("c1")
    print(f"\nup {lab.id}", flush=True)  # noqa: T201 - who interrupts waits for this line
    signal.pause()
