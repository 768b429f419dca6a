"""The benchmark's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Run, medians, percentile, percentiles, ratio
from bench.targets import Target, targets
from bench.workloads.mix import promptness
from bench.workloads.poisson import arrivals

finite = st.floats(min_value=0, max_value=1e6)


@given(st.lists(finite, min_size=1, max_size=40), st.floats(min_value=0, max_value=100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-9)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    assert percentiles("latency", []) == {}


def test_percentiles_are_named() -> None:
    assert percentiles("queue", [1.0, 2.0, 3.0]) == {
        "queue_p50_seconds": 2.0,
        "queue_p95_seconds": pytest.approx(2.9),
        "queue_p99_seconds": pytest.approx(2.98),
    }


def test_medians_over_rounds() -> None:
    runs = [Run("long", "http", number, {"throughput": value}) for number, value in enumerate((5.0, 1.0, 3.0))]
    runs += [Run("long", "engine", 0, {"throughput": 99.0}), Run("mix", "http", 0, {"throughput": 99.0})]
    assert medians(runs, "long", "http") == {"throughput": 3.0}
    assert medians(runs, "long", "batched") == {}


def test_a_ratio_is_taken_within_its_round() -> None:
    """Twice as fast in every round, on a machine that slows down: medians of different rounds would say otherwise."""
    runs = [
        Run("long", way, number, {"throughput": factor * speed})
        for number, speed in enumerate((100.0, 50.0, 10.0))
        for way, factor in (("sequential", 1.0), ("http", 2.0))
    ]
    assert ratio(runs, "long", "throughput", "http", "sequential") == 2.0
    # The last round of the other way is missing: it counts for nothing.
    assert ratio(runs[:-1], "long", "throughput", "http", "sequential") == 2.0
    assert ratio(runs, "long", "throughput", "http", "batched") is None
    assert ratio(runs, "mix", "throughput", "http", "sequential") is None


def test_promptness() -> None:
    assert promptness(2.0, idle=0.25, chunk=0.5) == {"allowed_seconds": 1.0, "allowed_ratio": 2.0}


def test_arrivals_keep_to_rate_time_and_seed() -> None:
    moments = list(arrivals(20.0, 500.0, seed=50))
    assert moments == list(arrivals(20.0, 500.0, seed=50)) != list(arrivals(20.0, 500.0, seed=80))
    assert moments == sorted(moments)
    assert moments[-1] < 500
    assert len(moments) == pytest.approx(10_000, rel=0.05)


def test_targets_are_judged_on_their_side() -> None:
    assert Target("speed", 3.5, 3.5, at_least=True).met
    assert not Target("speed", 3.4, 3.5, at_least=True).met
    assert Target("errors", 0.3, 0.3, at_least=False).met
    assert not Target("errors", 0.4, 0.3, at_least=False).met


def test_targets_of_what_was_measured() -> None:
    runs = [
        Run("clients-8", "sequential", 0, {"throughput": 10.0, "wer_percent": 13.0}),
        Run("clients-8", "engine", 0, {"throughput": 50.0, "wer_percent": 13.1}),
        Run("clients-8", "http", 0, {"throughput": 40.0, "wer_percent": 13.5}),
    ]
    found = {target.what: (target.measured, target.met) for target in targets("demo", runs)}
    assert found == {
        "short clips, 8 clients: HTTP ÷ sequential": (4.0, True),
        "short clips, 8 clients: WER over HTTP − sequential, points": (0.5, False),
        "saturation, 8 clients: HTTP ÷ engine": (0.8, False),
    }
    assert targets("demo", []) == []
