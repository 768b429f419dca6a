"""uv on the machine that deploys: exporting the lock file, building the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.common import CHECKOUT

BOOTSTRAP: Final = CHECKOUT / "bootstrap.txt"
"""Pins uv, with the hashes of its distributions: for this machine and for the hosts."""

BUILD_CONSTRAINTS: Final = Path(__file__).with_name("build-constraints.txt")
"""Pins what builds the wheel, with hashes: the same wheel from everybody's checkout."""

SYSTEM_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
"""Where Debian keeps the system's certificates: behind a company's proxy they are the ones that work."""

_TIMEOUT: Final = 300.0  # seconds, for a slow index


def pinned_uv(bootstrap: str) -> tuple[str, frozenset[str]]:
    """Version of uv in a text like ``bootstrap.txt``, and the SHA-256 of the distributions that may be installed.

    Raises:
        DeployError: it pins no uv.
    """
    version = re.search(r"^uv==(\S+)", bootstrap, re.MULTILINE)
    if version is None:
        raise DeployError("bootstrap.txt does not pin uv: it must have a line uv==<version> with hashes")
    return version[1], frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", bootstrap))


def requirements(extras: Iterable[str], checkout: Path = CHECKOUT) -> str:
    """What the lock file pins for the service with these extras, as requirements.txt with every distribution's hash.

    metalscribe itself and the deploys' own dependencies are not among it; markers stay, so it holds for every Python.
    """
    return run_uv("export", "--format", "requirements.txt", *_what(extras), directory=checkout)


def locked(extras: Iterable[str], checkout: Path = CHECKOUT) -> dict[str, Any]:
    """:func:`requirements` as the document of a ``pylock.toml`` (PEP 751), which also tells where the files are."""
    return tomllib.loads(run_uv("export", "--format", "pylock.toml", *_what(extras), directory=checkout))


def locked_uv() -> dict[str, Any]:
    """``bootstrap.txt`` as the document of a ``pylock.toml``; asks the package index."""
    # The target is named so that a controller of another kind gets the same answer.
    target = ("--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.11")
    return tomllib.loads(run_uv("pip", "compile", "--format", "pylock.toml", "--no-deps", *target, str(BOOTSTRAP)))


def build_wheel(source: Path, output: Path) -> Path:
    """Build the wheel of the project in ``source`` into ``output``: the same bytes for the same files.

    Needs the package index, or uv's cache, for the build backend.
    """
    pinned = ("--build-constraints", str(BUILD_CONSTRAINTS), "--require-hashes")
    run_uv("build", "--wheel", "--no-create-gitignore", *pinned, "--out-dir", str(output), str(source))
    (wheel,) = output.glob("*.whl")
    return wheel


def run_uv(*arguments: str, directory: Path | None = None) -> str:
    """Run uv and return what it printed.

    Raises:
        DeployError: there is no uv, or it failed; the message has its words.
    """
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable}
    if SYSTEM_CERTIFICATES.exists():
        environment["UV_SYSTEM_CERTS"] = "1"
    # Elsewhere than in the checkout, unless it is about the checkout: its settings are not every project's.
    with tempfile.TemporaryDirectory(prefix="metalscribe-uv-") as elsewhere:
        command = [find_uv(), "--quiet", "--no-progress", *arguments]
        place = directory or elsewhere
        try:
            done = subprocess.run(  # noqa: S603
                command, cwd=place, env=environment, check=False, capture_output=True, text=True, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise DeployError(
                f"uv {arguments[0]} took longer than {_TIMEOUT:.0f} s; is the package index slow?"
            ) from None
    if done.returncode:
        raise DeployError(f"uv {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _what(extras: Iterable[str]) -> Sequence[str]:
    chosen = [argument for extra in sorted(extras) for argument in ("--extra", extra)]
    return (
        *("--frozen", "--no-dev", "--no-emit-project", "--no-emit-workspace", "--no-header", "--no-annotate"),
        *chosen,
    )


def find_uv() -> str:
    """Path of the uv to use: the checkout's own, else the one on the PATH.

    Raises:
        DeployError: there is none.
    """
    ours = CHECKOUT / ".bootstrap" / "bin" / "uv"
    found = str(ours) if ours.exists() else shutil.which("uv")
    if found is None:
        raise DeployError(f"uv is not here: `make` in {CHECKOUT} installs it into .bootstrap, or put a uv on the PATH")
    return found
