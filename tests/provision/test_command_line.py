"""``/usr/local/bin/metalscribe``: whom it runs as, and which secrets it hands over; with the release, and root's rights, made up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from metalscribe_provision.common import CHECKOUT

SCRIPT = CHECKOUT / "provision/metalscribe_provision/service/metalscribe.sh"

UNIT = """\
[Service]
LoadCredential=metalscribe_api_key:/etc/metalscribe/credentials/metalscribe_api_key
LoadCredential=metalscribe_rate_limit_storage:/etc/metalscribe/credentials/metalscribe_rate_limit_storage
User=metalscribe
"""

PROGRAM = """\
#!/bin/sh
echo "arguments: $*"
echo "model: ${METALSCRIBE_MODEL-none}"
[ -z "${CREDENTIALS_DIRECTORY-}" ] || (cd "$CREDENTIALS_DIRECTORY" && pwd && grep -r . . | sort)
"""

# Root's rights, which whoever runs the tests may not have: what would be done with them is said on the standard error.
TOOLS = {
    "id": 'echo "$ROOT_UID"',
    "chown": 'echo "chown $*" >&2',
    "install": 'echo "install $1 $2 $3 $4 $5 $6" >&2; shift 6; exec cp "$@"',
    "setpriv": 'echo "setpriv $*" >&2; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
}


class Machine:
    """A deployed host in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = {
            "opt/metalscribe/current/venv/bin/metalscribe": PROGRAM,
            "etc/metalscribe/metalscribe.env": "METALSCRIBE_MODEL=demo\n",
            "etc/systemd/system/metalscribe.service": UNIT,
            **{
                f"etc/metalscribe/credentials/{name}": f"{name}'s secret\n"
                for name in ("acme_dns.ini", *HANDED, FORMER)
            },
            **{f"bin/{name}": f"#!/bin/sh\n{text}\n" for name, text in TOOLS.items()},
        }
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
        (root / "run").mkdir()

    def run(self, *arguments: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
        script = SCRIPT.read_text(encoding="utf-8")
        for folder in ("/opt/", "/etc/", "/run/"):
            script = script.replace(folder, f"{self.root}{folder}")
        environment = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT_UID": str(uid)}
        command = ["sh", "-c", script, "metalscribe", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


HANDED = ("metalscribe_api_key", "metalscribe_rate_limit_storage")
FORMER = "metalscribe_database_url"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_as_root_it_is_the_service_with_what_systemd_hands_it_and_no_other_secret(machine: Machine) -> None:
    done = machine.run("keys", "list")
    assert done.returncode == 0, done.stderr
    arguments, model, directory, *secrets = done.stdout.splitlines()
    assert (arguments, model) == ("arguments: keys list", "model: demo")
    assert secrets == [f"./{name}:{name}'s secret" for name in HANDED]
    assert "--reuid metalscribe --regid metalscribe --clear-groups --no-new-privs" in done.stderr
    assert done.stderr.count("install -o metalscribe -g metalscribe -m 400\n") == len(HANDED)
    assert not Path(directory).exists(), "it has left the copies there"


def test_a_secret_that_is_not_there_is_missed_rather_than_done_without(machine: Machine) -> None:
    """Without the database's URL the service's keys would be made in another database."""
    (machine.root / "etc/metalscribe/credentials" / HANDED[1]).unlink()
    done = machine.run("keys", "list")
    assert done.returncode != 0
    assert HANDED[1] in done.stderr
    assert done.stdout == ""
    assert list((machine.root / "run").iterdir()) == []


def test_the_doctor_stays_root(machine: Machine) -> None:
    done = machine.run("doctor", "--json")
    assert done.stdout.splitlines()[:3] == [
        "arguments: doctor --json",
        "model: demo",
        f"{machine.root}/etc/metalscribe/credentials",
    ]
    assert "setpriv" not in done.stderr


@pytest.mark.parametrize("command", ["keys", "config", "model", "serve"])
def test_what_is_the_services_is_not_done_to_another_users_files(machine: Machine, command: str) -> None:
    done = machine.run(command, "x", uid=1000)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"sudo metalscribe {command} x" in done.stderr


def test_everybody_may_transcribe(machine: Machine) -> None:
    done = machine.run("transcribe", "meeting.m4a", uid=1000)
    assert done.stdout.splitlines() == ["arguments: transcribe meeting.m4a", "model: none"]


def test_before_the_first_deploy_it_says_so(machine: Machine) -> None:
    (machine.root / "opt/metalscribe/current/venv/bin/metalscribe").unlink()
    done = machine.run("doctor")
    assert (done.returncode, done.stderr) == (1, "metalscribe: no release is installed yet; run the deploy\n")
