"""The service's unit, settings and switch, as far as they can be told without a host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.exceptions import DeployError, FactProcessError

from metalscribe.settings import Settings
from metalscribe_provision.hostdata import HostData, parse_host_data
from metalscribe_provision.service.deploy import pending
from metalscribe_provision.service.environment import environment, render
from metalscribe_provision.service.facts import MachineFact, ReleaseStatus
from metalscribe_provision.service.units import Machine, companions, journald_drop_in, service_unit

_SERVING: dict[str, Any] = {
    "current": "1.0-a",
    "fingerprint": "f",
    "live_fingerprint": "f",
    "active": True,
    "enabled": True,
    "reload_needed": False,
    "credentials_changed": False,
    "interrupted": None,
}


def _host(**variables: object) -> HostData:
    return parse_host_data("test", {"driver": "none", "model": "demo", **variables}, {})


@pytest.fixture(params=["cpu", "gpu"])
def unit_files(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The units of a host, with something in the place of what they start."""
    data = _host(driver="none" if request.param == "cpu" else "auto")
    machine = Machine(252, 2)
    units = {"metalscribe.service": service_unit(data, machine, ["metalscribe_api_key"]), **companions(data, machine)}
    for name, content in units.items():
        started = content.replace("ExecStart=/opt", "ExecStart=/usr/bin/true /opt")
        (tmp_path / name).write_text(started.replace("/usr/bin/nvidia-modprobe", "/usr/bin/true"))
    return tmp_path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_finds_nothing_wrong_with_the_units(unit_files: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", *unit_files.iterdir()], capture_output=True, text=True, timeout=60, check=False
    )
    # Of ours: this machine's own units may have their faults.
    assert not [line for line in done.stderr.splitlines() if "metalscribe" in line]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_the_unit_is_exposed_little(unit_files: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit_files / "metalscribe.service"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_gpu_host_lets_the_service_have_the_gpu_and_nothing_else() -> None:
    unit = service_unit(_host(driver="auto"), Machine(252, 2), ["metalscribe_api_key"])
    lines = unit.splitlines()
    allowed = [
        line.removeprefix("DeviceAllow=").removesuffix(" rw") for line in lines if line.startswith("DeviceAllow=")
    ]
    assert allowed == [
        *("char-nvidia*", "/dev/nvidia0", "/dev/nvidia1"),
        *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
    ]
    assert {"PrivateDevices=no", "DevicePolicy=closed"} <= set(lines)


def test_all_device_nodes_are_made_before_the_service_starts() -> None:
    """nvidia-modprobe makes a card's with -c, 255 is the control device's number, and with -u those of unified memory alone."""
    unit = companions(_host(driver="auto"), Machine(252, 2))["metalscribe-gpu.service"]
    started = [line.partition("nvidia-modprobe ")[2] for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert started == ["-c 255 -c 0 -c 1", "-u -c 0"]
    assert "Before=metalscribe.service" in unit.splitlines()


def test_a_host_without_a_gpu_has_no_devices() -> None:
    unit = service_unit(_host(), Machine(252, 0), ["metalscribe_api_key"])
    assert "PrivateDevices=yes" in unit
    assert "nvidia" not in unit
    assert "metalscribe-gpu.service" not in companions(_host(), Machine(252, 0))


@pytest.mark.parametrize(("systemd", "known"), [(249, False), (252, False), (255, True), (257, True)])
def test_directives_that_an_older_systemd_does_not_know(systemd: int, known: bool) -> None:
    assert ("RestartSteps=" in service_unit(_host(), Machine(systemd, 0), [])) is known


def test_draining_may_take_as_long_as_the_operator_says() -> None:
    unit = service_unit(_host(metalscribe_shutdown_grace_secs=600), Machine(252, 0), [])
    assert "TimeoutStopSec=615" in unit


def test_every_template_is_rendered_whole() -> None:
    data = _host(driver="auto", memory_max="8G", log_max_size="2G", log_keep_days=7)
    rendered = [
        *companions(data, Machine(255, 1)).values(),
        service_unit(data, Machine(255, 1), ["b", "a"]),
        journald_drop_in(data),
    ]
    assert not [text for text in rendered if "{{" in text or "{%" in text]
    assert "MemoryMax=8G" in companions(data, Machine(255, 1))["metalscribe.slice"]
    assert "MaxRetentionSec=7day" in journald_drop_in(data)


def test_the_settings_of_a_host() -> None:
    values = environment(_host(metalscribe_batch_size=16, metalscribe_preload=False), "demo")
    assert values["METALSCRIBE_BATCH_SIZE"] == "16"
    assert values["METALSCRIBE_PRELOAD"] == "false"
    assert (values["METALSCRIBE_HOST"], values["METALSCRIBE_PORT"]) == ("127.0.0.1", "8000")
    assert values["METALSCRIBE_DEVICE"] == "cpu"
    assert environment(_host(driver="auto"), "demo")["METALSCRIBE_DEVICE"] == "cuda"
    assert {name.removeprefix("METALSCRIBE_").lower() for name in values} <= set(Settings.model_fields)


def test_no_secret_is_among_the_settings() -> None:
    data = _host(metalscribe_api_key="k-secret", metalscribe_database_url="postgresql+psycopg://u:p-secret@db/x")
    rendered = render(environment(data, "demo")) + service_unit(data, Machine(252, 0), ["metalscribe_api_key"])
    assert "secret" not in rendered
    assert "secret" not in repr(data)


@given(
    st.text(
        st.characters(exclude_characters="'\\", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=40
    )
)
def test_a_shell_reads_a_setting_as_it_was_meant(value: str) -> None:
    script = render({"METALSCRIBE_X": value}) + 'printf %s "$METALSCRIBE_X"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=10, check=True)
    assert done.stdout.decode() == value


@pytest.mark.parametrize("value", ["it's", "a\\b", "a\nb", "\x1b[0m", "a\x7fb", "a\x85b", "a\u2028b"])
def test_what_systemd_and_a_shell_read_differently_is_refused(value: str) -> None:
    with pytest.raises(DeployError, match="METALSCRIBE_X"):
        render({"METALSCRIBE_X": value})


def test_what_serves_as_wanted_is_left_alone() -> None:
    assert pending(_SERVING, "f") == []


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "g"},
        {"live_fingerprint": "g"},
        {"active": False},
        {"enabled": False},
        {"reload_needed": True},
        {"credentials_changed": True},
        {"interrupted": {"to": "1.1-b"}},
        {"current": None},
    ],
)
def test_everything_else_is_a_reason_to_activate(change: dict[str, Any]) -> None:
    assert pending({**_SERVING, **change}, "f")


def test_a_fresh_host_has_no_status() -> None:
    assert ReleaseStatus().process([]) == {}
    assert pending({}, "f") == ["nothing serves yet"]


def test_a_status_that_is_none_is_told() -> None:
    with pytest.raises(FactProcessError, match="no JSON"):
        ReleaseStatus().process(["Traceback (most recent call last):"])


@pytest.mark.parametrize(
    ("output", "machine"),
    [
        (["systemd 252 (252.39-1~deb12u1)"], Machine(252, 0)),
        (["systemd 249 (249.11-0ubuntu3.16)", "0x030000", "0x040300"], Machine(249, 1)),
        (["systemd 257 (257.8-1~deb13u2)", "0x030200", "0x068000", "0x030200"], Machine(257, 2)),
    ],
)
def test_what_machine_it_is(output: list[str], machine: Machine) -> None:
    assert MachineFact().process(output) == machine


def test_a_machine_without_systemd_is_told() -> None:
    with pytest.raises(FactProcessError, match="systemd"):
        MachineFact().process(["sh: 1: systemctl: not found"])
