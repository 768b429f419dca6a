"""The machine that deploys, with a deploy of a few lines: pyinfra and Ansible reach the hosts, and what they say is understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.conftest import MakeContainer
from lab.container import Container
from lab.controller import Controller
from lab.lab import Lab
from lab.waiting import wait_for

SITE = """\
from pyinfra import host, inventory
from pyinfra.operations import files, server

assert "gpu_hosts" in host.groups and "bare_metal" in host.groups
files.file(name="Mark", path="/root/mark", _sudo=host.data.get("_sudo"))
if host.data.get("fails"):
    server.shell(name="Fails", commands="echo the reason >&2; false")
if host.data.get("waits"):
    server.shell(name="Waits", commands="touch /root/waiting; sleep infinity")
"""

PLAYBOOK = """\
- hosts: gpu_hosts
  tasks:
    - ansible.builtin.command: id --user --name
      register: whoami
    - ansible.builtin.debug:
        msg: "{{ inventory_hostname }} by {{ whoami.stdout }}"
"""


@pytest.fixture(scope="module")
def host(make_container: MakeContainer) -> Container:
    return make_container("c1")


@pytest.fixture
def controller(lab: Lab, tmp_path: Path) -> Controller:
    """One that has a checkout of its own."""
    checkout = tmp_path / "checkout"
    (checkout / "provision" / "ops").mkdir(parents=True)
    (checkout / "provision" / "site.py").write_text(SITE, encoding="utf-8")
    (checkout / "provision" / "ops" / "whoami.yml").write_text(PLAYBOOK, encoding="utf-8")
    return Controller(lab.network.controller, lab.access, tmp_path / "controller", checkout)


@pytest.mark.parametrize("user", ["root", "deployer"])
def test_changes_are_planned_made_and_not_made_again(controller: Controller, host: Container, user: str) -> None:
    host.run("rm -f /root/mark")
    inventory = controller.inventory([host], user=user)
    planned = controller.deploy(inventory, "--dry").succeeded()
    assert planned.planned == ["Mark"]
    assert host.run("test -e /root/mark", check=False).returncode == 1
    assert controller.deploy(inventory).succeeded().changes == ["Mark"]
    assert host.run("stat --format=%U /root/mark").stdout == "root\n"
    assert controller.deploy(inventory).succeeded().changes == []
    assert controller.deploy(inventory, "--dry").succeeded().planned == []


def test_a_failure_is_told_with_its_reason(controller: Controller, host: Container) -> None:
    outcome = controller.deploy(controller.inventory([host], {"fails": True}))
    with pytest.raises(AssertionError, match="the reason"):
        outcome.succeeded()


def test_a_host_that_is_off_is_a_failure(controller: Controller, host: Container) -> None:
    inventory = controller.inventory([host])
    host.halt()
    try:
        with pytest.raises(AssertionError, match="the deploy failed"):
            controller.deploy(inventory).succeeded()
    finally:
        host.boot()


def test_a_deploy_ends_when_it_is_killed(controller: Controller, host: Container) -> None:
    with controller.start(controller.inventory([host], {"waits": True})) as deploy:
        wait_for(lambda: host.run("test -e /root/waiting", check=False).returncode == 0, "the deploy to wait")
        assert deploy.running
        assert not deploy.ends_within(0.1)
        deploy.kill()
        assert not deploy.running
        assert deploy.ends_within(0)


def test_the_environment_is_the_tests_own(
    controller: Controller, host: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALSCRIBE_API_KEY", "the developer's own")
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "no such thing")
    (controller.checkout / "provision" / "site.py").write_text(
        "import os\n"
        "from pyinfra.operations import server\n"
        "server.shell(name=os.environ.get('METALSCRIBE_API_KEY', 'none') + ' ' + os.environ['HOME'], commands='true')\n",
        encoding="utf-8",
    )
    home = controller.folder / "home"
    inventory = controller.inventory([host])
    assert controller.deploy(inventory, "--dry").planned == [f"none {home}"]
    given = controller.deploy(inventory, "--dry", environment={"METALSCRIBE_API_KEY": "given"})
    assert given.planned == [f"given {home}"]


@pytest.mark.parametrize("user", ["root", "deployer"])
def test_a_playbook_runs_as_root(controller: Controller, host: Container, user: str) -> None:
    done = controller.playbook("whoami.yml", controller.inventory([host], user=user))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "c1 by root" in done.stdout
