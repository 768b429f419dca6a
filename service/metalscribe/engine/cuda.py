"""What CTranslate2 leaves to others: cuBLAS from its pip wheel, so that no LD_LIBRARY_PATH has to be set; free memory."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Final

_SHARE: Final = 0.8
"""Of the free memory, that batches may take."""

_LIBRARIES: Final = ("libcublasLt.so.12", "libcublas.so.12")  # in the order in which they need each other


def cublas_directory() -> Path | None:
    """Where the ``gpu`` extra put cuBLAS, or None where it is not installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cublas")
    except ModuleNotFoundError:
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(location) / "lib"
        if (directory / _LIBRARIES[-1]).exists():
            return directory
    return None


def load_cublas() -> Path | None:
    """Load cuBLAS for the whole process; CTranslate2 then finds it by its soname.

    Returns the directory used, or None where the wheel is absent and the system's own cuBLAS has to serve.

    Raises:
        OSError: the wheel's library does not load.
    """
    directory = cublas_directory()
    if directory is not None:
        for name in _LIBRARIES:
            ctypes.CDLL(str(directory / name), mode=ctypes.RTLD_GLOBAL)
    return directory


def free_memory(driver: ctypes.CDLL | None = None) -> int | None:
    """Bytes free on the GPU that CTranslate2 uses, the first that CUDA shows; None where the driver does not say.

    Asked of the driver itself (cuMemGetInfo): it knows of CUDA_VISIBLE_DEVICES and MIG slices what NVML does not.

    Args:
        driver: libcuda, loaded; by default the system's.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        cuda = driver or ctypes.CDLL("libcuda.so.1")
        refused = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), 0)
            # The context that is there already: CTranslate2 uses the device's primary one.
            or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
            or cuda.cuCtxSetCurrent(context)
            or cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        )
    except (OSError, AttributeError):  # no driver, or not one that knows these calls
        return None
    return None if refused else free.value


def rows_that_fit(before: int | None, after: int | None) -> int | None:
    """How many rows fit into memory together, by what the first one took; None where that is unknown.

    Args:
        before: bytes free before a row of the whole window was decoded.
        after: bytes free after it. CTranslate2 keeps for the next batch what one has used; what is set up once counts as the
            row's, and a fifth stays free, for others.
    """
    if before is None or after is None or before <= after:
        return None
    return 1 + int(_SHARE * after / (before - after))
