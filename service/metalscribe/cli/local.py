"""Transcribing with an engine of one's own, in this process and those that it starts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final

from metalscribe.app import build_engine
from metalscribe.cli.progress import Bars, OnProgress
from metalscribe.cli.work import Answer, Transcribe
from metalscribe.engine.interface import ModelState
from metalscribe.engine.local import LocalEngine
from metalscribe.errors import EngineFailed
from metalscribe.render import Format, render, to_json
from metalscribe.settings import Settings
from metalscribe.transcript import Done, Progress, TranscriptionRequest

_SUBTITLES: Final = frozenset({Format.SRT, Format.VTT})
_LOOK_SECONDS: Final = 0.5


@asynccontextmanager
async def local_engine(settings: Settings, document: Format, bars: Bars) -> AsyncIterator[Transcribe]:
    """An engine that loads its model at once and ends, with all its processes, when the block is left.

    Raises:
        ModelMissing: the model is not on this machine, or is damaged.
    """
    engine = build_engine(settings)
    await engine.start()
    watching = asyncio.create_task(_tell_of_model(engine, bars))
    try:
        yield lambda request, progress: _answer(engine, request, document, progress)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await engine.close()


async def _answer(engine: LocalEngine, request: TranscriptionRequest, document: Format, progress: OnProgress) -> Answer:
    begin = time.perf_counter()
    wanted = replace(
        request,
        # Timing the segments costs an alignment pass, and subtitles are cut between words.
        segments=document is not Format.TEXT,
        word_timestamps=request.word_timestamps or document in _SUBTITLES,
    )
    async with aclosing(engine.transcribe(wanted)) as events:
        async for event in events:
            match event:
                case Progress(duration=duration):
                    progress("", event.percent if duration else None)
                case Done(transcript=transcript):
                    if document is not Format.JSON:
                        return render(transcript, document)
                    return to_json(
                        transcript,
                        id=str(uuid.uuid4()),
                        processing_time=time.perf_counter() - begin,
                        include_segments=True,
                        word_timestamps=request.word_timestamps,
                    )
    raise EngineFailed("the engine ended without a result")


async def _tell_of_model(engine: LocalEngine, bars: Bars) -> None:
    """While the model is not there, say so: loading takes a while, and waiting for a GPU's memory may take for ever."""
    told = ""
    with bars.bar("model") as show:
        while (status := engine.status).state is not ModelState.READY:
            show(str(status.state).replace("_", " "), None)
            if status.state is ModelState.WAITING_FOR_GPU and status.detail != told:
                told = status.detail
                bars.note(f"Waiting for the GPU: {told}")
            await asyncio.sleep(_LOOK_SECONDS)
