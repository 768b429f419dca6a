"""Every shell script of the repository, by its ending or its first line, passes shellcheck."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "nginx", "provision", "service", "systemd", "terraform", "tests")

_SHELL = re.compile(rb"#! ?/(usr/)?bin/(env )?(ba|da)?sh\b")


def scripts() -> list[Path]:
    """The scripts among the repository's own files."""
    files = (file for folder in FOLDERS for file in (CHECKOUT / folder).rglob("*") if file.is_file())
    return sorted(file for file in files if file.suffix == ".sh" or _SHELL.match(_first_bytes(file)))


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(32)


def test_shellcheck_is_content() -> None:
    found = scripts()
    names = {str(script.relative_to(CHECKOUT)) for script in found}
    assert {".ci/run", ".ci/readme", "service/metalscribe/samples/make.sh", "provision/ops/files/collect.sh"} <= names
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, "--norc", *found], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
