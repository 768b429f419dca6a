"""What a host is to run: metalscribe's wheel and the lock file's requirements, under a name made of their content."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.bundle.contents import Bundle, read_bundle
from metalscribe_provision.common import CHECKOUT, RELEASES
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.runtime import uv
from metalscribe_provision.runtime.digests import CACHE
from metalscribe_provision.runtime.interpreter import Interpreter, host_interpreter
from metalscribe_provision.runtime.source import Commit, source_commit, source_digest, source_files

_LOCK: Final = threading.Lock()
_ABOUT_THE_BUILD: Final = re.compile(r"[^/]+\.dist-info/(RECORD|WHEEL)")


@dataclass(frozen=True, slots=True)
class Release:
    """A release, before it is on any host.

    Attributes:
        id: ``<version>-<12 hexadecimal digits>``, the same for the same content: the name of its folder on the host.
        version: of metalscribe.
        wheel: metalscribe's wheel on this machine.
        requirements: everything else, pinned, with hashes.
        extras: of the package, sorted.
        python: the interpreter's path on the host, and its version.
        commit: that the wheel was built from; None if that is not known.
    """

    id: str
    version: str
    wheel: Path
    requirements: str
    extras: tuple[str, ...]
    python: Interpreter
    commit: Commit | None

    @property
    def path(self) -> PurePosixPath:
        """Its folder on the host."""
        return RELEASES / self.id

    def describe(self) -> str:
        """The beginning of its ``release.json`` on the host, to which the build adds when and with what it was made."""
        commit = asdict(self.commit) if self.commit is not None else {"commit": None, "modified": None}
        what = {"id": self.id, "version": self.version, "extras": list(self.extras), **commit}
        return json.dumps(what, indent=2) + "\n"


def release_for(data: HostData, python: Interpreter | None = None) -> Release:
    """The release that a host is to run: built from this checkout, or from the host's bundle.

    Built once per process for all hosts, and kept for the next as long as the source stays the same.

    Args:
        data: the host's.
        python: what it runs with; by default what the host that is being planned has, or will have.

    Raises:
        DeployError: it cannot be built, the bundle is not of this checkout, or there is no Python for the host.
    """
    interpreter = python if python is not None else host_interpreter(data)
    with _LOCK:  # hosts are planned side by side
        return _release(data.extras, interpreter, data.bundle)


def release_id(version: str, wheel: Path, requirements: str, extras: Iterable[str], python: Interpreter) -> str:
    """Name a release by its content.

    Of the wheel its files count, not its bytes nor what the build backend says of itself; of the Python what would make an
    environment that was built with it another one: its path and version.
    """
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not _ABOUT_THE_BUILD.fullmatch(name):
                digest.update(f"{hashlib.sha256(archive.read(name)).hexdigest()}  {name}\n".encode())
    for part in (requirements, " ".join(sorted(extras)), python.path, python.version):
        digest.update(f"{hashlib.sha256(part.encode()).hexdigest()}\n".encode())
    return f"{version}-{digest.hexdigest()[:12]}"


def build_wheel(checkout: Path = CHECKOUT, kept: Path = CACHE / "wheels") -> Path:
    """Build metalscribe's wheel from a checkout, or find the one that was built from the same source before.

    Args:
        checkout: the source.
        kept: where wheels are kept.
    """
    files = source_files(checkout)
    constraints = {"build-constraints.txt": uv.BUILD_CONSTRAINTS}
    folder = kept / source_digest({**files, **constraints})[:32]
    built = sorted(folder.glob("*.whl"))
    if built:
        return built[0]
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".building-") as scratch:
        # From a copy: what else lies around in the checkout does not get into the wheel.
        source = Path(scratch, "source")
        for name, path in files.items():
            copy = source / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        wheel = uv.build_wheel(source, Path(scratch, "wheel"))
        folder.mkdir(exist_ok=True)
        return wheel.replace(folder / wheel.name)


@cache
def _release(extras: tuple[str, ...], python: Interpreter, bundle: Path | None) -> Release:
    requirements = uv.requirements(extras)
    if bundle is None:
        wheel = build_wheel()
    else:
        found = read_bundle(bundle)
        require_of_checkout(found)
        found.check([found.wheel])
        wheel = found.path(found.wheel)
    version = wheel.name.split("-")[1]
    name = release_id(version, wheel, requirements, extras, python)
    return Release(name, version, wheel, requirements, extras, python, source_commit())


def require_of_checkout(bundle: Bundle) -> None:
    """Refuse a bundle of another state of the source: its release would not fit the units and templates of this one.

    Raises:
        DeployError: it is.
    """
    if bundle.source != source_digest(source_files()):
        raise DeployError(
            f"the bundle {bundle.folder} (metalscribe {bundle.version}) was made from another state of the source than {CHECKOUT}: "
            "make it again with `make bundle`, or check out what it was made from"
        )
