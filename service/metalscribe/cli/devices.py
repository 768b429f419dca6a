"""What ``metalscribe doctor`` knows of the libraries and the device that the model runs on.

The model's runtime is asked in processes of its own: this one must never load it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from typing import Any, Final

from pydantic import TypeAdapter

from metalscribe.cli.commands import CommandFailed, run
from metalscribe.cli.findings import Finding, Status
from metalscribe.errors import MetalscribeError
from metalscribe.gpu.health import GpuHealth, GpuReport, ProblemCode, visible
from metalscribe.settings import Device, Settings

_GIB: Final = 1024**3
_IMPORT_SECONDS: Final = 120.0
_DRIVER_SECONDS: Final = 30.0
"""A driver that has to wake its card first takes some seconds."""

_SLOWED: Final = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")

_LIBRARIES: Final = """
import importlib, json
versions = {}
for name, module in (("ctranslate2", "ctranslate2"), ("faster-whisper", "faster_whisper"), ("PyAV", "av"),
                     ("onnxruntime", "onnxruntime")):
    versions[name] = importlib.import_module(module).__version__
import av
versions["FFmpeg"] = av.ffmpeg_version_info
print(json.dumps(versions))
"""

_RUNTIME: Final = """
import json, sys
from metalscribe.engine.cuda import load_cublas
from metalscribe.engine.model import choose_compute_type, choose_device
load_cublas()
device = choose_device(sys.argv[1])
print(json.dumps({"device": device, "compute_type": choose_compute_type(sys.argv[2], device)}))
"""

_NVML: Final = """
import json
from metalscribe.gpu.nvml import Nvml
with Nvml() as nvml:
    print(json.dumps(nvml.report().to_dict()))
"""

# Which is what CTranslate2 finds afterwards by the library's name. The version needs no GPU (cuBLAS, cublasGetProperty).
_CUBLAS: Final = """
import ctypes, json
from metalscribe.engine.cuda import load_cublas
wheel = load_cublas()
library = ctypes.CDLL("libcublas.so.12")
version = []
for part in range(3):
    number = ctypes.c_int()
    assert library.cublasGetProperty(part, ctypes.byref(number)) == 0, "cublasGetProperty fails"
    version.append(str(number.value))
print(json.dumps({"version": ".".join(version), "source": "the gpu extra" if wheel else "the system"}))
"""


def libraries() -> Finding:
    """Whether the libraries that do the work can be loaded, and which they are."""
    answer, problem = _ask(_LIBRARIES)
    if problem:
        return Finding(Status.FAIL, problem, "Install metalscribe again, into an environment of its own.")
    versions = ", ".join(f"{name} {version}" for name, version in answer.items())
    return Finding(Status.OK, f"Python {platform.python_version()}, {versions}")


def device(settings: Settings) -> Finding:
    """Whether the device asked for is there and well."""
    if settings.device is Device.CPU:
        return Finding(Status.OK, f"the CPU as METALSCRIBE_DEVICE says, {_cores()} cores")
    return judge_gpus(settings.device, gpu_report(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_report() -> GpuReport:
    """What NVML tells, asked in a process of its own: a driver that hangs takes that one with it.

    Raises:
        MetalscribeError: it does not answer in time.
    """
    answer, problem = _ask(_NVML, seconds=_DRIVER_SECONDS)
    if problem:
        raise MetalscribeError(f"The NVIDIA driver does not answer: {problem}. Read `dmesg | grep -i -e xid -e nvrm`.")
    return TypeAdapter(GpuReport).validate_python(answer)


def judge_gpus(wanted: Device, report: GpuReport, visible_devices: str | None) -> Finding:
    """The finding for what NVML reports, where the model is to run on a GPU or on the best there is."""
    seen = visible(report, visible_devices)
    usable = [gpu for gpu in seen if gpu.problem is None]
    problems = report.problems()
    if not usable:
        status = Status.FAIL if wanted is Device.CUDA else Status.WARN
        instead = "" if wanted is Device.CUDA else f"; the model runs on the CPU ({_cores()} cores)"
        if problems:
            hint = " ".join(problem.message for problem in problems)
            if problems[0].code is ProblemCode.NO_NVIDIA_DRIVER and wanted is Device.AUTO:
                hint = "If the CPU is meant, METALSCRIBE_DEVICE=cpu says so. " + hint
            return Finding(status, f"no GPU can be used ({problems[0].code}){instead}", hint)
        return Finding(status, f"CUDA_VISIBLE_DEVICES={visible_devices} leaves no GPU{instead}", "Unset it.")
    driver = f"driver {report.driver_version} (CUDA {report.cuda_version})"
    detail = f"{driver}: {'; '.join(map(_described, usable))}"
    worries = [problem.message for problem in problems]
    for gpu in usable:
        slowed = [reason for reason in gpu.clock_reasons or () if reason in _SLOWED]
        if slowed:
            worries.append(f"GPU {gpu.index} is slowed down ({', '.join(slowed)}): check its cooling and power.")
        if gpu.ecc_uncorrected:
            worries.append(f"GPU {gpu.index} had {gpu.ecc_uncorrected} uncorrected memory errors: read `dmesg`.")
    return Finding(Status.WARN if worries else Status.OK, detail, " ".join(worries))


def cublas(settings: Settings) -> Finding:
    """Whether the one CUDA library that the model needs loads, on a machine with an NVIDIA GPU."""
    if settings.device is Device.CPU:
        return Finding(Status.OK, "not needed on the CPU")
    if settings.device is Device.AUTO and not _gpus():
        return Finding(Status.OK, "not needed without a GPU")
    answer, problem = _ask(_CUBLAS)
    if problem:
        return Finding(
            Status.FAIL,
            f"cuBLAS 12 does not load: {problem}",
            "Install the gpu extra: `pip install 'metalscribe[gpu]'`.",
        )
    return Finding(Status.OK, f"{answer['version']} from {answer['source']}")


def compute_type(settings: Settings) -> Finding:
    """Whether CTranslate2 reaches the device and can compute there as asked."""
    answer, problem = _ask(_RUNTIME, settings.device.value, settings.compute_type)
    if problem:
        return Finding(
            Status.FAIL,
            problem,
            "Mend the device first if it fails above; METALSCRIBE_COMPUTE_TYPE=auto takes the best type that it has.",
        )
    found = f"{answer['compute_type']} on {answer['device']}"
    if settings.device is Device.AUTO and answer["device"] == "cpu" and _gpus():
        return Finding(
            Status.WARN,
            f"{found}: CTranslate2 finds no GPU although the driver has one",
            "METALSCRIBE_DEVICE=cuda makes it say why; a driver older than CUDA 12 or a missing libcuda.so.1 are likely.",
        )
    return Finding(Status.OK, found)


def _ask(program: str, *arguments: str, seconds: float = _IMPORT_SECONDS) -> tuple[dict[str, Any], str]:
    """Run a program of ours that prints JSON; returns its answer, or what went wrong."""
    try:
        done = run([sys.executable, "-c", program, *arguments], seconds=seconds)
    except CommandFailed:
        return {}, f"no answer within {seconds:g} s"
    if done.status < 0:
        return {}, f"loading the libraries ended with {signal.Signals(-done.status).name}"
    if done.status > 0:
        return {}, done.complaint
    answer: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return answer, ""


def _described(gpu: GpuHealth) -> str:
    parts = [f"GPU {gpu.index} {gpu.name or ''}".strip()]
    if gpu.memory_total is not None and gpu.memory_free is not None:
        parts.append(f"{gpu.memory_free / _GIB:.1f} of {gpu.memory_total / _GIB:.1f} GiB free")
    if gpu.temperature_celsius is not None:
        parts.append(f"{gpu.temperature_celsius} °C")
    return ", ".join(parts)


def _gpus() -> tuple[GpuHealth, ...]:
    return visible(gpu_report(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _cores() -> int:
    return len(os.sched_getaffinity(0))
