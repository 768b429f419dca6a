"""The doctor's view of a deployed host: what it makes of other programs' answers, and which checks it carries out.

Units, nginx and a clock of its own need a host: there the whole doctor runs (tests/lab). Here, its parsers meet what systemd
252 and 257, OpenSSL 3.0 and 3.5 and ``metalscribe-release`` print, and its judgements meet what a healthy machine lacks.
"""

from __future__ import annotations

import io
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from metalscribe.cli import commands, devices, doctor, examination
from metalscribe.cli.examination import Check
from metalscribe.cli.findings import Finding, Status
from metalscribe.cli.host import driver, service_user, units, upkeep
from metalscribe.cli.host.deployment import Host, deployment
from metalscribe.engine.cuda import cublas_directory
from metalscribe.errors import ConfigurationError, MetalscribeError
from metalscribe.gpu.health import GpuReport
from metalscribe.settings import load_settings

DOCUMENT = {
    "server_names": ["speech.example", "10.0.0.5"],
    "https_port": 443,
    "tls": "internal_ca",
    "certificate": "/etc/metalscribe/tls/current/fullchain.pem",
    "ca": "/etc/metalscribe/tls/ca.crt",
    "gpu": False,
    "words": True,
    "firewall": True,
    "exporters": [],
}

# systemctl show metalscribe.service --property=… (252 and 257 print the same lines, in an order of their own)
UNIT = """\
WatchdogUSec=30s
Result=success
NRestarts=0
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
ActiveEnterTimestampMonotonic=21616928
NeedDaemonReload=no
"""
ABSENT = """\
WatchdogUSec=infinity
Result=success
NRestarts=0
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
ActiveEnterTimestampMonotonic=0
NeedDaemonReload=no
"""

# systemd-analyze security metalscribe.service: the last lines, with and without a UTF-8 locale.
SECURITY = """\
✓ ProtectProc=                                                Service has restricted access to process tree (/proc hidepid=)
✗ UMask=                                                      Files created by service are world-readable by default                          0.1

→ Overall exposure level for metalscribe.service: 6.3 MEDIUM 😐
"""
SECURITY_ASCII = "-> Overall exposure level for metalscribe.service: 1.5 OK :-)\n"

RELEASE: dict[str, Any] = {
    "current": "0.1.0-py311-abc",
    "generation": 7,
    "since": "2026-11-20T09:00:00Z",
    "fingerprint": "f",
    "live_fingerprint": "f",
    "active": True,
    "enabled": True,
    "reload_needed": False,
    "credentials_changed": False,
    "previous": {"generation": 6, "release": "0.0.9-py311-abc", "since": "2026-11-01T09:00:00Z"},
    "interrupted": None,
    "failed": None,
    "releases": [],
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host as the deploy leaves it, as far as its files go."""
    root = tmp_path / "host"
    for directory in ("etc/systemd/system", "etc/metalscribe/tls/current", "etc/metalscribe/credentials", "dev"):
        (root / directory).mkdir(parents=True)
    given_credentials(Host(root), "metalscribe_api_key")
    describe(Host(root))
    return Host(root)


def given_credentials(host: Host, *names: str) -> None:
    """Let systemd hand these to the service."""
    lines = (f"LoadCredential={name}:/etc/metalscribe/credentials/{name}\n" for name in names)
    host.at(Path("/etc/systemd/system/metalscribe.service")).write_text("[Service]\n" + "".join(lines))


def describe(host: Host, **fields: object) -> None:
    host.at(Path("/etc/metalscribe/host.json")).write_text(json.dumps(DOCUMENT | fields))


def judged_unit(**changes: str) -> Finding:
    return units.judge_unit(units.parse_properties(UNIT) | changes, 21.616928 + 90_061)


# --- whether there is a host, and what its deploy wrote down ---


def test_a_machine_is_a_host_once_configuration_and_unit_are_there(host: Host, tmp_path: Path) -> None:
    assert host.is_deployed
    assert not Host(tmp_path / "elsewhere").is_deployed
    host.at(Path("/etc/systemd/system/metalscribe.service")).unlink()
    assert not host.is_deployed
    (host.root / "usr/lib/systemd/system").mkdir(parents=True)
    (host.root / "usr/lib/systemd/system/metalscribe.service").write_text("[Service]\n")
    assert host.is_deployed


def test_the_document_is_read_and_a_newer_deploys_fields_are_left_alone(host: Host) -> None:
    describe(host, https_port=8443, server_names=["2001:db8::1"], novelty={"of": "tomorrow"})
    assert deployment(host).detail == "https://[2001:db8::1]:8443 by an internal CA's certificate, a host without a GPU"


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"https_port": 70000}, "https_port"), ({"server_names": []}, "server_names"), ({"tls": "none"}, "tls")],
)
def test_a_wrong_document_is_named(host: Host, fields: Mapping[str, object], named: str) -> None:
    describe(host, **fields)
    with pytest.raises(ConfigurationError, match=f"host.json: {named}"):
        host.document()


def test_a_missing_document_is_an_unfinished_deploy(host: Host) -> None:
    host.at(Path("/etc/metalscribe/host.json")).unlink()
    with pytest.raises(ConfigurationError, match="run the deploy again"):
        deployment(host)


# --- the unit ---


def test_a_unit_that_is_well() -> None:
    finding = judged_unit()
    assert (finding.status, finding.detail) == (Status.OK, "active for 1 d 1 h, watchdog 30s")


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"LoadState": "not-found"}, Status.FAIL, "not-found"),
        ({"LoadState": "bad-setting"}, Status.FAIL, "bad-setting"),
        ({"ActiveState": "failed", "SubState": "failed", "Result": "watchdog"}, Status.FAIL, "last result: watchdog"),
        ({"ActiveState": "inactive", "SubState": "dead"}, Status.FAIL, "inactive (dead"),
        ({"ActiveState": "activating", "SubState": "start"}, Status.WARN, "starting"),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"},
            Status.FAIL,
            "activating (auto-restart, last result: exit-code)",
        ),
        ({"WatchdogUSec": "infinity"}, Status.WARN, "without a watchdog"),
        ({"WatchdogUSec": "0"}, Status.WARN, "without a watchdog"),
        ({"UnitFileState": "disabled"}, Status.WARN, "disabled at boot"),
        ({"NeedDaemonReload": "yes"}, Status.WARN, "changed on disk"),
    ],
)
def test_what_is_wrong_with_a_unit(changes: dict[str, str], status: Status, said: str) -> None:
    finding = judged_unit(**changes)
    assert (finding.status, said in finding.detail, bool(finding.hint)) == (status, True, True)


def test_restarts_are_a_worry_for_a_day() -> None:
    long_ago = judged_unit(NRestarts="3")
    assert (long_ago.status, "3 times" in long_ago.detail) == (Status.OK, True)
    properties = units.parse_properties(UNIT) | {"NRestarts": "1"}
    lately = units.judge_unit(properties, 21.616928 + 3700)
    assert (lately.status, "active for 1 h 1 min" in lately.detail) == (Status.WARN, True)


def test_a_unit_that_systemd_does_not_know() -> None:
    assert units.judge_unit(units.parse_properties(ABSENT), 100.0).status is Status.FAIL


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (61, "1 min"), (7260, "2 h 1 min"), (180_000, "2 d 2 h")])
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_the_exposure_is_read_and_judged() -> None:
    assert units.parse_exposure(SECURITY) == 6.3
    assert units.parse_exposure(SECURITY_ASCII) == 1.5
    assert units.parse_exposure("Unit absent.service not found, cannot analyze.") is None
    assert units.judge_exposure(1.5, "").status is Status.OK
    assert units.judge_exposure(1.6, "").status is Status.WARN
    unknown = units.judge_exposure(None, "Unit metalscribe.service not found, cannot analyze.")
    assert (unknown.status, "not found" in unknown.detail) == (Status.WARN, True)


# --- releases, backups, the clock ---


def test_a_release_that_serves() -> None:
    finding = upkeep.judge_release(RELEASE)
    assert finding.status is Status.OK
    assert finding.detail == "0.1.0-py311-abc, generation 7 since 2026-11-20T09:00:00Z; before it 0.0.9-py311-abc"


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"current": None}, Status.FAIL, "no release"),
        ({"interrupted": {"to": "0.2.0", "from": "0.1.0"}}, Status.WARN, "switch to 0.2.0 was cut off"),
        ({"live_fingerprint": "g"}, Status.WARN, "changed by hand"),
        ({"credentials_changed": True}, Status.WARN, "credential was changed"),
        (
            {"failed": {"release": "0.2.0", "step": "candidate", "reason": "not ready\nin 300 s", "at": "2026-11-20"}},
            Status.WARN,
            "0.2.0 was turned down at 2026-11-20: not ready in 300 s",
        ),
    ],
)
def test_what_is_wrong_with_a_release(changes: dict[str, Any], status: Status, said: str) -> None:
    finding = upkeep.judge_release(RELEASE | changes)
    assert (finding.status, said in finding.detail, bool(finding.hint)) == (status, True, True)


def release_tool(host: Host, script: str) -> None:
    tool = host.at(Path("/opt/metalscribe/bin/metalscribe-release"))
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_the_release_tool_is_asked(host: Host) -> None:
    assert upkeep.release(host).status is Status.FAIL
    release_tool(host, f"[ \"$*\" = 'status --json' ] && echo '{json.dumps(RELEASE)}'")
    assert upkeep.release(host).status is Status.OK


def test_a_release_tool_that_tells_root_alone_is_a_warning(host: Host) -> None:
    release_tool(host, "echo 'metalscribe-release must be run by root' >&2; exit 2")
    finding = doctor._look("upkeep", "release", host)
    assert (finding.status, "root" in finding.hint) == (Status.WARN, True)


def test_a_release_tool_that_breaks_is_a_failure(host: Host) -> None:
    release_tool(host, "echo 'SyntaxError: invalid syntax' >&2; exit 1")
    with pytest.raises(MetalscribeError, match="SyntaxError"):
        upkeep.release(host)


DAY = 86_400.0


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"age": 0.5 * DAY}, Status.OK),
        ({"age": 1.9 * DAY}, Status.OK),
        ({"age": 2.1 * DAY}, Status.WARN),
        ({"age": None, "deployed": 1.9 * DAY}, Status.OK),
        ({"age": None}, Status.WARN),
        ({"age": 0.5 * DAY, "timer": "inactive"}, Status.WARN),
        ({"age": 0.5 * DAY, "last": "exit-code"}, Status.WARN),
    ],
)
def test_backups(given: dict[str, Any], status: Status) -> None:
    usual: dict[str, Any] = {"timer": "active", "last": "success", "deployed": 30 * DAY}
    finding = upkeep.judge_backup(**(usual | given))
    assert (finding.status, bool(finding.hint)) == (status, status is Status.WARN)


def test_backups_are_looked_for_where_they_are_made(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "show", lambda *_: {"ActiveState": "active", "Result": "success"})
    backups = host.at(Path("/var/backups/metalscribe"))
    backups.mkdir(parents=True)
    (backups / "daily-20261120T023000Z.db").touch()
    assert upkeep.backup(host).detail == "the newest is 0 s old"


def test_a_database_elsewhere_has_its_backups_elsewhere(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "show", lambda *_: {"ActiveState": "inactive", "Result": "success"})
    given_credentials(host, "metalscribe_api_key", "metalscribe_database_url")
    assert "PostgreSQL" in upkeep.backup(host).detail
    # A former one's URL may lie there for as long as one can go back to it.
    given_credentials(host, "metalscribe_api_key")
    host.at(Path("/etc/metalscribe/credentials/metalscribe_database_url")).write_text("of a former database")
    assert upkeep.backup(host).detail == "metalscribe-backup.timer is inactive"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("NTP=yes\nNTPSynchronized=yes\n", Status.OK, "synchronised"),
        ("NTP=no\nNTPSynchronized=yes\n", Status.OK, "synchronised"),  # ntpd, or the hypervisor
        ("NTP=yes\nNTPSynchronized=no\n", Status.WARN, "although a time service runs"),
        ("NTP=no\nNTPSynchronized=no\n", Status.WARN, "not synchronised"),
    ],
)
def test_the_clock(text: str, status: Status, said: str) -> None:
    finding = upkeep.judge_clock(units.parse_properties(text), "")
    assert (finding.status, said in finding.detail) == (status, True)


def test_a_containers_clock_is_not_its_own(host: Host) -> None:
    (host.root / "run/systemd").mkdir(parents=True)
    (host.root / "run/systemd/container").write_text("systemd-nspawn")
    assert upkeep.clock(host).status is Status.OK


# --- the driver: no build machine has one ---

LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so."
PRESENT = {"module_loaded": True, "nouveau": False, "secure_boot": False}


@pytest.mark.parametrize(
    ("loaded", "library", "facts", "status", "said"),
    [
        ("580.95.05", LIBRARY + "580.95.05", {}, Status.OK, "580.95.05, module and libraries"),
        ("535.261", LIBRARY + "535.261", {}, Status.OK, "535.261"),
        ("580.82.07", LIBRARY + "580.95.05", {}, Status.FAIL, "is 580.82.07, the libraries are 580.95.05"),
        ("580.95.05", LIBRARY + "1", {}, Status.OK, "libnvidia-ml.so.1"),
        ("580.95.05", None, {}, Status.FAIL, "libnvidia-ml.so.1 is missing"),
        (None, LIBRARY + "580.95.05", {"module_loaded": False}, Status.FAIL, "not loaded"),
    ],
)
def test_the_driver(loaded: str | None, library: str | None, facts: dict[str, bool], status: Status, said: str) -> None:
    finding = driver.judge_driver(loaded, library, **(PRESENT | facts))
    assert (finding.status, said in finding.detail) == (status, True)


def test_why_a_module_may_not_be_loaded() -> None:
    absent = PRESENT | {"module_loaded": False}
    nouveau = driver.judge_driver(None, None, **(absent | {"nouveau": True}))
    assert ("nouveau" in nouveau.hint, "Secure Boot" in nouveau.hint) == (True, False)
    signed = driver.judge_driver(None, None, **(absent | {"secure_boot": True}))
    assert ("nouveau" in signed.hint, "Secure Boot" in signed.hint) == (False, True)


def test_the_driver_is_looked_for(host: Host) -> None:
    variables = host.root / "sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    (variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\x06\0\0\0\x01")
    finding = driver.driver(host)
    assert (finding.status, "Secure Boot is on" in finding.hint) == (Status.FAIL, True)
    module = host.root / "sys/module/nvidia"
    module.mkdir(parents=True)
    (module / "version").write_text("580.95.05\n")
    assert "580.95.05" in driver.driver(host).detail


def test_device_nodes(host: Host) -> None:
    missing = driver.device_nodes(host)
    assert (missing.status, "nvidia0, nvidiactl, nvidia-uvm" in missing.detail) == (Status.FAIL, True)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (host.root / "dev" / name).touch()
        (host.root / "dev" / name).chmod(0o666)
    assert driver.device_nodes(host) == Finding(Status.OK, "nvidia0, nvidia1, nvidiactl, nvidia-uvm")
    (host.root / "dev/nvidia1").chmod(0o660)
    closed = driver.device_nodes(host)
    assert (closed.status, "nvidia1" in closed.detail) == (Status.WARN, True)


@pytest.fixture
def cublas_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A stand-in for NVIDIA's half a gigabyte, found as the system's own."""
    compiler = shutil.which("cc")
    if compiler is None or cublas_directory() is not None:
        pytest.skip("no C compiler for the stand-in of cuBLAS, or the real one is here (extra gpu)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    def build(body: str) -> None:
        source = f"int cublasGetProperty(int part, int *value) {{ {body} }}"
        command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", str(tmp_path / "libcublas.so.12")]
        subprocess.run(command, input=source, text=True, check=True)

    return build


def test_cublas_has_to_load(cublas_library: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_DEVICE", "cuda")
    absent = devices.cublas(load_settings())
    assert (absent.status, "does not load: OSError: libcublas.so.12" in absent.detail) == (Status.FAIL, True)
    cublas_library("*value = part == 0 ? 12 : part; return 0;")
    assert devices.cublas(load_settings()) == Finding(Status.OK, "12.1.2 from the system")
    cublas_library("return part + 1;")
    broken = devices.cublas(load_settings())
    assert (broken.status, "cublasGetProperty fails" in broken.detail) == (Status.FAIL, True)
    monkeypatch.setenv("METALSCRIBE_DEVICE", "cpu")
    assert devices.cublas(load_settings()).status is Status.OK


def test_a_driver_that_hangs_does_not_hang_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_DRIVER_SECONDS", 0.2)
    monkeypatch.setattr(devices, "_NVML", "import time; time.sleep(3600)")
    with pytest.raises(MetalscribeError, match=r"does not answer: no answer within 0\.2 s"):
        devices.gpu_report()


def test_the_drivers_report_survives_its_way_between_processes() -> None:
    report = devices.gpu_report()
    assert isinstance(report, GpuReport)
    assert report.gpus or report.problem is not None


# --- other programs ---


def test_a_program_is_asked_in_english_and_without_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_API_KEY", "a-key-that-nobody-guesses")
    monkeypatch.setenv("LC_ALL", "pt_BR.UTF-8")
    monkeypatch.setenv("LANGUAGE", "pt")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    answer = commands.run(["env"], seconds=20)
    assert "a-key-that-nobody-guesses" not in answer.out
    lines = answer.out.splitlines()
    assert "LC_ALL=C.UTF-8" in lines
    assert "PATH=/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin" in lines
    assert not any(line.startswith("LANGUAGE=") for line in lines)


def test_a_programs_end_is_told() -> None:
    answer = commands.run(["sh", "-c", "cat; echo one >&2; echo two >&2; exit 3"], seconds=20, text="in")
    assert (answer.status, answer.out, answer.complaint) == (3, "in", "two")
    assert commands.run(["true"], seconds=20).complaint == "no reason given"


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(commands.CommandFailed, match="gave no answer within"):
        commands.run(["sh", "-c", f"exec >{pipe} 2>&1; echo began; sleep 3600 & wait"], seconds=2)
    os.set_blocking(reading, True)
    with os.fdopen(reading, "rb") as said:
        assert said.read() == b"began\n", "the end of it comes when nobody holds the other side any more"


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(commands.CommandFailed, match="no-such-program is not installed"):
        commands.run(["no-such-program"], seconds=1)


# --- root, the service's user, and others ---


def checks_of(host: Host, *, quick: bool = True) -> dict[str, Check]:
    return {check.name: check for check in doctor.examine(quick=quick, host=host)}


def test_another_user_is_told_to_be_root(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    describe(host, gpu=True, exporters=["prometheus-node-exporter.service"])
    found = checks_of(host)
    assert list(found) == [
        *("settings", "libraries", "service", "deployment", "driver", "device_nodes", "unit", "unit_security"),
        *("release", "release_space", "backup", "clock", "exporters", "firewall", "nginx", "certificate"),
    ]
    assert (found["settings"].status, "sudo" in found["settings"].hint) == ("warn", True)


def test_checks_that_a_host_has_no_use_for_are_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    describe(host, firewall=False)
    assert {"driver", "device_nodes", "exporters", "firewall"}.isdisjoint(checks_of(host))


def test_an_unfinished_deploy_leaves_out_what_its_document_would_tell(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    host.at(Path("/etc/metalscribe/host.json")).unlink()
    found = checks_of(host)
    assert found["deployment"].status == "fail"
    assert "unit" in found
    assert {"certificate", "https", "backup", "driver"}.isdisjoint(found)


@pytest.mark.parametrize(("https", "tried"), [("ok", False), ("fail", True), ("warn", True)])
def test_the_second_model_is_loaded_only_where_the_way_by_https_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch, https: str, tried: bool
) -> None:
    # What root has done as the service's user, and the way by HTTPS, are tests of their own.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        service_user,
        "examine_as_service",
        lambda host, names, *, quick: (Check(name, "ok", "", "") for name in names),
    )
    real = doctor._look
    outcome = Finding(Status(https), "made up")
    monkeypatch.setattr(doctor, "_look", lambda *of: outcome if of[1] == "https" else real(*of))
    found = checks_of(host, quick=False)
    assert ("transcription" in found) is tried
    assert list(found)[-1] == ("transcription" if tried else "https")


def test_a_file_that_only_root_may_read_is_a_warning(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Host) -> Finding:
        raise PermissionError(13, "Permission denied", "/etc/metalscribe/credentials/metalscribe_api_key")

    monkeypatch.setattr(upkeep, "backup", refuse)
    finding = doctor._look("upkeep", "backup", host)
    assert (finding.status, "metalscribe_api_key" in finding.detail) == (Status.WARN, True)
    assert finding.hint == "Run it as root."


def test_a_services_environment_has_its_secrets_and_nothing_of_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SUDO_USER": "me", "XDG_RUNTIME_DIR": "/run/user/0", "HOME": "/root"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/etc/metalscribe/credentials")
    account = pwd.struct_passwd(("metalscribe", "x", 990, 990, "", "/var/lib/metalscribe", "/usr/sbin/nologin"))
    ours = {"METALSCRIBE_MODEL": "demo", "SHELL": "/bin/bash"}
    environment = service_user.service_environment(ours, account, {"METALSCRIBE_API_KEY": "secret"})
    assert {"SUDO_USER", "XDG_RUNTIME_DIR", "CREDENTIALS_DIRECTORY"}.isdisjoint(environment)
    assert environment["HOME"] == "/var/lib/metalscribe"
    assert (environment["METALSCRIBE_MODEL"], environment["METALSCRIBE_API_KEY"]) == ("demo", "secret")


def test_the_units_secrets_are_found_where_systemd_takes_them_from(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    credentials = host.at(Path("/etc/metalscribe/credentials"))
    (credentials / "metalscribe_api_key").write_text("secret\n")
    (credentials / "metalscribe_api_key.new").write_text("half a sec")
    (credentials / "somebody_elses").write_text("other")
    (credentials / "metalscribe_database_url").write_text("of a former database")
    assert service_user.unit_secrets(host) == {"METALSCRIBE_API_KEY": "secret"}
    assert service_user.unit_secrets(Host(tmp_path / "nowhere")) == {}


def examined(*names: str, **variables: str) -> tuple[list[Check], bytes]:
    """The service's checks in a process of their own, as root has them carried out, but by this user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("METALSCRIBE_")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", service_user._PROGRAM, *names],
        env=kept | variables,
        stdout=subprocess.PIPE,
        check=False,
        cwd="/",
    )
    checks = service_user.collected(io.BytesIO(done.stdout), [name for name in names if name != "--quick"], 20)
    return list(checks), done.stdout


def test_checks_come_back_from_another_process(tmp_path: Path) -> None:
    variables = {"METALSCRIBE_STATE_DIR": str(tmp_path), "METALSCRIBE_API_KEY": "a-key-that-nobody-guesses"}
    checks, output = examined("settings", "state_directory", "api_keys", **variables)
    assert [(check.name, check.status) for check in checks] == [
        *(("settings", "ok"), ("state_directory", "ok"), ("api_keys", "ok")),
    ]
    assert b"a-key-that-nobody-guesses" not in output


def test_settings_that_are_wrong_end_them_early() -> None:
    checks, _ = examined("settings", "state_directory", METALSCRIBE_PROT="1")
    assert [(check.name, check.status) for check in checks] == [("settings", "fail")]


def test_a_process_that_dies_fails_the_check_that_it_died_of() -> None:
    said = json.dumps({"name": "settings", "status": "ok", "detail": "", "hint": ""}).encode() + b"\n"
    checks = list(service_user.collected(io.BytesIO(said), ["settings", "libraries", "database"], 20))
    assert [(check.name, check.status) for check in checks] == [("settings", "ok"), ("libraries", "fail")]
    assert "ended without a word" in checks[1].detail


def test_a_process_that_hangs_is_not_waited_for() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as lines, os.fdopen(writing, "wb"):
        (check,) = service_user.collected(lines, ["database"], 0.05)
        assert (check.name, check.status, "hangs" in check.detail) == ("database", "fail", True)


@pytest.mark.model
def test_quick_leaves_checksums_out(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_MODEL", "demo")
    (quick,) = examination.examine(["model"], quick=True)
    (whole,) = examination.examine(["model"])
    assert (quick.status, "not verified" in quick.detail) == ("ok", True)
    assert (whole.status, "files verified" in whole.detail) == ("ok", True)


def test_files_of_the_host_are_below_its_root(host: Host) -> None:
    assert host.at(Path("/etc/metalscribe")) == host.root / "etc/metalscribe"
    assert stat.S_ISDIR(host.at(Path("/")).stat().st_mode)
