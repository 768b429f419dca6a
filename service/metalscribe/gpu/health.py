"""What is known of every GPU at one moment, and which of them CUDA would use.

A field is ``None`` where the driver, the GPU or the permissions do not give it. Everything here is plain data:
``dataclasses.asdict`` or :meth:`GpuReport.to_dict` makes JSON of it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class ProblemCode(StrEnum):
    """What can be wrong with the driver or with one GPU; the values are stable and safe to script against."""

    NO_NVIDIA_DRIVER = "no_nvidia_driver"
    """The machine has no NVIDIA library. Not a fault in itself: callers decide."""
    DRIVER_NOT_LOADED = "driver_not_loaded"
    DRIVER_MISMATCH = "driver_mismatch"
    NO_PERMISSION = "no_permission"
    NO_GPU = "no_gpu"
    GPU_MISSING = "gpu_missing"
    """A GPU that this process saw before is no longer listed."""
    GPU_LOST = "gpu_lost"
    GPU_RESET_REQUIRED = "gpu_reset_required"
    GPU_POWER_CABLE = "gpu_power_cable"
    GPU_INTERRUPTS = "gpu_interrupts"
    NVML_ERROR = "nvml_error"
    """Anything else; the message holds NVML's own text."""


@dataclass(frozen=True, slots=True)
class GpuProblem:
    """Something is wrong: ``message`` says what and how to mend it, in words for an operator."""

    code: ProblemCode
    message: str


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU: ``pid`` as the driver sees it (the host's, for a container), and bytes."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """One slice of a GPU in multi-instance mode; memory in bytes."""

    uuid: str | None
    name: str | None
    gpu_instance: int | None
    compute_instance: int | None
    memory_total: int | None
    memory_free: int | None
    memory_used: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """One GPU.

    Attributes:
        index: NVML's number of it, which follows the PCI bus order.
        pci_bus_id: as ``lspci -D`` writes it, ``0000:01:00.0``.
        memory_total: bytes of the card; ``total = reserved + free + used``.
        memory_reserved: bytes that driver and firmware keep for themselves; ``None`` where the driver is too old to
            tell them apart, and then they are counted in ``memory_used``.
        utilization_gpu: per cent of the last sample period during which a kernel ran.
        utilization_memory: per cent of it during which memory was read or written.
        temperature_celsius: of the GPU die.
        power_watts: drawn now (an average over a second on recent GPUs); ``power_limit_watts`` is the limit in force.
        clock_reasons: why the clocks are not higher, sorted as NVML numbers them: ``gpu_idle, applications_clocks_setting,
            sw_power_cap, hw_slowdown, sync_boost, sw_thermal_slowdown, hw_thermal_slowdown, hw_power_brake_slowdown,
            display_clock_setting, board_limit, reliability``, or ``unknown_0x…`` for a bit newer than these.
        ecc_corrected: errors since the driver was loaded, as ``ecc_uncorrected``.
        last_xid: number of the last XID error seen while this process was watching
            (https://docs.nvidia.com/deploy/xid-errors/).
        processes: who holds memory, by pid; ``None`` where the driver does not tell.
        problem: why this GPU cannot be used, or cannot be fully read.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    memory_total: int | None = None
    memory_reserved: int | None = None
    memory_free: int | None = None
    memory_used: int | None = None
    utilization_gpu: int | None = None
    utilization_memory: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    clock_reasons: tuple[str, ...] | None = None
    ecc_enabled: bool | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    mig_enabled: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    last_xid: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    problem: GpuProblem | None = None


@dataclass(frozen=True, slots=True)
class GpuReport:
    """Every GPU of the machine; ``problem`` concerns the driver as a whole, each GPU carries its own.

    ``cuda_version`` is the newest CUDA that the driver runs ("12.8"), not an installed toolkit.
    """

    driver_version: str | None
    cuda_version: str | None
    gpus: tuple[GpuHealth, ...]
    problem: GpuProblem | None

    def problems(self) -> tuple[GpuProblem, ...]:
        """Return everything that is wrong, the driver's problem first."""
        return tuple(p for p in (self.problem, *(gpu.problem for gpu in self.gpus)) if p is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON."""
        return asdict(self)


def visible(report: GpuReport, env_value: str | None) -> tuple[GpuHealth, ...]:
    """Return the GPUs that CUDA would use under ``CUDA_VISIBLE_DEVICES=env_value``, in its order.

    The rules are CUDA's (CUDA C++ Programming Guide, "CUDA Environment Variables"): unset shows all, the empty string
    none; entries are numbers or unambiguous beginnings of ``GPU-…`` or ``MIG-…`` identifiers, also the older
    ``MIG-GPU-<uuid>/<gpu instance>/<compute instance>``; the first entry that names nothing, or is of another kind than
    the one before, ends the list; a device named twice empties it. A GPU chosen by one of its MIG instances comes with
    that instance alone in ``mig_instances`` (whose memory is then the one that counts).

    Numbers are NVML's, which are CUDA's only under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    if env_value is None:
        return report.gpus
    chosen: list[GpuHealth] = []
    first_kind: str | None = None
    for entry in env_value.split(","):
        kind, gpu = _named(report.gpus, entry.strip())
        if gpu is None or first_kind not in {None, kind}:
            break
        if gpu in chosen:
            return ()
        first_kind = kind
        chosen.append(gpu)
    return tuple(chosen)


def _named(gpus: Sequence[GpuHealth], entry: str) -> tuple[str, GpuHealth | None]:
    if entry.startswith("GPU-"):
        return "gpu", _only([gpu for gpu in gpus if gpu.uuid is not None and gpu.uuid.startswith(entry)])
    if entry.startswith("MIG-"):
        slices = [(gpu, instance) for gpu in gpus for instance in gpu.mig_instances if _is_slice(gpu, instance, entry)]
        return "mig", _only([replace(gpu, mig_instances=(instance,)) for gpu, instance in slices])
    # CUDA reads the digits at the front and ignores what follows them.
    number = re.match(r"\+?([0-9]+)", entry)
    return "number", _only([gpu for gpu in gpus if number is not None and gpu.index == int(number[1])])


def _is_slice(gpu: GpuHealth, instance: MigInstance, entry: str) -> bool:
    if entry.startswith("MIG-GPU-"):
        return entry == f"MIG-{gpu.uuid}/{instance.gpu_instance}/{instance.compute_instance}"
    return instance.uuid is not None and instance.uuid.startswith(entry)


def _only(candidates: Sequence[GpuHealth]) -> GpuHealth | None:
    return candidates[0] if len(candidates) == 1 else None
