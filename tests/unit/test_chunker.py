from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metalscribe.engine.chunker import CHUNK_SAMPLES
from metalscribe.engine.stage import QuietCuts, SpeechChunks, stage
from metalscribe.engine.voice import WINDOW, SpeechRegions, VoiceActivity, VoiceOptions
from metalscribe.media.messages import Piece
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE
from metalscribe.media.recording import Recording

Samples = NDArray[np.float32]


class Collected:
    """An output that keeps what it is given."""

    def __init__(self) -> None:
        self.chunks: list[tuple[Samples, list[Piece]]] = []
        self.voiced: list[float | None] = []

    def put(self, samples: Samples, pieces: list[Piece], *, voiced: float | None = None) -> None:
        self.chunks.append((samples.copy(), list(pieces)))
        self.voiced.append(voiced)
        assert voiced is None or 0 <= voiced <= samples.size / SAMPLE_RATE


class Scripted(VoiceActivity):
    """Probabilities as a test wants them, in place of the neural detector's."""

    def __init__(self, probabilities: list[float]) -> None:
        self._probabilities = probabilities
        self._at = 0

    def probabilities(self, block: Samples) -> NDArray[np.float32]:
        windows = -(-block.size // WINDOW)
        self._at += windows
        return np.array(self._probabilities[self._at - windows : self._at], np.float32)


def numbered(count: int) -> Samples:
    """Samples that tell where they stood: all different, exactly representable, none beyond 1."""
    return (np.arange(count, dtype=np.float32) / 2**24).astype(np.float32)


def feed(consumer: SpeechChunks | QuietCuts, samples: Samples, block: int = BLOCK) -> None:
    for at in range(0, samples.size, block):
        consumer.feed(samples[at : at + block])
    consumer.finish()


def check(chunks: list[tuple[Samples, list[Piece]]], source: Samples) -> None:
    """Chunks are short enough, and their samples are those of their pieces, in order."""
    end = 0
    for samples, pieces in chunks:
        assert 0 < samples.size <= CHUNK_SAMPLES
        assert samples.dtype == np.float32
        assert sum(piece.length for piece in pieces) == samples.size
        for piece in pieces:
            assert piece.source >= end
            end = piece.source + piece.length
        np.testing.assert_array_equal(
            samples, np.concatenate([source[piece.source : piece.source + piece.length] for piece in pieces])
        )
    assert end <= source.size


RUNS = st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.9]), st.integers(1, 700)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(RUNS, st.integers(0, WINDOW - 1), st.sampled_from([BLOCK, 3 * WINDOW]))
def test_glued_chunks_are_the_regions_and_nothing_else(runs: list[tuple[float, int]], tail: int, block: int) -> None:
    probabilities = [value for value, count in runs for _ in range(count)]
    source = numbered(max(0, len(probabilities) * WINDOW - tail))
    output = Collected()
    feed(SpeechChunks(output, Scripted(probabilities)), source, block)
    check(output.chunks, source)

    regions = SpeechRegions(VoiceOptions())
    expected = [region for probability in probabilities for region in regions.feed(probability)]
    expected += regions.finish(source.size)
    assert joined([p for _, pieces in output.chunks for p in pieces], expected) == expected
    voiced = sum(value >= 0.5 for value in probabilities) * WINDOW / SAMPLE_RATE
    assert sum(filter(None, output.voiced)) == pytest.approx(voiced, abs=0.04 + 0.07 * len(expected))


def joined(pieces: list[Piece], regions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces as spans, those that a cut has parted put together again."""
    ends = {end for _, end in regions}
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        if spans and spans[-1][1] == piece.source and piece.source not in ends:
            spans[-1] = (spans[-1][0], piece.source + piece.length)
        else:
            spans.append((piece.source, piece.source + piece.length))
    return spans


def test_stretches_are_glued_as_long_as_they_fit() -> None:
    probabilities = ([0.9] * 200 + [0.0] * 100) * 20  # 6.4 s of speech and pads, then silence
    source = numbered(len(probabilities) * WINDOW)
    output = Collected()
    feed(SpeechChunks(output, Scripted(probabilities)), source)
    check(output.chunks, source)
    # 7.2 s each with its pads; the first chunk is short, since others follow.
    assert [len(pieces) for _, pieces in output.chunks] == [1, 4, 4, 4, 4, 3]
    assert output.voiced == pytest.approx([pytest.approx(6.4 * len(pieces)) for _, pieces in output.chunks])


def test_chunks_end_at_the_longest_pause() -> None:
    # 6.2 s of speech a time with its pads, three of them fit; the pause after each third is the longest.
    probabilities = []
    for number in range(1, 13):
        probabilities += [0.9] * 170 + [0.0] * (90 if number % 3 == 0 else 45)
    source = numbered(len(probabilities) * WINDOW)
    output = Collected()
    feed(SpeechChunks(output, Scripted(probabilities), longest=24.0), source)
    check(output.chunks, source)
    assert [len(pieces) for _, pieces in output.chunks] == [1, 2, 3, 3, 3]


@pytest.mark.parametrize(("seconds", "lengths"), [(14, [14]), (29, [29]), (70, [9, 29, 29, 3])])
def test_the_first_words_of_a_long_recording_come_early(seconds: int, lengths: list[int]) -> None:
    # Speech without a pause that voice activity would cut at, but less voice for a moment at nine seconds.
    probabilities = [0.9] * round(seconds * SAMPLE_RATE / WINDOW)
    probabilities[9 * SAMPLE_RATE // WINDOW] = 0.6
    output = Collected()
    source = numbered(len(probabilities) * WINDOW)
    feed(SpeechChunks(output, Scripted(probabilities)), source)
    check(output.chunks, source)
    assert [round(samples.size / SAMPLE_RATE) for samples, _ in output.chunks][:1] == lengths[:1]
    assert len(output.chunks) == len(lengths)


def test_memory_of_the_past_is_given_up_in_silence() -> None:
    output = Collected()
    chunker = SpeechChunks(output, Scripted([0.0] * 20_000))
    for _ in range(300):
        chunker.feed(np.zeros(BLOCK, np.float32))
    assert len(chunker._history._blocks) <= 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100 * SAMPLE_RATE), st.sampled_from([BLOCK, 1000, 2 * CHUNK_SAMPLES]))
def test_quiet_cuts_cover_every_sample_once(length: int, block: int) -> None:
    source = numbered(length)
    output = Collected()
    feed(QuietCuts(output), source, block)
    check(output.chunks, source)
    assert all(len(pieces) == 1 for _, pieces in output.chunks)
    covered = [(piece.source, piece.source + piece.length) for _, pieces in output.chunks for piece in pieces]
    assert [start for start, _ in covered] == [0, *(end for _, end in covered)][: len(covered)]
    assert (covered[-1][1] if covered else 0) == length
    assert all(samples.size >= CHUNK_SAMPLES - 5 * SAMPLE_RATE for samples, _ in output.chunks[1:-1])
    if length >= CHUNK_SAMPLES:
        assert 5 * SAMPLE_RATE <= output.chunks[0][0].size <= 12 * SAMPLE_RATE


def test_the_cut_is_made_where_it_is_quiet() -> None:
    loud = np.random.default_rng(1).uniform(-0.5, 0.5, 60 * SAMPLE_RATE).astype(np.float32)
    for second in (8, 36):
        loud[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE] = 0.0
    output = Collected()
    feed(QuietCuts(output), loud)
    ends = [pieces[0].source + pieces[0].length for _, pieces in output.chunks]
    assert 8 * SAMPLE_RATE <= ends[0] <= 9 * SAMPLE_RATE
    assert 36 * SAMPLE_RATE <= ends[1] <= 37 * SAMPLE_RATE


def test_the_stage_follows_the_option() -> None:
    assert isinstance(stage({}, Collected()), SpeechChunks)
    assert isinstance(stage({"vad": True}, Collected()), SpeechChunks)
    assert isinstance(stage({"vad": False}, Collected()), QuietCuts)


@pytest.mark.speech
def test_real_speech_keeps_its_samples(data: Path) -> None:
    with (data / "english/longform/longform_dev.flac").open("rb") as file:
        blocks = list(itertools.islice(Recording(file).blocks(), 120))
    source = np.concatenate(blocks)
    output = Collected()
    chunker = SpeechChunks(output)
    for block in blocks:
        chunker.feed(block)
    chunker.finish()
    check(output.chunks, source)
    kept = sum(samples.size for samples, _ in output.chunks)
    assert 0.5 * source.size < kept <= source.size
    assert len(output.chunks) >= kept // CHUNK_SAMPLES
