"""The playbooks of provision/ops on pretend hosts: who is touched, in which order, and what is left behind after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ops_host import OPS, Hosts, ansible_playbook, lines, load, result

from metalscribe_provision.edge.names import server_names
from metalscribe_provision.hostdata import parse_host_data

reports = load("filter_plugins/reports.py")

PLAYBOOKS = sorted(OPS.glob("*.yml"))


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_the_playbooks_are_playbooks(tmp_path: Path) -> None:
    (tmp_path / "inventory.ini").write_text("[gpu_hosts]\ngpu1\n")
    done = ansible_playbook(
        "--syntax-check", "-i", str(tmp_path / "inventory.ini"), *map(str, PLAYBOOKS), home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [word for playbook in PLAYBOOKS for word in ("playbook:", str(playbook))]


def test_each_says_what_it_does_what_one_sees_and_how_it_fails() -> None:
    for playbook in PLAYBOOKS:
        header = playbook.read_text().partition("\n- name:")[0]
        for words in (f"-i inventory.ini provision/ops/{playbook.name}", "--check", "\n# You see:", "\n# It fails:"):
            assert words in header, (playbook.name, words)


def test_an_upgrade_stops_at_the_first_host_that_fails(hosts: Hosts) -> None:
    with hosts.add("gpu1") as first, hosts.add("gpu2") as second:
        (first / "breaks").touch()
        done = hosts.play("upgrade.yml")
    assert done.returncode == 2, done.stdout + done.stderr
    deploy = f"@ansible/{hosts.folder}/inventory.ini provision/site.py --limit gpu1 --json --yes"
    assert lines(first / "deploys") == [deploy]
    assert lines(second / "calls") == lines(second / "deploys") == ()
    assert lines(hosts.folder / "balancer") == ["drain gpu1", "undrain gpu1"], "it serves, so it is put back"
    assert "    [host] no space left" in done.stdout, "what the deploy said is not swallowed"
    why = "the deploy failed in its operation 'Driver | Install it'; all that it said is above. gpu1 serves. Left alone: gpu2."
    assert why in done.stdout


def test_an_upgrade_stops_at_a_host_that_is_sick_or_cannot_be_reached(hosts: Hosts) -> None:
    with hosts.add("gpu1") as first, hosts.add("gpu2") as second:
        (first / "sick").touch()
        sick = hosts.play("upgrade.yml", "-e", "ready_seconds=0")
        (first / "sick").unlink()
        unreachable = hosts.play(
            "upgrade.yml",
            "-e",
            "{\"ansible_connection\": \"{{ 'ssh' if inventory_hostname == 'gpu1' else 'local' }}\"}",
            "-e",
            "ansible_port=1",
        )
    assert (sick.returncode, unreachable.returncode) == (2, 4), unreachable.stdout
    assert "answers 503 instead of 200" in sick.stdout
    assert lines(first / "deploys") == lines(second / "deploys") == lines(hosts.folder / "balancer") == ()


def test_a_key_that_does_not_work_is_taken_back_and_never_shown(hosts: Hosts) -> None:
    unfit = "unfit-key-of-the-vault"
    with hosts.add("gpu1", f"metalscribe_api_key={unfit}") as host:
        done = hosts.play("rotate-keys.yml", "-vvv", "--diff")
    assert done.returncode == 2, done.stdout + done.stderr
    why = "The new key did not work (it failed, and the host does NOT serve: it ended). The old one is in use again."
    assert why in done.stdout
    assert (
        (host / "credentials/metalscribe_api_key").read_text() == (host / "loaded").read_text() == "key-before-of-gpu1"
    )
    assert lines(host / "calls") == ["restart --json", "restart --json"]
    assert not [secret for secret in (unfit, "key-before-of-") if secret in done.stdout + done.stderr]


def test_inventory_variables_of_the_playbooks_are_no_mistakes_to_the_deploy() -> None:
    parse_host_data("gpu1", {"drain_command": ["true"], "undrain_command": ["true"], "ready_seconds": 60})


@pytest.mark.parametrize(
    ("given", "tls"),
    [
        *(
            (given, tls)
            for given in ("", "b.example, a.example", "b.example", ["a.example"])
            for tls in ("internal_ca", "acme")
        ),
        ("2001:db8::1", "internal_ca"),
    ],
)
@pytest.mark.parametrize("known", [("192.0.2.1", "gpu1.example"), ("gpu1", "gpu1.example"), ("host.example", "gpu1")])
def test_a_host_has_the_name_that_its_certificate_is_for(
    given: str | list[str], tls: str, known: tuple[str, str]
) -> None:
    acme = {"acme_email": "a@b.example"} if tls == "acme" else {}
    data = parse_host_data("gpu1", {"server_names": given, "tls": tls, **acme})
    assert reports.certified_name(given, known, tls) == server_names(data, known[1], known[0])[0]


def test_what_a_deploy_changed() -> None:
    operations: list[dict[str, Any]] = [{"name": "Put", "success": ["gpu1"]}, {"name": "Look", "success": []}]
    plan: list[dict[str, Any]] = [
        {"name": "Put", "hosts_with_change": ["gpu1"]},
        {"name": "Look", "hosts_with_change": []},
    ]
    ran, dry = result({"plan": plan, "results": {"operations": operations}}), result({"plan": plan, "results": None})
    assert reports.deploy_changes(ran) == reports.deploy_changes(dry) == ["Put"]
    assert reports.deploy_problem(ran) == reports.deploy_problem(dry) == ""


def test_a_deploy_that_did_nothing_at_all_is_a_failure() -> None:
    assert "does not find this host" in reports.deploy_problem(result({"plan": [], "results": {"operations": []}}))
    assert reports.deploy_problem(result("")) == "pyinfra printed no report"
    assert reports.deploy_problem(result("", rc=1, stderr="--> Loading inventory...")).startswith(
        "the deploy failed before its first"
    )


def test_what_is_wrong_with_a_switch_of_releases() -> None:
    assert reports.release_problem(result({"result": "done"})) == ""
    refused = result({"result": "refused", "detail": "there is no release x"}, rc=2)
    assert reports.release_problem(refused) == "it was refused; nothing was changed: there is no release x"
    missing = {"rc": 2, "stdout": "", "stderr": "", "msg": "Error executing command."}
    assert reports.release_problem(missing).endswith("does not run on this host: Error executing command.")


def test_what_the_doctor_found() -> None:
    checks = [
        {"name": "model", "status": "fail", "detail": "is damaged", "hint": "download it"},
        {"name": "disk_space", "status": "warn", "detail": "1 GiB free", "hint": ""},
        {"name": "device", "status": "ok", "detail": "cpu", "hint": ""},
    ]
    diagnosis = result({"status": "fail", "checks": checks}, rc=2)
    assert reports.findings(diagnosis, "fail") == ["model: is damaged (download it)"]
    assert reports.findings(diagnosis, "warn", "fail") == ["model: is damaged (download it)", "disk_space: 1 GiB free"]
    assert reports.findings(result("", rc=2, stderr="no such file"), "fail") == [
        "metalscribe doctor does not run on this host: no such file"
    ]


def test_the_table_of_all_hosts() -> None:
    health = {"status": "healthy", "model": "tiny.en", "device": "cuda (NVIDIA RTX 4090)"}
    checks = [
        {"name": "disk_space", "status": "ok", "detail": "12.3 GiB free at /var", "hint": ""},
        {"name": "api_keys", "status": "warn", "detail": "one", "hint": ""},
    ]
    fine = {
        "inventory_hostname": "gpu1",
        "asked": result({"verified": True, "days_left": 89, "body": json.dumps(health)}),
        "unit": result("active\n"),
        "releases": result(
            {
                "current": "0.1.0-abc",
                "failed": {"release": "0.2.0-def", "at": "noon", "step": "candidate", "reason": "crashed"},
            }
        ),
        "diagnosis": result({"status": "warn", "checks": checks}, rc=1),
    }
    expired = {
        **fine,
        "inventory_hostname": "gpu2",
        "asked": result({"verified": False, "days_left": -2, "body": None}, rc=1, stderr="has expired"),
    }
    gone = {
        "inventory_hostname": "gpu3",
        "asked": result({"verified": False, "days_left": None, "body": None}, rc=1, stderr="no answer"),
        "unit": {"unreachable": True, "msg": "no route"},
        "releases": {"skipped": True},
        "diagnosis": {"skipped": True},
    }
    assert reports.status_report([fine, expired, gone]) == [
        "HOST  RELEASE    UNIT    HEALTH   MODEL    DEVICE                  CERT    DISK      DOCTOR",
        "gpu1  0.1.0-abc  active  healthy  tiny.en  cuda (NVIDIA RTX 4090)  89 d    12.3 GiB  warn",
        "gpu2  0.1.0-abc  active  -        -        -                       -2 d !  12.3 GiB  warn",
        "gpu3  -          -       -        -        -                       -       -         -",
        "gpu1: api_keys: one",
        "gpu1: release 0.2.0-def failed at noon (candidate): crashed",
        "gpu2: api_keys: one",
        "gpu2: release 0.2.0-def failed at noon (candidate): crashed",
        "gpu2: has expired",
        "gpu3: cannot be reached over SSH: no route",
        "gpu3: no answer",
    ]
