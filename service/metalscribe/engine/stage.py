"""A recording's blocks to chunks of at most 30 seconds of speech. Runs inside the decoders' sandbox, as their stage."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metalscribe.engine.chunker import CHUNK_SECONDS
from metalscribe.engine.voice import WINDOW, SpeechRegions, VoiceActivity, VoiceOptions
from metalscribe.media.messages import Piece
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.media.sandbox import Output, Stage

_VOICED: Final = 0.5

_LONG_OPENING: Final = 15 * SAMPLE_RATE
_OPENING: Final = (5 * SAMPLE_RATE, 9 * SAMPLE_RATE, 12 * SAMPLE_RATE)
"""The first chunk of a long recording: at least, about, and at most so many samples."""

_Samples = NDArray[np.float32]


def stage(options: Mapping[str, Any], output: Output) -> Stage:
    """Chunks of speech, or without ``options["vad"]`` the whole recording cut where it is quiet.

    ``options["longest"]``: of a chunk, in seconds; 30 at most.
    """
    longest = min(CHUNK_SECONDS, float(options.get("longest", CHUNK_SECONDS)))
    return SpeechChunks(output, longest=longest) if options.get("vad", True) else QuietCuts(output, longest=longest)


def prepare() -> None:
    """Load the detector and use it once, so that processes that are forked from this one find it warm."""
    VoiceActivity().probabilities(np.sin(np.arange(WINDOW, dtype=np.float32)))


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of speech with what the detector thought of it.

    Attributes:
        source: where it stood in the recording, in samples.
        samples: float32[n].
        voice: float32, a probability per 32 ms window of the recording, the first one's window holding ``source``.
    """

    source: int
    samples: _Samples
    voice: _Samples

    @property
    def voiced(self) -> float:
        """Seconds of voice."""
        return min(self.samples.size, WINDOW * int((self.voice >= _VOICED).sum())) / SAMPLE_RATE

    def split(self, at: int) -> tuple[_Stretch, _Stretch]:
        """The first ``at`` samples, and the rest."""
        middle = self.source + at
        window = middle // WINDOW - self.source // WINDOW
        return (
            _Stretch(self.source, self.samples[:at], self.voice[: window + 1]),
            _Stretch(middle, self.samples[at:], self.voice[window:]),
        )


class SpeechChunks:
    """Stretches of speech glued together, up to 30 seconds a chunk; silence is left out.

    The first chunk of a recording that has more is a short one, so that its words come early.
    """

    def __init__(self, output: Output, voice: VoiceActivity | None = None, *, longest: float = CHUNK_SECONDS) -> None:
        self._output = output
        self._longest = int(longest * SAMPLE_RATE)
        self._detector = voice or VoiceActivity()
        self._regions = SpeechRegions(VoiceOptions(max_length=longest))
        self._history = _History()
        self._voice: deque[float] = deque()  # of the windows that history has, and a few before
        self._windows = 0  # how many have gone from its left
        self._glued: list[_Stretch] = []
        self._length = 0
        self._opening = True

    def feed(self, block: _Samples) -> None:
        """Take a block, float32[n]; n is a whole number of 512-sample windows but for the last block."""
        self._history.append(block)
        for probability in self._detector.probabilities(block):
            self._voice.append(float(probability))
            self._collect(self._regions.feed(float(probability)))
        self._forget(self._regions.needed_from)

    def finish(self) -> None:
        """Put what is left."""
        self._collect(self._regions.finish(self._history.end))
        self._flush()

    def _forget(self, before: int) -> None:
        self._history.forget(before)
        while self._windows < before // WINDOW:
            self._voice.popleft()
            self._windows += 1

    def _collect(self, regions: list[tuple[int, int]]) -> None:
        for start, end in regions:
            if self._length + end - start > self._longest:
                if self._opening and self._length > _LONG_OPENING:
                    self._put(self._take(_quiet_place(self._glued, *_OPENING)))
                while self._length + end - start > self._longest:
                    self._put(self._take(_longest_pause(self._glued, start, self._longest)))
            first, last = start // WINDOW - self._windows, -(-end // WINDOW) - self._windows
            voice = np.array(list(itertools.islice(self._voice, first, last)), np.float32)
            self._glued.append(_Stretch(start, self._history.take(start, end), voice))
            self._length += end - start

    def _flush(self) -> None:
        if self._length:
            self._put(self._take(self._length))

    def _take(self, length: int) -> list[_Stretch]:
        """Take the first ``length`` samples out."""
        taken: list[_Stretch] = []
        self._length -= length
        while length > 0:
            stretch = self._glued.pop(0)
            if stretch.samples.size > length:
                stretch, rest = stretch.split(length)
                self._glued.insert(0, rest)
            taken.append(stretch)
            length -= stretch.samples.size
        return taken

    def _put(self, stretches: list[_Stretch]) -> None:
        self._opening = False
        self._output.put(
            np.concatenate([stretch.samples for stretch in stretches]),
            [Piece(stretch.source, stretch.samples.size) for stretch in stretches],
            voiced=sum(stretch.voiced for stretch in stretches),
        )


def _quiet_place(stretches: Sequence[_Stretch], low: int, wanted: int, high: int) -> int:
    """Where glued speech is best cut between ``low`` and ``high``: between two stretches, else where voice is least.

    All in samples from the start; of several joints the nearest to ``wanted``.
    """
    joints = itertools.accumulate(stretch.samples.size for stretch in stretches[:-1])
    within = [joint for joint in joints if low <= joint <= high]
    if within:
        return min(within, key=lambda joint: abs(joint - wanted))
    begin = 0
    for stretch in stretches:
        if begin <= low < begin + stretch.samples.size:
            # No joint between low and high: both lie in this stretch.
            first, last = (
                (stretch.source + place - begin) // WINDOW - stretch.source // WINDOW for place in (low, high)
            )
            quietest = first + int(stretch.voice[first : last + 1].argmin())
            place = (stretch.source // WINDOW + quietest) * WINDOW + WINDOW // 2 - stretch.source + begin
            return min(max(place, low), high)
        begin += stretch.samples.size
    return wanted


def _longest_pause(stretches: Sequence[_Stretch], following: int, longest: int) -> int:
    """Where glued speech is cut when no more fits: at its longest pause, most likely the end of a sentence.

    Args:
        stretches: what is glued.
        following: where the next stretch stands in the recording.
        longest: samples of a chunk; the pause is looked for in its second half.

    Returns:
        samples from the start; of equal pauses the last.
    """
    sources = [*(stretch.source for stretch in stretches[1:]), following]
    joint = place = 0
    pause = -1
    for stretch, source in zip(stretches, sources, strict=True):
        joint += stretch.samples.size
        gap = source - stretch.source - stretch.samples.size
        if (joint >= longest // 2 or stretch is stretches[-1]) and gap >= pause:
            place, pause = joint, gap
    return place


class QuietCuts:
    """The whole recording, cut at the quietest moment of each window's last five seconds; the first chunk is a short one."""

    _SEARCH: Final = 5 * SAMPLE_RATE
    _FRAME: Final = SAMPLE_RATE // 5

    def __init__(self, output: Output, *, longest: float = CHUNK_SECONDS) -> None:
        self._output = output
        self._longest = int(longest * SAMPLE_RATE)
        self._history = _History()
        self._cut = 0

    def feed(self, block: _Samples) -> None:
        """Take a block, float32[n]."""
        self._history.append(block)
        while self._history.end - self._cut >= self._longest:
            low, _, high = _OPENING
            end = self._cut + self._longest
            self._put(self._quietest(low, high) if self._cut == 0 else self._quietest(end - self._SEARCH, end))

    def finish(self) -> None:
        """Put what is left."""
        if self._history.end > self._cut:
            self._put(self._history.end)

    def _quietest(self, start: int, end: int) -> int:
        """The middle of the quietest fifth of a second of [start, end), which is a whole number of them."""
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
