"""The machine and the versions that a result was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_ROOT: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("ctranslate2", "faster-whisper", "onnxruntime", "av")
_SECRET: Final = ("KEY", "URL", "STORAGE", "SECRET", "TOKEN")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader needs to judge the figures.

    Attributes:
        cpu: its model as the kernel names it.
        cores: those that this process may use.
        memory_bytes: all of the machine's.
        gpu: its name; None where the model ran on the CPU.
        commit: metalscribe's, with ``+`` where files differ from it.
        settings: ``METALSCRIBE_`` variables of the environment, without secrets and paths.
    """

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    settings: dict[str, str]


def describe_machine(device: str) -> Machine:
    """This machine, at this moment."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpu=_gpu() if device == "cuda" else None,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        commit=_commit(),
        settings={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("METALSCRIBE_") and "/" not in value and not any(part in name for part in _SECRET)
        },
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _gpu() -> str | None:
    import pynvml  # noqa: PLC0415

    pynvml.nvmlInit()
    try:
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        return name if isinstance(name, str) else name.decode()
    finally:
        pynvml.nvmlShutdown()


def _commit() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "service")
    return f"{commit}+" if changed else commit or "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here: an unpacked archive
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
