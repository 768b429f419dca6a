from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalscribe.engine.context import (
    FULL_CONTEXT,
    MAX_TOKENS,
    TEMPERATURES,
    AdaptiveContext,
    Attempt,
    Verdict,
    best_of,
    context_frames,
    ends_twice,
    judge,
    ladder,
    max_tokens,
    sparse,
)
from metalscribe.engine.messages import RowDone
from metalscribe.engine.phantoms import is_phantom

GOOD = RowDone(1, " Hello there.", list(range(40)), "en", 1.0, -0.3, 0.01, 1.1, [])
SHORT, FULL = Attempt(full=False, temperature=0.0), Attempt(full=True, temperature=0.0)


def result(**changes: object) -> RowDone:
    return msgspec.structs.replace(GOOD, **changes)


RESULTS = st.builds(
    result,
    text=st.sampled_from([" Hello there.", " Thank you.", " a b c d e f g h i j k l m n o p"]),
    tokens=st.lists(st.integers(0, 9), max_size=60),
    avg_logprob=st.floats(-3, 0),
    no_speech_prob=st.floats(0, 1),
    compression_ratio=st.floats(0, 10),
    truncated=st.booleans(),
)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.PLAUSIBLE),
        ({"avg_logprob": -1.0, "compression_ratio": 2.4}, Verdict.PLAUSIBLE),
        ({"avg_logprob": -1.01}, Verdict.UNSURE),
        ({"compression_ratio": 2.41}, Verdict.LOOP),
        ({"truncated": True}, Verdict.LOOP),
        ({"avg_logprob": -1.5, "no_speech_prob": 0.61}, Verdict.SILENCE),
        ({"avg_logprob": -1.5, "no_speech_prob": 0.6}, Verdict.UNSURE),
        ({"no_speech_prob": 0.99}, Verdict.PLAUSIBLE),  # sure of its words: somebody speaks
        ({"avg_logprob": -1.5, "no_speech_prob": 0.9, "compression_ratio": 5.0}, Verdict.SILENCE),
        ({"compression_ratio": 5.0, "no_speech_prob": 0.9}, Verdict.LOOP),
        ({"text": " Thank you.", "no_speech_prob": 0.5}, Verdict.PHANTOM),
        ({"text": " Thank you.", "no_speech_prob": 0.1}, Verdict.PLAUSIBLE),  # somebody may well say so
        ({"text": " Thank you, Anna.", "no_speech_prob": 0.5}, Verdict.PLAUSIBLE),
    ],
)
def test_the_gate(changes: dict[str, object], verdict: Verdict) -> None:
    assert judge(result(**changes), FULL, None) is verdict


@pytest.mark.parametrize(
    ("changes", "voiced", "short", "full"),
    [
        ({"compression_ratio": 2.1}, None, Verdict.REPEATED, Verdict.PLAUSIBLE),
        ({"tokens": [1, 2, 3, 4, 5, 2, 3, 4, 5]}, None, Verdict.REPEATED, Verdict.PLAUSIBLE),
        ({"text": " you don't mean that you thought me so silly" * 2}, 2.8, Verdict.HASTY, Verdict.PLAUSIBLE),
        ({}, 14.0, Verdict.PLAUSIBLE, Verdict.PLAUSIBLE),
        ({"text": " Bye."}, 0.2, Verdict.PHANTOM, Verdict.PHANTOM),
    ],
)
def test_a_shortened_context_is_judged_more_strictly(
    changes: dict[str, object], voiced: float | None, short: Verdict, full: Verdict
) -> None:
    assert judge(result(**changes), SHORT, voiced) is short
    assert judge(result(**changes), FULL, voiced) is full


def test_speech_without_words_was_skipped() -> None:
    for attempt in (SHORT, FULL):
        assert judge(GOOD, attempt, 14.0, skipped=True) is Verdict.SKIPPED
    loop = result(compression_ratio=5.0)
    assert judge(loop, FULL, 14.0, skipped=True) is Verdict.LOOP, "nothing is added to nonsense"


@pytest.mark.parametrize(
    ("language", "voiced", "tokens"),
    [("en", 10.0, 36), ("de", 10.0, 45), (None, 10.0, 45), ("en", 3.9, 0), ("en", None, 0)],
)
def test_a_sparse_text_is_looked_at(language: str | None, voiced: float | None, tokens: int) -> None:
    assert sparse(language, voiced) == tokens


@given(RESULTS, st.one_of(st.none(), st.floats(0, 30)))
def test_what_passes_with_a_short_context_passes_with_the_whole_one(one: RowDone, voiced: float | None) -> None:
    assert not judge(one, SHORT, voiced).final or judge(one, FULL, voiced).final


@pytest.mark.parametrize(
    ("tokens", "twice"),
    [
        ([], False),
        ([1, 1], False),
        ([1, 2, 3, 1, 2, 3], False),
        ([1, 2, 3, 4] * 2, True),
        ([9, *[1, 2, 3, 4, 5] * 2], True),
    ],
)
def test_ends_twice(tokens: list[int], twice: bool) -> None:
    assert ends_twice(tokens) is twice


@given(st.lists(RESULTS, min_size=1, max_size=6))
def test_the_best_is_one_of_them_and_loops_only_if_all_do(results: list[RowDone]) -> None:
    def sound(one: RowDone) -> bool:
        return one.compression_ratio <= 2.4 and not one.truncated

    best = best_of(results)
    assert best in results
    assert sound(best) or not any(map(sound, results))
    assert best.avg_logprob == max(one.avg_logprob for one in results if sound(one) == sound(best))


def test_the_ladder_begins_with_search_and_only_climbs() -> None:
    assert TEMPERATURES[0] == 0.0
    assert list(TEMPERATURES) == sorted(set(TEMPERATURES))
    assert TEMPERATURES[-1] == 1.0
    assert [attempt.temperature for attempt in ladder(FULL_CONTEXT)] == list(TEMPERATURES)
    assert all(attempt.full for attempt in ladder(FULL_CONTEXT))
    assert ladder(1000) == (SHORT, *ladder(FULL_CONTEXT))


@given(st.integers(1, 480_000), st.floats(0.5, 30))
def test_a_context_holds_the_row_and_its_margin(samples: int, margin: float) -> None:
    frames = context_frames(samples, AdaptiveContext(margin, longest=20.0))
    assert 160 * frames >= samples
    assert frames <= FULL_CONTEXT
    assert frames == FULL_CONTEXT or frames / 100 >= samples / 16_000 + margin - 0.02
    assert context_frames(samples, None) == FULL_CONTEXT


@given(st.integers(1, 480_000))
def test_tokens_suffice_for_fast_speech(samples: int) -> None:
    assert min(MAX_TOKENS, 10 * samples / 16_000) <= max_tokens(samples, SHORT) <= MAX_TOKENS
    assert max_tokens(samples, FULL) == MAX_TOKENS


@pytest.mark.parametrize(
    ("text", "phantom"),
    [
        (" Thank you.", True),
        (" Thanks for watching!", True),
        (" Thank you. Thank you. Thank you.", True),
        (" Bye-bye.", False),
        (" Don't forget to subscribe!", True),
        (" Sous-titres réalisés par la communauté d'Amara.org", True),
        ("ご視聴ありがとうございました。", True),
        (" Продолжение следует...", True),
        (" ♪♪", True),
        ("", False),
        (" Thank you for the report.", False),
        (" The end of the line.", False),
    ],
)
def test_phantoms(text: str, phantom: bool) -> None:
    assert is_phantom(text) is phantom
