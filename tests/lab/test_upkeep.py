"""What keeps a host in order over time: the doctor's verdicts, backups and how they are put back, secrets that have had their day."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from lab.container import Container
from lab.controller import CHECKOUT, Controller
from lab.deployed import Recording
from lab.https import Client

BACKUPS: Final = "/var/backups/metalscribe"
CREDENTIALS: Final = "/etc/metalscribe/credentials"
DROP_IN: Final = "/etc/systemd/system/metalscribe.service.d"
RELOAD: Final = "systemctl daemon-reload"


def verdicts(host: Container, *options: str) -> tuple[int, Mapping[str, Mapping[str, Any]]]:
    """The doctor's exit status, and its checks by name."""
    done = host.run(f"metalscribe doctor --json {' '.join(options)}", check=False)
    report = json.loads(done.stdout)
    assert report["status"] == {0: "ok", 1: "warn", 2: "fail"}[done.returncode], report
    return done.returncode, {check["name"]: check for check in report["checks"]}


def commands_of_the_guide(after: str) -> str:
    """The shell commands that docs/deploying.md has after some words."""
    text = (CHECKOUT / "docs/deploying.md").read_text(encoding="utf-8")
    found = re.search(r"```sh\n(.*?)```", text[text.index(after) :], re.DOTALL)
    assert found is not None
    return found[1]


# --- the doctor ---


@pytest.mark.parametrize(
    ("breaks", "mends", "status", "check"),
    [
        ("systemctl stop metalscribe-backup.timer", "systemctl start metalscribe-backup.timer", 1, "backup"),
        ("systemctl disable nginx", "systemctl enable nginx", 1, "nginx"),
        ("systemctl stop nginx", "systemctl start nginx", 2, "nginx"),
        ("systemctl stop metalscribe-firewall", "systemctl start metalscribe-firewall", 2, "firewall"),
        ("mv /etc/metalscribe/tls/current /root", "mv /root/current /etc/metalscribe/tls", 2, "certificate"),
        ("systemctl stop metalscribe", "systemctl start metalscribe", 2, "unit"),
        (
            f"mkdir {DROP_IN}; echo '[Service]\nProtectSystem=no\nSystemCallFilter=' > {DROP_IN}/own.conf; {RELOAD}",
            f"rm -r {DROP_IN}; {RELOAD}",
            1,
            "unit_security",
        ),
    ],
)
def test_the_doctor_finds_what_is_broken_and_says_how_bad_it_is(
    host: Container, breaks: str, mends: str, status: int, check: str
) -> None:
    host.run(breaks)
    try:
        found, checks = verdicts(host, "--quick")
    finally:
        host.run(mends)
    assert (found, checks[check]["status"]) == (status, {1: "warn", 2: "fail"}[status]), checks
    assert checks[check]["hint"]


def test_the_doctor_finds_what_was_mended_mended(host: Container) -> None:
    """Down to a transcription through HTTPS."""
    status, checks = verdicts(host)
    assert status == 0, checks
    assert "words in" in checks["https"]["detail"]


# --- backups ---


def test_a_night_leaves_a_backup_that_the_doctor_knows_of(host: Container) -> None:
    assert "none yet" in verdicts(host, "--quick")[1]["backup"]["detail"]
    host.run(f"mkdir -p -m 700 {BACKUPS}; touch --date='-20 days' {BACKUPS}/daily-of-long-ago.db")
    host.run("systemctl start metalscribe-backup.service")
    (name,) = host.run(f"ls {BACKUPS}").stdout.split()
    assert re.fullmatch(r"daily-\d{8}T\d{6}Z\.db", name)
    assert host.run(f"stat -c '%a %U' {BACKUPS} {BACKUPS}/{name}").stdout == "700 root\n600 root\n"
    assert "the newest is " in verdicts(host, "--quick")[1]["backup"]["detail"]


def test_a_backup_is_put_back_as_the_guide_says(host: Container, api: Client, recording: Recording) -> None:
    host.run("metalscribe keys create before-the-backup")
    host.run("systemctl start metalscribe-backup.service")
    name = host.run(f"ls -t {BACKUPS} | head -n 1").stdout.strip().removesuffix(".db")
    host.run("metalscribe keys create after-the-backup")
    host.run("head -c 8192 /dev/urandom | dd of=/var/lib/metalscribe/metalscribe.db conv=notrunc status=none")
    host.run(commands_of_the_guide("To put one back:").replace("NAME", name))
    known = host.run("metalscribe keys list").stdout
    assert ("before-the-backup" in known, "after-the-backup" in known) == (True, False)
    assert api.transcribe(recording.path.read_bytes()).status == 200
    status, checks = verdicts(host)
    assert status == 0, checks


# --- secrets that are not the service's, or not any more ---


def test_the_command_line_hands_over_what_the_unit_names_and_nothing_else(
    host: Container, controller: Controller, inventory: Path
) -> None:
    """A DNS provider's token lies there, too, and for a while the URL of a database that was given up."""
    for name in ("acme_dns.ini", "metalscribe_database_url"):
        host.put("postgresql+psycopg://nobody:sesame@127.0.0.1:9/nowhere", f"{CREDENTIALS}/{name}", mode=0o600)
    running = host.run("systemctl show --property=InvocationID metalscribe.service").stdout
    assert host.run("metalscribe keys list --json").stdout.startswith("[")
    settings = host.run("metalscribe config --json").stdout
    assert "postgresql" not in settings
    status, checks = verdicts(host)
    assert status == 0, checks
    # Neither is a reason to restart the service; the token of a host without ACME goes.
    changes = controller.deploy(inventory).succeeded().changes
    assert [change.rpartition(" | ")[2] for change in changes] == ["Remove what is no longer used"]
    assert host.run("systemctl show --property=InvocationID metalscribe.service").stdout == running


def test_a_secret_goes_when_nothing_needs_it_any_more(
    host: Container, controller: Controller, variables: Mapping[str, object]
) -> None:
    host.run("touch " + " ".join(f"{CREDENTIALS}/metalscribe_{name}" for name in ("database_url", "api_key.new")))
    other = controller.inventory([host], {**variables, "metalscribe_log_level": "debug"}, name="other.ini")
    controller.deploy(other).succeeded()
    assert host.run(f"ls {CREDENTIALS}").stdout == "metalscribe_api_key\n"
