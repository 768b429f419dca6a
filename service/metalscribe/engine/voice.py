"""Voice activity: which stretches of a recording are speech, decided while it streams. Runs inside the decoders' sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metalscribe.engine.silero import CONTEXT, UNITS, WINDOW, load
from metalscribe.media.pcm import SAMPLE_RATE

_DIGITAL_SILENCE: Final = 1e-4  # −80 dBFS: three steps of 16-bit audio

_Samples = NDArray[np.float32]


class VoiceActivity:
    """Speech probability per window of 512 samples, with the detector's memory carried from block to block."""

    def __init__(self) -> None:
        self._network = load()
        self._reset()

    def _reset(self) -> None:
        self._hidden = np.zeros((1, 1, UNITS), np.float32)
        self._cell = np.zeros((1, 1, UNITS), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def probabilities(self, block: _Samples) -> NDArray[np.float32]:
        """float32[n] samples to float32[ceil(n / 512)]; every block but the last is a whole number of windows."""
        windows = -(-block.size // WINDOW)
        if block.size == 0 or float(np.abs(block).max()) < _DIGITAL_SILENCE:
            self._reset()
            return np.zeros(windows, np.float32)
        padded = np.zeros(windows * WINDOW, np.float32)
        padded[: block.size] = block
        rows = np.empty((windows, CONTEXT + WINDOW), np.float32)
        rows[:, CONTEXT:] = padded.reshape(windows, WINDOW)
        rows[0, :CONTEXT] = self._context
        rows[1:, :CONTEXT] = rows[:-1, -CONTEXT:]
        speech, self._hidden, self._cell = self._network(rows, self._hidden, self._cell)
        self._context = rows[-1, -CONTEXT:].copy()
        return speech


@dataclass(frozen=True, slots=True)
class VoiceOptions:
    """When speech begins and ends.

    Attributes:
        threshold: probability from which a window is speech.
        release: probability below which a window within speech is silence.
        min_silence: seconds of silence that end a stretch. 0.5 measured: 0.16 costs three points of word error rate on long
            recordings, because whole sentences are cut apart.
        pad: seconds kept on either side of a stretch, less where the neighbour is near.
        max_length: seconds after which a stretch is cut, at its last pause where there was one.
    """

    threshold: float = 0.5
    release: float = 0.35
    min_silence: float = 0.5
    pad: float = 0.4
    max_length: float = 30.0


class SpeechRegions:
    """Probabilities in, padded stretches of speech out; each is given as soon as nothing to come can change it.

    Stretches are in order, do not overlap, and none is longer than ``max_length``. The rules are Silero's own (hysteresis
    between two thresholds, cut at the last pause of at least 98 ms).
    """

    def __init__(self, options: VoiceOptions) -> None:
        self._options = options
        self._pad = int(options.pad * SAMPLE_RATE)
        self._min_silence = int(options.min_silence * SAMPLE_RATE)
        self._max_speech = int(options.max_length * SAMPLE_RATE) - WINDOW - 2 * self._pad
        self._pause_length = int(0.098 * SAMPLE_RATE)
        self._now = 0
        self._floor = 0  # end of the last stretch given out
        self._held: tuple[int, int] | None = None  # ended, but its padding depends on when the next one begins
        self._start: int | None = None
        self._padded_start = 0
        self._quiet_since: int | None = None
        self._pause: int | None = None  # where the last pause began, and where speech went on after it
        self._resume: int | None = None

    @property
    def needed_from(self) -> int:
        """The earliest sample that a stretch still to come may contain."""
        candidates = [self._now - self._pad]
        if self._held is not None:
            candidates.append(self._held[0])
        if self._start is not None:
            candidates.append(self._padded_start)
        return max(self._floor, min(candidates))

    def feed(self, probability: float) -> list[tuple[int, int]]:
        """Judge the next window; returns the stretches [start, end) in samples that became final."""
        final: list[tuple[int, int]] = []
        now, self._now = self._now, self._now + WINDOW
        speech = probability >= self._options.threshold
        if self._start is None:
            if speech:
                final += self._begin(now)
            elif self._held is not None and now - self._held[1] >= 2 * self._pad:
                final += self._let_go(self._held[1] + self._pad)
            return final
        if speech and self._quiet_since is not None:
            self._quiet_since = None
            if self._pause is not None and self._resume is None:
                self._resume = now
        if now - self._start > self._max_speech:
            final += self._cut(now)
        if probability < self._options.release:
            self._listen_to_silence(now)
        return final

    def finish(self, length: int) -> list[tuple[int, int]]:
        """The recording is ``length`` samples long and over."""
        if self._start is not None:
            self._end(length)
        return self._let_go(min(length, self._held[1] + self._pad)) if self._held is not None else []

    def _begin(self, now: int) -> list[tuple[int, int]]:
        final: list[tuple[int, int]] = []
        padding = self._pad
        if self._held is not None:
            gap = now - self._held[1]
            padding = min(self._pad, gap // 2)
            final = self._let_go(self._held[1] + min(self._pad, gap - gap // 2))
        self._start = now
        self._padded_start = max(self._floor, now - padding, 0)
        self._quiet_since = self._pause = self._resume = None
        return final

    def _end(self, end: int) -> None:
        self._held = (self._padded_start, end)
        self._start = self._quiet_since = self._pause = self._resume = None

    def _let_go(self, end: int) -> list[tuple[int, int]]:
        if self._held is None:
            return []
        start, self._held = self._held[0], None
        self._floor = end
        return [(start, end)] if end > start else []

    def _cut(self, now: int) -> list[tuple[int, int]]:
        if self._pause is None:
            self._end(now)
            return self._begin(now)
        resume = self._resume
        self._end(self._pause)
        return self._begin(resume) if resume is not None else []

    def _listen_to_silence(self, now: int) -> None:
        if self._start is None:  # the stretch was cut a moment ago
            return
        if self._quiet_since is None:
            self._quiet_since = now
        quiet = now - self._quiet_since
        if quiet > self._pause_length:
            self._pause, self._resume = self._quiet_since, None
        if quiet >= self._min_silence:
            self._end(self._quiet_since)


__all__ = ["WINDOW", "SpeechRegions", "VoiceActivity", "VoiceOptions"]
