"""Which Python a host runs the service with, and the packages that bring it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final, NamedTuple

MINIMUM: Final = (3, 11)
"""What the service's ``requires-python`` asks for."""

DISTRIBUTION_PYTHON: Final = {
    ("debian", "12"): "3.11",
    ("debian", "13"): "3.13",
    ("ubuntu", "22.04"): "3.11",  # beside its default 3.10, in universe
    ("ubuntu", "24.04"): "3.12",
}
"""``ID`` and ``VERSION_ID`` of ``/etc/os-release`` → the newest Python that the distribution's own archive has
(https://packages.debian.org/python3, https://packages.ubuntu.com/jammy/python3.11)."""


class Python(NamedTuple):
    """An interpreter's path, and the Debian packages that it comes from (none, if it is not the distribution's)."""

    interpreter: str
    packages: tuple[str, ...]


def python_for(distribution: str, version: str, wanted: str) -> Python:
    """Choose the Python of a host's releases.

    Args:
        distribution: ``ID`` of ``/etc/os-release``: debian or ubuntu.
        version: its ``VERSION_ID``, such as 12 or 24.04.
        wanted: host data ``python``: auto, a version (3.12, python3.12), or an interpreter's absolute path.

    Raises:
        ValueError: what is wanted is not one of these, is too old, or there is none for this system.
    """
    if wanted.startswith("/"):
        named = re.fullmatch(r"python(\d+)\.(\d+)", PurePosixPath(wanted).name)
        if named and (int(named[1]), int(named[2])) < MINIMUM:
            raise ValueError(_too_old(wanted))
        return Python(wanted, ())
    if wanted == "auto":
        number = DISTRIBUTION_PYTHON.get((distribution, version))
        if number is None:
            raise ValueError(
                f"no Python is known for {distribution} {version}; set python to the path of one that is {_TEXT}"
            )
    else:
        found = re.fullmatch(r"(?:python)?(\d+)\.(\d+)", wanted)
        if found is None:
            raise ValueError(f"python={wanted} is neither auto, nor a version such as python3.12, nor an absolute path")
        if (int(found[1]), int(found[2])) < MINIMUM:
            raise ValueError(_too_old(wanted))
        number = f"{int(found[1])}.{int(found[2])}"
    return Python(f"/usr/bin/python{number}", (f"python{number}", f"python{number}-venv"))


_TEXT: Final = f"{MINIMUM[0]}.{MINIMUM[1]} or later"


def _too_old(wanted: str) -> str:
    return f"python={wanted} is too old: the service needs {_TEXT}"
