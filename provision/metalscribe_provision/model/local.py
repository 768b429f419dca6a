"""Models on the machine that deploys: a folder of the operator's, or a download of its own."""

from __future__ import annotations

import hashlib
import re
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyinfra.api.exceptions import DeployError

from metalscribe.engine.download import download
from metalscribe.engine.manifest import MANIFEST, MODEL_FILES, REQUIRED, VOCABULARIES, WEIGHTS, read_manifest
from metalscribe.errors import MetalscribeError
from metalscribe_provision.model.pins import folder_name, pinned, written
from metalscribe_provision.runtime.digests import CACHE, sha256_of
from metalscribe_provision.runtime.upload import Upload

_DOWNLOADS: Final = threading.Lock()
_SPECIFICATION: Final = b"WhisperSpec\0"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's folder on this machine, and the name that it gets on a host."""

    path: Path
    name: str


def folder_model(path: Path) -> LocalModel:
    """A model in a folder of the operator's; its name on a host ends with a digest of its content.

    Raises:
        DeployError: the folder has no CTranslate2 Whisper model in it, or a damaged one.
    """
    require_model(path)
    lines = "".join(f"{upload.sha256}  {upload.name}\n" for upload in model_uploads(LocalModel(path, "")))
    # What a download is called already has its commit in it.
    name = path.resolve().name.partition("@")[0]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) is None:
        raise DeployError(
            f"model_path: {name!r} is no name for a folder on a host; use letters, digits, dots and dashes"
        )
    return LocalModel(path, f"{name}@{hashlib.sha256(lines.encode()).hexdigest()[:12]}")


def downloaded_model(model: str, cache: Path = CACHE / "models") -> LocalModel:
    """A model of the hub, downloaded into this machine's cache with the service's own code unless it is there, and verified.

    A token for a gated model comes from the environment (HF_TOKEN), and stays on this machine.

    Raises:
        DeployError: it cannot be had.
    """
    reference = pinned(model)
    name = folder_name(reference)
    # One at a time: the download's own lock on the folder would stop this whole process.
    with _DOWNLOADS:
        found = LocalModel(cache / name, name)
        if not _is_intact(found.path):
            try:
                download(written(reference), cache)
            except MetalscribeError as error:
                raise DeployError(f"model={model}: {error}") from None
    return found


def model_uploads(model: LocalModel) -> list[Upload]:
    """A model's files as they are to be on a host, sorted by name."""
    names = sorted(name for name in (*MODEL_FILES, MANIFEST) if (model.path / name).is_file())
    paths = [(name, model.path / name) for name in names]
    return [Upload(name, path, path.stat().st_size, sha256_of(path)) for name, path in paths]


def require_model(path: Path) -> None:
    """Refuse a folder that has no CTranslate2 Whisper model in it.

    Raises:
        DeployError: what is missing, or what it is instead.
    """
    if not path.is_dir():
        raise DeployError(f"model_path={path} is no folder on this machine")
    lacking = [name for name in REQUIRED if not (path / name).is_file()]
    if not any((path / name).is_file() for name in VOCABULARIES):
        lacking.append(" or ".join(VOCABULARIES))
    if lacking:
        hint = (
            "it looks like a model for PyTorch: convert it with ct2-transformers-converter"
            if _is_for_torch(path)
            else ""
        )
        raise DeployError(
            f"model_path={path} is no Whisper model in CTranslate2 format: it has no {', no '.join(lacking)}"
            + (f"; {hint}" if hint else "")
        )
    if not _is_whisper(path / WEIGHTS):
        raise DeployError(f"model_path={path}: {WEIGHTS} is not the weights of a Whisper model in CTranslate2 format")
    if (path / MANIFEST).exists() and not _is_intact(path):
        raise DeployError(f"model_path={path} is damaged: its files are not what its {MANIFEST} says")


def _is_whisper(weights: Path) -> bool:
    """Whether a file begins as CTranslate2's do: format (uint32), length (uint16) and name of the specification.

    Source: CTranslate2, ``python/ctranslate2/specs/model_spec.py``, ``LayerSpec.save``.
    """
    with weights.open("rb") as handle:
        start = handle.read(6 + len(_SPECIFICATION))
    if len(start) < 6:
        return False
    _, length = struct.unpack("<IH", start[:6])
    return start[6:] == _SPECIFICATION and length == len(_SPECIFICATION)


def _is_for_torch(path: Path) -> bool:
    return any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin"))


def _is_intact(path: Path) -> bool:
    """Whether a download is what its manifest says; reads what has changed since it was last looked at."""
    manifest = read_manifest(path)
    if manifest is None:
        return False
    files = {name: path / name for name in manifest.files}
    return all(
        files[name].is_file() and sha256_of(files[name]) == record.sha256 for name, record in manifest.files.items()
    )
