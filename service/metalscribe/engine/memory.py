"""How much memory models take: estimated from their weights before they are loaded, measured afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from metalscribe.engine.manifest import WEIGHTS
from metalscribe.gpu.health import GpuHealth, GpuReport, visible
from metalscribe.gpu.watch import GpuWatch

MIB: Final = 1024 * 1024

_OVERHEAD: Final = 160 * MIB
"""A process without its weights: interpreter and libraries on the CPU, the CUDA context on a GPU; and one row's buffers."""

_FACTORS: Final = {"float32": 2.5}
"""Bytes in memory per byte of weights. Models come as float16; 8-bit types shrink them, but pass through more."""


def estimate(path: Path, compute_type: str) -> int:
    """Bytes that a model will about take, from the size of its weights; 0 where they are not there.

    Measured with tiny.en on the CPU (72 MiB of weights): 215 MiB as int8_float32 against an estimate of 239, 406 MiB as
    float32 against 340.
    """
    try:
        weights = (path / WEIGHTS).stat().st_size
    except OSError:
        return 0  # loading it will say what is wrong
    return _OVERHEAD + int(weights * _FACTORS.get(compute_type, 1.1))


class MemoryGauge:
    """Measures: a process's resident memory on the CPU, its share of the card on a GPU.

    Args:
        watch: None on machines whose GPUs nobody watches.
    """

    def __init__(self, watch: GpuWatch | None = None) -> None:
        self._watch = watch

    async def used(self, pid: int, device: str, baseline: int | None = None) -> int | None:
        """Bytes that a process takes of its device's memory; None where that cannot be known.

        Args:
            pid: the process.
            device: ``cpu`` or ``cuda``.
            baseline: what :meth:`card_used` said before the process began. The driver numbers processes as its own kernel
                does, so that in a container, or where it tells nothing, only the card's difference is left.
        """
        if device == "cpu":
            return resident(pid)
        report = await self._report()
        if report is None:
            return None
        known = [
            process.memory_bytes
            for gpu in report.gpus
            for process in gpu.processes or ()
            if process.pid == pid and process.memory_bytes is not None
        ]
        if known:
            return sum(known)
        card = _card(report)
        if baseline is None or card is None or card.memory_used is None:
            return None
        return max(0, card.memory_used - baseline)

    async def card_used(self) -> int | None:
        """Bytes in use on the GPU that models are loaded onto; None without one."""
        report = await self._report()
        card = _card(report) if report is not None else None
        return card.memory_used if card is not None else None

    async def _report(self) -> GpuReport | None:
        return await self._watch.report(fresh=True) if self._watch is not None else None


def _card(report: GpuReport) -> GpuHealth | None:
    """CTranslate2 takes the first GPU that CUDA sees."""
    return next(iter(visible(report, os.environ.get("CUDA_VISIBLE_DEVICES"))), None)


def resident(pid: int) -> int | None:
    """Bytes of memory that a process has, what it shares with others included; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None
