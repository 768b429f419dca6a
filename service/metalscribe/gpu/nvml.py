"""The health of every GPU, through NVIDIA's Management Library (NVML) and its own Python binding, ``nvidia-ml-py``.

Reference: https://docs.nvidia.com/deploy/nvml-api/. How the session with the driver is kept:

- NVML is initialised at the first question. As long as it is, the driver's device files are open and its modules cannot
  be unloaded; :meth:`Nvml.close` lets go of them, and the next question takes them up again.
- A lost GPU or a fault of the driver ends the session, since NVML sticks to what it once found; the question is put again
  in a fresh one, and if the fault is still there that one ends too. So nothing of ours keeps an operator from resetting
  the card or reloading the driver, and whatever comes back is found by the next question.
- The driver tells of XID errors by events alone: they are collected at each report, so an error is known only if it
  happened while a session was open.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pynvml  # the binding ships no types

from metalscribe.gpu.device import Memory, Questions, read_gpu, read_memory
from metalscribe.gpu.faults import DRIVER_FAULTS, NO_GPU, driver_problem, gpu_problem
from metalscribe.gpu.health import GpuHealth, GpuProblem, GpuReport, ProblemCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_T = TypeVar("_T")

# Not 0: a wait of a millisecond cannot be mistaken for one without end by any version of the library.
_EVENT_WAIT_MS = 1
# A card that errs without pause must not keep a report from ending.
_MAX_EVENTS = 256


_CLOSE_SECONDS = 1.0


class Nvml:
    """A session with the NVIDIA driver, opened at the first question; a context manager that closes it.

    Every method blocks: usually for some milliseconds, for a second or more where the driver must first wake the card,
    and without a bound where a failing card hangs its driver. Call from a thread, never from the event loop. Safe to
    share between threads: one talks to the driver at a time, the others wait for it. One for a process is enough, and not
    to be carried across a fork.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._seen: dict[str, GpuHealth] = {}
        self._xids: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the driver; the next question opens a new session. A driver that hangs is left alone after a second."""
        if not self._lock.acquire(timeout=_CLOSE_SECONDS):
            return
        try:
            self._end()
        finally:
            self._lock.release()

    def report(self) -> GpuReport:
        """Return the health of the driver and of every GPU. Blocks. What goes wrong is in the report, never raised."""
        with self._lock:
            return self._anew_if_gone(self._report)

    def memory(self, index: int) -> tuple[int, int] | None:
        """Return free and total bytes of the GPU with NVML's number ``index``, or ``None`` if unknown. Blocks.

        The reason for ``None`` is in :meth:`report`. For a GPU in MIG mode the figures are the whole card's.
        """
        with self._lock:
            return self._anew_if_gone(lambda: self._memory(index))

    def _anew_if_gone(self, read: Callable[[], _T]) -> _T:
        """Read; and again if that ended a session opened earlier, whose faults may be mended by now."""
        opened_earlier = self._session is not None
        answer = read()
        return read() if opened_earlier and self._session is None else answer

    def _report(self) -> GpuReport:
        try:
            session = self._begin()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._end()
            return GpuReport(None, None, (), driver_problem(error))
        asked = [Questions() for _ in range(count)]
        gpus = self._recognised([read_gpu(index, questions) for index, questions in enumerate(asked)])
        self._xids |= session.xids()
        system = Questions()
        driver, cuda = _versions(system)
        problem = self._driver_problem([*asked, system], gpus)
        if any(questions.gone for questions in (*asked, system)):
            self._end()
        return GpuReport(driver, cuda, tuple(map(self._judged, gpus, asked)), problem)

    def _memory(self, index: int) -> tuple[int, int] | None:
        questions = Questions()
        try:
            self._begin()
        except pynvml.NVMLError:
            return None
        handle = questions.demand(pynvml.nvmlDeviceGetHandleByIndex, index)
        memory = Memory() if handle is None else read_memory(handle, questions)
        if questions.gone:
            self._end()
        return None if memory.free is None or memory.total is None else (memory.free, memory.total)

    def _begin(self) -> _Session:
        if self._session is None:
            pynvml.nvmlInit()
            self._session = _Session()
        return self._session

    def _end(self) -> None:
        if self._session is not None:
            self._xids |= self._session.xids()
            self._session.close()
            self._session = None

    def _recognised(self, found: list[GpuHealth]) -> list[GpuHealth]:
        """Give a GPU that no longer tells its name the identity it had when it last did."""
        live = {gpu.uuid for gpu in found}
        absent = {seen.index: seen for seen in self._seen.values() if seen.uuid not in live}
        for gpu in found:
            if gpu.uuid is not None:
                self._seen[gpu.uuid] = gpu
        return [
            replace(gpu, name=was.name, uuid=was.uuid, pci_bus_id=was.pci_bus_id)
            if gpu.uuid is None and (was := absent.get(gpu.index)) is not None
            else gpu
            for gpu in found
        ]

    def _driver_problem(self, asked: list[Questions], gpus: list[GpuHealth]) -> GpuProblem | None:
        for questions in asked:
            if questions.error is not None and questions.error.value in DRIVER_FAULTS:
                return driver_problem(questions.error)
        if missing := [was for uuid, was in self._seen.items() if uuid not in {gpu.uuid for gpu in gpus}]:
            return GpuProblem(
                ProblemCode.GPU_MISSING,
                f"No longer listed by the driver: {', '.join(map(_named, missing))}. Read `dmesg | grep -i -e xid -e "
                "pcie`, check the card's seat and power and reboot; if it was taken away on purpose, restart metalscribe.",
            )
        return None if gpus else NO_GPU

    def _judged(self, gpu: GpuHealth, questions: Questions) -> GpuHealth:
        xid = self._xids.get(_key(gpu.uuid, gpu.index))
        error = questions.error
        if error is None or error.value in DRIVER_FAULTS:
            return replace(gpu, last_xid=xid)
        problem = gpu_problem(error, questions.question, _named(gpu), gpu.index, xid)
        return replace(gpu, last_xid=xid, problem=problem)


class _Session:
    """NVML while it is initialised, with the events of every GPU that offers them."""

    def __init__(self) -> None:
        self._key_of: dict[int | None, str] = {}
        self._events = _quietly(pynvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for index in range(_quietly(pynvml.nvmlDeviceGetCount) or 0):
            handle = _quietly(pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                self._key_of[_address(handle)] = _key(_quietly(pynvml.nvmlDeviceGetUUID, handle), index)
                _quietly(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, self._events)

    def xids(self) -> dict[str, int]:
        """Return the last XID error of each GPU that had one since the last call."""
        found: dict[str, int] = {}
        for _ in range(_MAX_EVENTS if self._events is not None else 0):
            event = _quietly(pynvml.nvmlEventSetWait_v2, self._events, _EVENT_WAIT_MS)
            if event is None:
                break
            # A lost GPU no longer tells its name, and a library may hand out another handle for the same card.
            key = self._key_of.get(_address(event.device)) or _quietly(pynvml.nvmlDeviceGetUUID, event.device)
            if key is not None and event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                found[key] = event.eventData
        return found

    def close(self) -> None:
        if self._events is not None:
            _quietly(pynvml.nvmlEventSetFree, self._events)
        _quietly(pynvml.nvmlShutdown)


def _quietly(function: Any, *args: object) -> Any | None:
    """Call NVML where a failure has no consequence of its own: the questions of the report meet the same fault."""
    with contextlib.suppress(pynvml.NVMLError, UnicodeDecodeError):
        return function(*args)
    return None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _versions(questions: Questions) -> tuple[str | None, str | None]:
    driver: str | None = questions.ask(pynvml.nvmlSystemGetDriverVersion)
    cuda: int | None = questions.ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return driver, None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"


def _key(uuid: str | None, index: int) -> str:
    return uuid or f"#{index}"


def _named(gpu: GpuHealth) -> str:
    known = ", ".join(word for word in (gpu.name, gpu.uuid, gpu.pci_bus_id) if word is not None)
    return f"GPU {gpu.index}" + (f" ({known})" if known else "")
