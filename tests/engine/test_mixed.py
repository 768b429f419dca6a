"""Rows of different languages, tasks and prompts in the same batches: each says what it says alone. Multilingual base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from engines import base_path, serving

from metalscribe.engine.local import LocalEngine
from metalscribe.transcript import Done, Task, Transcript, TranscriptionRequest

pytestmark = [
    pytest.mark.model,
    pytest.mark.speech,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[LocalEngine]:
    async with serving(base_path(), "base") as made:
        yield made


async def transcribe(engine: LocalEngine, request: TranscriptionRequest) -> Transcript:
    last = None
    async for event in engine.transcribe(request):
        last = event
    assert isinstance(last, Done)
    assert all(decision.temperature == 0 for decision in last.decisions), "sampled: nobody knows what comes of it"
    return last.transcript


async def test_four_languages_two_tasks_and_many_prompts_at_once(engine: LocalEngine, data: Path) -> None:
    folder = data / "multilingual" / "leopard"
    names = {"en": "test.wav", "de": "test_de.wav", "es": "test_es.wav", "fr": "test_fr.wav"}
    requests = [
        TranscriptionRequest(
            folder / name, language=language if told else None, task=task, prompt=prompt, word_timestamps=words
        )
        for language, name in names.items()
        for told, task, prompt, words in [
            (True, Task.TRANSCRIBE, None, False),
            (False, Task.TRANSCRIBE, None, True),
            (True, Task.TRANSLATE, None, False),
            (True, Task.TRANSCRIBE, "Mister Quilter, Bauwerke, bosques", True),
            (False, Task.TRANSCRIBE, "Glossary: portal", False),
        ]
    ]
    alone = [await transcribe(engine, request) for request in requests]
    together = await asyncio.gather(*(transcribe(engine, request) for request in requests))
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.language for one in together] == [language for language in names for _ in range(5)]
    assert [one.segments for one in together] == [one.segments for one in alone]
    translated = {one.text for one, request in zip(alone, requests, strict=True) if request.task is Task.TRANSLATE}
    assert len(translated) == 4
    assert "portal" in " ".join(translated).lower()
