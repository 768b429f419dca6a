"""What the service and a model's process say to each other over their channel."""

from __future__ import annotations

import msgspec


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this model; the first message."""

    path: str
    device: str
    compute_type: str
    cpu_threads: int


class OpenSource(msgspec.Struct, frozen=True, tag="open"):
    """Map a recording's ring (its descriptor comes along), float32[capacity] samples."""

    source: int
    capacity: int


class CloseSource(msgspec.Struct, frozen=True, tag="close"):
    """Unmap a ring; rows that still refer to it are dropped."""

    source: int


class DecodeOptions(msgspec.Struct, frozen=True):
    """What a row is to become; rows of one batch may differ in all of it.

    Attributes:
        task: ``transcribe`` or ``translate``.
        words: align the words with the audio.
        prompt, hotwords: text before the audio.
        previous: tokens of the text before, in place of ``prompt``.
        languages: codes among which to detect the language; empty for all.
    """

    task: str = "transcribe"
    words: bool = False
    prompt: str | None = None
    hotwords: str | None = None
    previous: tuple[int, ...] = ()
    languages: tuple[str, ...] = ()


class Search(msgspec.Struct, frozen=True):
    """How to look for the text; CTranslate2 takes it per call, so rows of one batch share it.

    Attributes:
        beam_size: hypotheses kept at temperature 0.
        temperature: above 0 samples instead of searching, with ``best_of`` candidates.
        timestamps: let the model write time stamps between its phrases.
    """

    beam_size: int = 5
    temperature: float = 0.0
    best_of: int = 5
    timestamps: bool = False


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Samples [start, start + length) of a source, at most 30 seconds.

    Attributes:
        language: code, None to detect it.
        align_below: a text of fewer tokens is aligned with its sound even where nobody asked for the words.
        max_tokens: after so many the row is given up as a loop; 0 asks for its language alone.
    """

    row: int
    source: int
    start: int
    length: int
    language: str | None
    options: DecodeOptions
    max_tokens: int
    align_below: int = 0


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """These rows will be in a batch soon: compute what can be computed before."""

    rows: list[Row]


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Decode these rows together, with ``context`` mel frames (10 ms each) in the encoder."""

    batch: int
    search: Search
    context: int
    rows: list[Row]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Nobody wants these rows any more."""

    rows: list[int]


ToModel = Load | OpenSource | CloseSource | Prepare | Batch | Cancel


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is loaded and has transcribed a second of silence.

    Attributes:
        device: ``cpu`` or ``cuda``.
        warm_up_seconds: what that took; the measure of a batch that hangs.
        parallel: how many batches it decodes at a time.
        rows: how many fit into the GPU's memory together; None where nobody knows.
    """

    device: str
    compute_type: str
    load_seconds: float
    warm_up_seconds: float
    parallel: int = 1
    rows: int | None = None


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded; the process ends. ``out_of_memory``: it may be possible later."""

    detail: str
    out_of_memory: bool


class AlignedWord(msgspec.Struct, frozen=True, array_like=True):
    """A word and its place, in seconds from the start of the row.

    Attributes:
        tokens: how many of the row's it takes.
    """

    start: float
    end: float
    text: str
    probability: float
    tokens: int = 1


class Phrase(msgspec.Struct, frozen=True, array_like=True):
    """What the model wrote between two of its time stamps, in seconds from the start of the row."""

    start: float
    end: float
    text: str
    tokens: list[int]


class RowDone(msgspec.Struct, frozen=True, tag="row"):
    """What a row says.

    Attributes:
        tokens: of the text, without special ones.
        phrases: the text by the model's own time stamps, if they were asked for.
        context: tokens of the complete phrases with their time stamps: what the next window is conditioned on.
        advance: seconds after which the next window should begin; the row's length where the model finished it.
        truncated: the text was cut off after ``max_tokens``.
        avg_logprob: mean log-probability of the tokens.
        compression_ratio: bytes of the text over bytes of its zlib compression.
        words: empty unless asked for, or aligned because there were so few tokens.
        languages: what the model took the row for, likeliest first, with probabilities; empty where it was told.
    """

    row: int
    text: str
    tokens: list[int]
    language: str
    language_probability: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    words: list[AlignedWord]
    phrases: list[Phrase] = []
    context: list[int] = []
    advance: float = 0.0
    truncated: bool = False
    languages: list[tuple[str, float]] = []


class BatchDone(msgspec.Struct, frozen=True, tag="batch_done"):
    """All rows of the batch are answered; seconds of wall time in all and inside CTranslate2."""

    batch: int
    seconds: float
    model_seconds: float


class BatchFailed(msgspec.Struct, frozen=True, tag="batch_failed"):
    """The batch raised, and the process is still sound. ``out_of_memory``: a smaller one may pass."""

    batch: int
    detail: str
    out_of_memory: bool


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Once a second, from a thread of its own: the process lives, whatever its batch is doing."""


FromModel = Loaded | LoadFailed | RowDone | BatchDone | BatchFailed | Heartbeat
