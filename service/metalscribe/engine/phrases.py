"""Whisper's time-stamp tokens to phrases (Radford et al. 2022, section 2.3)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

from metalscribe.engine.messages import AlignedWord, Phrase

SECONDS_PER_STAMP: Final = 0.02

Phrases = list[tuple[float, float, list[int]]]


def split_by_stamps(tokens: Sequence[int], first_stamp: int, length: float) -> tuple[Phrases, float]:
    """Cut a window's tokens at its pairs of time stamps.

    Args:
        tokens: as decoded, stamps included; ids from ``first_stamp`` on are stamps of 20 ms each.
        first_stamp: the id of ``<|0.00|>``.
        length: of the window, in seconds.

    Returns:
        phrases ``(start, end, tokens)`` in seconds from the window's start, and where the next window should begin: after
        the last complete phrase when the model was in the middle of another, else after the whole window.
    """
    stamps = [index for index, token in enumerate(tokens) if token >= first_stamp]
    # A stamp directly after a stamp closes one phrase and opens the next.
    cuts = [second for first, second in pairwise(stamps) if second == first + 1]
    ends_between = len(tokens) >= 2 and tokens[-1] >= first_stamp > tokens[-2]
    if not cuts:
        text = [token for token in tokens if token < first_stamp]
        end = length
        if stamps and tokens[stamps[-1]] != first_stamp:
            end = (tokens[stamps[-1]] - first_stamp) * SECONDS_PER_STAMP
        return ([(0.0, min(end, length), text)] if text else []), length
    if ends_between:
        cuts = [*cuts, len(tokens)]
    phrases: Phrases = []
    begin = 0
    for cut in cuts:
        part = tokens[begin:cut]
        start, end = ((token - first_stamp) * SECONDS_PER_STAMP for token in (part[0], part[-1]))
        text = [token for token in part if token < first_stamp]
        if text:
            phrases.append((max(0.0, min(start, length)), max(0.0, min(end, length)), text))
        begin = cut
    if ends_between:
        return phrases, length
    last = (tokens[begin - 1] - first_stamp) * SECONDS_PER_STAMP
    return phrases, min(last, length) if last > 0 else length


def with_stamps(phrases: Phrases, first_stamp: int) -> list[int]:
    """The phrases' tokens as the model wrote them, each between its two time stamps."""
    return [
        token
        for start, end, text in phrases
        for token in (
            first_stamp + round(start / SECONDS_PER_STAMP),
            *text,
            first_stamp + round(end / SECONDS_PER_STAMP),
        )
    ]


def words_of(phrases: Sequence[Phrase], words: Sequence[AlignedWord]) -> list[tuple[int, int]]:
    """Which words ``[first:last]`` make up each phrase; a word that goes on into the next phrase belongs to the first.

    Args:
        phrases: of a row, in order, from its first text token on.
        words: of the same row; those behind the last phrase are nobody's.
    """
    begins = list(accumulate((word.tokens for word in words), initial=0))[:-1]
    ends = accumulate(len(phrase.tokens) for phrase in phrases)
    return list(pairwise([0, *(bisect_left(begins, end) for end in ends)]))
