"""What ``metalscribe doctor`` tries out: decoding in the sandbox, and a real transcription."""

from __future__ import annotations

import asyncio
import math
import struct
import tempfile
import time
import wave
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from metalscribe.cli.findings import Finding, Status
from metalscribe.engine.interface import ModelState
from metalscribe.errors import ModelUnavailable
from metalscribe.media.decode import DecoderPool
from metalscribe.media.messages import Confinement, Ended
from metalscribe.settings import Settings, WhenUnloaded
from metalscribe.transcript import Done, Transcript, TranscriptionRequest

SAMPLE: Final = Path(__file__).parents[1] / "samples" / "sample.flac"
"""A few seconds of speech that come with the package."""

_DECODE_SECONDS: Final = 60.0
_LOAD_SECONDS: Final = 120.0
_TRANSCRIBE_SECONDS: Final = 300.0
_SAMPLE_RATE: Final = 16_000


def decoder(settings: Settings) -> Finding:
    """Whether recordings are decoded, and how well decoders are shut in."""
    del settings
    with tempfile.TemporaryDirectory(prefix="metalscribe-") as directory:
        tone = Path(directory) / "tone.wav"
        _write_tone(tone)
        samples, confinement = asyncio.run(_decode(tone))
    if samples != _SAMPLE_RATE:
        return Finding(Status.FAIL, f"a second of sound was decoded to {samples} samples, not {_SAMPLE_RATE}")
    if confinement is None or not confinement.seccomp:
        return Finding(Status.WARN, "decodes, but without a filter on system calls", "apt install libseccomp2")
    if confinement.network_namespace:
        return Finding(Status.OK, "decodes, without a network and behind a filter on system calls")
    return Finding(
        Status.WARN,
        f"decodes, but in the service's own network namespace ({confinement.reason})",
        "Decoders can still open no socket. For the second wall, let the service make namespaces: user namespaces must be "
        "allowed (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0) and its unit "
        "or container must not forbid them (RestrictNamespaces=).",
    )


def transcription(settings: Settings, sample: Path = SAMPLE) -> Finding:
    """Whether a recording comes out as words, with the service's own settings."""
    if not sample.is_file():
        return Finding(Status.WARN, "the sample recording is missing", "Install metalscribe again.")
    trial = settings.model_copy(
        update={
            "when_unloaded": WhenUnloaded.QUEUE,
            "load_timeout_secs": min(_LOAD_SECONDS, settings.load_timeout_secs),
        }
    )
    return asyncio.run(_try_out(trial, sample))


async def _try_out(settings: Settings, sample: Path) -> Finding:
    from metalscribe.app import build_engine  # noqa: PLC0415  (a broken service must not spoil the other checks)

    engine = build_engine(settings)
    await engine.start()
    try:
        begin = time.perf_counter()
        async with asyncio.timeout(_TRANSCRIBE_SECONDS):
            transcript = await _transcript(engine.transcribe(TranscriptionRequest(sample, name="sample")))
        seconds = time.perf_counter() - begin
    except ModelUnavailable as error:
        if engine.status.state is ModelState.WAITING_FOR_GPU:
            return Finding(
                Status.WARN,
                f"the GPU's memory is taken: {engine.status.detail}",
                "If the service holds it, that is as it should be; else `nvidia-smi` shows who does.",
            )
        return Finding(Status.FAIL, error.detail)
    except TimeoutError:
        return Finding(Status.FAIL, f"no transcript within {_TRANSCRIBE_SECONDS:g} s")
    finally:
        status = engine.status
        await engine.close()
    words = len(transcript.text.split())
    where = f"{status.model} on {status.device} ({status.compute_type or 'not loaded'})"
    if not words:
        return Finding(Status.FAIL, f"{transcript.duration:.1f} s of speech gave no words with {where}")
    return Finding(
        Status.OK, f"{words} words from {transcript.duration:.1f} s in {seconds:.1f} s, loading included, {where}"
    )


async def _transcript(events: Any) -> Transcript:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event.transcript
    raise RuntimeError("the engine ended without a result")


def _write_tone(path: Path) -> None:
    samples = (int(8000 * math.sin(2 * math.pi * 440 * moment / _SAMPLE_RATE)) for moment in range(_SAMPLE_RATE))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


async def _decode(path: Path) -> tuple[int, Confinement | None]:
    pool = DecoderPool()
    samples = 0
    try:
        async with asyncio.timeout(_DECODE_SECONDS), pool.open(path, capacity=4 * _SAMPLE_RATE) as session:
            async for message in session:
                if isinstance(message, Ended):
                    samples = message.samples
    finally:
        await pool.close()
    return samples, pool.confinement
