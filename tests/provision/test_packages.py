"""Packages: what is asked of apt, and that no service is kept from starting longer than an installation takes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from fakes import DEBIAN_12, Responses, installed, plan

from metalscribe_provision.common import OwnPolicy, packages
from metalscribe_provision.hostdata import HostData

LEFT_BEHIND: Responses = {"policy-rc.d || echo yes": "yes"}


def wanted(_: HostData) -> None:
    packages(name="Install", names=["nginx", "curl"])


def planned(responses: Responses) -> tuple[str, ...]:
    (operation,) = plan(wanted, {"driver": "none"}, responses | DEBIAN_12)
    return operation.commands


def test_only_what_is_missing_is_installed() -> None:
    update, configure, install = planned(installed("curl"))
    assert update.endswith("update")
    assert configure == "DEBIAN_FRONTEND=noninteractive dpkg --configure -a"
    assert install.endswith("--no-install-recommends install nginx")
    assert planned(installed("nginx", "curl")) == ()


def test_what_a_power_cut_has_left_is_removed_with_nothing_to_install() -> None:
    assert planned(installed("nginx", "curl") | LEFT_BEHIND) == ("rm -f /usr/sbin/policy-rc.d",)


class Shell:
    """A shell in which /usr/sbin is a folder, and apt-get notes what policy-rc.d says meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.policy = folder / "policy-rc.d"
        self._folder = folder
        apt = folder / "bin" / "apt-get"
        apt.parent.mkdir()
        apt.write_text(f"#!/bin/sh\nsh {self.policy}; echo policy: $?\n[ ! -e {folder}/fails ] || exit 100\n")
        apt.chmod(0o755)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        script = command.replace("/usr/sbin/", f"{self._folder}/")
        environment = {"PATH": f"{self._folder}/bin:{os.environ['PATH']}"}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)

    def left_behind(self) -> bool:
        return OwnPolicy().process(self.run(OwnPolicy().command()).stdout.splitlines())


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_services_do_not_start_meanwhile_and_may_afterwards(shell: Shell, tmp_path: Path, fails: bool) -> None:
    if fails:
        (tmp_path / "fails").touch()
    done = shell.run(planned({})[-1])
    assert (done.stdout, done.returncode) == ("policy: 101\n", 100 if fails else 0)
    assert not shell.policy.exists()
    assert not shell.left_behind()


def test_what_a_power_cut_has_left_is_known_and_goes_with_the_next_installation(shell: Shell) -> None:
    install = planned({})[-1]
    shell.run(re.sub(r"trap '[^']*' EXIT", "true", install))
    assert shell.policy.exists()
    assert shell.left_behind()
    assert shell.run(install).stdout == "policy: 101\n"
    assert not shell.policy.exists()


def test_somebody_elses_policy_stays(shell: Shell) -> None:
    shell.policy.write_text("#!/bin/sh\nexit 0\n")
    assert shell.run(planned({})[-1]).stdout == "policy: 0\n"
    assert shell.policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert not shell.left_behind()
