"""A recording's blocks to chunks of at most 30 seconds of speech. Runs inside the decoders' sandbox, as their stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metalscribe.engine.voice import WINDOW, SpeechRegions, VoiceActivity, VoiceOptions
from metalscribe.media.messages import Piece
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.media.sandbox import Output, Stage

STAGE: Final = "metalscribe.engine.chunker:stage"
"""This module's stage, as the decoder pool wants it named."""

CHUNK_SECONDS: Final = 30.0
"""Whisper's window; no chunk is longer."""

CHUNK_SAMPLES: Final = int(CHUNK_SECONDS * SAMPLE_RATE)

_Samples = NDArray[np.float32]


def stage(options: Mapping[str, Any], output: Output) -> Stage:
    """The stage for ``options["vad"]``: chunks of speech, or the whole recording cut where it is quiet."""
    return SpeechChunks(output) if options.get("vad", True) else QuietCuts(output)


class SpeechChunks:
    """Stretches of speech glued together, up to 30 seconds a chunk; silence is left out."""

    def __init__(self, output: Output, voice: VoiceActivity | None = None) -> None:
        self._output = output
        self._voice = voice or VoiceActivity()
        self._regions = SpeechRegions(VoiceOptions(max_length=CHUNK_SECONDS))
        self._history = _History()
        self._glued: list[_Samples] = []
        self._pieces: list[Piece] = []
        self._length = 0

    def feed(self, block: _Samples) -> None:
        """Take a block, float32[n]; n is a whole number of 512-sample windows but for the last block."""
        self._history.append(block)
        for probability in self._voice.probabilities(block):
            self._collect(self._regions.feed(float(probability)))
        self._history.forget(self._regions.needed_from)

    def finish(self) -> None:
        """Put what is left."""
        self._collect(self._regions.finish(self._history.end))
        self._flush()

    def _collect(self, regions: list[tuple[int, int]]) -> None:
        for start, end in regions:
            if self._length + end - start > CHUNK_SAMPLES:
                self._flush()
            self._glued.append(self._history.take(start, end))
            self._pieces.append(Piece(start, end - start))
            self._length += end - start

    def _flush(self) -> None:
        if self._length:
            self._output.put(np.concatenate(self._glued), self._pieces)
        self._glued, self._pieces, self._length = [], [], 0


class QuietCuts:
    """The whole recording, cut at the quietest moment of each window's last five seconds."""

    _SEARCH: Final = 5 * SAMPLE_RATE
    _FRAME: Final = SAMPLE_RATE // 5

    def __init__(self, output: Output) -> None:
        self._output = output
        self._history = _History()
        self._cut = 0

    def feed(self, block: _Samples) -> None:
        """Take a block, float32[n]."""
        self._history.append(block)
        while self._history.end - self._cut >= CHUNK_SAMPLES:
            self._put(self._quietest(self._cut + CHUNK_SAMPLES))

    def finish(self) -> None:
        """Put what is left."""
        if self._history.end > self._cut:
            self._put(self._history.end)

    def _quietest(self, end: int) -> int:
        """The middle of the quietest fifth of a second before ``end``."""
        start = end - self._SEARCH
        energy = np.square(self._history.take(start, end)).reshape(-1, self._FRAME).sum(axis=1)
        return start + int(energy.argmin()) * self._FRAME + self._FRAME // 2

    def _put(self, end: int) -> None:
        self._output.put(self._history.take(self._cut, end), [Piece(self._cut, end - self._cut)])
        self._cut = end
        self._history.forget(end)


class _History:
    """The latest blocks, addressed by their place in the recording."""

    def __init__(self) -> None:
        self._blocks: deque[tuple[int, _Samples]] = deque()
        self.end = 0

    def append(self, block: _Samples) -> None:
        self._blocks.append((self.end, block))
        self.end += block.size

    def forget(self, before: int) -> None:
        while self._blocks and self._blocks[0][0] + self._blocks[0][1].size <= before:
            self._blocks.popleft()

    def take(self, start: int, end: int) -> _Samples:
        """A copy of samples [start, end), as far as they exist."""
        parts = [block[max(0, start - at) : max(0, end - at)] for at, block in self._blocks]
        return np.concatenate([part for part in parts if part.size] or [np.empty(0, np.float32)])


__all__ = ["CHUNK_SAMPLES", "CHUNK_SECONDS", "STAGE", "WINDOW", "QuietCuts", "SpeechChunks", "stage"]
