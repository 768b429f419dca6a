"""The command line of ``metalscribe-release``.

Exit status: 0 done; 1 not done, what served before serves; 2 refused, nothing was touched; 3 not done, and nothing serves.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import syslog
import time
from collections.abc import Iterator
from importlib import resources
from typing import Any

from . import database
from .gate import Sample
from .generations import Refused
from .layout import UNIT, Layout
from .switch import Conditions, Failed, Switch
from .unit import SystemdFailed, is_active

_LOCK_PATIENCE = 1800.0


def main() -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args()
    layout = Layout()
    if os.geteuid() != 0:
        print("metalscribe-release has to run as root", file=sys.stderr)
        return 2
    # Whoever started this may go away (a deploy that is cut off); a switch is finished all the same.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Like Ctrl-C: a candidate does not stay behind. During a switch neither counts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    syslog.openlog("metalscribe-release", syslog.LOG_PID)
    outcome: dict[str, Any] = {"result": "done", "detail": ""}
    code = 0
    try:
        outcome["detail"] = _run(arguments, layout)
    except Refused as error:
        outcome, code = {"result": "refused", "detail": f"{error}"}, 2
    except Failed as error:
        outcome = {"result": "failed", "detail": f"{error}", "serving": error.serving}
        code = 1 if error.serving else 3
    except (SystemdFailed, database.DatabaseFailed, OSError) as error:
        outcome, code = _not_done(f"{error}")
    except KeyboardInterrupt:
        outcome, code = _not_done("interrupted before anything was switched")
    if isinstance(outcome["detail"], dict):
        outcome = outcome["detail"]
    elif outcome["detail"]:
        syslog.syslog(syslog.LOG_ERR if code else syslog.LOG_NOTICE, str(outcome["detail"]))
    _show(outcome, as_json=arguments.json, code=code)
    return code


def _run(arguments: argparse.Namespace, layout: Layout) -> str | dict[str, Any]:
    sample = Sample(_resource("sample.flac"), _resource("sample.txt").decode())
    conditions = Conditions(
        sample, words=not getattr(arguments, "no_words", False), ready_secs=getattr(arguments, "ready_secs", 300.0)
    )
    switch = Switch(layout, conditions, _tell)
    if arguments.command == "status":
        return switch.status()
    with _alone(layout):
        if arguments.command == "activate":
            return switch.activate(arguments.release, keep=arguments.keep)
        if arguments.command == "rollback":
            return switch.roll_back(arguments.to, restore=arguments.restore_database)
        if arguments.command == "restart":
            return switch.restart()
        return _back_up(layout, arguments.keep_days)


def _not_done(reason: str) -> tuple[dict[str, Any], int]:
    try:
        serving = is_active(UNIT)
    except SystemdFailed:
        serving = False
    return {"result": "failed", "detail": reason, "serving": serving}, 1 if serving else 3


def _back_up(layout: Layout, keep_days: float) -> str:
    made = database.back_up(layout.database, layout.backups, time.strftime("daily-%Y%m%dT%H%M%SZ.db", time.gmtime()))
    removed = database.forget_older_than(layout.backups, keep_days)
    done = f"backed up to {made}" if made else "there is no database to back up"
    return done + (f"; removed {', '.join(removed)}" if removed else "")


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """One of these at a time; another one is waited for."""
    layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (layout.run / "lock").open("w") as lock:
        until = time.monotonic() + _LOCK_PATIENCE
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Refused("another metalscribe-release is at work on this host, and does not end") from None
                if not told:
                    _tell("waiting for another metalscribe-release to end")
                    told = True
                time.sleep(0.2)
        yield


def _tell(line: str) -> None:
    syslog.syslog(syslog.LOG_INFO, line)
    with contextlib.suppress(OSError):  # nobody listens any more
        print(line, file=sys.stderr, flush=True)


def _show(outcome: dict[str, Any], *, as_json: bool, code: int) -> None:
    with contextlib.suppress(OSError):
        if as_json:
            print(json.dumps(outcome, indent=2), flush=True)
        elif "result" in outcome:
            print(outcome["detail"], file=sys.stderr if code else sys.stdout, flush=True)
        else:
            _show_status(outcome)


def _show_status(status: dict[str, Any]) -> None:
    state = "serves" if status["active"] else "does not run"
    print(f"release     {status['current']} ({state}, generation {status['generation']}, since {status['since']})")
    if status["previous"]:
        print(f"before it   {status['previous']['release']} (generation {status['previous']['generation']})")
    for name, meaning in (
        ("reload_needed", "the unit's file has changed since systemd read it"),
        ("credentials_changed", "a credential has changed since the start"),
        ("interrupted", "a switch was cut off midway; run the deploy again"),
    ):
        if status[name]:
            print(f"attention   {meaning}")
    if status["fingerprint"] != status["live_fingerprint"]:
        print("attention   the unit, the settings or the link were changed since they were activated")
    if status["failed"]:
        failed = status["failed"]
        print(f"failed      {failed['release']} at {failed['at']} ({failed['step']}): {failed['reason']}")
    for release in status["releases"]:
        mark = "*" if release["current"] else " " if release["complete"] else "!"
        print(f"          {mark} {release['id']}")


def _resource(name: str) -> bytes:
    return resources.files(__package__).joinpath(name).read_bytes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metalscribe-release", description="What serves on this host.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="what serves, what served before, what failed")
    activate = commands.add_parser("activate", help="let a release serve, if it is fit")
    activate.add_argument("release")
    activate.add_argument("--keep", type=int, default=3, help="releases to keep")
    back = commands.add_parser("rollback", help="let what served before serve again, if it is fit")
    back.add_argument("--to", metavar="RELEASE")
    back.add_argument("--restore-database", action="store_true", help="put the database back as it was then")
    restart = commands.add_parser("restart", help="restart what serves, and prove it")
    for command in (activate, back, restart):
        command.add_argument("--no-words", action="store_true", help="for models that know no English")
        command.add_argument("--ready-secs", type=float, default=300.0, help="patience for loading the model")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    backup = commands.add_parser("backup", help="copy the database, and forget old copies")
    backup.add_argument("--keep-days", type=float, default=14.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
