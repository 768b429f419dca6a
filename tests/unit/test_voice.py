from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import faster_whisper.vad
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metalscribe.engine.voice import WINDOW, SpeechRegions, VoiceActivity, VoiceOptions
from metalscribe.media.pcm import BLOCK, SAMPLE_RATE
from metalscribe.media.recording import Recording

OPTIONS = VoiceOptions()
LONGEST = 30 * SAMPLE_RATE

# Stretches of equal probability: random windows one by one would never make the long runs that cuts depend on.
RUNS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.34, 0.36, 0.49, 0.5, 0.9, 1.0]), st.integers(1, 400)), max_size=30
)
TAIL = st.integers(0, WINDOW - 1)


def probabilities_of(runs: list[tuple[float, int]]) -> list[float]:
    return [value for value, count in runs for _ in range(count)]


def regions_of(probabilities: list[float], length: int, options: VoiceOptions = OPTIONS) -> list[tuple[int, int]]:
    detector = SpeechRegions(options)
    found = [region for probability in probabilities for region in detector.feed(probability)]
    return found + detector.finish(length)


def reference(probabilities: list[float], length: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """faster-whisper's own answer to the same probabilities (it pads by a whole window where none is missing)."""
    values = np.array([*probabilities, 0.0][: length // WINDOW + 1], np.float32)
    monkeypatch.setattr(faster_whisper.vad, "get_vad_model", lambda: lambda _: values)
    options = faster_whisper.vad.VadOptions(
        threshold=OPTIONS.threshold,
        max_speech_duration_s=OPTIONS.max_length,
        min_silence_duration_ms=int(OPTIONS.min_silence * 1000),
        speech_pad_ms=int(OPTIONS.pad * 1000),
    )
    found = faster_whisper.vad.get_speech_timestamps(np.zeros(length, np.float32), options)
    return [(region["start"], region["end"]) for region in found]


@settings(max_examples=150, deadline=None)
@given(RUNS, TAIL)
def test_regions_are_in_order_apart_short_and_inside_the_recording(runs: list[tuple[float, int]], tail: int) -> None:
    probabilities = probabilities_of(runs)
    length = max(0, len(probabilities) * WINDOW - tail)
    regions = regions_of(probabilities, length)
    assert all(0 <= start < end <= length for start, end in regions)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(regions))
    assert all(end - start <= LONGEST for start, end in regions)


@settings(max_examples=150, deadline=None)
@given(RUNS, TAIL)
def test_every_window_of_speech_is_covered(runs: list[tuple[float, int]], tail: int) -> None:
    probabilities = probabilities_of(runs)
    length = max(0, len(probabilities) * WINDOW - tail)
    kept = np.zeros(length, bool)
    for start, end in regions_of(probabilities, length):
        kept[start:end] = True
    missed = [
        index
        for index, probability in enumerate(probabilities)
        if probability >= OPTIONS.threshold and not kept[index * WINDOW : (index + 1) * WINDOW].all()
    ]
    assert not missed


@settings(max_examples=100, deadline=None)
@given(RUNS)
def test_nothing_that_was_forgotten_is_asked_for_later(runs: list[tuple[float, int]]) -> None:
    detector = SpeechRegions(OPTIONS)
    needed = 0
    probabilities = probabilities_of(runs)
    for probability in probabilities:
        regions = detector.feed(probability)
        assert all(start >= needed for start, _ in regions)
        assert detector.needed_from >= needed
        needed = detector.needed_from
    assert all(start >= needed for start, _ in detector.finish(len(probabilities) * WINDOW))


@settings(max_examples=100, deadline=None)
@given(RUNS)
def test_history_stays_bounded(runs: list[tuple[float, int]]) -> None:
    detector = SpeechRegions(OPTIONS)
    for index, probability in enumerate(probabilities_of(runs), start=1):
        detector.feed(probability)
        assert index * WINDOW - detector.needed_from <= 2 * LONGEST


@settings(max_examples=150, deadline=None)
@given(RUNS, TAIL)
def test_regions_equal_the_reference_wherever_speech_has_pauses(runs: list[tuple[float, int]], tail: int) -> None:
    probabilities = probabilities_of(runs)
    length = max(0, len(probabilities) * WINDOW - tail)
    assume(length > 0)
    assume(not cuts_hard(probabilities))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert regions_of(probabilities, length) == reference(probabilities, length, monkeypatch)


def cuts_hard(probabilities: list[float]) -> bool:
    """Whether somebody speaks for thirty seconds without a pause, where this detector deliberately differs."""
    detector = SpeechRegions(OPTIONS)
    cut: list[int] = []
    original = detector._cut

    def spy(now: int) -> Any:
        if detector._pause is None:
            cut.append(now)
        return original(now)

    detector._cut = spy  # type: ignore[method-assign]
    for probability in probabilities:
        detector.feed(probability)
    return bool(cut)


def test_speech_without_a_pause_is_cut_and_loses_nothing() -> None:
    windows = 4000  # 128 s
    regions = regions_of([0.9] * windows, windows * WINDOW)
    assert regions[0][0] == 0
    assert regions[-1][1] == windows * WINDOW
    assert all(before[1] == after[0] for before, after in itertools.pairwise(regions))
    assert all(end - start <= LONGEST for start, end in regions)


def test_a_long_stretch_is_cut_at_its_last_pause() -> None:
    speech, pause = [0.9], [0.1]
    probabilities = speech * 300 + pause * 6 + speech * 300 + pause * 6 + speech * 600
    regions = regions_of(probabilities, len(probabilities) * WINDOW)
    assert regions[0] == (0, 606 * WINDOW + 3 * WINDOW)
    assert regions[1][0] == regions[0][1]


def test_stretches_that_are_near_share_the_silence_between_them() -> None:
    probabilities = [0.9] * 20 + [0.0] * 18 + [0.9] * 20
    middle = 20 * WINDOW + 9 * WINDOW
    assert regions_of(probabilities, 58 * WINDOW) == [(0, middle), (middle, 58 * WINDOW)]


def test_silence_has_no_regions() -> None:
    assert regions_of([0.0] * 1000, 1000 * WINDOW) == []
    assert regions_of([], 0) == []


# --- the detector itself ----------------------------------------------------------------------------------------------


def probabilities_in_blocks(samples: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    voice = VoiceActivity()
    return np.concatenate(
        [voice.probabilities(samples[at : at + block]) for at in range(0, samples.size, block)]
        or [np.empty(0, np.float32)]
    )


@pytest.fixture(scope="module")
def speech(data: Path) -> NDArray[np.float32]:
    """The first 90 seconds of a long recording."""
    with (data / "english/longform/longform_dev.flac").open("rb") as file:
        blocks = itertools.islice(Recording(file).blocks(), 88)
        return np.concatenate(list(blocks))


@pytest.mark.speech
def test_probabilities_do_not_depend_on_the_blocks(data: Path) -> None:
    with (data / "english/jfk/jfk.flac").open("rb") as file:  # nowhere digitally silent, which resets the detector
        speech = np.concatenate(list(Recording(file).blocks()))
    whole = probabilities_in_blocks(speech, speech.size)
    assert whole.shape == (-(-speech.size // WINDOW),)
    np.testing.assert_allclose(probabilities_in_blocks(speech, BLOCK), whole, atol=1e-4)
    np.testing.assert_allclose(probabilities_in_blocks(speech, 7 * WINDOW), whole, atol=1e-4)


@pytest.mark.speech
def test_regions_of_real_speech_equal_the_reference(speech: NDArray[np.float32]) -> None:
    samples = speech[:-100]  # not a whole number of windows
    expected = faster_whisper.vad.get_speech_timestamps(
        samples, faster_whisper.vad.VadOptions(max_speech_duration_s=30.0, min_silence_duration_ms=500)
    )
    ours = regions_of([float(value) for value in probabilities_in_blocks(samples, BLOCK)], samples.size)
    assert ours == [(region["start"], region["end"]) for region in expected]
    assert len(ours) > 5


def test_digital_silence_is_silence_and_a_short_last_block_counts() -> None:
    voice = VoiceActivity()
    assert voice.probabilities(np.zeros(BLOCK, np.float32)).tolist() == [0.0] * (BLOCK // WINDOW)
    assert voice.probabilities(np.zeros(0, np.float32)).size == 0
    assert voice.probabilities(np.full(WINDOW + 1, 0.01, np.float32)).shape == (2,)
