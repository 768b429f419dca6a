from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from metalscribe.engine.holes import SMALLEST, find_holes
from metalscribe.engine.messages import AlignedWord


def words(*times: tuple[float, float]) -> list[AlignedWord]:
    return [AlignedWord(start, end, f" w{number}", 0.9) for number, (start, end) in enumerate(times)]


def spans(aligned: list[AlignedWord], length: float) -> list[tuple[int, int, float, float]]:
    return [(hole.first, hole.last, hole.start, hole.end) for hole in find_holes(aligned, length)]


def test_fluent_speech_has_none() -> None:
    assert spans(words((0.2, 0.6), (0.6, 1.0), (2.2, 2.6), (2.6, 3.3)), 4.5) == []


def test_gaps_are_holes_wherever_they_are() -> None:
    aligned = words((2.0, 2.5), (2.5, 3.0), (6.0, 6.5))
    assert spans(aligned, 9.0) == [(0, 0, 0.0, 2.0), (2, 2, 3.0, 6.0), (3, 3, 6.5, 9.0)]


def test_a_word_that_lasts_for_seconds_stands_in_one() -> None:
    # The sentence after "kind" was skipped, and its time given to the word.
    assert spans(words((0.0, 0.5), (0.5, 5.5)), 5.5) == [(1, 2, 0.5, 5.5)]
    # A sentence at the start was, and the two words after it share its time.
    assert spans(words((0.0, 2.9), (2.9, 5.2), (5.2, 5.4)), 5.4) == [(0, 2, 0.0, 5.2)]


def test_a_long_word_beside_a_gap_adds_to_it() -> None:
    assert spans(words((0.0, 1.2), (2.4, 2.8)), 3.0) == [(1, 1, 1.2, 2.4)]
    assert spans(words((0.0, 0.7), (1.9, 2.8)), 3.0) == []


def test_no_word_at_all_is_one_hole() -> None:
    (hole,) = find_holes([], 7.0)
    assert (hole.start, hole.end, hole.seconds) == (0.0, 7.0, 7.0)
    assert find_holes([], 1.0) == []


@given(st.lists(st.floats(0, 4), max_size=30), st.floats(0, 3))
def test_holes_are_in_order_and_apart(steps: list[float], rest: float) -> None:
    times = [sum(steps[: number + 1]) for number in range(len(steps))]
    aligned = words(*pairwise(times))
    length = (times[-1] if times else 0.0) + rest
    holes = find_holes(aligned, length)
    assert all(hole.seconds >= SMALLEST and 0 <= hole.start <= hole.end <= length for hole in holes)
    assert all(one.last <= other.first and one.end <= other.start for one, other in pairwise(holes))
