"""Waiting for what happens elsewhere, where nothing tells us that it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, within: float = 30.0) -> T:
    """Ask until ``condition`` returns something true, and return that.

    Args:
        condition: what is asked, every twentieth of a second.
        what: what is waited for, for the message.
        within: seconds.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {within:g} s in vain for {what}"
        time.sleep(0.05)
    return result
