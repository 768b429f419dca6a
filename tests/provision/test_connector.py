"""The ``@ansible`` connector: Ansible's real commands on real inventories, and the translation of connection variables."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.exceptions import InventoryError
from pyinfra.connectors.sshuserclient.client import get_ssh_config

from metalscribe_provision import connector
from metalscribe_provision.ansible_connection import Connection, configuration_file, connection
from metalscribe_provision.ansible_inventory import messages, parse_debug, parse_inventory, unresolved
from metalscribe_provision.connector import AnsibleInventoryConnector
from metalscribe_provision.hostdata import parse_host_data
from metalscribe_provision.transport import prompt_transport

INVENTORY = Path(__file__).parent / "inventory"
PASSWORD = "ANSIBLE_VAULT_PASSWORD_FILE"

Host = tuple[dict[str, Any], list[str]]


def read(file: Path | str) -> dict[str, Host]:
    return {name: (data, groups) for name, data, groups in AnsibleInventoryConnector.make_names_data(str(file))}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(PASSWORD, str(INVENTORY / "vault-password"))
        yield read(INVENTORY / "inventory.ini")


def printed(monkeypatch: pytest.MonkeyPatch, listing: dict[str, Any]) -> None:
    """What ``ansible-inventory`` prints, without its half second."""

    def run(command: str, *_: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, json.dumps(listing), "")

    monkeypatch.setattr(connector, "_ansible", run)


# --- Ansible's own commands ---


def test_hosts_have_the_inventorys_names_and_every_group_above_them(hosts: dict[str, Host]) -> None:
    assert {name: groups for name, (_, groups) in hosts.items()} == {
        "gpu1": ["all", "gpu_hosts", "bare_metal"],
        "gpu2": ["all", "gpu_hosts", "bare_metal"],
        "vm1": ["all", "gpu_hosts", "vms"],
        "pve1": ["all", "proxmox_hosts"],
        "web1": ["all", "others"],
    }


def test_variables_of_groups_hosts_and_the_vault_arrive(hosts: dict[str, Host]) -> None:
    data = hosts["vm1"][0]
    parsed = parse_host_data("vm1", data, {})

    assert parsed.firewall is False
    assert parsed.ssh_ports == (22, 2222)
    assert parsed.server_names == ("speech.example.org", "192.0.2.11")
    assert parsed.settings == {"batch_size": "16"}
    assert parsed.api_key is not None
    assert parsed.api_key.get_secret_value() == "not-so-secret-api-key"  # a template that names a vaulted variable
    assert (data["ssh_hostname"], data["ssh_user"], data["ssh_port"]) == ("vm1.example.org", "debian", 2222)
    assert (data["_sudo"], data["_sudo_password"]) == (True, "not-so-secret-sudo")  # a value vaulted singly
    assert "ansible_become_password" not in data


def test_a_template_of_somebody_else_is_left_alone(hosts: dict[str, Host]) -> None:
    data = {name: value for name, value in hosts["web1"][0].items() if not name.startswith("ssh_")}
    assert data == {"motto": "{{ ansible_facts.hostname }}"}


def test_a_jump_host_is_in_the_configuration_file_that_pyinfra_reads(hosts: dict[str, Host]) -> None:
    data = hosts["gpu1"][0]
    configuration = get_ssh_config(data["ssh_config_file"])

    assert configuration.lookup("gpu1")["proxyjump"] == "bastion.example.org"
    assert "proxyjump" not in configuration.lookup("bastion.example.org")
    assert data["ssh_strict_host_key_checking"] == "yes"
    assert hosts["gpu2"][0]["ssh_config_file"] != data["ssh_config_file"]
    assert len(list(Path(data["ssh_config_file"]).parent.iterdir())) == 3  # one per host, and nothing half-written


def test_hosts_of_others_that_cannot_be_reached_are_left_out(hosts: dict[str, Host]) -> None:
    assert "localhost" not in hosts
    assert "db1" not in hosts


def test_what_pyinfra_writes_into_a_hosts_data_does_not_reach_the_next_reading(hosts: dict[str, Host]) -> None:
    again = read(INVENTORY / "inventory.ini")
    again["gpu1"][0]["written"] = True
    assert "written" not in read(INVENTORY / "inventory.ini")["gpu1"][0]


def test_a_vault_without_its_password_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(InventoryError, match=r"inventory\.ini: .*no vault secrets found.*ANSIBLE_VAULT_PASSWORD_FILE"):
        read(f"{INVENTORY}/../inventory/inventory.ini")  # a name that was not read before


def test_an_unreadable_inventory_is_told_without_its_values(tmp_path: Path) -> None:
    file = tmp_path / "inventory.ini"
    file.write_text('[gpu_hosts]\ngpu1 metalscribe_api_key=hunter2 note="half\n')
    with pytest.raises(InventoryError, match="No closing quotation") as caught:
        read(file)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_inventory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InventoryError, match=r"missing\.ini: there is no such inventory; inventory\.example\.ini is one"
    ):
        read(tmp_path / "missing.ini")


def test_an_inventory_without_hosts_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed(monkeypatch, {"_meta": {"hostvars": {}, "profile": "inventory_legacy"}, "all": {"children": ["ungrouped"]}})
    (tmp_path / "empty.ini").touch()
    with pytest.raises(InventoryError, match=r"empty\.ini: there are no hosts in it"):
        read(tmp_path / "empty.ini")


def test_what_cannot_be_honoured_ends_a_deploy_to_our_hosts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    printed(
        monkeypatch,
        {
            "_meta": {
                "hostvars": {
                    "gpu1": {"ansible_connection": "docker"},
                    "gpu2": {"ansible_become": "yes", "ansible_become_method": "su", "_sudo": "no"},
                    "localhost": {"ansible_connection": "local"},
                }
            },
            "all": {"children": ["gpu_hosts", "others"]},
            "gpu_hosts": {"hosts": ["gpu1", "gpu2"]},
            "others": {"hosts": ["localhost"]},
        },
    )
    file = tmp_path / "inventory.ini"
    file.touch()
    with pytest.raises(InventoryError) as caught:
        read(file)
    assert str(caught.value).removeprefix(f"{file}: ").split("; ") == [
        "gpu1: ansible_connection=docker cannot be honoured: hosts are reached over SSH",
        "gpu2: ansible_become_method=su cannot be honoured: root is reached by sudo",
        "gpu2: _sudo is pyinfra's own, write ansible_become and its like",
    ]
    assert "localhost is left out of the inventory: ansible_connection=local cannot be honoured" in caplog.text


def test_ansible_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InventoryError, match="install metalscribe with its extra provision"):
        read(f"{INVENTORY}/./inventory.ini")


@pytest.mark.parametrize("name", [None, ""])
def test_the_file_has_to_be_named(name: str | None) -> None:
    with pytest.raises(InventoryError, match="@ansible needs the inventory's file"):
        list(AnsibleInventoryConnector.make_names_data(name))


def test_pyinfra_limits_by_name_and_by_group(tmp_path: Path) -> None:
    (tmp_path / "inventory.ini").write_text(
        "[gpu_hosts:children]\nvms\n[vms]\nvm1\nvm2\n[proxmox_hosts]\npve1\npve2\n[others]\nweb1\n"
        "[all:vars]\nansible_host=127.0.0.1\nansible_port=1\nansible_user=nobody\n"
    )
    limits = ("--limit", "gpu_hosts", "--limit", "pve1")
    run = subprocess.run(
        (str(Path(sys.executable).parent / "pyinfra"), "@ansible/inventory.ini", "-y", *limits, "exec", "--", "true"),
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    refused = {name for name in ("vm1", "vm2", "pve1", "pve2", "web1") if f"[{name}]" in run.stderr}
    assert refused == {"vm1", "vm2", "pve1"}  # pyinfra tried to reach these, where nobody answers


# --- connection variables ---


@pytest.mark.parametrize(
    ("variables", "data"),
    [
        ({}, {}),
        ({"ansible_host": "192.0.2.1"}, {"ssh_hostname": "192.0.2.1"}),
        ({"ansible_port": "2222"}, {"ssh_port": 2222}),
        ({"ansible_user": "a", "ansible_ssh_user": "b"}, {"ssh_user": "b"}),
        ({"ansible_user": "a", "ansible_ssh_user": ""}, {"ssh_user": "a"}),
        ({"ansible_ssh_private_key_file": "~/.ssh/gpu"}, {"ssh_key": "~/.ssh/gpu"}),
        ({"ansible_password": 12345}, {"ssh_password": "12345"}),
        ({"ansible_host_key_checking": "False"}, {"ssh_strict_host_key_checking": "no"}),
        ({"ansible_connection": "smart"}, {}),
        ({"ansible_connection": "ansible.builtin.ssh"}, {}),
        ({"ansible_become": "yes"}, {"_sudo": True}),
        ({"ansible_become": True, "ansible_become_user": "root"}, {"_sudo": True}),
        ({"ansible_become": True, "ansible_become_user": "op"}, {"_sudo": True, "_sudo_user": "op"}),
        ({"ansible_become": True, "ansible_become_method": "ansible.builtin.sudo"}, {"_sudo": True}),
        ({"ansible_become": "no", "ansible_become_method": "su"}, {"_sudo": False}),
        ({"ansible_become": True, "ansible_become_pass": "x"}, {"_sudo": True, "_sudo_password": "x"}),
        ({"ansible_ssh_args": "-C -o ControlMaster=auto -oControlPersist=60s"}, {}),
        ({"ansible_ssh_common_args": '-o "UserKnownHostsFile=/x y"'}, None),
        ({"ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null"}, {"ssh_known_hosts_file": "/dev/null"}),
        ({"ansible_ssh_common_args": "-o 'StrictHostKeyChecking off'"}, {"ssh_strict_host_key_checking": "no"}),
        (
            {"ansible_ssh_extra_args": "-p2022 -l op -i /key -A"},
            {"ssh_port": 2022, "ssh_user": "op", "ssh_key": "/key", "ssh_forward_agent": True},
        ),
        (
            {"ansible_ssh_common_args": "-F ./ssh_config -o IdentitiesOnly=yes"},
            {"ssh_config_file": "./ssh_config", "ssh_allow_agent": False},
        ),
        # ssh's first mention counts: ssh_args, the variables, common_args, extra_args.
        ({"ansible_port": 22, "ansible_ssh_common_args": "-p 23"}, {"ssh_port": 22}),
        ({"ansible_port": 22, "ansible_ssh_args": "-o Port=24"}, {"ssh_port": 24}),
    ],
)
def test_variables_become_pyinfras(variables: dict[str, Any], data: dict[str, Any] | None) -> None:
    reached = connection({"driver": "auto", **variables})
    if data is None:
        assert reached.problems
    else:
        assert (reached.data, reached.problems) == (data, [])


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"ansible_connection": "local"}, "ansible_connection=local cannot be honoured"),
        ({"ansible_become": "maybe"}, "ansible_become is neither true nor false"),
        ({"ansible_become": True, "ansible_become_method": "doas"}, "ansible_become_method=doas cannot be honoured"),
        ({"ansible_become_flags": "-i"}, "ansible_become_flags cannot be honoured"),
        ({"ansible_port": "ssh"}, "ansible_port is not a port"),
        ({"ansible_ssh_port": 70000}, "ansible_ssh_port is not a port"),
        ({"ansible_user": ["root"]}, "ansible_user has to be text"),
        ({"ansible_host_key_checking": "sometimes"}, "ansible_host_key_checking is neither true nor false"),
        ({"ansible_private_key": "secret"}, "name the key's file in ansible_ssh_private_key_file"),
        (
            {"ansible_ssh_common_args": "-o HostKeyAlias=secret"},
            "ansible_ssh_common_args: hostkeyalias cannot be honoured",
        ),
        (
            {"ansible_ssh_common_args": "-o StrictHostKeyChecking=secret"},
            "StrictHostKeyChecking is yes, no, ask or accept-new",
        ),
        ({"ansible_ssh_common_args": "-o Port"}, "-o lacks its value"),
        ({"ansible_ssh_common_args": "-o Port=secret"}, "Port is not a port"),
        ({"ansible_ssh_args": "-D 1080"}, "ansible_ssh_args: -D cannot be honoured"),
        ({"ansible_ssh_args": "secret"}, "an argument is no option of ssh"),
        ({"ansible_ssh_args": "-o 'secret"}, "No closing quotation"),
    ],
)
def test_what_cannot_be_honoured_is_a_problem_without_its_value(variables: dict[str, Any], problem: str) -> None:
    (told,) = connection(variables).problems
    assert problem in told
    assert "secret" not in told


def test_a_proxy_command_knows_the_port_and_the_user(tmp_path: Path) -> None:
    reached = connection(
        {
            "ansible_host": "192.0.2.7",
            "ansible_port": 2222,
            "ansible_user": "op",
            "ansible_ssh_common_args": '-o ProxyCommand="ssh -W %h:%p %r@bastion" -o ProxyJump=never -o ConnectTimeout=5',
        }
    )
    base = tmp_path / "config"
    base.write_text("IdentityFile /keys/all\nHost bastion\n  User jumper\n")
    file = tmp_path / "gpu1"
    file.write_text(configuration_file("gpu1", reached, str(base)))
    configuration = get_ssh_config(str(file))

    found = configuration.lookup("192.0.2.7")
    assert found["proxycommand"] == "ssh -W 192.0.2.7:2222 op@bastion"
    assert (found["connecttimeout"], found["identityfile"]) == ("5", ["/keys/all"])
    assert "proxyjump" not in found
    assert configuration.lookup("bastion")["user"] == "jumper"
    assert "proxycommand" not in configuration.lookup("bastion")


def test_a_host_without_an_address_is_reached_by_its_name() -> None:
    assert configuration_file("gpu1", Connection(), "/b").splitlines() == ["Host gpu1", "Host *", "Include /b"]


# --- what Ansible prints ---


def test_groups_are_collected_along_every_way_to_a_host() -> None:
    listing = {
        "_meta": {"hostvars": {"a": {"x": 1}}},
        "all": {"children": ["ungrouped", "g", "h"]},
        "g": {"children": ["k"]},
        "h": {"children": ["k"], "hosts": ["b"]},
        "k": {"hosts": ["a"]},
    }
    hosts = parse_inventory(json.dumps(listing))
    assert [(host.name, host.groups, host.variables) for host in hosts] == [
        ("a", ("all", "g", "k", "h"), {"x": 1}),
        ("b", ("all", "h"), {}),
    ]


def test_templates_and_single_vaults_are_found_where_they_matter() -> None:
    variables = {
        "ansible_host": "{{ a }}",
        "server_names": ["x", "{% if b %}y{% endif %}"],
        "metalscribe_api_key": {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256\n00"},
        "ansible_python_interpreter": "{{ c }}",
        "other": "{{ d }}",
        "driver": "auto",
        "ssh_config_file": "{{ e }}",
    }
    assert unresolved(variables) == ["ansible_host", "server_names", "metalscribe_api_key", "ssh_config_file"]


def test_values_are_read_host_by_host() -> None:
    text = """\
gpu1 | SUCCESS => {
    "changed": false,
    "msg": {
        "metalscribe_api_key": "a | SUCCESS => {"
    }
}
An exception occurred during task execution.
gpu2 | FAILED! => {"changed": false, "msg": "Task failed"}
"""
    assert parse_debug(text) == {"gpu1": {"metalscribe_api_key": "a | SUCCESS => {"}, "gpu2": None}


def test_messages_are_one_line_each_and_tell_no_values() -> None:
    text = """\
[WARNING]: Failed to parse inventory with 'ini' plugin: Expected key=value, got: password hunter2

<<< caused by >>>

Expected key=value, got: password hunter2

[DEPRECATION WARNING]: Something old. It will
go away.
[WARNING]: Error parsing host definition 'a token=hunter2 b="hunter 2"': No closing quotation
[ERROR]: Completely failed to parse
ERROR: Ansible requires the locale encoding to be UTF-8
"""
    assert messages(text) == (
        ["Completely failed to parse", "Ansible requires the locale encoding to be UTF-8"],
        [
            "Failed to parse inventory with 'ini' plugin: Expected key=value, got: password …",
            "Something old. It will go away.",
            "Error parsing host definition 'a token=… b=…': No closing quotation",
        ],
    )


# --- the connection itself ---


def test_commands_are_sent_at_once_and_files_by_the_fastest_cipher() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        transport = prompt_transport(connection, disabled_algorithms={"ciphers": ["aes128-gcm@openssh.com"]})
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert transport.preferred_ciphers[0] == "aes256-gcm@openssh.com"
        assert "aes128-ctr" in transport.preferred_ciphers


def test_what_leads_through_a_jump_host_need_not_be_tcp() -> None:
    near, far = socket.socketpair()
    with near, far:
        assert prompt_transport(near).sock is near
