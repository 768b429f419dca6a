"""Engines on the real models, for the modules that need one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.margins import adaptive_context
from metalscribe.engine.weights import describe
from metalscribe.transcript import Done, TranscriptionRequest
from models import ModelNotInstalled, base_model


@asynccontextmanager
async def serving(path: Path, name: str) -> AsyncIterator[LocalEngine]:
    """An engine on a model, set up as the service does it."""
    process = ModelProcessOptions(path=path, name=name, device="cpu", idle_timeout_secs=0)
    options = EngineOptions(model=process, adaptive=adaptive_context("auto", name, path), max_queue=100)
    engine = LocalEngine(describe(path, name=name), options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def base_path() -> Path:
    """Directory of multilingual base; skips where its packages are missing."""
    try:
        return base_model()
    except ModelNotInstalled as error:
        pytest.skip(str(error))


async def done(engine: LocalEngine, path: Path, **options: object) -> Done:
    """What becomes of a recording."""
    last = None
    async for event in engine.transcribe(TranscriptionRequest(path, **options)):  # type: ignore[arg-type]
        last = event
    assert isinstance(last, Done)
    return last
