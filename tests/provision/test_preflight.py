"""Preflight: what hosts print is read rightly, what is wrong is told with its remedy, and a fit host plans nothing at all."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import DISTRIBUTIONS, HOST, Responses, fit, plan
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.hostdata import Driver, HostData, parse_host_data
from metalscribe_provision.preflight.deploy import preflight
from metalscribe_provision.preflight.facts import AccessFact, CloudInitFact, ListenersFact, MachineFact, PythonFact
from metalscribe_provision.preflight.findings import (
    CPU_FLAGS,
    access_finding,
    cloud_init_finding,
    file_findings,
    machine_findings,
    port_findings,
    ports,
    python_finding,
)
from metalscribe_provision.preflight.machine import (
    Access,
    Listener,
    Machine,
    parse_access,
    parse_listeners,
    parse_machine,
)
from metalscribe_provision.preflight.python import Python, python_for

NOW = 1_800_000_000.0
NONE = HostData(driver=Driver.NONE)

MACHINE = """\
== system
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
ID=debian
HOME_URL="https://www.debian.org/"
== architecture
amd64
== systemd
booted
systemd 252 (252.39-1~deb12u1)
+PAM +AUDIT +SELINUX
== disk
/opt /dev/vda1 41152736 3145728 35896320 9% /
/var/lib /dev/mapper/vg-var 10255636 1048576 8664064 11% /var
== memory
MemTotal:       32858380 kB
== clock
1800000000
== cpu
flags\t\t: fpu vme cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx
== deployed
yes
== switches
yes
"""

HEALTHY = Machine(
    system={"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"},
    architecture="amd64",
    booted_with_systemd=True,
    systemd=252,
    free_gb={"/opt": 36.0, "/var/lib": 36.0},
    memory_gb=33.6,
    clock=NOW,
    cpu_flags=CPU_FLAGS | {"avx"},
)


def changed(**changes: Any) -> Machine:
    return Machine(**{**{name: getattr(HEALTHY, name) for name in Machine.__dataclass_fields__}, **changes})


def refusal(data: dict[str, Any], responses: Responses) -> list[str]:
    """The findings of a refusal."""
    with pytest.raises(DeployError) as caught:
        plan(preflight, data, responses)
    first, *findings = str(caught.value).split("\n  - ")
    assert first == f"{HOST} cannot be deployed to, nothing was changed:"
    return findings


# --- what hosts print ---


def test_a_machine_is_read() -> None:
    machine = parse_machine(MACHINE.splitlines())
    assert (machine.system["ID"], machine.system["VERSION_ID"]) == ("debian", "12")
    assert machine.system["PRETTY_NAME"] == "Debian GNU/Linux 12 (bookworm)"
    assert (machine.architecture, machine.booted_with_systemd, machine.systemd) == ("amd64", True, 252)
    assert {path: round(free, 2) for path, free in machine.free_gb.items()} == {"/opt": 36.76, "/var/lib": 8.87}
    assert machine.memory_gb is not None
    assert round(machine.memory_gb, 1) == 33.6
    assert machine.clock == NOW
    assert machine.cpu_flags == {"fpu", "vme", "avx", *CPU_FLAGS}
    assert machine.deployed
    assert machine.switches


def test_a_machine_that_says_little_is_read_as_far_as_it_goes() -> None:
    assert parse_machine([]) == Machine()
    headings = [line for line in MACHINE.splitlines() if line.startswith("==")]
    assert parse_machine(headings) == Machine()
    assert (
        parse_machine(["== disk", "/opt df: unknown", "== memory", "MemTotal: lots", "== systemd", "sh: not found"])
        == Machine()
    )


def test_access_is_read() -> None:
    assert parse_access(["0", "root"]) == Access(0, "root")
    assert parse_access(["1000", "debian", "sudo: a password", "  is required"]) == Access(
        1000, "debian", "sudo: a password is required"
    )
    assert parse_access(["This account is not available."]) is None


def test_listeners_are_read_with_their_units() -> None:
    lines = """\
LISTEN 0      511          0.0.0.0:443       0.0.0.0:*    users:(("nginx",pid=812,fd=6),("nginx",pid=811,fd=6))
LISTEN 0      511             [::]:443          [::]:*    users:(("nginx",pid=812,fd=7),("nginx",pid=811,fd=7))
LISTEN 0      2048       127.0.0.1:8000      0.0.0.0:*    users:(("metalscribe",pid=99,fd=3),("systemd",pid=1,fd=77))
LISTEN 0      5      127.0.0.1%lo:8001      0.0.0.0:*
LISTEN 0      5                 *:9000            *:*    users:(("rootlessport",pid=55,fd=3))
pid 811
0::/system.slice/nginx.service
pid 812
9:name=systemd:/system.slice/nginx.service
8:pids:/
0::/system.slice/nginx.service
pid 99
0::/metalscribe.slice/metalscribe.service/payload
pid 1
0::/init.scope
pid 55
0::/user.slice/user-1000.slice/user@1000.service/app.slice/podman-7.scope
pid 4242
0::/
""".splitlines()
    assert parse_listeners(lines) == [
        Listener(443, "nginx", "nginx.service"),
        Listener(8000, "metalscribe", "metalscribe.service"),
        Listener(8000, "systemd", "init.scope"),
        Listener(8001, "a process", ""),
        Listener(9000, "rootlessport", "podman-7.scope"),
    ]


@pytest.mark.parametrize(
    ("lines", "status"),
    [(["status: done"], "done"), (["", "status: degraded running"], "degraded running"), (["no status"], "")],
)
def test_cloud_inits_status_is_read(lines: list[str], status: str) -> None:
    assert CloudInitFact().process(lines) == status


def answer(command: str) -> list[str]:
    """What this machine answers to a fact's command, in the shell that hosts have."""
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()


def test_this_machine_answers_the_commands() -> None:
    machine = MachineFact().process(answer(MachineFact().command()))
    assert machine.clock is not None
    assert abs(machine.clock - time.time()) < 60
    assert (machine.memory_gb or 0) > 0.1
    assert set(machine.free_gb) == {"/opt", "/var/lib"}

    access = AccessFact().process(answer(AccessFact().command(become=False)))
    assert access == Access(os.getuid(), pwd.getpwuid(os.getuid()).pw_name)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert PythonFact().process(answer(PythonFact().command(sys.executable, None))) == f"present {version}"
    assert PythonFact().process(answer(PythonFact().command("/bin/false", "none"))) == "broken"
    assert PythonFact().process(answer(PythonFact().command("/nowhere/python", None))) == "absent"
    assert CloudInitFact().process(answer(CloudInitFact().command())) in {
        "",
        "done",
        "disabled",
        "not run",
        "error",
        "running",
    }


@pytest.mark.skipif(shutil.which("ss") is None, reason="iproute2 is not installed")
def test_this_machine_says_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (listener,) = ListenersFact().process(answer(ListenersFact().command((port, 1))))
    assert listener.port == port
    assert listener.process not in {"", "a process"}


# --- what is wrong ---


def test_a_healthy_machine_has_no_findings() -> None:
    assert list(machine_findings(HEALTHY, NONE, NOW)) == []


@pytest.mark.parametrize(
    ("machine", "finding"),
    [
        (
            changed(system={"ID": "debian", "VERSION_ID": "11", "PRETTY_NAME": "Debian 11"}),
            "it runs Debian 11; supported are Debian 12 and 13,",
        ),
        (changed(system={}), "it runs no system that /etc/os-release names; supported are"),
        (changed(architecture="arm64"), "its architecture is arm64; the service's libraries are for x86_64"),
        (changed(architecture=None), "its architecture is unknown;"),
        (
            changed(cpu_flags=frozenset({"sse4_1", "cx16", "lahf_lm", "ssse3"})),
            "its processor lacks popcnt, sse4_2; on a virtual machine,",
        ),
        (changed(booted_with_systemd=False), "it was not started by systemd;"),
        (changed(systemd=247), "its systemd is 247; 249 or later is needed"),
        (
            changed(free_gb={"/opt": 9.94, "/var/lib": 20.0}),
            "/opt has 9.9 GB free, 10.0 are needed; make room, or set min_disk_gb",
        ),
        (changed(memory_gb=1.0), "it has 1.0 GB of memory; 2 GB is the least"),
        (
            changed(clock=NOW - 400),
            "its clock is 7 minutes behind this machine's, certificates would not be valid; set it (timedatectl",
        ),
        (changed(clock=NOW + 86400 * 900), "its clock is 900 days ahead of this machine's"),
    ],
)
def test_a_finding_names_what_is_wrong_and_the_remedy(machine: Machine, finding: str) -> None:
    (found,) = machine_findings(machine, NONE, NOW)
    assert found.startswith(finding)


@pytest.mark.parametrize(
    "machine",
    [
        changed(clock=NOW + 299),
        changed(clock=None),
        changed(cpu_flags=frozenset()),
        changed(memory_gb=None, systemd=None, free_gb={}),
        changed(deployed=True, free_gb={"/opt": 2.5, "/var/lib": 2.5}),  # a release is on it already
    ],
)
def test_what_is_unknown_or_bearable_is_no_finding(machine: Machine) -> None:
    assert list(machine_findings(machine, NONE, NOW)) == []


@pytest.mark.parametrize(
    ("access", "become", "password", "finding"),
    [
        (Access(0, "root"), False, False, None),
        (Access(1000, "debian"), True, False, None),
        (
            Access(1000, "metalscribe"),
            True,
            False,
            "the deploy logs in as metalscribe, which is to be the service's own account",
        ),
        (Access(1000, "debian", "sudo: a password is required"), True, True, None),
        (
            Access(1000, "debian"),
            False,
            False,
            "the deploy connects as debian, who is not root; set ansible_become=true",
        ),
        (Access(1000, "debian", "sudo: a password is required"), True, False, "sudo asks debian for a password;"),
        (
            Access(1000, "op", "sudo-rs: interactive authentication is required"),
            True,
            False,
            "sudo asks op for a password;",
        ),
        (
            Access(0, "root", "sh: 1: sudo: not found"),
            True,
            True,
            "sudo is not installed; install it, or connect as root without",
        ),
        (
            Access(1000, "op", "op is not in the sudoers file."),
            True,
            True,
            "sudo does not let op become root: op is not in the",
        ),
    ],
)
def test_root_has_to_be_within_reach(access: Access, become: bool, password: bool, finding: str | None) -> None:
    found = access_finding(access, become=become, password=password)
    assert found is None if finding is None else (found or "").startswith(finding)


@pytest.mark.parametrize(
    ("state", "finding"),
    [
        ("present 3.13", None),
        ("installable", None),
        ("unknown", None),
        ("present 3.10", "/usr/bin/p is Python 3.10; the service needs 3.11 or later"),
        ("broken", "/usr/bin/p does not start; install it again, or set python"),
        ("absent", "apt has no python3.11; on Ubuntu enable universe"),
    ],
)
def test_python_has_to_be_there_or_to_be_had(state: str, finding: str | None) -> None:
    found = python_finding("/usr/bin/p", ("python3.11",), state)
    assert found is None if finding is None else (found or "").startswith(finding)


def test_a_python_of_the_operators_own_has_to_be_there() -> None:
    assert python_finding("/opt/p", (), "absent") == "there is no /opt/p; install it, or set python=auto"


def test_ports_of_others_are_findings_and_our_own_are_not() -> None:
    ours = [
        Listener(8000, "metalscribe", "metalscribe.service"),
        Listener(8001, "python", "metalscribe-candidate.service"),
    ]
    ours += [
        Listener(8000, "systemd", "init.scope"),
        Listener(443, "nginx", "nginx.service"),
        Listener(22, "sshd", "ssh.service"),
    ]
    assert list(port_findings(ours, NONE, switches=False)) == []

    held = [
        Listener(8000, "systemd", "init.scope")
    ]  # the service's socket, which systemd keeps while the service restarts, or a candidate's
    assert list(port_findings(held, NONE, switches=True)) == []
    assert len(list(port_findings(held, NONE, switches=False))) == 1

    theirs = [
        Listener(443, "apache2", "apache2.service"),
        Listener(443, "x", ""),
        Listener(8000, "python3", "session-1.scope"),
    ]
    assert list(port_findings(theirs, NONE, switches=True)) == [
        "port 8000 is taken by python3 (session-1.scope); stop it, the deploy needs the port",
        "port 443 is taken by apache2 (apache2.service), x (no unit); stop it, or set https_port",
    ]


def test_the_ports_follow_from_the_data() -> None:
    acme = parse_host_data("a", {"tls": "acme", "acme_email": "a@b.example", "https_port": 8443}, {})
    dns = acme.model_copy(update={"acme_challenge": "dns-01"})
    assert sorted(ports(acme)) == [80, 8000, 8001, 8443]
    assert sorted(ports(dns)) == [8000, 8001, 8443]


@pytest.mark.parametrize("status", ["running", "degraded running"])
def test_cloud_init_at_work_is_a_finding(status: str) -> None:
    assert "still at work" in (cloud_init_finding(status) or "")


@pytest.mark.parametrize("status", ["", "done", "degraded done", "disabled", "error", "not run"])
def test_cloud_init_otherwise_is_none(status: str) -> None:
    assert cloud_init_finding(status) is None


def test_files_that_the_data_names_have_to_be_here(tmp_path: Path) -> None:
    data = parse_host_data("a", {"bundle": str(tmp_path), "model_path": str(tmp_path / "model")}, {})
    assert list(file_findings(data)) == [f"model_path: there is no {tmp_path}/model on the machine that deploys"]


# --- Python ---


@pytest.mark.parametrize(
    ("distribution", "version", "wanted", "chosen"),
    [
        ("debian", "12", "auto", Python("/usr/bin/python3.11", ("python3.11", "python3.11-venv"))),
        ("debian", "13", "auto", Python("/usr/bin/python3.13", ("python3.13", "python3.13-venv"))),
        ("ubuntu", "22.04", "auto", Python("/usr/bin/python3.11", ("python3.11", "python3.11-venv"))),
        ("ubuntu", "24.04", "auto", Python("/usr/bin/python3.12", ("python3.12", "python3.12-venv"))),
        ("ubuntu", "22.04", "python3.12", Python("/usr/bin/python3.12", ("python3.12", "python3.12-venv"))),
        ("debian", "12", "3.13", Python("/usr/bin/python3.13", ("python3.13", "python3.13-venv"))),
        ("debian", "12", "/opt/python/bin/python3.13", Python("/opt/python/bin/python3.13", ())),
        ("debian", "12", "/opt/python/bin/python3", Python("/opt/python/bin/python3", ())),
    ],
)
def test_a_python_is_chosen(distribution: str, version: str, wanted: str, chosen: Python) -> None:
    assert python_for(distribution, version, wanted) == chosen


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("3.10", "python=3.10 is too old: the service needs 3.11 or later"),
        ("/usr/bin/python3.9", "python=/usr/bin/python3.9 is too old"),
        ("pypy", "python=pypy is neither auto, nor a version such as python3.12, nor an absolute path"),
    ],
)
def test_a_python_that_cannot_be_is_refused(wanted: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}"):
        python_for("debian", "12", wanted)


# --- the deploy ---


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_fit_host_passes_and_nothing_is_planned(distribution: str) -> None:
    assert plan(preflight, {"driver": "none"}, fit(distribution)) == []


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_everything_wrong_is_in_one_refusal(distribution: str, tmp_path: Path) -> None:
    taken = 'LISTEN 0 511 *:443 *:* users:(("caddy",pid=7,fd=6))\npid 7\n0::/system.slice/caddy.service'
    data = {"driver": "none", "python": "python3.13", "bundle": str(tmp_path / "bundle")}
    responses = fit(distribution, memory="MemTotal: 900000 kB", clock="1000000000") | {
        "apt-cache madison": "absent",
        "ss -Hltnp": taken,
    }
    findings = refusal(data, responses)
    starts = (
        "it has 0.9 GB",
        "its clock is",
        "apt has no python3.13",
        "bundle: there is no",
        "port 443 is taken by caddy (caddy.service)",
    )
    assert len(findings) == len(starts)
    for finding, start in zip(findings, starts, strict=True):
        assert finding.startswith(start)


def test_a_host_that_answers_nothing_is_refused() -> None:
    findings = refusal({}, {})
    assert findings[0].startswith("it does not say whom the deploy connects as")


def test_another_system_is_one_finding() -> None:
    (finding,) = refusal({}, fit("debian-12", system='ID=rocky\nVERSION_ID="9.4"\nPRETTY_NAME="Rocky Linux 9.4"'))
    assert finding == "it runs Rocky Linux 9.4; supported are Debian 12 and 13, Ubuntu 22.04 and 24.04"


def test_without_root_the_owners_of_ports_are_not_asked_for() -> None:
    taken = 'LISTEN 0 511 *:443 *:* users:(("caddy",pid=7,fd=6))'
    (finding,) = refusal({}, fit("debian-12") | {"id -u": ["1000", "debian"], "ss -Hltnp": taken})
    assert finding.startswith("the deploy connects as debian, who is not root")


def test_sudo_with_a_password_from_the_vault_is_enough() -> None:
    asked = {"id -u": ["1000", "debian", "sudo: a password is required"]}
    assert plan(preflight, {"_sudo": True, "_sudo_password": "x"}, fit("debian-12") | asked) == []
    (finding,) = refusal({"_sudo": True}, fit("debian-12") | asked)
    assert finding.startswith("sudo asks debian for a password")


def test_cloud_init_is_waited_for() -> None:
    waiting = {"timeout 600 cloud-init status --wait": "status: done", "cloud-init status": "status: running"}
    assert plan(preflight, {}, waiting | fit("ubuntu-24.04")) == []
    (finding,) = refusal({}, {"cloud-init status": "status: running"} | fit("ubuntu-24.04"))
    assert finding.startswith("cloud-init is still at work on its first boot")
