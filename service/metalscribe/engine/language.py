"""Which language a recording is in, where nobody has told.

Whisper takes the language from whatever it hears first (Radford et al. 2022, section 2.3), and what comes first is not always
like the rest: a jingle, an announcement, a phrase that could be Italian as well as Spanish. So a second place further on is
asked too; where the two are not sure, or do not agree, the opening of the recording holds a vote; and where the vote is close,
the text decides: the model is much surer of what it writes in the right language than in a related one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metalscribe.engine.context import MAX_COMPRESSION_RATIO, AdaptiveContext, Attempt, context_frames, max_tokens
from metalscribe.engine.dispatch import Dispatcher
from metalscribe.engine.messages import DecodeOptions, RowDone, Search
from metalscribe.engine.scheduler import Ticket
from metalscribe.media.messages import Chunk
from metalscribe.media.pcm import SAMPLE_RATE

OPENING_CHUNKS: Final = 4
"""How many chunks have a vote."""

OPENING_SECONDS: Final = 300.0
"""Of the recording, from the first chunk on; what comes later has none."""

_GLANCE: Final = 5 * SAMPLE_RATE
_LOOK: Final = 10 * SAMPLE_RATE

_SURE: Final = 0.7
_POSSIBLE: Final = 0.1
_CANDIDATES: Final = 3
_TEXT_WEIGHT: Final = 10.0
"""What the text's mean log-probability counts for, against the logarithm of the language's own probability."""

_LOOP_LOGPROB: Final = -2.0
"""In place of a loop's own, which is high for no good reason."""

_LEAST_SPEECH: Final = 0.01

_SEARCH: Final = Attempt(full=False, temperature=0.0)

Ranking = list[tuple[str, float]]
"""Codes and probabilities, likeliest first; unlikely ones may be missing."""


@dataclass(slots=True)
class LanguageFinder:
    """Finds the language of one recording's speech.

    Attributes:
        source: of the recording's samples.
        languages: codes among which to find it; empty for all.
    """

    dispatcher: Dispatcher
    source: int
    ticket: Ticket
    search: Search
    adaptive: AdaptiveContext | None
    languages: tuple[str, ...] = ()

    async def find(self, first: RowDone, opening: Sequence[Chunk]) -> tuple[str, float]:
        """The language, and how probable it is.

        Args:
            first: the first chunk, decoded in the language that the model took it for.
            opening: the chunks that have a vote, in order, the first one included.
        """
        ranking = heard = _ranking(first)
        if len(opening) > 1:
            again = _ranking(await self._listen(opening[-1], _GLANCE))
            if not (_sure(heard) and _sure(again) and heard[0][0] == again[0][0]):
                others = await asyncio.gather(*(self._listen(chunk, _LOOK) for chunk in opening[1:]))
                ranking = _vote([first, *others], opening)
        if _sure(ranking):
            return ranking[0]
        possible = [one for one in ranking if one[1] >= _POSSIBLE][:_CANDIDATES]
        return await self._by_the_text(possible, opening) if len(possible) > 1 else ranking[0]

    async def _by_the_text(self, possible: Ranking, opening: Sequence[Chunk]) -> tuple[str, float]:
        """The candidate in which the opening reads best."""
        likelihoods = []
        for language, probability in possible:
            results = await asyncio.gather(*(self._read(chunk, language) for chunk in opening))
            shares = _shares(results, opening)
            mean = sum(share * _logprob(result) for share, result in zip(shares, results, strict=True))
            likelihoods.append(probability * math.exp(_TEXT_WEIGHT * mean))
        best = max(range(len(possible)), key=likelihoods.__getitem__)
        share = likelihoods[best] / sum(likelihoods)
        return possible[best][0], share * sum(probability for _, probability in possible)

    async def _listen(self, chunk: Chunk, length: int) -> RowDone:
        """What the model takes the beginning of a chunk for."""
        return await self._decode(chunk, length, language=None, tokens=0)

    async def _read(self, chunk: Chunk, language: str) -> RowDone:
        """The beginning of a chunk, as the model writes it in a language."""
        length = min(_LOOK, chunk.length)
        return await self._decode(chunk, length, language=language, tokens=max_tokens(length, _SEARCH))

    async def _decode(self, chunk: Chunk, length: int, *, language: str | None, tokens: int) -> RowDone:
        length = min(length, chunk.length)
        outcome = await self.dispatcher.decode(
            source=self.source,
            start=chunk.start,
            length=length,
            language=language,
            options=DecodeOptions(languages=self.languages),
            search=self.search,
            context=context_frames(length, self.adaptive),
            max_tokens=tokens,
            align_below=0,
            ticket=self.ticket,
        )
        return outcome.result


def _ranking(result: RowDone) -> Ranking:
    return result.languages or [(result.language, result.language_probability)]


def _sure(ranking: Ranking) -> bool:
    return ranking[0][1] >= _SURE


def _vote(results: Sequence[RowDone], opening: Sequence[Chunk]) -> Ranking:
    """The mean of what several chunks were taken for."""
    total: dict[str, float] = {}
    for result, share in zip(results, _shares(results, opening), strict=True):
        for language, probability in _ranking(result):
            total[language] = total.get(language, 0.0) + share * probability
    return sorted(total.items(), key=lambda one: -one[1])


def _shares(results: Sequence[RowDone], opening: Sequence[Chunk]) -> list[float]:
    """What each chunk's voice counts for: as much of it as there is, and as it is speech. Together 1."""
    weights = [
        chunk.length * max(_LEAST_SPEECH, 1.0 - result.no_speech_prob)
        for chunk, result in zip(opening, results, strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


def _logprob(result: RowDone) -> float:
    loops = result.truncated or result.compression_ratio > MAX_COMPRESSION_RATIO
    return _LOOP_LOGPROB if loops else result.avg_logprob
