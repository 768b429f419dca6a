"""cuBLAS from its pip wheel, so that no LD_LIBRARY_PATH has to be set."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Final

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
