"""Where the time goes at saturation: py-spy's look into the model's process, and the processor time of all processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench.errors import BenchmarkError
from bench.footprint import cpu_seconds, own_cpu_seconds, thread_cpu_seconds
from bench.machine import Machine
from bench.recordings import Recordings
from bench.stage import Stage
from bench.ways import Setup
from bench.workloads import Clients

_RATE: Final = 50
_CLIENTS: Final = 8
_WAY: Final = "http"

# The first that a stack has a part of decides.
_PARTS: Final = (
    ("CTranslate2", ("ctranslate2",)),
    ("waiting for a batch", ("SimpleQueue_get", "Worker.run (metalscribe/engine/worker.py")),
    ("features (log-mel, NumPy)", ("FeatureExtractor",)),
    ("tokenizer", ("tokenizer",)),
)
_REST: Final = "the rest"
_MODEL: Final = _PARTS[0][0]
_WAITING: Final = _PARTS[1][0]

_MODEL_PROCESS: Final = "the model"
_SERVICE: Final = "the service"
_DECODERS: Final = "the decoders"
_THREAD: Final = re.compile(r"thread \((\d+)\)")


class ProfilerFailed(BenchmarkError):
    """py-spy could not look into the model's process; the message has its words."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile.

    Attributes:
        samples: of the model's process's threads that call CTranslate2, by what they were doing.
        cpu_seconds: processor time by process: the model's (its native threads and its Python threads), the service's, the
            decoders'.
        audio_seconds: transcribed meanwhile.
    """

    measured: str
    model: str
    device: str
    machine: Machine
    samples: dict[str, int]
    cpu_seconds: dict[str, float]
    audio_seconds: float

    @property
    def key(self) -> str:
        """What tells it from others: file names and the documents' markers have it."""
        return f"{self.model}-{self.device}-profile"

    @property
    def model_percent(self) -> float:
        """What share of the time that its thread was busy CTranslate2 had, in percent."""
        busy = sum(self.samples.values()) - self.samples.get(_WAITING, 0)
        return 100 * self.samples.get(_MODEL, 0) / busy if busy else 0.0


@dataclass(frozen=True, slots=True)
class Observed:
    """See :class:`Profile`."""

    samples: dict[str, int]
    cpu_seconds: dict[str, float]
    audio_seconds: float


def observe(setup: Setup, recordings: Recordings, seconds: int) -> Observed:
    """Profile the service while eight clients keep it busy.

    Raises:
        ProfilerFailed: py-spy is not allowed to look (it needs ptrace: root, or ``kernel.yama.ptrace_scope=0``), or not there.
        StageFailed: the service does not start, or fails.
    """
    raw = setup.scratch / "stacks.txt"
    audio = 0.0
    with Stage(_WAY, setup, recordings) as stage:
        if stage.model_pid is None:
            raise ProfilerFailed("the service has no model process")
        before, threads_before = _cpu(stage.pid, stage.model_pid), thread_cpu_seconds(stage.model_pid)
        with _spy(stage.model_pid, seconds, raw) as spy:
            while spy.poll() is None:
                _, figures = stage.run(Clients(_CLIENTS))
                audio += figures["audio_seconds"]
            words = spy.stderr.read().decode() if spy.stderr is not None else ""
        if spy.returncode:
            raise ProfilerFailed(f"py-spy: {words.strip()}")
        after, threads_after = _cpu(stage.pid, stage.model_pid), thread_cpu_seconds(stage.model_pid)
    lines = raw.read_text().splitlines()
    model, service, decoders = (after[name] - before[name] for name in (_MODEL_PROCESS, _SERVICE, _DECODERS))
    python = sum(threads_after.get(thread, 0.0) - threads_before.get(thread, 0.0) for thread in python_threads(lines))
    spent = {
        "the model, native threads (CTranslate2, OpenBLAS)": model - python,
        "the model, Python threads": python,
        _SERVICE: service,
        _DECODERS: decoders,
    }
    return Observed(shares(lines), spent, audio)


def shares(lines: Iterable[str]) -> dict[str, int]:
    """Samples by what a thread was doing, of the threads that have ever been in CTranslate2.

    Args:
        lines: py-spy's ``raw`` format: frames from the outermost on, the thread's name first, separated by semicolons;
            a space; the number of samples.
    """
    by_thread: dict[str, Counter[str]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        by_thread.setdefault(thread, Counter())[_part(frames)] += int(count)
    total: Counter[str] = Counter()
    for counter in by_thread.values():
        if counter[_MODEL]:
            total += counter
    return dict(total.most_common())


def python_threads(lines: Iterable[str]) -> set[int]:
    """Ids of the threads in py-spy's ``raw`` format: those that Python knows of."""
    return {int(found[1]) for line in lines if (found := _THREAD.match(line))}


def read(path: Path) -> Profile:
    """Read a document.

    Raises:
        msgspec.ValidationError: it is not one.
    """
    return msgspec.json.decode(path.read_bytes(), type=Profile)


def write(profile: Profile, path: Path) -> None:
    """Write the document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")


def _part(frames: list[str]) -> str:
    # What the worker's loop itself does is wait; the outermost frames are always there, so only the innermost counts.
    innermost = frames[-2:]
    for name, signs in _PARTS:
        within = innermost if name == _WAITING else frames
        if any(sign in frame for frame in within for sign in signs):
            return name
    return _REST


def _spy(pid: int, seconds: int, output: Path) -> subprocess.Popen[bytes]:
    # beside this Python first: whoever runs .venv/bin/python need not have it on the path
    program = shutil.which(
        "py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    )
    if program is None:
        raise ProfilerFailed("py-spy is not installed; the group dev brings it")
    # --native tells CTranslate2 from its caller; --idle, because the caller sleeps while CTranslate2's threads work.
    options = ["--native", "--idle", "--threads", "--format", "raw", "--rate", str(_RATE), "--duration", str(seconds)]
    return subprocess.Popen(
        [program, "record", "--pid", str(pid), "--output", str(output), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _cpu(service: int, model: int) -> dict[str, float]:
    all_together = cpu_seconds(service)
    own = {_MODEL_PROCESS: own_cpu_seconds(model), _SERVICE: own_cpu_seconds(service)}
    return {**own, _DECODERS: all_together - sum(own.values())}
