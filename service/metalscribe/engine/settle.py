"""A row's way to a text that can be believed: shortened context, whole window, cut in two, ever bolder sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from metalscribe.engine.context import (
    FULL_CONTEXT,
    SLOWEST_TOKENS_PER_SECOND,
    Attempt,
    Verdict,
    best_of,
    context_frames,
    judge,
    ladder,
    max_tokens,
)
from metalscribe.engine.dispatch import Dispatcher, Outcome
from metalscribe.engine.messages import DecodeOptions, RowDone, Search
from metalscribe.engine.scheduler import Ticket
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.transcript import Decision

_RECUT_GAIN: Final = 1.15
"""Cut in parts, a chunk has to say so much more before it is believed that something was skipped."""

_SLOWER: Final = 0.8
"""How much slower yet a slow speaker may become."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A row that is done.

    Attributes:
        start, length: in samples of the ring's axis.
        result: the text; to be left out where ``empty``.
        temperature: at which it was found.
    """

    start: int
    length: int
    result: RowDone
    empty: bool
    temperature: float


@dataclass(slots=True)
class Settler:
    """Decodes rows of one recording until the gate is content.

    Attributes:
        on_outcome: called with every decoded row.
        decisions: what the gate thought of each, in order.
    """

    dispatcher: Dispatcher
    source: int
    ticket: Ticket
    options: DecodeOptions
    search: Search
    margin: float | None
    on_outcome: Callable[[Outcome], None]
    decisions: list[Decision] = field(default_factory=list)
    _slowest: float = SLOWEST_TOKENS_PER_SECOND

    async def settle(
        self,
        start: int,
        length: int,
        language: str | None,
        *,
        voiced: float | None = None,
        cuts: Sequence[int] = (),
    ) -> list[Settled]:
        """Decode a chunk; one result, or several where it had to be cut.

        Args:
            start: in samples of the ring's axis.
            length: in samples.
            language: code, None to detect it.
            voiced: seconds of voice, None where unknown.
            cuts: where it may be cut if the model skips part of it, in samples from its start.
        """
        results: list[RowDone] = []
        for attempt in ladder(context_frames(length, self.margin)):
            result = await self._decode(start, length, language, attempt, self.options)
            verdict = self._judge(start, length, result, attempt, voiced)
            language = language or result.language
            if verdict.final:
                return [Settled(start, length, result, verdict.empty, attempt.temperature)]
            results.append(result)
            if verdict is Verdict.SKIPPED:
                # Sampling does not bring back what was skipped; cutting the chunk elsewhere does.
                parts = await self._in_parts(start, length, language, voiced, cuts) if cuts else []
                if sum(_tokens(part) for part in parts) > _RECUT_GAIN * len(result.tokens):
                    return parts
                self._slow_speaker(result, voiced)
                return [Settled(start, length, result, empty=False, temperature=attempt.temperature)]
        return [Settled(start, length, best_of(results), empty=False, temperature=attempt.temperature)]

    async def once(self, start: int, length: int, language: str | None, previous: tuple[int, ...]) -> Settled:
        """Decode a window of the sequential algorithm, conditioned on the tokens before it; always in full context."""
        options = DecodeOptions(
            self.options.task, self.options.words, self.options.prompt, self.options.hotwords, previous
        )
        results: list[RowDone] = []
        for attempt in ladder(FULL_CONTEXT):
            result = await self._decode(start, length, language, attempt, options)
            verdict = self._judge(start, length, result, attempt, None)
            language = language or result.language
            if verdict.final:
                return Settled(start, length, result, verdict.empty, attempt.temperature)
            results.append(result)
        return Settled(start, length, best_of(results), empty=False, temperature=attempt.temperature)

    async def _in_parts(
        self, start: int, length: int, language: str | None, voiced: float | None, cuts: Sequence[int]
    ) -> list[Settled]:
        """Decode what lies before and after the cut that is nearest to the middle; each may be cut again."""
        cut = min(cuts, key=lambda place: abs(place - length // 2))
        density = (voiced or 0.0) / length
        before, after = await asyncio.gather(
            self.settle(start, cut, language, voiced=density * cut, cuts=[place for place in cuts if place < cut]),
            self.settle(
                start + cut,
                length - cut,
                language,
                voiced=density * (length - cut),
                cuts=[place - cut for place in cuts if place > cut],
            ),
        )
        return [*before, *after]

    def _slow_speaker(self, result: RowDone, voiced: float | None) -> None:
        """Nothing was skipped: whoever speaks here speaks slowly, and is not to be suspected again."""
        if voiced:
            self._slowest = min(self._slowest, _SLOWER * len(result.tokens) / voiced)

    async def _decode(
        self, start: int, length: int, language: str | None, attempt: Attempt, options: DecodeOptions
    ) -> RowDone:
        search = self.search
        if attempt.temperature > 0:
            search = Search(search.beam_size, attempt.temperature, search.best_of, search.timestamps)
        outcome = await self.dispatcher.decode(
            source=self.source,
            start=start,
            length=length,
            language=language,
            options=options,
            search=search,
            context=FULL_CONTEXT if attempt.full else context_frames(length, self.margin),
            max_tokens=max_tokens(length, attempt),
            ticket=self.ticket,
        )
        self.on_outcome(outcome)
        return outcome.result

    def _judge(self, start: int, length: int, result: RowDone, attempt: Attempt, voiced: float | None) -> Verdict:
        verdict = judge(result, attempt, voiced, self._slowest)
        self.dispatcher.metrics.judged(verdict.value, full=attempt.full)
        self.decisions.append(
            Decision(
                start=start / SAMPLE_RATE,
                length=length / SAMPLE_RATE,
                context=FULL_CONTEXT / 100 if attempt.full else context_frames(length, self.margin) / 100,
                temperature=attempt.temperature,
                verdict=verdict.value,
                tokens=len(result.tokens),
                voiced=voiced,
                avg_logprob=result.avg_logprob,
                no_speech_prob=result.no_speech_prob,
                compression_ratio=result.compression_ratio,
            )
        )
        return verdict


def _tokens(settled: Settled) -> int:
    return 0 if settled.empty else len(settled.result.tokens)
