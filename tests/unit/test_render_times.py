from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.render.times import milliseconds, rounded, srt_timestamp, vtt_timestamp


@pytest.mark.parametrize(
    ("seconds", "stamp"),
    [
        (0.0, "00:00:00,000"),
        (0.0004, "00:00:00,000"),
        (0.0005, "00:00:00,001"),
        (0.9994, "00:00:00,999"),
        (0.9995, "00:00:01,000"),
        (1.0005, "00:00:01,001"),  # 1.00049999… in binary
        (2.6755, "00:00:02,676"),
        (59.9995, "00:01:00,000"),
        (3599.9996, "01:00:00,000"),
        (359999.9995, "100:00:00,000"),
        (3600 * 1234 + 5.25, "1234:00:05,250"),
        (-0.0, "00:00:00,000"),
        (-3.0, "00:00:00,000"),
        (float("nan"), "00:00:00,000"),
        (float("inf"), "00:00:00,000"),
        (float("-inf"), "00:00:00,000"),
        (5e-324, "00:00:00,000"),
        (7, "00:00:07,000"),
    ],
)
def test_time_stamps_round_half_up_with_carry(seconds: float, stamp: str) -> None:
    assert srt_timestamp(milliseconds(seconds)) == stamp
    assert vtt_timestamp(milliseconds(seconds)) == stamp.replace(",", ".")


def test_negative_milliseconds_are_zero() -> None:
    assert srt_timestamp(-1) == "00:00:00,000"


def test_numpy_scalars_are_taken_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert milliseconds(numpy.float64(1.0005)) == 1001
    assert milliseconds(numpy.float32(0.5)) == 500


@given(st.floats(min_value=0, max_value=1e9))
def test_rounding_is_off_by_half_a_millisecond_at_most(seconds: float) -> None:
    assert abs(milliseconds(seconds) - Decimal(repr(seconds)) * 1000) <= Decimal("0.5")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_is_a_time(seconds: float) -> None:
    assert milliseconds(seconds) >= 0
    assert rounded(seconds) >= 0.0


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_order_survives_rounding(first: int, second: int) -> None:
    low, high = sorted((first / 7, second / 7))
    assert milliseconds(low) <= milliseconds(high)


@given(st.integers(0, 10**12))
def test_a_stamp_reads_back(total: int) -> None:
    hours, minutes, rest = vtt_timestamp(total).split(":")
    seconds, thousandths = rest.split(".")
    assert (len(minutes), len(seconds), len(thousandths)) == (2, 2, 3)
    assert int(minutes) < 60
    assert int(seconds) < 60
    assert ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(thousandths) == total
