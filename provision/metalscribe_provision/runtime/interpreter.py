"""The Python that a host's releases run with."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from pyinfra.api.exceptions import DeployError
from pyinfra.context import host
from pyinfra.facts.server import LinuxDistribution

from metalscribe_provision.hostdata import HostData
from metalscribe_provision.preflight.python import MINIMUM, python_for
from metalscribe_provision.runtime.facts import PythonVersion


class Interpreter(NamedTuple):
    """A Python: its path on the host, its version such as 3.11, and the Debian packages that bring it."""

    path: str
    version: str
    packages: tuple[str, ...] = ()


def host_interpreter(data: HostData) -> Interpreter:
    """The Python of the host that is being planned, whether it is installed already or not.

    Raises:
        DeployError: there is none for it.
    """
    release = (host.get_fact(LinuxDistribution) or {}).get("release_meta") or {}
    try:
        python = python_for(str(release.get("ID", "")), str(release.get("VERSION_ID", "")), data.python)
    except ValueError as error:
        raise DeployError(f"{host.name}: {error}") from None
    named = re.fullmatch(r"python(\d+\.\d+)", PurePosixPath(python.interpreter).name)
    version = named[1] if named else host.get_fact(PythonVersion, path=python.interpreter)
    if version is None:
        raise DeployError(f"{host.name}: python={python.interpreter} is not there, or does not run")
    if tuple(map(int, version.split("."))) < MINIMUM:
        raise DeployError(
            f"{host.name}: python={python.interpreter} is {version}, the service needs {'.'.join(map(str, MINIMUM))} or later"
        )
    return Interpreter(python.interpreter, version, python.packages)
