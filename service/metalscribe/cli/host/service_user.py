"""The service's own checks, carried out as the service's user where root calls the doctor.

As root nearly everything can be read and written, and what root makes in the state directory the service cannot use: both
would make the checks worthless. So they run in a process of that user's, with the settings and secrets of the unit.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from metalscribe.cli.commands import plain_environment
from metalscribe.cli.examination import QUICK, Check
from metalscribe.cli.host.deployment import CREDENTIALS, USER, Host
from metalscribe.settings import PREFIX, Settings

_CHECK_SECONDS: Final = 600.0
"""More than the longest check allows itself; one that takes longer hangs, in a driver or on a disk."""

_END_SECONDS: Final = 10.0
_PROGRAM: Final = "import sys; from metalscribe.cli.examination import main; main(sys.argv[1:])"


def examine_as_service(host: Host, names: Sequence[str], *, quick: bool) -> Iterator[Check]:
    """Carry the checks out as the service's user; root alone may call this."""
    try:
        account = pwd.getpwnam(USER)
    except KeyError:
        yield Check(names[0], "fail", f"there is no user {USER} on this host", "Run the deploy again.")
        return
    process = subprocess.Popen(  # noqa: S603  (our own program)
        [sys.executable, "-I", "-c", _PROGRAM, *([QUICK] if quick else []), *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=service_environment(os.environ, account, unit_secrets(host)),
        cwd="/",
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101  (a pipe was asked for)
    try:
        yield from collected(process.stdout, names, _CHECK_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    finally:
        if process.poll() is None:  # left early, or stuck
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_service_user() -> bool:
    """Whether this process is the service's user already."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name == USER
    except KeyError:
        return False


def collected(lines: IO[bytes], names: Sequence[str], seconds: float) -> Iterator[Check]:
    """The checks of ``names`` as ``lines`` tells of them, each awaited for ``seconds``.

    The first that does not come is a failure and the last: whatever carried them out has ended, or hangs.
    """
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(lines, arrived), daemon=True).start()
    done: list[Check] = []
    try:
        while line := arrived.get(timeout=seconds):
            done.append(Check(**json.loads(line)))
            yield done[-1]
    except queue.Empty:
        yield Check(_next(names, done), "fail", f"hangs: it did not end within {seconds:g} s", "Read `dmesg`.")
        return
    left_out = bool(done) and done[0].name == "settings" and done[0].status == "fail"
    if len(done) < len(names) and not left_out:
        yield Check(_next(names, done), "fail", "the process that looked into it ended without a word", "Read `dmesg`.")


def service_environment(
    ours: Mapping[str, str], account: pwd.struct_passwd, secrets: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the service's user: our settings, the unit's secrets, nothing of root's own."""
    settings = {name: value for name, value in ours.items() if name.startswith(PREFIX)}
    kept = {name: value for name, value in plain_environment().items() if not name.startswith(("SUDO_", "XDG_"))}
    kept.pop("CREDENTIALS_DIRECTORY", None)  # which the user may not read
    own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    return kept | own | dict(secrets) | settings


def unit_secrets(host: Host) -> dict[str, str]:
    """The secrets that systemd hands to the unit (``LoadCredential=``), by the names of their variables."""
    directory = Path(os.environ.get("CREDENTIALS_DIRECTORY") or host.at(CREDENTIALS))
    if not directory.is_dir():
        return {}
    known = {f"{PREFIX}{name}".lower() for name in Settings.model_fields} & host.credentials()
    return {path.name.upper(): path.read_text("utf-8").strip() for path in directory.iterdir() if path.name in known}


def _pump(lines: IO[bytes], arrived: queue.SimpleQueue[bytes]) -> None:
    for line in lines:
        arrived.put(line)
    arrived.put(b"")


def _next(names: Sequence[str], done: Sequence[Check]) -> str:
    return names[len(done)] if len(done) < len(names) else names[-1]
