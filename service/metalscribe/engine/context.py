"""The quality gate: is what the model wrote plausible, and if not, how to try again (Radford et al. 2022, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from metalscribe.engine.messages import RowDone

TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The ladder: beam search first, then sampling, ever bolder, until the result passes."""

MAX_COMPRESSION_RATIO: Final = 2.4
MIN_AVG_LOGPROB: Final = -1.0
NO_SPEECH_PROB: Final = 0.6


def is_silence(result: RowDone) -> bool:
    """The model believes that nobody speaks, and is unsure of its words: there are none."""
    return result.no_speech_prob > NO_SPEECH_PROB and result.avg_logprob < MIN_AVG_LOGPROB


def is_plausible(result: RowDone) -> bool:
    """Neither a repetition loop nor a wild guess, or else silence."""
    if is_silence(result):
        return True
    return result.compression_ratio <= MAX_COMPRESSION_RATIO and result.avg_logprob >= MIN_AVG_LOGPROB


def best_of(results: Sequence[RowDone]) -> RowDone:
    """The least bad of several implausible results: likeliest of those that do not loop, else likeliest of all."""
    sound = [result for result in results if result.compression_ratio <= MAX_COMPRESSION_RATIO]
    return max(sound or results, key=lambda result: result.avg_logprob)
