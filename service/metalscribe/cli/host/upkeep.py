"""What keeps a host in order over time: its releases, room for the next one, backups, and the clock."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from metalscribe.cli.commands import run
from metalscribe.cli.findings import Finding, Status
from metalscribe.cli.host.deployment import BACKUPS, DOCUMENT, RELEASE_TOOL, ROOT, Host
from metalscribe.cli.host.units import duration, parse_properties, show
from metalscribe.errors import MetalscribeError

_SECONDS: Final = 10.0
_STATUS_SECONDS: Final = 30.0
_GIB: Final = 1024**3
_LITTLE_SPACE: Final = 4 * _GIB
"""A release with cuBLAS takes some 2 GiB, and is unpacked beside the others."""

_BACKUP_DAYS: Final = 2
_DAY: Final = 86_400.0
_BACKUP_UNIT: Final = "metalscribe-backup"


def release(host: Host) -> Finding:
    """Which release serves, and whether the last change of it came to a good end."""
    tool = host.at(RELEASE_TOOL)
    if not tool.is_file():
        return Finding(Status.FAIL, f"{RELEASE_TOOL} is missing", "Run the deploy again.")
    answer = run([str(tool), "status", "--json"], seconds=_STATUS_SECONDS)
    if answer.status == 2 and "root" in answer.complaint:
        raise PermissionError(1, "root alone may ask", str(RELEASE_TOOL))
    try:
        status = json.loads(answer.out)
    except ValueError:
        raise MetalscribeError(f"{RELEASE_TOOL} status does not tell: {answer.complaint}") from None
    return judge_release(status)


def judge_release(status: Mapping[str, Any]) -> Finding:
    """The finding for what ``metalscribe-release status --json`` tells."""
    if not status.get("current"):
        return Finding(Status.FAIL, "no release has been put into service", "Run the deploy again.")
    parts = [f"{status['current']}, generation {status.get('generation')} since {status.get('since')}"]
    if previous := status.get("previous"):
        parts.append(f"before it {previous.get('release')}")
    worries = []
    if interrupted := status.get("interrupted"):
        parts.append(f"the switch to {interrupted.get('to')} was cut off midway")
        worries.append("Run the deploy again.")
    if failed := status.get("failed"):
        reason = " ".join(str(failed.get("reason", "")).split())
        parts.append(f"{failed.get('release')} was turned down at {failed.get('at')}: {reason}")
        worries.append("`journalctl -t metalscribe-release` tells more; deploy a mended release.")
    if not interrupted and status.get("fingerprint") != status.get("live_fingerprint"):
        parts.append("its settings, its unit or the link to it were changed by hand since")
        worries.append("Run the deploy again; changes of your own belong into the inventory.")
    if status.get("credentials_changed"):
        parts.append("a credential was changed since the service started")
        worries.append(f"`{RELEASE_TOOL} restart` makes it take effect.")
    return Finding(Status.WARN if worries else Status.OK, "; ".join(parts), " ".join(worries))


def release_space(host: Host) -> Finding:
    """Whether the next release has room beside those that are there."""
    free = shutil.disk_usage(host.at(ROOT)).free
    detail = f"{free / _GIB:.1f} GiB free at {ROOT}"
    if free >= _LITTLE_SPACE:
        return Finding(Status.OK, detail)
    hint = "Make room before the next upgrade; keep_releases in the inventory says how many releases stay."
    return Finding(Status.WARN, detail, hint)


def backup(host: Host) -> Finding:
    """Whether the database is backed up every day."""
    if "metalscribe_database_url" in host.credentials():
        return Finding(Status.OK, "none made here: the database is a PostgreSQL, whose backups are its own affair")
    timer = show(f"{_BACKUP_UNIT}.timer", "ActiveState")["ActiveState"]
    last = show(f"{_BACKUP_UNIT}.service", "Result")["Result"]
    directory = host.at(BACKUPS)
    made = [path.stat().st_mtime for path in directory.iterdir() if path.suffix == ".db"] if directory.is_dir() else []
    now = time.time()
    return judge_backup(
        timer=timer,
        last=last,
        age=now - max(made) if made else None,
        deployed=now - host.at(DOCUMENT).stat().st_mtime,
    )


def judge_backup(*, timer: str, last: str, age: float | None, deployed: float) -> Finding:
    """The finding for the backups.

    Args:
        timer: ``ActiveState`` of the timer.
        last: ``Result`` of the last backup.
        age: seconds since the newest backup; None if there is none.
        deployed: seconds since the host was deployed.
    """
    hint = f"`systemctl start {_BACKUP_UNIT}` makes one; `journalctl -u {_BACKUP_UNIT}` tells how the last ones went."
    if timer != "active":
        return Finding(
            Status.WARN, f"{_BACKUP_UNIT}.timer is {timer}", f"`systemctl enable --now {_BACKUP_UNIT}.timer`."
        )
    newest = f"the newest is {duration(age)} old" if age is not None else "there is none"
    if last != "success":
        return Finding(Status.WARN, f"the last backup failed ({last}); {newest}", hint)
    if age is None and deployed < _BACKUP_DAYS * _DAY:
        return Finding(Status.OK, "none yet: the first is made in the night after the deploy")
    if age is None or age > _BACKUP_DAYS * _DAY:
        return Finding(Status.WARN, newest, hint)
    return Finding(Status.OK, newest)


def clock(host: Host) -> Finding:
    """Whether the clock is right: certificates and keys expire by it."""
    if host.at(Path("/run/systemd/container")).exists():
        return Finding(Status.OK, "a container's: the machine around it keeps it")
    answer = run(["timedatectl", "show", "--property=NTP,NTPSynchronized"], seconds=_SECONDS)
    return judge_clock(parse_properties(answer.out), answer.complaint if answer.status else "")


def judge_clock(properties: Mapping[str, str], complaint: str) -> Finding:
    """The finding for what ``timedatectl show`` tells, or for what it complained about."""
    if complaint:
        return Finding(Status.WARN, f"timedatectl does not tell: {complaint}")
    if properties.get("NTPSynchronized") == "yes":
        return Finding(Status.OK, "synchronised")
    if properties.get("NTP") == "yes":
        return Finding(
            Status.WARN,
            "not synchronised, although a time service runs",
            "Does it reach its servers (UDP 123)? `timedatectl timesync-status` or `chronyc sources` tells.",
        )
    return Finding(
        Status.WARN, "not synchronised", "`apt install systemd-timesyncd` (or chrony), `timedatectl set-ntp true`."
    )
