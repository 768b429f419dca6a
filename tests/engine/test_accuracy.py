from __future__ import annotations

import asyncio
from pathlib import Path

import jiwer
import pytest
from faster_whisper import WhisperModel
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.weights import describe
from metalscribe.transcript import Done, TranscriptionRequest
from whisper_normalizer.english import EnglishTextNormalizer

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
