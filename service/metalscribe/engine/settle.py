"""A row's way to a text that can be believed: shortened context, whole window, ever bolder sampling, holes filled."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from metalscribe.engine.context import (
    FULL_CONTEXT,
    AdaptiveContext,
    Attempt,
    Verdict,
    best_of,
    context_frames,
    judge,
    ladder,
    max_tokens,
    sparse,
)
from metalscribe.engine.dispatch import Dispatcher, Outcome
from metalscribe.engine.holes import Hole, find_holes
from metalscribe.engine.messages import AlignedWord, DecodeOptions, RowDone, Search
from metalscribe.engine.scheduler import Ticket
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.transcript import Decision

_DEEPEST: Final = 2
"""A filling may have holes, and theirs too."""

_LARGEST_PART: Final = 0.9
"""Of a row; a hole that is larger is the row itself, and says nothing else when it is asked again."""

_GAIN: Final = 2
"""Tokens that a filling must have beyond what it replaces."""


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


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is to be decoded; see :meth:`Settler.settle`."""

    start: int
    length: int
    language: str | None
    voiced: float | None

    @property
    def seconds(self) -> float:
        return self.length / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class _Take:
    """One decoding of a stretch and what the gate thinks of it."""

    stretch: _Stretch
    attempt: Attempt
    result: RowDone
    verdict: Verdict
    holes: list[Hole]

    def settled(self) -> Settled:
        return Settled(
            self.stretch.start,
            self.stretch.length,
            self.result,
            empty=self.verdict.empty,
            temperature=self.attempt.temperature,
        )

    def part(self, first: int, last: int, start: float, end: float) -> list[Settled]:
        """The words ``[first:last]`` alone, which stand between ``start`` and ``end`` seconds; none where there are none."""
        words = self.result.words[first:last]
        if not words:
            return []
        before = sum(word.tokens for word in self.result.words[:first])
        result = msgspec.structs.replace(
            self.result,
            text="".join(word.text for word in words),
            tokens=self.result.tokens[before : before + sum(word.tokens for word in words)],
            words=[_moved(word, -start) for word in words],
        )
        begin, length = round(start * SAMPLE_RATE), round((end - start) * SAMPLE_RATE)
        return [dataclasses.replace(self.settled(), start=self.stretch.start + begin, length=length, result=result)]


@dataclass(slots=True)
class Settler:
    """Decodes rows of one recording until the gate is content.

    Attributes:
        on_outcome: called with every decoded row.
        find_language: says which language it is, by the first decoding of a row whose language was not told.
        temperature: the lowest to try.
        decisions: what the gate thought of each, in order.
    """

    dispatcher: Dispatcher
    source: int
    ticket: Ticket
    options: DecodeOptions
    search: Search
    adaptive: AdaptiveContext | None
    on_outcome: Callable[[Outcome], None]
    find_language: Callable[[RowDone], Awaitable[str]]
    temperature: float = 0.0
    decisions: list[Decision] = field(default_factory=list)

    async def settle(
        self, start: int, length: int, language: str | None, *, voiced: float | None = None
    ) -> list[Settled]:
        """Decode a chunk; one result, or several in order where the model had skipped something.

        Args:
            start: in samples of the ring's axis.
            length: in samples.
            language: code, None to detect it.
            voiced: seconds of voice, None where unknown.
        """
        stretch = _Stretch(start, length, language, voiced)
        attempts = ladder(context_frames(length, self.adaptive), self.temperature)
        take = await self._climb(stretch, self.options, attempts)
        return await self._fill(take, 0) if take.verdict is Verdict.SKIPPED else [take.settled()]

    async def once(self, start: int, length: int, language: str | None, previous: tuple[int, ...]) -> Settled:
        """Decode a window of the sequential algorithm, conditioned on the tokens before it; always in full context."""
        options = msgspec.structs.replace(self.options, previous=previous)
        attempts = ladder(FULL_CONTEXT, self.temperature)
        take = await self._climb(_Stretch(start, length, language, None), options, attempts)
        return take.settled()

    async def _climb(self, stretch: _Stretch, options: DecodeOptions, attempts: Sequence[Attempt]) -> _Take:
        """The first take that is good, or that lacks something which other attempts would lack as well; else the least bad."""
        takes: list[_Take] = []
        for attempt in attempts:
            take = await self._take(stretch, options, attempt)
            if stretch.language is None:
                stretch = dataclasses.replace(stretch, language=await self.find_language(take.result))
                if stretch.language != take.result.language:
                    take = await self._take(stretch, options, attempt)
            if take.verdict.final:
                return take
            if take.verdict is Verdict.SKIPPED and (take.result.tokens or attempt.full):
                return take  # sampling does not bring back what was skipped
            takes.append(take)
        best = best_of([take.result for take in takes])
        return next(take for take in takes if take.result is best)

    async def _fill(self, take: _Take, depth: int) -> list[Settled]:
        """A take with the holes filled for which the model, asked for them alone, has words."""
        holes = [hole for hole in take.holes if hole.end - hole.start <= _LARGEST_PART * take.stretch.seconds]
        fillings = await asyncio.gather(*(self._filling(take, hole, depth) for hole in holes))
        parts: list[Settled] = []
        done, at = 0, 0.0
        for hole, filling in zip(holes, fillings, strict=True):
            if filling:
                parts += [*take.part(done, hole.first, at, hole.start), *filling]
                done, at = hole.last, hole.end
        if not parts:
            return [take.settled()]
        return [*parts, *take.part(done, len(take.result.words), at, take.stretch.seconds)]

    async def _filling(self, take: _Take, hole: Hole, depth: int) -> list[Settled]:
        """What is said in a hole; nothing where that is not plausible, or no more than the words that stand there."""
        begin, end = round(hole.start * SAMPLE_RATE), round(hole.end * SAMPLE_RATE)
        stretch = _Stretch(
            take.stretch.start + begin, end - begin, take.result.language, voiced=(end - begin) / SAMPLE_RATE
        )
        attempts = ladder(context_frames(stretch.length, self.adaptive), self.temperature)
        lowest = [one for one in attempts if one.temperature == self.temperature]
        found = await self._climb(stretch, self.options, lowest)
        if found.verdict is Verdict.SKIPPED and depth + 1 < _DEEPEST:
            parts = await self._fill(found, depth + 1)
        else:
            parts = [found.settled()] if found.verdict in {Verdict.PLAUSIBLE, Verdict.SKIPPED} else []
        replaced = sum(word.tokens for word in take.result.words[hole.first : hole.last])
        return parts if sum(len(part.result.tokens) for part in parts) >= replaced + _GAIN else []

    async def _take(self, stretch: _Stretch, options: DecodeOptions, attempt: Attempt) -> _Take:
        search = self.search
        if attempt.temperature > 0:
            search = Search(search.beam_size, attempt.temperature, search.best_of, search.timestamps)
        context = FULL_CONTEXT if attempt.full else context_frames(stretch.length, self.adaptive)
        # A translation does not follow the sound word by word: its alignment says nothing of what it lacks.
        suspicious = sparse(stretch.language, stretch.voiced) if options.task == "transcribe" else 0
        outcome = await self.dispatcher.decode(
            source=self.source,
            start=stretch.start,
            length=stretch.length,
            language=stretch.language,
            options=options,
            search=search,
            context=context,
            max_tokens=max_tokens(stretch.length, attempt),
            align_below=suspicious,
            ticket=self.ticket,
        )
        self.on_outcome(outcome)
        result = outcome.result
        looked = len(result.tokens) < suspicious and (result.words or not result.tokens)
        holes = find_holes(result.words, stretch.seconds) if looked else None
        verdict = judge(result, attempt, stretch.voiced, skipped=bool(holes))
        self._tell(stretch, attempt, context, result, verdict, holes)
        return _Take(stretch, attempt, result, verdict, holes or [])

    def _tell(
        self,
        stretch: _Stretch,
        attempt: Attempt,
        context: int,
        result: RowDone,
        verdict: Verdict,
        holes: list[Hole] | None,
    ) -> None:
        self.dispatcher.metrics.judged(verdict.value, full=attempt.full)
        self.decisions.append(
            Decision(
                start=stretch.start / SAMPLE_RATE,
                length=stretch.seconds,
                context=context / 100,
                temperature=attempt.temperature,
                verdict=verdict.value,
                tokens=len(result.tokens),
                voiced=stretch.voiced,
                hole=None if holes is None else max((hole.seconds for hole in holes), default=0.0),
                avg_logprob=result.avg_logprob,
                no_speech_prob=result.no_speech_prob,
                compression_ratio=result.compression_ratio,
            )
        )


def _moved(word: AlignedWord, seconds: float) -> AlignedWord:
    return msgspec.structs.replace(word, start=word.start + seconds, end=word.end + seconds)
