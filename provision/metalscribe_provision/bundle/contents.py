"""Reading a bundle: what is in it, whether it belongs to this checkout, and whether it is intact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pyinfra.api.exceptions import DeployError

from metalscribe_provision.bundle.wheels import Wheel
from metalscribe_provision.runtime.digests import sha256_of

DESCRIPTION: Final = "bundle.json"
SUMS: Final = "SHA256SUMS"
WHEELS: Final = "wheels"
MODELS: Final = "models"
FORMAT: Final = 1

_AGAIN: Final = "make it again with `make bundle`"
_NAME: Final = re.compile(r"(wheels|models/[\w.@+-]+)/[\w.+-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on the machine that deploys.

    Attributes:
        folder: where it is.
        version: of metalscribe.
        source: digest of the source that its wheel was built from.
        wheel: file name of metalscribe's wheel.
        uv: file name of uv's wheel.
        pythons: Pythons that it has wheels for, such as 3.11.
        extras: extras that it has wheels for.
        sums: every file: name in the bundle → SHA-256.
    """

    folder: Path
    version: str
    source: str
    wheel: str
    uv: str
    pythons: tuple[str, ...]
    extras: tuple[str, ...]
    sums: Mapping[str, str]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models' folders in it, sorted."""
        return tuple(sorted({PurePosixPath(name).parts[1] for name in self.sums if name.startswith(f"{MODELS}/")}))

    def path(self, name: str) -> Path:
        """Where a file of it is, unread."""
        return self.folder / name

    def model_files(self, model: str) -> dict[str, str]:
        """The files of one of :attr:`models`: name in its folder → SHA-256."""
        start = f"{MODELS}/{model}/"
        return {name.removeprefix(start): digest for name, digest in self.sums.items() if name.startswith(start)}

    def check(self, names: Iterable[str]) -> None:
        """Compare files with their checksums.

        Raises:
            DeployError: one is missing or was changed.
        """
        for name in names:
            path = self.path(name)
            if not path.is_file():
                raise DeployError(
                    f"the bundle {self.folder} is not complete: {name} is missing; copy it again, or {_AGAIN}"
                )
            if sha256_of(path) != self.sums.get(name):
                raise DeployError(
                    f"the bundle {self.folder} is damaged: {name} has another SHA-256; copy it again, or {_AGAIN}"
                )

    def names_of(self, wheels: Iterable[Wheel], python: str) -> list[str]:
        """Names in the bundle of wheels that a host with this Python needs.

        Raises:
            DeployError: they are not all in it.
        """
        found: list[str] = []
        missing: list[str] = []
        for wheel in wheels:
            name = f"{WHEELS}/{wheel.filename}"
            (found if self.sums.get(name) == wheel.sha256 else missing).append(name)
        if missing:
            what = ", ".join(PurePosixPath(name).name for name in missing[:3]) + (" …" if missing[3:] else "")
            raise DeployError(
                f"the bundle {self.folder} lacks {len(missing)} wheels of the lock file for Python {python} ({what}); it has Python "
                f"{', '.join(self.pythons)} and extras {', '.join(self.extras) or 'none'}: {_AGAIN} for this host"
            )
        return found


def read_bundle(folder: Path) -> Bundle:
    """Read what is in a bundle, without reading its large files.

    Raises:
        DeployError: it is none, or of another format.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        sums = parse_sums((folder / SUMS).read_text(encoding="utf-8"))
        return _bundle(folder, description, sums)
    except FileNotFoundError as error:
        raise DeployError(f"{folder} is no complete bundle: it has no {Path(error.filename).name}; {_AGAIN}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(f"{folder} is no bundle that this checkout understands ({error}); {_AGAIN}") from None


def parse_sums(text: str) -> dict[str, str]:
    """Read a ``SHA256SUMS`` file: name → digest. Only names that a bundle may have: they become paths on hosts.

    Raises:
        ValueError: a line is no such thing.
    """
    sums = {}
    for line in text.splitlines():
        matched = re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)
        if matched is None or not (matched[2] == DESCRIPTION or _NAME.fullmatch(matched[2])) or ".." in matched[2]:
            raise ValueError(f"{SUMS} has a line that does not belong there: {line[:100]!r}")
        sums[matched[2]] = matched[1]
    return sums


def _bundle(folder: Path, description: Mapping[str, Any], sums: Mapping[str, str]) -> Bundle:
    if description["format"] != FORMAT:
        raise ValueError(f"format {description['format']} instead of {FORMAT}")
    bundle = Bundle(
        folder=folder,
        version=str(description["version"]),
        source=str(description["source"]),
        wheel=f"{WHEELS}/{description['wheel']}",
        uv=f"{WHEELS}/{description['uv']}",
        pythons=tuple(map(str, description["pythons"])),
        extras=tuple(map(str, description["extras"])),
        sums=sums,
    )
    for name in (bundle.wheel, bundle.uv):
        if name not in sums:
            raise ValueError(f"{name} has no checksum")
    return bundle
