"""Verify a model's folder and print its record. Runs on the host, as the service's user: the standard library only.

Usage: ``python3 - FOLDER [NAME=SHA256 …] < record.py``. The record has every file's size, time of change and SHA-256: as long
as sizes and times stay the same, nobody has to read gigabytes again. Expected digests are the folder's manifest's, as the
download that verified it left it, and those of the arguments, which win.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

MANIFEST = "metalscribe-model.json"
_BLOCK = 1 << 20


def record(folder: Path, expected: dict[str, str]) -> dict[str, Any]:
    """Read every file of a model.

    Raises:
        ValueError: a file is not what it must be, or nothing tells what it must be.
        OSError: a file cannot be read.
    """
    expected = {**_manifest(folder), **expected}
    if not expected:
        raise ValueError(f"{folder} has no {MANIFEST}, and nothing else tells what must be in it")
    files = {path.name: _entry(path) for path in sorted(folder.iterdir())}
    for name, digest in sorted(expected.items()):
        if name not in files:
            raise ValueError(f"{folder / name} is missing")
        if files[name]["sha256"] != digest:
            raise ValueError(f"{folder / name} has the SHA-256 {files[name]['sha256']} instead of {digest}")
    return {"folder": str(folder), "verified_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "files": files}


def _manifest(folder: Path) -> dict[str, str]:
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return {name: entry["sha256"] for name, entry in json.loads(text)["files"].items()}


def _entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest.hexdigest()}


def main(arguments: list[str]) -> int:
    """Print the record of the folder that the arguments name; 1 if it is not as it must be."""
    try:
        found = record(Path(arguments[0]), dict(argument.split("=", 1) for argument in arguments[1:]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"The model is not what it must be: {error}\n")
        return 1
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
