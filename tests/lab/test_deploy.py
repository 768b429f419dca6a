"""A fresh host, one deploy, and what an operator and a client find then; and that a second deploy finds nothing to do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.conftest import MakeContainer
from lab.container import Container
from lab.controller import Controller
from lab.deployed import Deployed, Recording
from lab.https import Client
from lab.network import Namespace

CHANGED_FOLDERS = ("/etc", "/opt", "/var/lib", "/var/backups", "/usr/local", "/root", "/home")


@pytest.fixture(params=["jfk", "sample"])
def spoken(request: pytest.FixtureRequest) -> Recording:
    """What is transcribed: a real voice, and the service's own sample, which is there in every checkout."""
    if request.param == "sample":
        sample: Recording = request.getfixturevalue("recording")
        return sample
    data: Path = request.getfixturevalue("data")
    return Recording(data / "english/jfk/jfk.flac", "ask not what your country can do for you")


# --- the deploy ---


def test_a_deploy_with_sudo_plans_without_a_change_then_does_it_and_is_done(
    make_container: MakeContainer,
    controller: Controller,
    variables: Mapping[str, object],
    deployed: Deployed,
    client: Namespace,
    recording: Recording,
) -> None:
    host = make_container("gpu2")
    inventory = controller.inventory([host], variables, user="deployer", name="gpu2.ini")
    before = host.listing(*CHANGED_FOLDERS)
    plan = controller.deploy(inventory, "--dry").succeeded()
    assert "provision/gpu_host.py | Runtime | Release" in plan.planned
    assert "provision/gpu_host.py | Service | Let the release serve, if it is fit" in plan.planned
    after = host.listing(*CHANGED_FOLDERS)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == set()

    assert set(controller.deploy(inventory).succeeded().changes) == set(deployed.outcome.changes)
    assert controller.deploy(inventory).succeeded().changes == []
    key = host.run("sudo cat /etc/metalscribe/credentials/metalscribe_api_key", user="deployer").stdout.strip()
    answer = Client(client, host, deployed.authority, key).transcribe(recording.path.read_bytes())
    assert recording.words in answer.json["text"].lower()


def test_a_second_deploy_changes_nothing(controller: Controller, inventory: Path, deployed: Deployed) -> None:
    assert deployed.outcome.changes != []
    assert controller.deploy(inventory, "--dry").succeeded().planned == []
    assert controller.deploy(inventory).succeeded().changes == []


def test_what_was_changed_by_hand_is_put_right(
    controller: Controller, inventory: Path, host: Container, api: Client
) -> None:
    host.run("echo METALSCRIBE_BEAM_SIZE=1 >> /etc/metalscribe/metalscribe.env")
    host.run(
        "echo 'return 418;' >> /etc/nginx/metalscribe/limits.conf; systemctl reload nginx; systemctl disable nginx"
    )
    host.run("nft delete table inet metalscribe; systemctl stop metalscribe-backup.timer")
    assert api.ask("/healthz").status == 418
    changes = controller.deploy(inventory).succeeded().changes
    assert {change.rpartition(" | ")[2] for change in changes} == {
        "Let the release serve, if it is fit",
        "Back the database up every night",
        "Configure nginx",
        "Start nginx with the machine",
        "Load the rules",
    }
    assert api.ask("/healthz").status == 200
    assert "BEAM_SIZE" not in host.run("cat /etc/metalscribe/metalscribe.env").stdout
    assert host.run("systemctl is-active metalscribe-backup.timer").stdout == "active\n"
    assert controller.deploy(inventory).succeeded().changes == []


# --- the host ---


def test_everything_runs_and_starts_with_the_machine(host: Container) -> None:
    units = ["metalscribe.service", "nginx.service", "metalscribe-firewall.service", "metalscribe-backup.timer"]
    assert host.run(f"systemctl is-active {' '.join(units)}").stdout == "active\n" * len(units)
    assert host.run(f"systemctl is-enabled {' '.join(units)}").stdout == "enabled\n" * len(units)
    assert host.run("systemctl is-system-running").stdout == "running\n"


def test_the_doctor_finds_nothing_wrong(host: Container) -> None:
    examined = host.run("metalscribe doctor --json", check=False)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    found = {check["name"]: check["status"] for check in json.loads(examined.stdout)["checks"]}
    assert {"certificate", "firewall", "https", "model", "nginx", "release", "unit", "unit_security"} <= set(found)
    assert set(found.values()) == {"ok"}, examined.stdout


# --- the service, from outside ---


def test_https_is_believed_by_who_believes_the_internal_ca_only(
    api: Client, client: Namespace, host: Container
) -> None:
    assert json.loads(api.curl("/readyz"))["status"] == "ready"
    by_name = ("--resolve", f"{host.name}:443:{host.address}", "--cacert", str(api.authority))
    assert client.run("curl", "--silent", "--noproxy", "*", *by_name, f"https://{host.name}/healthz").returncode == 0
    stranger = client.run("curl", "--silent", "--noproxy", "*", f"https://{host.address}/healthz", check=False)
    assert stranger.returncode == 60, "curl takes the certificate without knowing who has signed it"


def test_a_recording_is_transcribed_and_the_journal_has_its_request(
    api: Client, host: Container, spoken: Recording
) -> None:
    headers = ("--header", f"X-API-Key: {api.key}", "--form", f"file=@{spoken.path}")
    answer, _, body = api.curl("/transcribe", "--include", *headers).partition("\n\n")
    assert answer.startswith("HTTP/2 200"), answer
    assert spoken.words in json.loads(body)["text"].lower()
    found = re.search(r"^x-request-id: (\S+)$", answer, re.MULTILINE | re.IGNORECASE)
    assert found is not None, answer
    lines = [
        json.loads(entry["MESSAGE"]) for entry in host.journal("--unit=metalscribe") if "{" in entry["MESSAGE"][:1]
    ]
    (line,) = [line for line in lines if line.get("request_id") == found[1]]
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "POST", "/transcribe", 200)
    assert line["client"] == api.namespace.address


def test_journalctl_on_the_host_has_it_too(api: Client, host: Container, recording: Recording) -> None:
    answer = api.transcribe(recording.path.read_bytes(), request_id="of-the-lab")
    assert (answer.status, answer.headers["x-request-id"]) == (200, "of-the-lab")
    printed = host.run("journalctl -u metalscribe -o json --since -1min --no-pager").stdout.splitlines()
    assert [line for line in printed if "of-the-lab" in json.loads(line)["MESSAGE"]]


@pytest.mark.parametrize("key", ["", "guessed"])
def test_without_a_key_there_is_nothing(api: Client, recording: Recording, key: str) -> None:
    nobody = Client(api.namespace, api.host, api.authority, key)
    answer = nobody.transcribe(recording.path.read_bytes())
    assert (answer.status, answer.headers["content-type"]) == (401, "application/problem+json")


def test_the_services_own_port_is_out_of_reach(
    host: Container, client: Namespace, stranger: Namespace, recording: Recording
) -> None:
    assert host.run("curl -s http://127.0.0.1:8000/healthz").returncode == 0
    for namespace in (client, stranger):
        for address in host.namespace.addresses:
            namespace.connect(address, 443, timeout=10).close()
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                namespace.connect(address, 8000, timeout=1)
