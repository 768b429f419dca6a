"""The questions put to one GPU through NVML, each of which may go unanswered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pynvml  # the binding ships no types

from metalscribe.gpu.faults import DRIVER_FAULTS, GPU_FAULTS, UNANSWERED
from metalscribe.gpu.health import GpuHealth, GpuProcess, MigInstance

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOCK_REASONS = (
    (pynvml.nvmlClocksEventReasonGpuIdle, "gpu_idle"),
    (pynvml.nvmlClocksEventReasonApplicationsClocksSetting, "applications_clocks_setting"),
    (pynvml.nvmlClocksEventReasonSwPowerCap, "sw_power_cap"),
    (pynvml.nvmlClocksEventReasonHwSlowdown, "hw_slowdown"),
    (pynvml.nvmlClocksEventReasonSyncBoost, "sync_boost"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "sw_thermal_slowdown"),
    (pynvml.nvmlClocksEventReasonHwThermalSlowdown, "hw_thermal_slowdown"),
    (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, "hw_power_brake_slowdown"),
    (pynvml.nvmlClocksEventReasonDisplayClockSetting, "display_clock_setting"),
    # Two bits that NVML documents, but not under a name that every version of the binding has.
    (0x200, "board_limit"),
    (0x400, "reliability"),
)


class Questions:
    """Puts questions to NVML about one GPU; a question without an answer yields ``None``, never an exception.

    ``error`` is the worst that was answered so far and ``question`` the function that got it; what a healthy GPU may
    answer (not supported, not permitted) is not an error. Once the GPU or the driver is gone nothing more is asked:
    on a lost GPU each call may take seconds.
    """

    __slots__ = ("error", "question")

    def __init__(self) -> None:
        self.error: pynvml.NVMLError | None = None
        self.question = ""

    @property
    def gone(self) -> bool:
        """Whether NVML must be initialised anew before this GPU can be read again."""
        return self.error is not None and self.error.value in (DRIVER_FAULTS | GPU_FAULTS)

    def ask(self, question: Callable[..., Any], *args: object) -> Any | None:
        """Return the answer, or ``None``."""
        if self.gone:
            return None
        try:
            return question(*args)
        except pynvml.NVMLError as error:
            if error.value not in UNANSWERED:
                self._note(error, question)
        except UnicodeDecodeError:
            # A damaged infoROM yields names that are not text; such a name is as good as none.
            return None
        return None

    def demand(self, question: Callable[..., Any], *args: object) -> Any | None:
        """Return the answer; anything else counts as an error, also what :meth:`ask` forgives."""
        try:
            return question(*args)
        except pynvml.NVMLError as error:
            self._note(error, question)
        return None

    def _note(self, error: pynvml.NVMLError, question: Callable[..., Any]) -> None:
        if self.error is None or error.value in (DRIVER_FAULTS | GPU_FAULTS):
            self.error, self.question = error, question.__name__


def read_gpu(index: int, questions: Questions) -> GpuHealth:
    """Return what GPU ``index`` answers, without ``last_xid`` and ``problem``, which only the session knows."""
    ask = questions.ask
    handle = questions.demand(pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return GpuHealth(index=index)
    name, uuid = ask(pynvml.nvmlDeviceGetName, handle), ask(pynvml.nvmlDeviceGetUUID, handle)
    pci = ask(pynvml.nvmlDeviceGetPciInfo_v3, handle)
    memory = read_memory(handle, questions)
    utilization = ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    ecc = ask(pynvml.nvmlDeviceGetEccMode, handle)
    mig = ask(pynvml.nvmlDeviceGetMigMode, handle)
    slices = _mig_handles(handle, questions) if mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE else []
    return GpuHealth(
        index=index,
        name=name,
        uuid=uuid,
        pci_bus_id=None if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0",
        memory_total=memory.total,
        memory_reserved=memory.reserved,
        memory_free=memory.free,
        memory_used=memory.used,
        utilization_gpu=None if utilization is None else utilization.gpu,
        utilization_memory=None if utilization is None else utilization.memory,
        temperature_celsius=_first(
            ask(pynvml.nvmlDeviceGetTemperatureV, handle, pynvml.NVML_TEMPERATURE_GPU),
            lambda: ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        ),
        power_watts=_watts(ask(pynvml.nvmlDeviceGetPowerUsage, handle)),
        power_limit_watts=_watts(
            _first(
                ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
                lambda: ask(pynvml.nvmlDeviceGetPowerManagementLimit, handle),
            )
        ),
        clock_sm_mhz=ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        clock_memory_mhz=ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        clock_reasons=_clock_reasons(
            _first(
                ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
                lambda: ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
            )
        ),
        ecc_enabled=None if ecc is None else bool(ecc[0]),
        ecc_corrected=_ecc_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, questions),
        ecc_uncorrected=_ecc_errors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, questions),
        pcie_generation=ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        pcie_generation_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        pcie_width=ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        pcie_width_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        mig_enabled=None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        mig_instances=tuple(_mig_instance(handle, questions) for handle in slices),
        processes=_processes(handle, slices, questions),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a GPU or of a MIG instance; the fields are those of :class:`GpuHealth`."""

    total: int | None = None
    reserved: int | None = None
    free: int | None = None
    used: int | None = None


def read_memory(handle: Any, questions: Questions) -> Memory:
    """Return the memory of a GPU or a MIG instance, as far as it answers."""
    memory = questions.ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is not None:
        return Memory(memory.total, memory.reserved, memory.free, memory.used)
    # Older drivers know one figure for what is used and what is reserved.
    memory = questions.ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Memory() if memory is None else Memory(memory.total, None, memory.free, memory.used)


def _first(answer: Any | None, otherwise: Callable[[], Any | None]) -> Any | None:
    return answer if answer is not None else otherwise()


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _clock_reasons(bits: int | None) -> tuple[str, ...] | None:
    if bits is None:
        return None
    words = [word for bit, word in _CLOCK_REASONS if bits & bit]
    for bit, _ in _CLOCK_REASONS:
        bits &= ~bit
    return (*words, *(f"unknown_{1 << place:#x}" for place in range(bits.bit_length()) if bits >> place & 1))


def _ecc_errors(handle: Any, kind: int, questions: Questions) -> int | None:
    count: int | None = questions.ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, pynvml.NVML_VOLATILE_ECC)
    return count


def _mig_handles(handle: Any, questions: Questions) -> list[Any]:
    # The numbers of instances have gaps where one was destroyed; a gap answers "not found".
    places = range(questions.ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)
    found = [questions.ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place) for place in places]
    return [handle for handle in found if handle is not None]


def _mig_instance(handle: Any, questions: Questions) -> MigInstance:
    ask = questions.ask
    memory = read_memory(handle, questions)
    return MigInstance(
        uuid=ask(pynvml.nvmlDeviceGetUUID, handle),
        name=ask(pynvml.nvmlDeviceGetName, handle),
        gpu_instance=ask(pynvml.nvmlDeviceGetGpuInstanceId, handle),
        compute_instance=ask(pynvml.nvmlDeviceGetComputeInstanceId, handle),
        memory_total=memory.total,
        memory_free=memory.free,
        memory_used=memory.used,
    )


def _processes(handle: Any, slices: list[Any], questions: Questions) -> tuple[GpuProcess, ...] | None:
    lists = [
        _first(
            questions.ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle),
            lambda: questions.ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle),
        ),
        questions.ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, handle),
        questions.ask(pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, handle),
    ]
    if lists[0] is None:
        # Without the privilege for the whole card each MIG instance may still answer for itself.
        lists += [questions.ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, instance) for instance in slices]
    answered = [processes for processes in lists if processes is not None]
    if not answered:
        return None
    # A process that computes and draws is in two lists, with the same memory.
    memory: dict[int, int | None] = {}
    for process in (process for processes in answered for process in processes):
        known = memory.get(process.pid)
        memory[process.pid] = max(known or 0, process.usedGpuMemory) if process.usedGpuMemory is not None else known
    return tuple(GpuProcess(pid, memory[pid]) for pid in sorted(memory))
