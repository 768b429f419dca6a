"""The driver is imitated: its five calls, with the return codes of the real one (0 is success)."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import pytest

from metalscribe.engine.cuda import free_memory, rows_that_fit

GIB = 2**30


class Driver:
    """libcuda of a machine with ``free`` bytes, on which the call named ``failing`` returns an error."""

    def __init__(self, free: int, failing: str = "") -> None:
        self.free = free
        self.failing = failing
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value = self.free
            return 2 if name == self.failing else 0

        return call


def test_asks_the_driver() -> None:
    driver = Driver(20 * GIB)
    assert free_memory(cast("ctypes.CDLL", driver)) == 20 * GIB
    assert driver.called[-1] == "cuMemGetInfo_v2"


@pytest.mark.parametrize("failing", ["cuInit", "cuDevicePrimaryCtxRetain", "cuMemGetInfo_v2"])
def test_a_driver_that_refuses_is_not_asked_on(failing: str) -> None:
    driver = Driver(20 * GIB, failing)
    assert free_memory(cast("ctypes.CDLL", driver)) is None
    assert driver.called[-1] == failing


@pytest.mark.parametrize(
    ("before", "after", "rows"),
    [
        (10 * GIB, 9 * GIB, 8),  # 80 % of 9 GiB, a gibibyte a row, and the one that is in there
        (2 * GIB, GIB // 2, 1),
        (10 * GIB, 10 * GIB, None),  # it took nothing: somebody else gave memory back meanwhile
        (None, 10 * GIB, None),
        (10 * GIB, None, None),
    ],
)
def test_rows_fit_by_what_the_first_one_took(before: int | None, after: int | None, rows: int | None) -> None:
    assert rows_that_fit(before, after) == rows
