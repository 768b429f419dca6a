"""The Whisper model in its process: audio in, tokens and words out. Knows nothing of requests.

CTranslate2 does the work; features, tokenizer and alignment are faster-whisper's parts. Nothing outside the model's own
process imports this module: it loads CTranslate2 and with it, on a GPU, a CUDA context.
"""

from __future__ import annotations

import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens, merge_punctuations
from numpy.typing import NDArray

from metalscribe.engine.context import MAX_TOKENS
from metalscribe.engine.cuda import load_cublas
from metalscribe.engine.messages import AlignedWord, DecodeOptions, Phrase, RowDone, Search
from metalscribe.engine.phrases import split_by_stamps, with_stamps

_FRAMES_PER_SECOND: Final = 100

# Best first; int8 halves the memory and costs less than 0.1 points of word error rate.
_PREFERENCE: Final = {
    "cuda": ("int8_float16", "float16", "int8_bfloat16", "int8_float32", "int8", "float32"),
    "cpu": ("int8_float32", "int8", "float32"),
}

# Punctuation that belongs to the word after or before it (OpenAI Whisper, timing).
_PREPENDED: Final = "\"'“¿([{-"
_APPENDED: Final = "\"'.。,，!！?？:：”)]}、"

# Whisper's features are clamped so far below their loudest, and at an absolute floor: what it was trained to see where there is
# no sound. Features of zero, with which faster-whisper pads, are a hum to it (docs/performance.md).
_SILENCE_BELOW_LOUDEST: Final = 2.0
_LEAST_FEATURE: Final = -1.5

_LANGUAGES: Final = 5
"""So many of a clip's likeliest languages are told."""

_TOKENS_PER_LETTER: Final = 4
"""At most: one for each byte that it has in UTF-8."""

_Samples = NDArray[np.float32]
_Features = NDArray[np.float32]


def choose_device(wanted: str) -> str:
    """``cuda`` or ``cpu`` for a wish of auto, cuda or cpu."""
    if wanted != "auto":
        return wanted
    return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"


def choose_compute_type(wanted: str, device: str) -> str:
    """The best type that ``device`` supports, for a wish of auto; anything else is taken as it is.

    Raises:
        ValueError: the device does not support the type asked for; names those it does.
    """
    supported = ctranslate2.get_supported_compute_types(device)
    if wanted == "auto":
        return next(kind for kind in _PREFERENCE[device] if kind in supported)
    if wanted not in supported and wanted != "default":
        raise ValueError(
            f"compute type {wanted!r} is not supported on {device}; it supports {', '.join(sorted(supported))}"
        )
    return wanted


def share_cores(cores: int) -> tuple[int, int]:
    """How many batches to decode side by side on the CPU, and with how many threads each.

    Whisper's decoder writes one token after another, and threads that share one token's work wait for each other more than
    they work: two batches on a core each are half as fast again as one after the other on both (docs/performance.md).
    """
    parallel = 1 if cores < 2 else 2 if cores < 8 else 4
    return parallel, max(1, cores // parallel)


@dataclass(frozen=True, slots=True)
class Clip:
    """A row as the model takes it.

    Attributes:
        features: float32[n_mels, frames] from :meth:`SpeechModel.features`.
        seconds: length of the samples.
        language: code, None to detect it.
        max_tokens: after so many the text is cut off; 0 asks for the language alone.
        align_below: a text of fewer tokens gets its words even where they were not asked for.
    """

    row: int
    features: _Features
    seconds: float
    language: str | None
    options: DecodeOptions
    max_tokens: int = MAX_TOKENS
    align_below: int = 0


class SpeechModel:
    """A loaded Whisper model.

    Args:
        path: directory in CTranslate2's format.
        device: auto, cuda or cpu.
        compute_type: auto or one of CTranslate2's.
        cpu_threads: 0 takes all cores.

    Attributes:
        parallel: how many threads may be in :meth:`decode` at a time with profit.

    Raises:
        RuntimeError: CTranslate2's own words, for example of memory that is not there.
        ValueError: the compute type is not supported.
    """

    def __init__(self, path: str, *, device: str = "auto", compute_type: str = "auto", cpu_threads: int = 0) -> None:
        load_cublas()
        self.device = choose_device(device)
        self.compute_type = choose_compute_type(compute_type, self.device)
        self.parallel, threads = 1, 0
        if self.device == "cpu":
            self.parallel, threads = share_cores(cpu_threads or len(os.sched_getaffinity(0)))
        self._whisper = WhisperModel(
            path,
            device=self.device,
            compute_type=self.compute_type,
            cpu_threads=threads,
            num_workers=self.parallel,
            local_files_only=True,
        )
        self._model = self._whisper.model
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}
        self._suppressed = get_suppressed_tokens(self._tokenizer("en", "transcribe"), [-1])
        self._eot = int(self._whisper.hf_tokenizer.token_to_id("<|endoftext|>"))
        self._clock = threading.local()

    def take_seconds(self) -> float:
        """Wall time that this thread has spent inside CTranslate2 since it asked last."""
        seconds, self._clock.seconds = getattr(self._clock, "seconds", 0.0), 0.0
        return float(seconds)

    def features(self, samples: _Samples) -> _Features:
        """float32[n] samples at 16 kHz to their log-mel spectrogram, float32[n_mels, ceil(n / 160)]."""
        return np.asarray(self._whisper.feature_extractor(samples)[..., :-1], np.float32)

    def decode(
        self,
        clips: Sequence[Clip],
        search: Search,
        context: int,
        *,
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> Iterator[RowDone]:
        """Transcribe clips together.

        Rows whose prompts have the same length share a call: CTranslate2 wants the text to begin at one position in all rows.

        Args:
            clips: the rows; language, task and prompt may differ.
            search: how to look for the text.
            context: frames that the encoder gets, at least those of the longest clip; the rest is silence.
            wanted: asked between encoding and decoding; where it is False for all rows of a call, the work ends there.

        Yields:
            a result per clip that was still wanted, as calls finish.
        """
        calls: dict[int, list[Clip]] = {}
        for clip in clips:
            calls.setdefault(len(self._before(clip.options)), []).append(clip)
        for together in calls.values():
            yield from self._decode_together(together, search, context, wanted)

    def _decode_together(
        self, clips: Sequence[Clip], search: Search, context: int, wanted: Callable[[int], bool]
    ) -> Iterator[RowDone]:
        encoded = self._timed(self._encode, clips, context)
        if not any(wanted(clip.row) for clip in clips):
            return
        rankings = self._languages(encoded, clips)
        asked = [row for row, clip in enumerate(clips) if clip.max_tokens == 0]
        if asked:
            silences = self._timed(self._no_speech_probs, self._some_rows(encoded, asked))
            for row, no_speech_prob in zip(asked, silences, strict=True):
                yield _language_alone(clips[row], rankings[row], no_speech_prob)
            rest = [row for row in range(len(clips)) if row not in asked]
            if not rest:
                return
            clips, rankings = [clips[row] for row in rest], [rankings[row] for row in rest]
            encoded = self._some_rows(encoded, rest)
        languages = [ranking[0] for ranking in rankings]
        results = self._timed(self._generate, encoded, clips, languages, search)
        tokens = [self._text_tokens(result.sequences_ids[0]) for result in results]
        words = self._timed(self._align, encoded, clips, languages, tokens)
        for clip, ranking, result, text_tokens, row_words in zip(clips, rankings, results, tokens, words, strict=True):
            yield self._row(clip, ranking, result, text_tokens, row_words, search)

    def _timed(self, work: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            self._clock.seconds = getattr(self._clock, "seconds", 0.0) + time.perf_counter() - begin

    def _encode(self, clips: Sequence[Clip], context: int) -> ctranslate2.StorageView:
        features = padded([clip.features for clip in clips], context)
        return self._model.encode(ctranslate2.StorageView.from_array(features), to_cpu=False)

    def _languages(self, encoded: ctranslate2.StorageView, clips: Sequence[Clip]) -> list[list[tuple[str, float]]]:
        """What languages each clip may be in and how probably, likeliest first; where it was told, that one."""
        if not self._model.is_multilingual:
            return [[("en", 1.0)] for _ in clips]
        if all(clip.language is not None for clip in clips):
            return [[(clip.language or "", 1.0)] for clip in clips]
        detected = self._timed(self._model.detect_language, encoded)
        return [
            [(clip.language, 1.0)] if clip.language is not None else _ranked(ranked, clip.options.languages)
            for clip, ranked in zip(clips, detected, strict=True)
        ]

    def _no_speech_probs(self, encoded: ctranslate2.StorageView) -> list[float]:
        """How probably nobody speaks in each row; a single token is written for it."""
        start = self._tokenizer("en", "transcribe").sot_sequence
        results = self._model.generate(
            encoded,
            [start] * encoded.shape[0],
            max_length=len(start) + 1,
            beam_size=1,
            return_no_speech_prob=True,
        )
        return [float(result.no_speech_prob) for result in results]

    def _generate(
        self,
        encoded: ctranslate2.StorageView,
        clips: Sequence[Clip],
        languages: Sequence[tuple[str, float]],
        search: Search,
    ) -> list[ctranslate2.models.WhisperGenerationResult]:
        prompts = [
            self._prompt(clip.options, language, search) for clip, (language, _) in zip(clips, languages, strict=True)
        ]
        how: dict[str, Any] = {"beam_size": search.beam_size}
        if search.temperature > 0:
            how = {
                "beam_size": 1,
                "num_hypotheses": search.best_of,
                "sampling_topk": 0,
                "sampling_temperature": search.temperature,
            }
        # CTranslate2 writes at most half of max_length, and no more than what the prompt leaves of it.
        tokens = max(clip.max_tokens for clip in clips)
        return self._model.generate(  # type: ignore[no-any-return]
            encoded,
            prompts,
            max_length=min(self._whisper.max_length, max(2 * tokens, len(prompts[0]) + tokens)),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            max_initial_timestamp_index=50,  # a second, as in Whisper
            **how,
        )

    def _before(self, options: DecodeOptions) -> list[int]:
        """The tokens before the text: hotwords, prompt and previous text share half of the model's window, as in Whisper.

        Each of the first two gets at most half of what is left to it, so that something is left for the others.
        """
        tokenizer = self._tokenizer("en", options.task)
        room = self._whisper.max_length // 2 - 1
        hotwords = tokenizer.encode(" " + options.hotwords.strip()) if options.hotwords else []
        prompt = tokenizer.encode(" " + options.prompt.strip()) if options.prompt else []
        previous = list(options.previous)
        hotwords = hotwords[: room // 2 if prompt or previous else room]
        room -= len(hotwords)
        prompt = prompt[-(room // 2 if previous else room) :]
        room -= len(prompt)
        before = [*hotwords, *prompt, *previous[-room:]]
        return [tokenizer.sot_prev, *before] if before else []

    def _prompt(self, options: DecodeOptions, language: str, search: Search) -> list[int]:
        tokenizer = self._tokenizer(language, options.task)
        return [
            *self._before(options),
            *tokenizer.sot_sequence,
            *([] if search.timestamps else [tokenizer.no_timestamps]),
        ]

    def _align(
        self,
        encoded: ctranslate2.StorageView,
        clips: Sequence[Clip],
        languages: Sequence[tuple[str, float]],
        tokens: Sequence[list[int]],
    ) -> list[list[AlignedWord]]:
        """The words of those clips that want or need them: one call for all rows of a language and task."""
        words: list[list[AlignedWord]] = [[] for _ in clips]
        together: dict[tuple[str, str], list[int]] = {}
        for row, (clip, (language, _)) in enumerate(zip(clips, languages, strict=True)):
            if tokens[row] and (clip.options.words or len(tokens[row]) < clip.align_below):
                together.setdefault((language, clip.options.task), []).append(row)
        for (language, task), rows in together.items():
            alignment = self._whisper.find_alignment(
                self._tokenizer(language, task),
                [tokens[row] for row in rows],
                self._some_rows(encoded, rows),
                [math.ceil(_FRAMES_PER_SECOND * clips[row].seconds) for row in rows],
            )
            for row, aligned in zip(rows, alignment, strict=True):
                merge_punctuations(aligned, _PREPENDED, _APPENDED)
                words[row] = [
                    AlignedWord(
                        float(word["start"]),
                        float(word["end"]),
                        word["word"],
                        float(word["probability"]),
                        len(word["tokens"]),
                    )
                    for word in aligned
                    if word["word"]
                ]
        return words

    def _some_rows(self, encoded: ctranslate2.StorageView, rows: list[int]) -> ctranslate2.StorageView:
        if len(rows) == encoded.shape[0]:
            return encoded
        host = encoded if self.device == "cpu" else encoded.to_device(ctranslate2.Device.cpu)
        chosen = ctranslate2.StorageView.from_array(np.ascontiguousarray(np.asarray(host)[rows]))
        return chosen if self.device == "cpu" else chosen.to_device(ctranslate2.Device.cuda)

    def _row(
        self,
        clip: Clip,
        ranking: list[tuple[str, float]],
        result: ctranslate2.models.WhisperGenerationResult,
        tokens: list[int],
        words: list[AlignedWord],
        search: Search,
    ) -> RowDone:
        language, probability = ranking[0]
        tokenizer = self._tokenizer(language, clip.options.task)
        text = tokenizer.decode(tokens)
        sequence = result.sequences_ids[0]
        phrases: list[Phrase] = []
        context: list[int] = []
        advance = length = clip.seconds
        if search.timestamps:
            split, advance = split_by_stamps(sequence, tokenizer.timestamp_begin, length)
            phrases = [Phrase(start, end, tokenizer.decode(part), part) for start, end, part in split]
            context = with_stamps(split, tokenizer.timestamp_begin)
        return RowDone(
            row=clip.row,
            text=text,
            tokens=tokens,
            language=language,
            language_probability=probability,
            # The score is divided by the length; Whisper's mean counts the end of text too.
            avg_logprob=float(result.scores[0]) * len(sequence) / (len(sequence) + 1),
            no_speech_prob=float(result.no_speech_prob),
            compression_ratio=compression_ratio(text.strip()),
            words=words,
            phrases=phrases,
            context=context,
            advance=advance,
            truncated=len(sequence) >= clip.max_tokens,
            languages=[] if clip.language else ranking,
        )

    def _text_tokens(self, sequence: Sequence[int]) -> list[int]:
        """The tokens without special ones, and without the first bytes of a letter that the others were cut off from."""
        tokens = [token for token in sequence if token < self._eot]
        tokenizer = self._tokenizer("en", "transcribe")
        while tokens and tokenizer.decode(tokens[-_TOKENS_PER_LETTER:]).endswith("\ufffd"):
            tokens.pop()
        return tokens

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        known = self._tokenizers.get((language, task))
        if known is None:
            known = Tokenizer(self._whisper.hf_tokenizer, self._model.is_multilingual, task=task, language=language)
            self._tokenizers[language, task] = known
        return known


def _ranked(ranking: Sequence[tuple[str, float]], among: Sequence[str]) -> list[tuple[str, float]]:
    """The likeliest languages of those that are allowed, if any are named, and their shares of the probability."""
    known = [(token.strip("<|>"), float(probability)) for token, probability in ranking]
    allowed = [(code, probability) for code, probability in known if code in among]
    total = sum(probability for _, probability in allowed)
    return ([(code, probability / total) for code, probability in allowed] if total else known)[:_LANGUAGES]


def _language_alone(clip: Clip, ranking: list[tuple[str, float]], no_speech_prob: float) -> RowDone:
    language, probability = ranking[0]
    return RowDone(
        row=clip.row,
        text="",
        tokens=[],
        language=language,
        language_probability=probability,
        avg_logprob=0.0,
        no_speech_prob=no_speech_prob,
        compression_ratio=0.0,
        words=[],
        languages=ranking,
    )


def padded(rows: Sequence[_Features], frames: int) -> _Features:
    """Spectrograms float32[n_mels, any] as float32[rows, n_mels, frames], cut there or with silence behind them.

    Silence is what :meth:`SpeechModel.features` has for samples of zero behind such speech.
    """
    together = np.empty((len(rows), rows[0].shape[0], frames), np.float32)
    for place, row in zip(together, rows, strict=True):
        own = min(frames, row.shape[-1])
        place[:, :own] = row[:, :own]
        place[:, own:] = max(row.max(initial=_LEAST_FEATURE) - _SILENCE_BELOW_LOUDEST, _LEAST_FEATURE)
    return together


def compression_ratio(text: str) -> float:
    """Bytes over compressed bytes: repetition loops come out above 2.4."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
