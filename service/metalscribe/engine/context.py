"""How much of its 30-second window the encoder gets to see, and whether what came of it can be believed.

Whisper's encoder takes fewer frames than the 3000 it was trained with, and its work shrinks with them. A row is first tried
with its own length and a margin of silence; a result that looks wrong is tried again with the whole window, then, as in
Whisper (Radford et al. 2022, section 4.5), sampled at rising temperatures. What the short context does to a model is mostly
that it does not notice the end and says its last sentence again: :func:`judge` looks for that first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from metalscribe.engine.messages import RowDone
from metalscribe.engine.phantoms import is_phantom

FULL_CONTEXT: Final = 3000
"""Mel frames of Whisper's window, 10 ms each."""

MAX_TOKENS: Final = 224
"""What Whisper may write for one window: half of its text context."""

MAX_COMPRESSION_RATIO: Final = 2.4
MIN_AVG_LOGPROB: Final = -1.0
NO_SPEECH_PROB: Final = 0.6

# The stricter measures for a shortened context, where a second opinion is cheap and the usual mistake is known.
_SHORT_COMPRESSION_RATIO: Final = 2.0
_FAST_WORDS_PER_SECOND: Final = 4.6
_REPEATED_TOKENS: Final = 4

_LONG_ENOUGH_TO_SKIP: Final = 4.0
_SPARSE: Final = {"en": 3.6}
_SPARSE_ELSEWHERE: Final = 4.5

_PHANTOM_NO_SPEECH_PROB: Final = 0.4
_PHANTOM_VOICED_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rung of the ladder: with the whole window or a shortened one, searching (temperature 0) or sampling."""

    full: bool
    temperature: float


TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Beam search first, then sampling, ever bolder, until the result passes."""


def ladder(context: int, lowest: float = 0.0) -> tuple[Attempt, ...]:
    """What to try in turn with a row whose first context is ``context`` frames, from the temperature ``lowest`` on."""
    temperatures = (lowest, *(temperature for temperature in TEMPERATURES if temperature > lowest))
    short = () if context >= FULL_CONTEXT else (Attempt(full=False, temperature=lowest),)
    return (*short, *(Attempt(full=True, temperature=temperature) for temperature in temperatures))


@dataclass(frozen=True, slots=True)
class AdaptiveContext:
    """How little a model needs to see: measured for each, :mod:`metalscribe.engine.margins`.

    Attributes:
        margin: seconds of silence behind its speech.
        longest: seconds of speech that are decoded in one go. The encoder's work grows faster than a chunk does, and a small
            model skips sentences of long ones; a larger model makes more of them.
    """

    margin: float
    longest: float


def context_frames(samples: int, adaptive: AdaptiveContext | None) -> int:
    """Frames for a row of ``samples`` at 16 kHz: its own and the margin's, or without ``adaptive`` all."""
    if adaptive is None:
        return FULL_CONTEXT
    return min(FULL_CONTEXT, -(-samples // 160) + round(100 * adaptive.margin))


def longest_chunk(adaptive: AdaptiveContext | None) -> float:
    """Seconds of speech that are decoded in one go: all that the window holds where the encoder sees all of it anyway."""
    return 30.0 if adaptive is None else adaptive.longest


def max_tokens(samples: int, attempt: Attempt) -> int:
    """Tokens that ``samples`` at 16 kHz can possibly hold.

    With a shortened context a loop is cut off early, after 12 tokens a second (fast English has 5); the whole window gets all
    that Whisper allows, for languages that take several tokens a letter.
    """
    return MAX_TOKENS if attempt.full else min(MAX_TOKENS, 24 + 12 * samples // 16_000)


def sparse(language: str | None, voiced: float | None) -> int:
    """Fewer tokens than this for so many seconds of voice, and the text may lack a sentence: reason for a closer look.

    English readings have 3 to 5 tokens a second, and every other language more.
    """
    if voiced is None or voiced < _LONG_ENOUGH_TO_SKIP:
        return 0
    return math.ceil(_SPARSE.get(language or "", _SPARSE_ELSEWHERE) * voiced)


class Verdict(StrEnum):
    """What :func:`judge` thinks of a result."""

    PLAUSIBLE = "plausible"
    SILENCE = "silence"
    """Nobody speaks: there is no text."""
    PHANTOM = "phantom"
    """A phrase that models say when nobody speaks: there is no text."""
    LOOP = "loop"
    UNSURE = "unsure"
    REPEATED = "repeated"
    """Ends with the same words twice."""
    HASTY = "hasty"
    """More words than anybody can say in the time."""
    SKIPPED = "skipped"
    """Part of the speech has no words."""

    @property
    def final(self) -> bool:
        """Nothing better is to be had."""
        return self in {Verdict.PLAUSIBLE, Verdict.SILENCE, Verdict.PHANTOM}

    @property
    def empty(self) -> bool:
        """The text is not to be believed at all."""
        return self in {Verdict.SILENCE, Verdict.PHANTOM}


def judge(result: RowDone, attempt: Attempt, voiced: float | None, *, skipped: bool = False) -> Verdict:
    """Is a result plausible?

    Args:
        result: of a row.
        attempt: how it was decoded; a shortened context is judged more strictly.
        voiced: seconds of voice in the row, None where nobody has listened for it.
        skipped: part of the speech has no words (:mod:`metalscribe.engine.holes`).
    """
    if result.avg_logprob < MIN_AVG_LOGPROB:
        return Verdict.SILENCE if result.no_speech_prob > NO_SPEECH_PROB else _unsure(result)
    if _loops(result, MAX_COMPRESSION_RATIO):
        return Verdict.LOOP
    if _nobody_speaks(result, voiced) and is_phantom(result.text):
        return Verdict.PHANTOM
    if not attempt.full and (_loops(result, _SHORT_COMPRESSION_RATIO) or ends_twice(result.tokens)):
        return Verdict.REPEATED
    if not attempt.full and voiced is not None and len(result.text.split()) > 2 + _FAST_WORDS_PER_SECOND * voiced:
        return Verdict.HASTY
    return Verdict.SKIPPED if skipped else Verdict.PLAUSIBLE


def _unsure(result: RowDone) -> Verdict:
    return Verdict.LOOP if _loops(result, MAX_COMPRESSION_RATIO) else Verdict.UNSURE


def _loops(result: RowDone, most: float) -> bool:
    return result.truncated or result.compression_ratio > most


def _nobody_speaks(result: RowDone, voiced: float | None) -> bool:
    return result.no_speech_prob > _PHANTOM_NO_SPEECH_PROB or (voiced is not None and voiced < _PHANTOM_VOICED_SECONDS)


def ends_twice(tokens: Sequence[int]) -> bool:
    """Whether the last four tokens or more stand twice in a row at the end."""
    return any(
        tokens[-length:] == tokens[-2 * length : -length] for length in range(_REPEATED_TOKENS, len(tokens) // 2 + 1)
    )


def best_of(results: Sequence[RowDone]) -> RowDone:
    """The least bad of several implausible results: likeliest of those that do not loop, else likeliest of all."""
    sound = [result for result in results if result.compression_ratio <= MAX_COMPRESSION_RATIO and not result.truncated]
    return max(sound or results, key=lambda result: result.avg_logprob)
