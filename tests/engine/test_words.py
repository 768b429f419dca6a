"""Words and their times on recordings that are hard to align: a meeting, music, noise, other languages, translations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from engines import base_path, done, serving

from metalscribe.engine.local import LocalEngine
from metalscribe.transcript import Mode, Task, Transcript
from transcripts import check

pytestmark = [
    pytest.mark.model,
    pytest.mark.speech,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tiny(demo_model: Path) -> AsyncIterator[LocalEngine]:
    async with serving(demo_model, "demo") as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def base() -> AsyncIterator[LocalEngine]:
    async with serving(base_path(), "base") as one:
        yield one


def check_words(transcript: Transcript) -> None:
    check(transcript, words=True)
    words = [word for segment in transcript.segments for word in segment.words]
    assert all(0 < word.end - word.start < 2.01 for word in words)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("diarization/pyannote_ami_debug/dev01.wav", 30),  # a meeting, far from the microphone
        ("hostile/whisperkit/8_Channel_ID.m4a", 8),  # single words with pauses
        ("hostile/music_only/manolo_camp-morning_coffee.wav", 0),
    ],
)
async def test_english(tiny: LocalEngine, data: Path, name: str, least: int, mode: Mode) -> None:
    transcript = (await done(tiny, data / name, mode=mode, word_timestamps=True)).transcript
    check_words(transcript)
    assert sum(len(segment.words) for segment in transcript.segments) >= least


async def test_noise_taken_for_speech(tiny: LocalEngine, data: Path) -> None:
    name = "hostile/generated/tone_440_30s.flac"
    check_words((await done(tiny, data / name, vad=False, word_timestamps=True)).transcript)


@pytest.mark.parametrize(
    ("name", "mode", "task"),
    [
        ("asterisk/es/demo-enterkeywords.wav", Mode.ACCURATE, Task.TRANSLATE),
        ("asterisk/fr/vm-rec-unv.wav", Mode.ACCURATE, Task.TRANSCRIBE),
        ("leopard/test_de.wav", Mode.FAST, Task.TRANSLATE),
        ("misc/common_voice_ja_24511055.mp3", Mode.ACCURATE, Task.TRANSCRIBE),
        ("misc/aishell-BAC009S0724W0121.wav", Mode.FAST, Task.TRANSCRIBE),
    ],
)
async def test_other_languages(base: LocalEngine, data: Path, name: str, mode: Mode, task: Task) -> None:
    path = data / "multilingual" / name
    transcript = (await done(base, path, mode=mode, task=task, word_timestamps=True)).transcript
    check_words(transcript)
    assert sum(len(segment.words) for segment in transcript.segments) >= 5
