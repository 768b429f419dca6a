"""What a downloaded model consists of, written beside its files, and checking them against it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from metalscribe.engine import catalog

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MANIFEST = "metalscribe-model.json"
"""File name of the manifest in the model's directory."""

WEIGHTS = "model.bin"
REQUIRED = (WEIGHTS, "config.json", "tokenizer.json")
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
PREPROCESSOR = "preprocessor_config.json"
MODEL_FILES = (*REQUIRED, *VOCABULARIES, PREPROCESSOR)
"""Every file that a CTranslate2 Whisper model may have; one vocabulary and ``REQUIRED`` it must have."""

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit of a repository, in full."""

_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of one file; the size may be unknown where only digests are published."""

    size: int | None
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where a downloaded model came from and what its files must be.

    Attributes:
        commit: of the repository, 40 hexadecimal digits.
        revisions: branches or tags that were asked for and led to this commit.
        downloaded_at: UTC, ISO 8601 with microseconds, so that manifests sort by it as text.
    """

    repository: str
    commit: str
    files: Mapping[str, FileRecord]
    downloaded_at: str
    revisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Outcome of checking one file; ``problem`` says in words what is wrong with it, None that nothing is."""

    name: str
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the file is what it must be."""
        return self.problem is None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest into the model's directory, atomically and durably."""
    unfinished = directory / f".{MANIFEST}.new"
    with unfinished.open("w", encoding="utf-8") as handle:
        json.dump(asdict(manifest), handle, indent=2, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    unfinished.replace(directory / MANIFEST)


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest in a model's directory; None when there is none, or none that makes sense."""
    try:
        data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return _manifest(data)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(directory: Path, *, expected: Mapping[str, FileRecord] | None = None) -> list[FileCheck]:
    """Read every file of a model again and compare it with ``expected``, by default its manifest.

    A model without a manifest is checked against the published digests if it is the demo model; any other has nothing to
    be checked against, which is reported as a problem of the manifest.

    Returns:
        one check per expected file, in the order of their names.
    """
    if expected is None:
        expected = _expected(directory)
    if expected is None:
        return [FileCheck(MANIFEST, "is missing or damaged, so there is nothing to compare the files with")]
    return [FileCheck(name, _problem(directory / name, record)) for name, record in sorted(expected.items())]


def missing_files(directory: Path, manifest: Manifest | None) -> list[FileCheck]:
    """Do the cheap half of :func:`verify`: report files that are absent or of the wrong size, without reading them."""
    if manifest is not None:
        sizes = {name: record.size for name, record in manifest.files.items()}
    else:
        has_vocabulary = any((directory / name).is_file() for name in VOCABULARIES)
        sizes = dict.fromkeys(REQUIRED if has_vocabulary else (*REQUIRED, VOCABULARIES[0]))
    checks = (FileCheck(name, _size_problem(directory / name, size)) for name, size in sorted(sizes.items()))
    return [check for check in checks if not check.ok]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def git_blob_id(path: Path) -> str:
    """Compute the name that git gives a file's content: SHA-1 over a header with its size, and the bytes.

    Source: Pro Git, "Git Internals - Git Objects". The hub names files by it that are not in large-file storage.
    """
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _manifest(data: Any) -> Manifest:
    files = {
        str(name): FileRecord(None if record["size"] is None else int(record["size"]), str(record["sha256"]))
        for name, record in data["files"].items()
    }
    commit = str(data["commit"])
    if not files or not COMMIT.fullmatch(commit):
        raise ValueError("not a manifest")
    for name, record in files.items():
        # The names become paths: nothing but the files that a model may have.
        if name not in MODEL_FILES or not _SHA256.fullmatch(record.sha256):
            raise ValueError("not a manifest")
    revisions = tuple(str(revision) for revision in data.get("revisions", ()))
    return Manifest(str(data["repository"]), commit, files, str(data["downloaded_at"]), revisions)


def _expected(directory: Path) -> Mapping[str, FileRecord] | None:
    manifest = read_manifest(directory)
    if manifest is not None:
        return manifest.files
    if directory.parent.name == catalog.DEMO_PACKAGE:
        return {name: FileRecord(None, sha256) for name, sha256 in catalog.DEMO_SHA256.items()}
    return None


def _problem(path: Path, record: FileRecord) -> str | None:
    problem = _size_problem(path, record.size)
    if problem is not None:
        return problem
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == record.sha256 else f"has changed: its SHA-256 is {found}, not {record.sha256}"


def _size_problem(path: Path, size: int | None) -> str | None:
    try:
        found = path.stat().st_size if path.is_file() else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found is None:
        return "is missing"
    if size is None or found == size:
        return None
    return f"is truncated: {found:,} of {size:,} bytes" if found < size else f"has {found:,} bytes instead of {size:,}"
