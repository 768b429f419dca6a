from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.engine.context import TEMPERATURES, best_of, is_plausible, is_silence
from metalscribe.engine.messages import RowDone

GOOD = RowDone(1, " Hello.", [1], "en", 1.0, -0.3, 0.01, 1.1, [])


def result(**changes: float) -> RowDone:
    return msgspec.structs.replace(GOOD, **changes)


RESULTS = st.builds(
    result,
    avg_logprob=st.floats(-3, 0),
    no_speech_prob=st.floats(0, 1),
    compression_ratio=st.floats(0, 10),
)


@pytest.mark.parametrize(
    ("changes", "plausible", "silence"),
    [
        ({}, True, False),
        ({"avg_logprob": -1.0, "compression_ratio": 2.4}, True, False),
        ({"avg_logprob": -1.01}, False, False),
        ({"compression_ratio": 2.41}, False, False),
        ({"avg_logprob": -1.5, "no_speech_prob": 0.61}, True, True),
        ({"avg_logprob": -1.5, "no_speech_prob": 0.6}, False, False),
        ({"no_speech_prob": 0.99}, True, False),  # sure of its words: somebody speaks
        ({"avg_logprob": -1.5, "no_speech_prob": 0.9, "compression_ratio": 5.0}, True, True),
        ({"compression_ratio": 5.0, "no_speech_prob": 0.9}, False, False),
    ],
)
def test_the_gate(changes: dict[str, float], plausible: bool, silence: bool) -> None:
    assert is_plausible(result(**changes)) is plausible
    assert is_silence(result(**changes)) is silence


@given(RESULTS)
def test_silence_needs_no_second_try(one: RowDone) -> None:
    assert is_plausible(one) or not is_silence(one)


@given(st.lists(RESULTS, min_size=1, max_size=6))
def test_the_best_is_one_of_them_and_loops_only_if_all_do(results: list[RowDone]) -> None:
    best = best_of(results)
    assert best in results
    if any(one.compression_ratio <= 2.4 for one in results):
        assert best.compression_ratio <= 2.4
    rivals = [one for one in results if (one.compression_ratio <= 2.4) == (best.compression_ratio <= 2.4)]
    assert best.avg_logprob == max(one.avg_logprob for one in rivals)


def test_the_ladder_begins_with_search_and_only_climbs() -> None:
    assert TEMPERATURES[0] == 0.0
    assert list(TEMPERATURES) == sorted(set(TEMPERATURES))
    assert TEMPERATURES[-1] == 1.0
