"""What the deploys share: where things are on a host, packages that wait for their lock, and proofs of the outcome."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Generator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Final

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.facts import FactBase
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
STAMPS: Final = ROOT / "stamps"
"""What was last applied, a file per :func:`applied`."""

_WAIT_FOR_LOCK: Final = "DPkg::Lock::Timeout=600"

_POLICY: Final = "/usr/sbin/policy-rc.d"
"""What Debian asks before it starts a package's service (invoke-rc.d(8)); 101 forbids it."""

_POLICY_MARK: Final = "Written by metalscribe for as long as its deploy installs packages; if none runs, remove it."
_OWN_POLICY: Final = f"grep -qsF '{_POLICY_MARK}' {_POLICY}"


class OwnPolicy(FactBase[bool]):
    """Whether services are kept from starting by what an installation of ours has left: no package's would, from then on."""

    def command(self) -> str:
        """``yes`` or nothing."""
        return f"! {_OWN_POLICY} || echo yes"

    def process(self, output: Sequence[str]) -> bool:
        """The answer."""
        return list(output) == ["yes"]

    @staticmethod
    def default() -> bool:
        """Nothing was said."""
        return False


@operation()
def packages(names: Sequence[str]) -> Generator[StringCommand]:
    """Debian packages that have to be there; the lists are refreshed only if one is missing.

    Waits for cloud-init's and unattended-upgrades' own runs of apt; services do not start before they are configured.
    """
    installed = host.get_fact(DebPackages) or {}
    missing = [name for name in names if name not in installed]
    if not missing and host.get_fact(OwnPolicy):
        yield StringCommand("rm", "-f", _POLICY)  # of an installation that the machine's power was cut off from
        return
    if not missing:
        host.noop(f"packages {', '.join(names)} are installed")
        return
    yield StringCommand(
        "command -v cloud-init >/dev/null && cloud-init status --wait >/dev/null;",
        *("apt-get", "-qq", "-o", _WAIT_FOR_LOCK, "update"),
    )
    # What an installation that was cut off has left half-configured would stop this one.
    yield StringCommand("DEBIAN_FRONTEND=noninteractive dpkg --configure -a")
    # Each package's service starts when its own configuration is there, not while it is being unpacked. A policy of somebody
    # else's stays as it is.
    yield StringCommand(
        f"if [ ! -e {_POLICY} ] || {_OWN_POLICY}; then",
        f"printf '#!/bin/sh\\n# {_POLICY_MARK}\\nexit 101\\n' > {_POLICY} && chmod 755 {_POLICY} && trap 'rm -f {_POLICY}' EXIT; fi;",
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


class SecretFile(FactBase[list[str]]):
    """Mode, owner and SHA-256 of a file that only root may read; empty if there is none."""

    def command(self, path: str) -> StringCommand:
        """One line: ``600 root 0123…``."""
        quoted = QuoteString(path)
        return StringCommand("[ ! -f", quoted, "] || { stat -c '%a %U'", quoted, "; sha256sum <", quoted, "; }")

    def process(self, output: Sequence[str]) -> list[str]:
        """The three, as words."""
        return " ".join(output).split()[:3]


@operation()
def secret_file(path: PurePosixPath, content: bytes) -> Generator[StringCommand | FileUploadCommand]:
    """A file that only root may read, and that nobody could read on its way there.

    ``files.put`` would lay it into /tmp for all to see when the deploy uses sudo, and print it with ``--diff``.
    """
    wanted = ["600", "root", hashlib.sha256(content).hexdigest()]
    if host.get_fact(SecretFile, path=str(path)) == wanted:
        host.noop(f"{path} is as it should be")
        return
    private = f"/tmp/.metalscribe-{secrets.token_hex(16)}"  # noqa: S108  (a folder of our own, which mkdir makes or fails)
    uploaded = f"{private}/secret"
    # All that may fail comes before the secret: the command after its upload removes it, whatever happens.
    yield StringCommand("install", "-d", "-m", "700", "-o", "root", "-g", "root", QuoteString(str(path.parent)))
    # Along with what a deploy that was cut off has left: nobody else's, and nothing but such folders.
    yield StringCommand(
        "find /tmp -maxdepth 1 -type d -name '.metalscribe-*' -user \"$(id -un)\" -exec rm -rf {} +;",
        *("mkdir", "-m", "700", private),
        _sudo=False,
    )
    yield FileUploadCommand(BytesIO(content), uploaded, _sudo=False)
    yield StringCommand(
        *("install", "-m", "600", "-o", "root", "-g", "root", uploaded, QuoteString(f"{path}.new")),
        *("&&", "mv", "-f", QuoteString(f"{path}.new"), QuoteString(str(path)), ";"),
        *("status=$?;", "rm", "-rf", private, ";", "exit", "$status"),
    )


class Applied(FactBase[bool]):
    """Whether what was last applied is what is on disk."""

    def command(self, stamp: str, paths: Sequence[str], stamps: PurePosixPath = STAMPS) -> StringCommand:
        """``yes`` or ``no``."""
        last = QuoteString(str(stamps / stamp))
        return StringCommand('[ "$(', _digest(paths), ')" = "$(cat', last, '2>/dev/null)" ] && echo yes || echo no')

    def process(self, output: Sequence[str]) -> bool:
        """The answer."""
        return list(output)[-1:] == ["yes"]


@operation()
def applied(
    stamp: str, paths: Sequence[PurePosixPath], commands: Sequence[str], stamps: PurePosixPath = STAMPS
) -> Generator[StringCommand]:
    """Run ``commands`` unless they have run since one of the files changed.

    ``_if=put.did_change`` would be forgotten by a deploy that is cut off between the change and what it calls for; this is
    decided by the files and a stamp.
    """
    files = [str(path) for path in paths]
    if host.get_fact(Applied, stamp=stamp, paths=files, stamps=stamps):
        host.noop(f"{stamp}: nothing has changed")
        return
    for command in commands:
        yield StringCommand(command)
    target = QuoteString(str(stamps / stamp))
    yield StringCommand("mkdir", "-p", QuoteString(str(stamps)), "&&", _digest(files), ">", target)


def _digest(paths: Sequence[str]) -> StringCommand:
    # The list of those that are missing counts as well: a file that is removed is a change.
    return StringCommand("sha256sum", "--", *(QuoteString(path) for path in paths), "2>&1 | sha256sum")
