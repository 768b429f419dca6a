"""SHA-256 of large files on the machine that deploys, remembered as long as a file does not change."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Final

from metalscribe_provision.common import CHECKOUT

CACHE: Final = CHECKOUT / ".cache" / "provision"
"""What deploys keep on the machine that they run from: wheels, models, digests. May be removed at any time."""

_LOCK: Final = threading.Lock()


def sha256_of(path: Path, cache: Path = CACHE) -> str:
    """SHA-256 of a file, hexadecimal; read again only if its size, its time of change or its inode is another."""
    status = path.stat()
    seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    with _LOCK:
        book = cache / "digests.json"
        known = _read(book)
        name = str(path.absolute())
        entry = known.get(name)
        if isinstance(entry, list) and entry[1:] == seen:
            return str(entry[0])
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        # Files that are gone are forgotten.
        known = {other: value for other, value in known.items() if Path(other).exists()}
        _write(book, {**known, name: [digest, *seen]})
        return digest


def _read(book: Path) -> dict[str, object]:
    try:
        known = json.loads(book.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(book: Path, known: dict[str, object]) -> None:
    book.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=book.parent, prefix=".digests-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        json.dump(known, handle)
    Path(temporary).replace(book)
