"""Several recordings at once, answered in order: what the local engine and a remote service have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metalscribe.cli.progress import Bars, OnProgress
from metalscribe.errors import (
    ConfigurationError,
    Forbidden,
    InvalidParameter,
    MetalscribeError,
    ModelMissing,
    Unauthenticated,
)
from metalscribe.transcript import TranscriptionRequest

Answer = str | dict[str, Any]
"""A finished document: the native JSON one as a dictionary, any other as text."""

Transcribe = Callable[[TranscriptionRequest, OnProgress], Awaitable[Answer]]
"""Transcribes one recording; many may be under way at once."""

HOPELESS = (ConfigurationError, InvalidParameter, Unauthenticated, Forbidden, ModelMissing)
"""Errors that every other recording would meet as well."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one recording has no transcript."""

    reason: str


async def in_order(
    requests: Sequence[TranscriptionRequest], transcribe: Transcribe, *, at_once: int, bars: Bars
) -> AsyncGenerator[Answer | Failure]:
    """Transcribe several recordings at a time and hand the outcomes on in the order of the requests.

    Closing the iterator cancels what is under way.

    Raises:
        MetalscribeError: one of :data:`HOPELESS`; the rest is given up.
    """
    places = asyncio.Semaphore(at_once)

    async def one(request: TranscriptionRequest) -> Answer | Failure:
        async with places:
            with bars.bar(request.name) as progress:
                try:
                    return await transcribe(request, progress)
                except HOPELESS:
                    raise
                except MetalscribeError as error:
                    return Failure(error.detail)
                except OSError as error:
                    return Failure(error.strerror or str(error))

    tasks = [asyncio.create_task(one(request)) for request in requests]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
