"""The running service and the recordings that the API's tests share."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from nvml import HEALTHY, compiled, tell

from .harness import SAMPLE, Service, Start, running, wav

GPUS = HEALTHY | {"gpu0.xid": "31"}
READER = "prometheus-of-the-newsroom"


@pytest.fixture(scope="session")
def service(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service most tests share; nothing may be left of a test in it."""
    with running(tmp_path_factory.mktemp("service") / "state", IDLE_TIMEOUT_SECS=0) as made:
        yield made


@pytest.fixture(scope="session")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control file of two GPUs, whose library alone is simulated, in the folder of that library (see tests/nvml.py)."""
    folder = tmp_path_factory.mktemp("nvml")
    compiled(folder)
    tell(folder / "control", GPUS)
    return folder / "control"


@pytest.fixture(scope="session")
def observed(demo_model: Path, tmp_path_factory: pytest.TempPathFactory, gpus: Path) -> Iterator[Service]:
    """A service that exports every series there is. Its model is on the CPU; the GPUs are there to be watched."""
    settings = {"IDLE_TIMEOUT_SECS": 0, "METRICS_COMPAT": "whisperx", "ALLOW_NETWORKS": "127.0.0.0/8"}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LD_LIBRARY_PATH", str(gpus.parent))
        environment.setenv("FAKE_NVML_CONTROL", str(gpus))
        service = running(tmp_path_factory.mktemp("observed") / "state", **settings)
        made = service.__enter__()
    yield made
    service.__exit__(None, None, None)


@pytest.fixture(scope="session")
def reader(observed: Service) -> httpx.Client:
    """Whoever may read the metrics of ``observed``, and no more."""
    return observed.client(observed.new_key(READER, "--scope", "metrics"))


@pytest.fixture
def start(demo_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a service with settings of the test's own; again in the same state directory, if called twice."""
    with_settings: list[Any] = []

    def begin(**settings: object) -> Service:
        context = running(tmp_path / "state", **settings)
        with_settings.append(context)
        made: Service = context.__enter__()
        return made

    yield begin
    for context in reversed(with_settings):
        context.__exit__(None, None, None)


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.client()


@pytest.fixture(scope="session")
def sample() -> bytes:
    """The packaged recording, 14.7 s of FLAC."""
    return SAMPLE.read_bytes()


@pytest.fixture(scope="session")
def sample_text() -> str:
    return (files("metalscribe") / "samples" / "sample.txt").read_text().strip()


@pytest.fixture(scope="session")
def long_wav(sample: bytes) -> bytes:
    """Twenty minutes of the sample over and over, 16 kHz mono."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(io.BytesIO(sample), "r") as container:
        pieces = [
            piece.to_ndarray().ravel() for frame in container.decode(audio=0) for piece in resampler.resample(frame)
        ]
    once = np.concatenate(pieces).astype("<i2")
    return wav(np.tile(once, int(np.ceil(20 * 60 * 16_000 / once.size))))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mounted)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)
