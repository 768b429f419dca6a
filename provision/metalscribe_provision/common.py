"""What the deploys share: where things are on a host, packages that wait for their lock, and proofs of the outcome."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host, state
from pyinfra.facts.deb import DebPackages

CHECKOUT: Final = Path(__file__).resolve().parents[2]
"""The checkout that is deployed: its templates, its lock file, its package."""

ROOT: Final = PurePosixPath("/opt/metalscribe")
RELEASES: Final = ROOT / "releases"
CURRENT: Final = ROOT / "current"
STATE: Final = PurePosixPath("/var/lib/metalscribe")
MODELS: Final = STATE / "models"
ETC: Final = PurePosixPath("/etc/metalscribe")
CREDENTIALS: Final = ETC / "credentials"
TLS_DIR: Final = ETC / "tls"
USER: Final = "metalscribe"
PORT: Final = 8000
CANDIDATE_PORT: Final = 8001

_WAIT_FOR_LOCK: Final = "DPkg::Lock::Timeout=600"


@operation()
def packages(names: Sequence[str]) -> Generator[StringCommand]:
    """Debian packages that have to be there; the lists are refreshed only if one is missing.

    Waits for cloud-init's and unattended-upgrades' own runs of apt; services do not start before they are configured.
    """
    installed = host.get_fact(DebPackages) or {}
    missing = [name for name in names if name not in installed]
    if not missing:
        host.noop(f"packages {', '.join(names)} are installed")
        return
    # Each package's service starts when its own configuration is there, not while it is being unpacked.
    policy = "/usr/sbin/policy-rc.d"
    yield StringCommand(
        "command -v cloud-init >/dev/null && cloud-init status --wait >/dev/null;",
        *("apt-get", "-qq", "-o", _WAIT_FOR_LOCK, "update"),
    )
    yield StringCommand(
        f"[ -e {policy} ] || {{ printf '#!/bin/sh\\nexit 101\\n' > {policy} && chmod 755 {policy} && trap 'rm -f {policy}' EXIT; }};",
        *("DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "-o", _WAIT_FOR_LOCK, "--no-install-recommends"),
        "install",
        *(QuoteString(name) for name in missing),
    )


@operation()
def proven(problem: Callable[[], str | None]) -> Generator[StringCommand]:
    """Prove an outcome: ``problem`` looks at the host (through facts) and returns what is wrong, None if nothing is.

    Looks only while the deploy runs, never while it plans, and changes nothing; what is wrong ends the deploy on that host.
    """
    if not state.is_executing:
        return
    text = problem()
    if text is None:
        host.noop("as it should be")
        return
    yield StringCommand("printf '%s\\n'", QuoteString(text), ">&2; exit 1")
