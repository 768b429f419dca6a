from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import jiwer
import numpy as np
import pytest
from faster_whisper import WhisperModel
from whisper_normalizer.english import EnglishTextNormalizer

from common import MakeWav
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.weights import describe
from metalscribe.media.pcm import SAMPLE_RATE
from metalscribe.media.recording import Recording
from metalscribe.transcript import Done, Mode, TranscriptionRequest

pytestmark = [pytest.mark.model, pytest.mark.speech]

COMPUTE_TYPE = "int8_float32"
CONCURRENT = 8


async def test_no_more_errors_than_the_reference(data: Path, demo_model: Path) -> None:
    """Utterance by utterance, eight at a time, against faster-whisper's own loop with the same model and search."""
    folder = data / "english/libri_test_other_dev"
    lines = [line.split("\t") for line in (folder / "ref.tsv").read_text().splitlines()[:20]]
    paths = [folder / f"{name}.flac" for name, _ in lines]

    process = ModelProcessOptions(path=demo_model, name="demo", device="cpu", compute_type=COMPUTE_TYPE)
    engine = LocalEngine(describe(demo_model, name="demo"), EngineOptions(model=process))
    places = asyncio.Semaphore(CONCURRENT)

    async def transcribe(path: Path) -> str:
        async with places:
            events = [event async for event in engine.transcribe(TranscriptionRequest(path, language="en"))]
        assert isinstance(events[-1], Done)
        return events[-1].transcript.text

    await engine.start()
    try:
        ours = await asyncio.gather(*map(transcribe, paths))
    finally:
        await engine.close()

    whisper = WhisperModel(str(demo_model), device="cpu", compute_type=COMPUTE_TYPE)
    theirs = [
        "".join(segment.text for segment in whisper.transcribe(str(path), beam_size=5, language="en")[0])
        for path in paths
    ]

    normalize = EnglishTextNormalizer()
    references = [normalize(text) for _, text in lines]
    ours_wer, theirs_wer = (jiwer.wer(references, [normalize(text) for text in texts]) for texts in (ours, theirs))
    assert ours_wer <= theirs_wer, f"word error rate {ours_wer:.2%} against the reference's {theirs_wer:.2%}"
    assert ours_wer < 0.25


async def test_accurate_mode_makes_no_more_errors_than_the_reference_on_connected_speech(
    data: Path, demo_model: Path, make_wav: MakeWav
) -> None:
    """Windows conditioned on the text before them, against faster-whisper's own sliding window."""
    folder = data / "english/longform"
    seconds = 180
    with (folder / "longform_dev.flac").open("rb") as file:
        samples = np.concatenate(list(itertools.islice(Recording(file).blocks(), seconds)))[: seconds * SAMPLE_RATE]
    rows = [line.split("\t") for line in (folder / "longform_dev.ref.tsv").read_text().splitlines()]
    last = max(float(row[1]) for row in rows if float(row[1]) <= seconds)
    path = make_wav(samples[: int(last * SAMPLE_RATE)])
    normalize = EnglishTextNormalizer()
    reference = normalize(" ".join(row[4] for row in rows if float(row[1]) <= last))

    process = ModelProcessOptions(path=demo_model, name="demo", device="cpu", compute_type=COMPUTE_TYPE)
    engine = LocalEngine(describe(demo_model, name="demo"), EngineOptions(model=process))
    await engine.start()
    try:
        request = TranscriptionRequest(path, mode=Mode.ACCURATE, vad=False, word_timestamps=True)
        events = [event async for event in engine.transcribe(request)]
    finally:
        await engine.close()
    done = events[-1]
    assert isinstance(done, Done)

    whisper = WhisperModel(str(demo_model), device="cpu", compute_type=COMPUTE_TYPE)
    theirs = "".join(segment.text for segment in whisper.transcribe(str(path), beam_size=5, language="en")[0])
    ours_wer, theirs_wer = (jiwer.wer(reference, normalize(text)) for text in (done.transcript.text, theirs))
    # Eight of some four hundred words: what the integer arithmetic of another processor makes of either.
    assert ours_wer <= theirs_wer + 0.02, f"word error rate {ours_wer:.2%} against the reference's {theirs_wer:.2%}"

    words = [word for segment in done.transcript.segments for word in segment.words]
    assert all(before.end <= after.start for before, after in itertools.pairwise(words)), "words go back in time"
