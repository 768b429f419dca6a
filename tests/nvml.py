"""NVIDIA's library as tests have it: compiled from ``unit/fake_nvml/nvml.c``, which answers with the values of a control file.

No build machine has a card to lose; the genuine Python binding, and all of metalscribe, meet this library as they would
meet NVIDIA's. ``nvml.c`` says what a control file may hold.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pynvml
import pytest

GIB = 1024**3
LIBRARY = "libnvidia-ml.so.1"
SOURCE = Path(__file__).parent / "unit" / "fake_nvml" / "nvml.c"
STRUCTURES = {
    "SIZEOF_MEMORY_V1": pynvml.c_nvmlMemory_t,
    "SIZEOF_MEMORY_V2": pynvml.c_nvmlMemory_v2_t,
    "SIZEOF_UTILIZATION": pynvml.c_nvmlUtilization_t,
    "SIZEOF_PCI_INFO": pynvml.nvmlPciInfo_t,
    "SIZEOF_TEMPERATURE_V1": pynvml.c_nvmlTemperature_v1_t,
    "SIZEOF_PROCESS": pynvml.c_nvmlProcessInfo_t,
    "SIZEOF_EVENT": pynvml.c_nvmlEventData_t,
}

SYSTEM = {"count": "2", "driver_version": "580.95.05", "cuda_version": "13000"}
UUID_0 = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
UUID_1 = "GPU-89aa0c11-0b2e-4b7d-9d0f-5f3f6f0a7c22"
GPU_0 = {
    "gpu0.name": "NVIDIA L40S",
    "gpu0.uuid": UUID_0,
    "gpu0.pci": "0:c1:0",
    "gpu0.memory_total": str(48 * GIB),
    "gpu0.memory_reserved": str(1 * GIB),
    "gpu0.memory_free": str(40 * GIB),
    "gpu0.utilization_gpu": "87",
    "gpu0.utilization_memory": "31",
    "gpu0.temperature": "71",
    "gpu0.power": "299512",
    "gpu0.power_limit": "350000",
    "gpu0.clock_sm": "2520",
    "gpu0.clock_memory": "9001",
    "gpu0.clock_reasons": "0x24",
    "gpu0.ecc": "1",
    "gpu0.ecc_corrected": "3",
    "gpu0.ecc_uncorrected": "1",
    "gpu0.pcie_generation": "1",
    "gpu0.pcie_generation_max": "4",
    "gpu0.pcie_width": "8",
    "gpu0.pcie_width_max": "16",
    "gpu0.mig": "0",
    "gpu0.processes_compute": f"4242:{5 * GIB},17:?",
    "gpu0.processes_graphics": f"4242:{5 * GIB},99:{GIB}",
    "gpu0.processes_mps": "",
}
GPU_1 = {key.replace("gpu0", "gpu1"): value for key, value in GPU_0.items()} | {
    "gpu1.uuid": UUID_1,
    "gpu1.pci": "10000:2:1f",
    "gpu1.clock_reasons": "0",
    "gpu1.processes_compute": "",
    "gpu1.processes_graphics": "",
}
HEALTHY = SYSTEM | GPU_0 | GPU_1


def compiled(folder: Path, *flags: str) -> Path:
    """The library, in a folder that has none yet; whoever asks for it is skipped where there is no C compiler.

    Args:
        folder: found by the binding where ``LD_LIBRARY_PATH`` names it.
        flags: see ``nvml.c``.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) for the stand-in of libnvidia-ml.so.1")
    target = folder / LIBRARY
    sizes = [f"-D{name}={ctypes.sizeof(structure)}" for name, structure in STRUCTURES.items()]
    command = [compiler, "-shared", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *sizes, *flags]
    arguments = [*command, "-o", str(target), str(SOURCE), "-lpthread"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def tell(control: Path, settings: Mapping[str, str]) -> None:
    """Write a control file; whoever reads it meanwhile reads all of the old one."""
    fresh = control.with_suffix(".new")
    fresh.write_bytes("".join(f"{key} {value}\n" for key, value in settings.items()).encode("latin-1"))
    fresh.replace(control)
