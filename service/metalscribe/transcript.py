"""The vocabulary that every floor shares: what is asked of the engine, what it says while working, what comes out.

All times are seconds from the start of the recording, as floats; probabilities are 0–1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Task(StrEnum):
    """What to write down: the words as spoken, or their translation into English."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Mode(StrEnum):
    """How chunks are decoded.

    ``fast`` decodes the chunks of all requests together, each on its own. ``accurate`` slides a 30-second window over
    the recording and conditions each window on the text before it, one window at a time.
    """

    FAST = "fast"
    ACCURATE = "accurate"


class Latency(StrEnum):
    """How long the caller can wait: somebody does, or nobody does."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its place in time; ``text`` carries its leading space and punctuation, as the model wrote it.

    Attributes:
        probability: mean of its tokens'.
        tokens: how many of the model's it takes.
    """

    start: float
    end: float
    text: str
    probability: float
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, about a sentence long.

    Attributes:
        index: position in the transcript, from 0.
        text: the words, with the leading space that the model wrote.
        words: empty unless word timestamps were asked for.
        avg_logprob: mean log-probability of the tokens (natural logarithm).
        no_speech_prob: the model's own estimate that nobody speaks here.
        compression_ratio: bytes of the text over bytes of the same text under zlib; above 2.4 it probably repeats itself.
        speaker: label of the speaker, where diarization ran.
        tokens: the model's own numbers for the text; empty where they were not kept.
        temperature: at which the text was found: 0 is a search, above is a sample.
    """

    index: int
    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    compression_ratio: float = 0.0
    speaker: str | None = None
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Transcript:
    """A finished transcription.

    Attributes:
        text: the whole text, stripped, segments joined as the model spaced them.
        language: ISO 639-1 code (or Whisper's own where there is none, e.g. ``yue``); for a translation the language spoken.
        language_probability: 1.0 when the caller named the language or the model knows only one.
        duration: of the recording, in seconds, silence included.
    """

    text: str
    language: str
    language_probability: float
    duration: float
    segments: tuple[Segment, ...]
    model: str
    task: Task = Task.TRANSCRIBE


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """One recording and how to transcribe it.

    Attributes:
        path: the media file; any container that FFmpeg reads.
        language: code of the spoken language, or None to detect it.
        languages: codes among which to detect it; empty for all that the model knows.
        prompt: text that precedes the recording, for spelling and style.
        hotwords: words to expect.
        vad: leave silence out by voice activity detection.
        segments: time the segments; off saves the alignment pass where only the text is wanted.
        word_timestamps: keep the words' times in the segments; implies ``segments``.
        temperature: above 0 the text is sampled from the start, ever more boldly from there; 0 searches first.
        audio_track: which audio stream of the container, from 0.
        name: what to call the recording in messages and logs; never a path.
        latency: batch work gives way to whoever waits for an answer, without being left out altogether.
        model: which of the models that are served, by its card's name; None for the default one.
        weight: share of the machine against other requests; 2.0 gets served as if it had waited twice as long.
        checkpoints: what earlier runs of the same request have told by :class:`ChunkDone`, by the chunks' numbers; empty for the
            first of several runs, None where there will be no other.
    """

    path: Path
    language: str | None = None
    languages: tuple[str, ...] = ()
    task: Task = Task.TRANSCRIBE
    mode: Mode = Mode.FAST
    prompt: str | None = None
    hotwords: str | None = None
    vad: bool = True
    segments: bool = True
    word_timestamps: bool = False
    temperature: float = 0.0
    audio_track: int = 0
    name: str = "audio"
    latency: Latency = Latency.INTERACTIVE
    model: str | None = None
    weight: float = 1.0
    checkpoints: Mapping[int, bytes] | None = None


@dataclass(frozen=True, slots=True)
class LanguageDetected:
    """The spoken language is settled."""

    language: str
    probability: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is; ``duration`` is None until the end of the recording was seen or its header told."""

    seconds_done: float
    duration: float | None

    @property
    def percent(self) -> int:
        """0–99 while working; only :class:`Done` means 100."""
        if not self.duration:
            return 0
        return max(0, min(99, int(100 * self.seconds_done / self.duration)))


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """A chunk need not be done again, should this run not come to its end; chunks end in any order.

    Attributes:
        number: of the chunk, from 0.
        data: for a later run's :attr:`TranscriptionRequest.checkpoints`; means nothing to anybody else.
    """

    number: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SegmentsReady:
    """The next segments in order; they will not change any more."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of a successful request.

    Attributes:
        decisions: what the quality gate thought of each decoding, in the order in which they ended.
    """

    transcript: Transcript
    statistics: Statistics
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The quality gate on one decoding of a chunk.

    Attributes:
        start, length: of the chunk, in seconds of the recording's speech (silence left out).
        context: what the encoder saw, in seconds; 30 is all.
        temperature: 0 searches, above samples.
        verdict: ``plausible`` or ``silence``, ``phantom``, ``loop``, ``unsure``, ``repeated``, ``hasty``, ``skipped``.
        tokens: how many the text has.
        voiced: seconds of voice in the chunk, None where nobody has listened for it.
        hole: seconds of speech that no word accounts for, in one place; None where there were words enough not to look.
    """

    start: float
    length: float
    context: float
    temperature: float
    verdict: str
    tokens: int
    voiced: float | None
    hole: float | None
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Where a request's time went, in seconds, and what it took.

    Attributes:
        audio_seconds: length of the recording.
        speech_seconds: length of what voice activity detection kept.
        queue_seconds: longest wait of one of its chunks before a batch took it.
        engine_seconds: wall time of the batches that carried its chunks, shared by their rows.
        chunks: how many pieces the speech was cut into.
        retries: how many chunks the quality gate sent back.
    """

    audio_seconds: float = 0.0
    speech_seconds: float = 0.0
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0
    chunks: int = 0
    retries: int = 0


Event = LanguageDetected | Progress | ChunkDone | SegmentsReady | Done


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a loaded (or loadable) model can do.

    Attributes:
        name: as configured: a size, a hub repository, a directory, or ``demo``.
        languages: codes that it transcribes; one for an English-only model.
        mel_bands: rows of its log-mel spectrogram, 80 or 128.
    """

    name: str
    multilingual: bool
    languages: tuple[str, ...] = field(repr=False)
    mel_bands: int = 80
