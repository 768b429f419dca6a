"""Where things are on a host, and small files written so that a crash leaves the old or the new one."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNIT = "metalscribe.service"
CANDIDATE_UNIT = "metalscribe-candidate.service"
FILES = ("metalscribe.env", "metalscribe.service")
"""What a generation consists of, beside its release."""


@dataclass(frozen=True)
class Layout:
    """The host's paths."""

    root: Path = Path("/opt/metalscribe")
    etc: Path = Path("/etc/metalscribe")
    state: Path = Path("/var/lib/metalscribe")
    candidate_state: Path = Path("/var/lib/metalscribe-candidate")
    backups: Path = Path("/var/backups/metalscribe")
    units: Path = Path("/etc/systemd/system")
    runtime_units: Path = Path("/run/systemd/system")
    run: Path = Path("/run/metalscribe-release")

    @property
    def releases(self) -> Path:
        """One folder per release; it is complete once it holds ``release.json``."""
        return self.root / "releases"

    @property
    def current(self) -> Path:
        """Link to the release that serves."""
        return self.root / "current"

    @property
    def generations(self) -> Path:
        """One folder per state that has served: its release's name, its settings, its unit."""
        return self.root / "generations"

    @property
    def staged(self) -> Path:
        """Settings and unit that are to serve next."""
        return self.root / "staged"

    @property
    def switching(self) -> Path:
        """There while a switch is under way, and after one that was cut off."""
        return self.root / "switching.json"

    @property
    def failed(self) -> Path:
        """What the last activation failed on."""
        return self.root / "failed.json"

    @property
    def database(self) -> Path:
        """The service's own database, unless it uses PostgreSQL."""
        return self.state / "metalscribe.db"

    @property
    def credentials(self) -> Path:
        """Secrets, a file each: the service's are called after its settings, ``metalscribe_…``."""
        return self.etc / "credentials"

    @property
    def api_key(self) -> Path:
        """The host's own API key."""
        return self.credentials / "metalscribe_api_key"

    def live(self, name: str) -> Path:
        """Where one of :data:`FILES` is in use."""
        return self.units / name if name.endswith(".service") else self.etc / name


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put ``content`` in the place of ``path`` at one stroke, and onto the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """:func:`write` for a JSON object."""
    write(path, (json.dumps(document, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``; None if there is no such file, or it is no such thing."""
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def link(path: Path, target: str) -> None:
    """Make ``path`` a link to ``target`` at one stroke."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Put what a directory lists onto the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
