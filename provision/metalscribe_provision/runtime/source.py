"""What of a checkout goes into a release."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.common import CHECKOUT

PACKAGE: Final = "service/metalscribe"
_PROJECT: Final = ("pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Commit:
    """Where the source comes from: the commit's 40 hexadecimal digits, and whether its files were changed since."""

    commit: str
    modified: bool


def source_files(checkout: Path = CHECKOUT) -> dict[str, Path]:
    """The files that the wheel is built from: name in the checkout → path, sorted.

    In a clone that is what git tracks, with what was edited since, and new Python modules even before git knows them; in an
    unpacked archive everything but hidden files, caches and editors' backups. Whatever else lies around is no part of a release.

    Raises:
        DeployError: it is no complete checkout.
    """
    if _is_clone(checkout):
        names = set(_git(checkout, "ls-files", "-z", "--", PACKAGE).split("\0")) - {""}
        new = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard", "--", PACKAGE).split("\0")
        names |= {name for name in new if name.endswith(".py") and not _is_junk(name)}
    else:
        package = checkout / PACKAGE
        names = {path.relative_to(checkout).as_posix() for path in package.rglob("*") if path.is_file()}
        names = {name for name in names if not _is_junk(name)}
    # A file that was deleted but is still tracked is deleted.
    found = {name: checkout / name for name in sorted({*names, *_PROJECT}) if (checkout / name).is_file()}
    if f"{PACKAGE}/__init__.py" not in found:
        raise DeployError(f"{checkout} is no complete checkout of metalscribe: it has no {PACKAGE}/__init__.py")
    return found


def source_digest(files: Mapping[str, Path]) -> str:
    """SHA-256 over the names and contents of :func:`source_files`; the same on every machine."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def source_commit(checkout: Path = CHECKOUT) -> Commit | None:
    """The commit that is checked out; None in an unpacked archive, or before the first commit."""
    if not _is_clone(checkout) or not _git(checkout, "rev-parse", "--quiet", "--verify", "HEAD", check=False):
        return None
    changed = _git(checkout, "status", "--porcelain", "--", PACKAGE, *_PROJECT, "uv.lock")
    return Commit(_git(checkout, "rev-parse", "HEAD").strip(), bool(changed.strip()))


def _is_clone(checkout: Path) -> bool:
    return (checkout / ".git").exists() and shutil.which("git") is not None


def _git(checkout: Path, *arguments: str, check: bool = True) -> str:
    # Whoever runs the deploy may not be who cloned: git would refuse a checkout of somebody else's.
    command = ["git", "-c", "safe.directory=*", "-C", str(checkout), *arguments]
    # A deploy that is started by a git hook inherits the hook's idea of the repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)  # noqa: S603
    if done.returncode and check:
        raise DeployError(f"git {arguments[0]} failed in {checkout}: {done.stderr.strip()}")
    return done.stdout


def _is_junk(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return hidden or name.endswith((".pyc", ".pyo", "~", ".orig", ".rej", ".bak")) or parts[-1].startswith("#")
