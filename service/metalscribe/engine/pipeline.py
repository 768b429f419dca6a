"""One request's way through: decode → voice activity → chunks → batches → stitched segments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from metalscribe.engine.checkpoint import kept, recalled
from metalscribe.engine.chunker import CHUNK_SAMPLES, STAGE
from metalscribe.engine.context import AdaptiveContext, longest_chunk
from metalscribe.engine.dispatch import Dispatcher, Outcome
from metalscribe.engine.language import OPENING_CHUNKS, OPENING_SECONDS, LanguageFinder
from metalscribe.engine.messages import AlignedWord, DecodeOptions, RowDone, Search
from metalscribe.engine.phrases import words_of
from metalscribe.engine.scheduler import Ticket
from metalscribe.engine.settle import Settled, Settler
from metalscribe.engine.timeline import Timeline, place_words, segments_of, whole_words
from metalscribe.media.decode import DecoderPool
from metalscribe.media.messages import Chunk, Decoded, Ended, Opened
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.media.session import DecodeSession
from metalscribe.transcript import (
    ChunkDone,
    Done,
    Event,
    LanguageDetected,
    Latency,
    Mode,
    Progress,
    Segment,
    SegmentsReady,
    Statistics,
    Task,
    Transcript,
    TranscriptionRequest,
    Word,
)

_PROMPT_RESET_TEMPERATURE: Final = 0.5
_PROMPT_TOKENS: Final = 224
_SHORTEST_WINDOW: Final = SAMPLE_RATE // 5
_BATCH_WEIGHT: Final = 0.1
"""What waiting counts for where nobody waits for the answer."""


@dataclass(slots=True)
class _Tally:
    """What becomes :class:`Statistics`."""

    audio: float = 0.0
    speech: float = 0.0
    queue: float = 0.0
    engine: float = 0.0
    chunks: int = 0
    rows: int = 0

    def count(self, outcome: Outcome) -> None:
        self.rows += 1
        self.queue = max(self.queue, outcome.queue_seconds)
        self.engine += outcome.engine_seconds

    def freeze(self) -> Statistics:
        return Statistics(self.audio, self.speech, self.queue, self.engine, self.chunks, self.rows - self.chunks)


@dataclass(slots=True)
class _Feed:
    """What the decoder has delivered so far.

    Attributes:
        opening: the first chunks, by which the language is found.
    """

    duration: float | None = None
    decoded: float = 0.0
    available: int = 0  # end of the ring's axis as written
    opening: list[Chunk] = field(default_factory=list)
    ended: bool = False
    error: BaseException | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def opened(self) -> bool:
        """Whether the opening is complete; what comes when is the same in every run."""
        if self.ended or len(self.opening) == OPENING_CHUNKS:
            return True
        return bool(self.opening) and self.decoded > self.opening[0].pieces[0].source / SAMPLE_RATE + OPENING_SECONDS


class Pipeline:
    """One request; iterate :meth:`run` once. Closing the iterator stops everything that was started for it."""

    def __init__(
        self,
        request: TranscriptionRequest,
        *,
        pool: DecoderPool,
        dispatcher: Dispatcher,
        model: str,
        language: str | None,
        beam_size: int,
        adaptive: AdaptiveContext | None,
    ) -> None:
        self._request = request
        self._pool = pool
        self._dispatcher = dispatcher
        self._model = model
        self._language = language
        self._timed = request.segments or request.word_timestamps
        self._ticket = Ticket(weight=request.weight * (_BATCH_WEIGHT if request.latency is Latency.BATCH else 1.0))
        self._timeline = Timeline()
        self._tally = _Tally()
        self._feed = _Feed()
        self._segments: list[Segment] = []
        self._text: list[str] = []
        self._settled_language: asyncio.Future[tuple[str, float]] = asyncio.get_running_loop().create_future()
        self._settler = Settler(
            dispatcher=dispatcher,
            source=0,
            ticket=self._ticket,
            options=DecodeOptions(
                task=request.task.value,
                words=self._timed,
                prompt=request.prompt,
                hotwords=request.hotwords,
                languages=request.languages,
            ),
            search=Search(beam_size, timestamps=request.mode is Mode.ACCURATE),
            adaptive=adaptive,
            on_outcome=self._tally.count,
            find_language=self._find_language,
            temperature=request.temperature,
        )
        if language is not None:
            self._settled_language.set_result((language, 1.0))

    async def run(self) -> AsyncGenerator[Event]:
        """The request's events; see :class:`metalscribe.engine.interface.Engine`."""
        capacity = CHUNK_SAMPLES * self._dispatcher.chunks_ahead
        request = self._request
        self._dispatcher.sessions += 1
        try:
            async with self._pool.open(
                request.path,
                stage=STAGE,
                options={"vad": request.vad, "longest": longest_chunk(self._settler.adaptive)},
                capacity=capacity,
                track=request.audio_track,
            ) as session:
                source = self._settler.source = self._dispatcher.open_source(session.ring, capacity)
                work = self._accurate(session) if request.mode is Mode.ACCURATE else self._fast(session)
                try:
                    done = 0.0
                    async for event in work:
                        if isinstance(event, Progress):
                            # The decoder is ahead of the model, and told of in silence: progress never goes back.
                            done = max(done, event.seconds_done)
                            event = replace(event, seconds_done=done)  # noqa: PLW2901
                        yield event
                finally:
                    await work.aclose()
                    await self._dispatcher.close_source(source)
        finally:
            self._dispatcher.sessions -= 1
        language, probability = self._settled_language.result() if self._settled_language.done() else ("en", 0.0)
        self._tally.audio = self._feed.duration or 0.0
        yield Done(
            Transcript(
                text="".join(self._text).strip(),
                language=language,
                language_probability=probability,
                duration=self._feed.duration or 0.0,
                segments=tuple(self._segments),
                model=self._model,
                task=Task(request.task),
            ),
            self._tally.freeze(),
            tuple(self._settler.decisions),
        )

    # --- fast: every chunk by itself, all of them together ---

    async def _fast(self, session: DecodeSession) -> AsyncGenerator[Event]:
        ready: asyncio.Queue[int | None] = (
            asyncio.Queue()
        )  # chunks' numbers as they are settled, None when no more will come
        chunks: dict[int, tuple[Chunk, asyncio.Task[list[Settled]]]] = {}

        def on_chunk(chunk: Chunk) -> None:
            number = self._tally.chunks
            self._tally.chunks += 1
            task = asyncio.create_task(self._settle_chunk(number, chunk))
            task.add_done_callback(lambda _: ready.put_nowait(number))
            chunks[number] = (chunk, task)

        feeding = asyncio.create_task(self._read(session, on_chunk, lambda: ready.put_nowait(None)))
        settled: dict[int, list[Settled]] = {}
        ended = False
        following = 0
        try:
            while not ended or following < self._tally.chunks:
                number = await self._next_or_progress(ready)
                if isinstance(number, Progress):
                    yield number
                    continue
                if number is None:
                    ended = True
                    continue
                chunk, task = chunks[number]
                settled[number] = task.result()
                if self._request.checkpoints is not None and number not in self._request.checkpoints:
                    yield ChunkDone(number, kept(chunk.start, chunk.length, settled[number]))
                while following in settled:
                    chunk, _ = chunks.pop(following)
                    async for event in self._told(session, chunk, settled.pop(following), first=following == 0):
                        yield event
                    following += 1
            await feeding
        finally:
            await _end([feeding, *(task for _, task in chunks.values())])

    async def _told(
        self, session: DecodeSession, chunk: Chunk, settled: list[Settled], *, first: bool
    ) -> AsyncGenerator[Event]:
        """What a chunk has to say, once all before it have said theirs."""
        if first:
            yield LanguageDetected(*self._settled_language.result())
        segments = [segment for part in settled for segment in self._stitch(part)]
        end = chunk.start + chunk.length
        self._timeline.forget(end)
        await session.release(end)
        if segments:
            yield SegmentsReady(tuple(segments))
        yield Progress((chunk.pieces[-1].source + chunk.pieces[-1].length) / SAMPLE_RATE, self._feed.duration)

    async def _next_or_progress(self, ready: asyncio.Queue[int | None]) -> int | Progress | None:
        """The next chunk; while there is none (a long silence), now and then how far the decoder is."""
        try:
            async with asyncio.timeout(1.0):
                return await ready.get()
        except TimeoutError:
            return Progress(self._feed.decoded, self._feed.duration)

    async def _settle_chunk(self, number: int, chunk: Chunk) -> list[Settled]:
        first = number == 0
        try:
            settled = self._recalled(number, chunk.start, chunk.length)
            if settled is None:
                language = self._language
                if language is None and not first:
                    # The first chunk tells the language; asking each chunk would let short ones guess differently.
                    language = (await asyncio.shield(self._settled_language))[0]
                settled = await self._settler.settle(chunk.start, chunk.length, language, voiced=chunk.voiced)
                settled = [self._with_language(part) for part in settled]
        except BaseException as error:
            if first and not self._settled_language.done():
                self._settled_language.set_exception(error)
                self._settled_language.exception()  # marked as seen: the pipeline meets it in this task anyway
            raise
        if first and not self._settled_language.done():
            self._settled_language.set_result((settled[0].result.language, settled[0].result.language_probability))
        self._settled(chunk.length)
        return settled

    def _recalled(self, number: int, start: int, length: int) -> list[Settled] | None:
        """What an earlier run of this request has found in a chunk, None where it has to be done."""
        return recalled((self._request.checkpoints or {}).get(number), start, length)

    def _settled(self, length: int) -> None:
        """So many samples of speech less are to be done."""
        self._ticket.audio_left = max(1.0, self._ticket.audio_left - length / SAMPLE_RATE)

    def _stitch(self, settled: Settled) -> list[Segment]:
        if settled.empty:
            return []
        offset = settled.start / SAMPLE_RATE
        words = place_words(self._whole(settled.result), offset, self._timeline) if self._timed else []
        span = self._timeline.wide_span(offset, offset + settled.length / SAMPLE_RATE)
        return self._accept(settled.result, words, span, settled.temperature)

    # --- accurate: a window that slides, each conditioned on the text before it ---

    async def _accurate(self, session: DecodeSession) -> AsyncGenerator[Event]:
        feeding = asyncio.create_task(self._read(session, lambda _: None, lambda: None))
        seek = 0
        previous: tuple[int, ...] = ()
        try:
            while (length := await self._window(seek)) > 0:
                language = self._settled_language.result()[0] if self._settled_language.done() else None
                number = self._tally.chunks
                known = self._recalled(number, seek, length)
                if known:
                    (settled,) = known
                else:
                    settled = self._with_language(await self._settler.once(seek, length, language, previous))
                self._tally.chunks += 1
                if not known and self._request.checkpoints is not None:
                    yield ChunkDone(number, kept(seek, length, [settled]))
                result = settled.result
                if not self._settled_language.done():
                    self._settled_language.set_result((result.language, result.language_probability))
                if self._tally.chunks == 1:
                    yield LanguageDetected(*self._settled_language.result())
                segments = [] if settled.empty else self._stitch_window(seek, settled)
                advance = length / SAMPLE_RATE if settled.empty else result.advance
                previous = (
                    ()
                    if settled.temperature > _PROMPT_RESET_TEMPERATURE
                    else (*previous, *result.context)[-_PROMPT_TOKENS:]
                )
                seek += max(int(advance * SAMPLE_RATE), SAMPLE_RATE // 50)
                end = min(seek, self._feed.available)
                done = self._timeline.span(end / SAMPLE_RATE, end / SAMPLE_RATE)[1]
                self._timeline.forget(seek)
                await session.release(end)
                if segments:
                    yield SegmentsReady(tuple(segments))
                yield Progress(done, self._feed.duration)
            await feeding
        finally:
            await _end([feeding])

    async def _window(self, seek: int) -> int:
        """Wait until a whole window is there, or the recording is over; returns its length in samples, 0 at the end."""
        feed = self._feed
        async with feed.changed:
            await feed.changed.wait_for(lambda: feed.ended or feed.available - seek >= CHUNK_SAMPLES)
        if feed.error is not None:
            raise feed.error
        length = min(CHUNK_SAMPLES, feed.available - seek)
        # What a last phrase left over, too short to hold a word, would only be made up.
        return length if length >= _SHORTEST_WINDOW or seek == 0 else 0

    def _stitch_window(self, seek: int, settled: Settled) -> list[Segment]:
        result = settled.result
        offset = seek / SAMPLE_RATE
        whole = self._whole(result)
        words = place_words(whole, offset, self._timeline)
        stitched: list[Segment] = []
        for phrase, (first, last) in zip(result.phrases, words_of(result.phrases, whole), strict=True):
            if words and first == last:
                continue  # all of it is the end of the word before
            span = self._timeline.wide_span(offset + phrase.start, offset + phrase.end)
            part = msgspec.structs.replace(result, text=phrase.text, tokens=phrase.tokens)
            stitched += self._accept(part, words[first:last], span, settled.temperature)
        return stitched

    # --- both ---

    async def _find_language(self, first: RowDone) -> str:
        """The language of the recording, by the first decoding and by what the opening has to say."""
        feed = self._feed
        async with feed.changed:
            await feed.changed.wait_for(lambda: feed.opened)
        settler = self._settler
        finder = LanguageFinder(
            self._dispatcher,
            settler.source,
            self._ticket,
            Search(settler.search.beam_size),
            settler.adaptive,
            self._request.languages,
        )
        found = await finder.find(first, feed.opening)
        self._settled_language.set_result(found)
        return found[0]

    def _with_language(self, settled: Settled) -> Settled:
        """A result with the probability of the recording's language, not that of its own, which was told it."""
        _, probability = self._settled_language.result()
        return replace(settled, result=msgspec.structs.replace(settled.result, language_probability=probability))

    async def _read(
        self, session: DecodeSession, on_chunk: Callable[[Chunk], None], on_end: Callable[[], None]
    ) -> None:
        feed = self._feed
        try:
            async for message in session:
                match message:
                    case Opened(duration=duration):
                        feed.duration = duration
                        self._ticket.audio_left = duration or self._ticket.audio_left
                    case Decoded(samples=samples):
                        feed.decoded = samples / SAMPLE_RATE
                    case Chunk():
                        self._timeline.append(message.start, message.pieces)
                        self._tally.speech += message.length / SAMPLE_RATE
                        feed.available = message.start + message.length
                        if not feed.opened:
                            feed.opening.append(message)
                        on_chunk(message)
                    case Ended(samples=samples):
                        feed.duration = samples / SAMPLE_RATE
                async with feed.changed:
                    feed.changed.notify_all()
        except Exception as error:
            feed.error = error
            raise
        finally:
            feed.ended = True
            on_end()
            async with feed.changed:
                feed.changed.notify_all()

    def _whole(self, result: RowDone) -> list[AlignedWord]:
        return whole_words(result.words, result.language, self._request.task)

    def _accept(
        self, result: RowDone, words: list[Word], span: tuple[float, float], temperature: float
    ) -> list[Segment]:
        floor = self._segments[-1].end if self._segments else 0.0
        kept = []
        for segment in segments_of(result, words, span, len(self._segments), temperature):
            start = max(segment.start, floor)
            end = max(segment.end, start)
            within = tuple(
                replace(word, start=min(max(word.start, start), end), end=min(max(word.end, start), end))
                for word in (segment.words if self._request.word_timestamps else ())
            )
            kept.append(replace(segment, start=start, end=end, words=within))
            floor = end
        self._segments += kept
        self._text += [segment.text for segment in kept]
        return kept


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel and wait, so that nothing outlives its request; what they raise now is a consequence, not news."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
