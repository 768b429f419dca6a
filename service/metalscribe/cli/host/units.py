"""The host's units as systemd tells of them: the service, how it is shut in, and the exporters."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Final

from metalscribe.cli.commands import run
from metalscribe.cli.findings import Finding, Status
from metalscribe.cli.host.deployment import UNIT, Host
from metalscribe.errors import MetalscribeError

_SECONDS: Final = 10.0
_ANALYSIS_SECONDS: Final = 30.0
_DAY: Final = 86_400.0
_MOST_EXPOSURE: Final = 1.5
"""On systemd's scale from 0 (shut in) to 10; as it is deployed, the unit scores less."""

_PROPERTIES: Final = (
    *("LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "NRestarts", "NeedDaemonReload"),
    *("WatchdogUSec", "ActiveEnterTimestampMonotonic"),
)
_JOURNAL: Final = f"`journalctl -u {UNIT} -n 50` tells more."
_EXPOSURE: Final = re.compile(r"Overall exposure level for \S+: (\d+\.\d+)")


def unit(host: Host) -> Finding:
    """Whether the service's unit runs, stays up, starts at boot and is watched."""
    del host
    return judge_unit(show(UNIT, *_PROPERTIES), time.monotonic())


def judge_unit(properties: Mapping[str, str], now: float) -> Finding:
    """The finding for the unit's properties; ``now`` is in seconds of the monotonic clock."""
    state, result = properties["ActiveState"], properties["Result"]
    if properties["LoadState"] != "loaded":
        return Finding(Status.FAIL, f"{UNIT} is {properties['LoadState']}", "Run the deploy again.")
    if state == "activating" and result == "success":
        return Finding(Status.WARN, f"starting ({properties['SubState']})", _JOURNAL)
    if state not in {"active", "reloading"}:
        return Finding(Status.FAIL, f"{state} ({properties['SubState']}, last result: {result})", _JOURNAL)
    up = max(0.0, now - int(properties["ActiveEnterTimestampMonotonic"]) / 1e6)
    restarts = int(properties["NRestarts"])
    watchdog = properties["WatchdogUSec"]
    parts = [f"active for {duration(up)}"]
    worries = []
    if restarts:
        times = "once" if restarts == 1 else f"{restarts} times"
        parts.append(f"restarted by itself {times} since it was last started")
        if up < _DAY:  # afterwards it is history
            worries.append(f"Why was it restarted? {_JOURNAL}")
    if watchdog in {"0", "infinity", ""}:
        parts.append("without a watchdog")
        worries.append("A service that hangs would stay so: run the deploy again, and see `systemctl cat metalscribe`.")
    else:
        parts.append(f"watchdog {watchdog}")
    if properties["UnitFileState"] != "enabled":
        parts.append(f"{properties['UnitFileState'] or 'not enabled'} at boot")
        worries.append("`systemctl enable metalscribe` lets it start at boot.")
    if properties["NeedDaemonReload"] == "yes":
        parts.append("its unit changed on disk since it was loaded")
        worries.append("`systemctl daemon-reload`, then `systemctl restart metalscribe`.")
    return Finding(Status.WARN if worries else Status.OK, ", ".join(parts), " ".join(worries))


def unit_security(host: Host) -> Finding:
    """Whether the service is still as shut in as it was deployed."""
    del host
    answer = run(["systemd-analyze", "security", "--no-pager", UNIT], seconds=_ANALYSIS_SECONDS)
    return judge_exposure(parse_exposure(answer.out) if answer.status == 0 else None, answer.complaint)


def parse_exposure(text: str) -> float | None:
    """The score in what ``systemd-analyze security UNIT`` prints, from 0 to 10; None where there is none.

    It has no place in the command's JSON, which is the table alone (systemd 252 and 257).
    """
    found = _EXPOSURE.search(text)
    return float(found[1]) if found else None


def judge_exposure(exposure: float | None, complaint: str) -> Finding:
    """The finding for a score, or for the complaint of the command that was to give it."""
    if exposure is None:
        return Finding(Status.WARN, f"systemd-analyze gives no score: {complaint}")
    detail = f"exposure {exposure:.1f} of 10"
    if exposure <= _MOST_EXPOSURE:
        return Finding(Status.OK, detail)
    return Finding(
        Status.WARN,
        f"{detail}, more than {_MOST_EXPOSURE}",
        f"`systemctl cat {UNIT}` shows which drop-in opens it, `systemd-analyze security {UNIT}` what is open.",
    )


def exporters(host: Host) -> Finding:
    """Whether the exporters of metrics run that the deploy set up."""
    states = {name: show(name, "ActiveState")["ActiveState"] for name in host.document().exporters}
    down = [f"{name} is {state}" for name, state in states.items() if state != "active"]
    if down:
        return Finding(Status.WARN, ", ".join(down), f"`systemctl status {' '.join(states)}` tells more.")
    return Finding(Status.OK, ", ".join(name.removesuffix(".service") for name in states) or "none is wanted")


def show(name: str, *properties: str) -> dict[str, str]:
    """Ask systemd for these properties of a unit.

    Raises:
        MetalscribeError: systemd does not answer.
    """
    answer = run(["systemctl", "show", name, f"--property={','.join(properties)}"], seconds=_SECONDS)
    if answer.status != 0:
        raise MetalscribeError(f"systemd does not tell of {name}: {answer.complaint}")
    return dict.fromkeys(properties, "") | parse_properties(answer.out)


def parse_properties(text: str) -> dict[str, str]:
    """The ``Name=value`` lines of ``systemctl show`` and ``timedatectl show``."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    minutes = int(seconds // 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min" if minutes else f"{int(seconds)} s"
