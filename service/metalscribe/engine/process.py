"""One model's process: started, spoken to, ended. What it is for is decided by :mod:`metalscribe.engine.lifecycle`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from metalscribe.channel import Channel
from metalscribe.engine.messages import FromModel, Load
from metalscribe.engine.processor import wider_instructions
from metalscribe.media.decode import signal_name

_LAST_WORDS_SECONDS: Final = 0.5
"""A process that hung up by itself (a crash) is about to exit with a status of its own; it is left so long to do so."""


# The encoder asks for buffers of tens of megabytes and gives them back, thousands of times a minute. glibc maps such anew each
# time, and a quarter of the encoder's time went into pages that the kernel cleared. Kept in one heap they are used again.
_KEPT_BYTES: Final = 256 * 1024 * 1024
_ALLOCATOR: Final = ":".join(
    (
        "glibc.malloc.arena_max=1",
        f"glibc.malloc.mmap_threshold={_KEPT_BYTES}",
        f"glibc.malloc.trim_threshold={_KEPT_BYTES}",
    )
)


@dataclass(frozen=True, slots=True)
class ModelProcessOptions:
    """What to load and how long to keep it; see the settings of the same names.

    Attributes:
        worker: the module that is the process.
    """

    path: Path
    name: str
    device: str = "auto"
    compute_type: str = "auto"
    cpu_threads: int = 0
    idle_timeout_secs: float = 300.0
    gpu_poll_interval_secs: float = 30.0
    worker: str = "metalscribe.engine.worker"


class ModelProcess:
    """A process from :meth:`start` to :meth:`end`; never started twice."""

    def __init__(self, channel: Channel[FromModel], process: asyncio.subprocess.Process) -> None:
        self._channel = channel
        self._process = process

    @classmethod
    async def start(cls, options: ModelProcessOptions) -> ModelProcess:
        """Start the process and tell it to load its model.

        Raises:
            OSError: the machine cannot start one.
            ChannelClosed: it died at once.
        """
        ours, theirs = Channel.pair()
        channel: Channel[FromModel] = Channel(ours, FromModel)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", options.worker, str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env=_environment(),
                )
        except BaseException:
            channel.close()
            raise
        started = cls(channel, process)
        try:
            await started.send(Load(str(options.path), options.device, options.compute_type, options.cpu_threads))
        except BaseException:
            await started.end(at_once=True)
            raise
        return started

    @property
    def pid(self) -> int:
        """Its number in this machine's (or container's) table of processes."""
        return self._process.pid

    async def receive(self) -> FromModel:
        """What it says next.

        Raises:
            ChannelClosed: it is gone, or :meth:`hang_up` was called.
            msgspec.DecodeError: it said something that nobody understands.
        """
        message, descriptors = await self._channel.areceive()
        for descriptor in descriptors:
            os.close(descriptor)  # none was asked for
        return message

    async def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Say something to it.

        Raises:
            ChannelClosed: it is gone.
        """
        await self._channel.asend(message, descriptors)

    def hang_up(self) -> None:
        """Close the channel; the process ends itself upon that, and whoever is in :meth:`receive` meets ChannelClosed."""
        self._channel.close()

    def kill(self) -> None:
        """End it by force."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, *, at_once: bool = False) -> str:
        """Hang up and wait until it is gone, with all of its memory; returns its exit status in words.

        Args:
            at_once: nobody is interested in how it would end by itself.
        """
        self._channel.close()
        # Not asyncio.timeout: this also runs in a task that is being cancelled, where Python 3.11 mistakes the two.
        waiting = asyncio.ensure_future(self._process.wait())
        if not at_once:
            await asyncio.wait({waiting}, timeout=_LAST_WORDS_SECONDS)
        if not waiting.done():
            self.kill()
        status = await waiting
        return signal_name(-status) if status < 0 else f"status {status}"


def _environment() -> dict[str, str]:
    """What the model's process may know: where things are, and what concerns the GPU and threads. No secrets."""
    prefixes = ("CUDA_", "NVIDIA_", "OMP_", "MKL_", "CT2_", "LC_")
    names = {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "TZ", "GLIBC_TUNABLES"}
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith(prefixes)}
    if (wider := wider_instructions()) is not None:
        kept.setdefault("CT2_FORCE_CPU_ISA", wider)
    kept.setdefault("GLIBC_TUNABLES", _ALLOCATOR)
    # Features need one thread; those of numpy's library would only spin beside the model's.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
