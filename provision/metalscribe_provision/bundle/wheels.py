"""Which wheels a host installs: the lock file's choice for a Python and the platform that we deploy to. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from packaging.markers import Environment
from packaging.pylock import PackageWheel, Pylock, PylockSelectError
from packaging.tags import Tag, compatible_tags, cpython_tags
from pyinfra.api.exceptions import DeployError

PLATFORM: Final = "x86_64"
GLIBC: Final = (2, 35)
"""The oldest of the supported systems': Ubuntu 22.04 has 2.35, Debian 12 2.36, Ubuntu 24.04 2.39, Debian 13 2.41."""

_LEGACY: Final = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}  # PEP 600
_PATCHES: Final = (0, 99)
"""Patch releases of a Python between which the lock file may distinguish; a host has any of them."""


@dataclass(frozen=True, slots=True, order=True)
class Wheel:
    """A wheel of the lock file: its file name, its SHA-256 (hexadecimal), and where it is downloaded from."""

    filename: str
    sha256: str
    url: str


def wheels_for(document: Mapping[str, Any], python: str) -> list[Wheel]:
    """Choose the wheels that a host with this Python needs, for every patch release of it, sorted by name.

    Args:
        document: of a ``pylock.toml`` (PEP 751).
        python: such as 3.11.

    Raises:
        DeployError: something has no wheel for this Python, or is not of the lock file's Pythons.
    """
    lock = Pylock.from_dict(document)
    tags = list(_tags(python))
    chosen = set()
    for patch in _PATCHES:
        try:
            for package, distribution in lock.select(environment=_environment(python, patch), tags=tags):
                if not isinstance(distribution, PackageWheel):
                    raise DeployError(
                        f"{package.name} has no wheel for Python {python} on {PLATFORM}, and is never built on a host"
                    )
                chosen.add(_wheel(distribution))
        except PylockSelectError as error:
            raise DeployError(f"the lock file has nothing for Python {python} on {PLATFORM}: {error}") from None
    return sorted(chosen)


def _wheel(distribution: PackageWheel) -> Wheel:
    digest = distribution.hashes.get("sha256")
    if distribution.url is None or digest is None:
        raise DeployError(f"the lock file has no address or no SHA-256 for {distribution.filename}")
    return Wheel(distribution.filename, digest, distribution.url)


def _tags(python: str) -> Iterator[Tag]:
    version = _version(python)
    platforms = list(_platforms())
    yield from cpython_tags(version, platforms=platforms)
    yield from compatible_tags(version, interpreter=f"cp{version[0]}{version[1]}", platforms=platforms)


def _platforms() -> Iterator[str]:
    """Best first, as installers prefer them."""
    major, newest = GLIBC
    for minor in range(newest, 4, -1):
        yield f"manylinux_{major}_{minor}_{PLATFORM}"
        if (major, minor) in _LEGACY:
            yield f"{_LEGACY[major, minor]}_{PLATFORM}"
    yield f"linux_{PLATFORM}"


def _environment(python: str, patch: int) -> Environment:
    major, minor = _version(python)
    full = f"{major}.{minor}.{patch}"
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": PLATFORM,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": f"{major}.{minor}",
        "sys_platform": "linux",
    }


def _version(python: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)", python)
    if found is None:
        raise DeployError(f"{python!r} is not a Python version such as 3.12")
    return int(found[1]), int(found[2])
