"""The operator's variables: what is taken, what is refused and how, and that inventory.example.ini tells of all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from pyinfra.api.exceptions import DeployError

from metalscribe.settings import Settings
from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.connector import AnsibleInventoryConnector
from metalscribe_provision.hostdata import Driver, HostData, Tls, parse_host_data, parse_hosts
from metalscribe_provision.passthrough.data import ProxmoxData, parse_proxmox_data
from metalscribe_provision.service_settings import SECRETS, SERVER_SETTINGS

EXAMPLE = CHECKOUT / "inventory.example.ini"


def parsed(variables: dict[str, Any], environment: dict[str, str] | None = None) -> HostData:
    return parse_host_data("gpu1", variables, environment or {})


# --- values ---


def test_without_variables_everything_has_its_default() -> None:
    assert parsed({}) == HostData()


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"driver_branch": 580}, "driver_branch", "580"),
        ({"python": 3.12}, "python", "3.12"),
        ({"firewall": "false"}, "firewall", False),
        ({"firewall": False}, "firewall", False),
        ({"server_names": "a.example, b.example"}, "server_names", ("a.example", "b.example")),
        ({"server_names": ["a.example", "2001:db8::1", "::1"]}, "server_names", ("a.example", "2001:db8::1", "::1")),
        ({"ssh_ports": 22}, "ssh_ports", (22,)),
        ({"ssh_ports": [22, 2222]}, "ssh_ports", (22, 2222)),
        ({"bundle": "~/bundle"}, "bundle", Path.home() / "bundle"),
        ({"bundle": ""}, "bundle", None),
        ({"min_disk_gb": None}, "min_disk_gb", 10.0),
        ({"metalscribe_beam_size": 3}, "settings", {"beam_size": "3"}),
        ({"metalscribe_preload": True}, "settings", {"preload": "true"}),
        ({"metalscribe_trusted_proxies": ["192.0.2.1", "::1"]}, "settings", {"trusted_proxies": "192.0.2.1,::1"}),
        ({"metalscribe_rate_limit": ""}, "settings", {}),
        ({"settings": {"beam_size": 1}}, "settings", {}),
        (
            {"ansible_host": "192.0.2.1", "ssh_port": 22, "_sudo": True, "fake_delay": 0, "somebody_elses": 1},
            "settings",
            {},
        ),
    ],
)
def test_values_are_taken_as_ansible_gives_them(variables: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parsed(variables), field) == value


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"driver": "nouveau"}, "driver: Input should be 'auto', 'open', 'proprietary', 'existing' or 'none'"),
        ({"driver_branch": "latest"}, "driver_branch is auto or three digits such as 580"),
        ({"keep_releases": 1}, "keep_releases: Input should be greater than or equal to 2"),
        ({"tls": "files", "tls_certificate": "/c.pem"}, "tls=files needs tls_certificate and tls_certificate_key"),
        ({"tls": "acme"}, "tls=acme needs acme_email"),
        (
            {"tls": "acme", "acme_email": "a@b.example", "acme_challenge": "dns-01"},
            "acme_challenge=dns-01 needs acme_dns_plugin",
        ),
        ({"metrics_allow": "10.0.0.1/8"}, "metrics_allow: '10.0.0.1/8' is not a network such as 10.0.0.0/8"),
        ({"server_names": "a;b"}, "server_names: 'a;b' is not a host name or an address"),
        ({"memory_max": "much"}, "memory_max is a size such as 1G, or a share such as 90%"),
        ({"https_port": 8001}, "https_port=8001 is the service's own port (8000, 8001) or SSH's"),
        ({"https_port": 2222, "ssh_ports": 2222}, "https_port=2222 is the service's own port (8000, 8001) or SSH's"),
        ({"ssh_ports": "22,http"}, "ssh_ports.1: Input should be a valid integer"),
        ({"drivers": "open"}, "drivers is not a variable of ours; did you mean driver?"),
        (
            {"metalscribe_batchsize": 1},
            "metalscribe_batchsize is not a setting of the service; did you mean metalscribe_batch_size?",
        ),
        ({"metalscribe_batch_size": 1000}, "metalscribe_batch_size: Input should be less than or equal to 256"),
        (
            {"metalscribe_rate_limit": "often"},
            "metalscribe_rate_limit: 'often' is not a rate such as 30/minute or 500/hour",
        ),
        ({"metalscribe_hub_token": "a\nb"}, "metalscribe_hub_token is not a setting"),
        ({"metalscribe_compute_type": "auto\nX=1"}, "metalscribe_compute_type: must be one of"),
        ({"metalscribe_allow_networks": "10.0.0.0/8,\n10.1.0.0/16"}, "metalscribe_allow_networks: must be one line"),
        ({"metalscribe_model": "tiny"}, "metalscribe_model is decided by the deploy; set model instead"),
        ({"metalscribe_port": 9000}, "metalscribe_port is decided by the deploy"),
    ],
)
def test_what_is_wrong_is_told_with_the_hosts_name(variables: dict[str, Any], problem: str) -> None:
    with pytest.raises(DeployError, match=f"^gpu1: {re.escape(problem)}"):
        parsed(variables)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(DeployError) as caught:
        parse_hosts({"a": {"drivr": "x", "tls": "x", "metalscribe_beam_size": 0}, "b": {}, "c": {"https_port": 0}}, {})
    first, second = str(caught.value).splitlines()
    assert first.startswith("a: ")
    assert [word for word in ("drivr", "tls", "metalscribe_beam_size") if word in first] == [
        "drivr",
        "tls",
        "metalscribe_beam_size",
    ]
    assert second.startswith("c: https_port")
    assert parse_hosts({"b": {"driver": "none"}}, {})["b"].driver is Driver.NONE


# --- secrets ---


GIVEN = {
    "api_key": "hunter2://secret",
    "database_url": "postgresql+psycopg://metalscribe:hunter2@db.example.org/metalscribe",
    "rate_limit_storage": "rediss://:hunter2@counters.example.org:6379/0",
}


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_secrets_have_the_services_names_and_are_not_among_its_settings(secret: str) -> None:
    value = GIVEN[secret]
    data = parsed({f"metalscribe_{secret}": value})
    assert getattr(data, secret).get_secret_value() == value
    assert data.settings == {}
    assert "hunter2" not in repr(data)
    with pytest.raises(DeployError, match=f"metalscribe_{secret}: Input should be a valid string"):
        parsed({f"metalscribe_{secret}": 1234})
    assert getattr(parsed({secret: "another software's"}), secret) is None


def test_the_api_key_may_be_in_the_environment_and_the_inventory_wins() -> None:
    environment = {"METALSCRIBE_API_KEY": "from the environment", "METALSCRIBE_BEAM_SIZE": "99"}
    assert str(parsed({}, environment).api_key) == "**********"
    for variables, key in (({}, "from the environment"), ({"metalscribe_api_key": "from the vault"}, "from the vault")):
        api_key = parsed(variables, environment).api_key
        assert api_key is not None
        assert api_key.get_secret_value() == key


def test_the_environment_of_this_machine_is_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_BATCH_SIZE", "1000")
    assert parsed({"metalscribe_beam_size": 3}).settings == {"beam_size": "3"}


@pytest.mark.parametrize(
    "variables",
    [
        {"metalscribe_api_key": ["hunter2"]},
        {"metalscribe_database_url": {"password": "hunter2"}},
        {"tls": "acme", "metalscribe_api_key": "hunter2"},
        {"metalscribe_database_url": "mysql://metalscribe:hunter2@db.example.org/metalscribe"},
        {"metalscribe_database_url": "postgresql://metalscribe:hunter2@db.example.org/metalscribe"},
        {"metalscribe_database_url": "hunter2"},
        {"metalscribe_rate_limit_storage": "hunter2:6379"},
    ],
)
def test_a_secret_is_in_no_message(variables: dict[str, Any]) -> None:
    with pytest.raises(DeployError) as caught:
        parsed(variables)
    assert "hunter2" not in str(caught.value)


def test_extras_follow_from_the_data() -> None:
    assert parsed({}).extras == ("gpu",)
    secrets = {f"metalscribe_{name}": GIVEN[name] for name in ("database_url", "rate_limit_storage")}
    assert parsed({"driver": "none", "model": "demo", **secrets}).extras == ("demo", "postgres", "redis")


# --- inventory.example.ini ---

Entry = tuple[str, str, str]
GPU_PART, PROXMOX_PART = EXAMPLE.read_text(encoding="utf-8").split("[proxmox_hosts:vars]")


def entries(part: str) -> list[Entry]:
    """Every commented variable: the comment above it, its name, its default."""
    return re.findall(r"^# (.*)\n#(\w+)=(.*)$", part, re.MULTILINE)


FIELDS = {name: field for name, field in HostData.model_fields.items() if name not in SECRETS | {"settings"}}
PROXMOX_FIELDS = ProxmoxData.model_fields
EVERY = [(FIELDS, *entry) for entry in entries(GPU_PART)] + [
    (PROXMOX_FIELDS, *entry) for entry in entries(PROXMOX_PART)
]


def test_the_example_has_every_variable_in_order() -> None:
    assert [name for _, name, _ in entries(GPU_PART) if not name.startswith("metalscribe_")] == list(FIELDS)
    assert [name for _, name, _ in entries(PROXMOX_PART)] == list(PROXMOX_FIELDS)


@pytest.mark.parametrize(("fields", "meaning", "name", "default"), EVERY, ids=[name for _, _, name, _ in EVERY])
def test_the_example_gives_meaning_and_default(
    fields: dict[str, FieldInfo], meaning: str, name: str, default: str
) -> None:
    field: FieldInfo = fields[name] if name in fields else Settings.model_fields[name.removeprefix("metalscribe_")]
    assert meaning == field.description
    value = SERVER_SETTINGS.get(name.removeprefix("metalscribe_"), field.default)
    if isinstance(value, tuple):
        assert default == ",".join(value)
    elif isinstance(value, (bool, float)):
        assert default == (str(value).lower() if isinstance(value, bool) else f"{value:g}")
    else:
        assert default == ("" if value is None else str(value))


def test_the_example_with_every_variable_set_is_what_it_is_without(tmp_path: Path) -> None:
    file = tmp_path / "inventory.ini"
    file.write_text(
        re.sub(r"^#(\w+=)", r"\1", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8"
    )
    hosts = {name: (data, groups) for name, data, groups in AnsibleInventoryConnector.make_names_data(str(file))}

    assert {name: groups for name, (_, groups) in hosts.items()} == {
        "gpu1": ["all", "gpu_hosts", "gpu_bare_metal"],
        "gpu2": ["all", "gpu_hosts", "gpu_vms"],
        "pve1": ["all", "proxmox_hosts"],
    }
    given = parse_host_data("gpu2", hosts["gpu2"][0], {})
    assert given.model_copy(update={"settings": {}}) == HostData()
    assert Settings.model_validate(given.settings) == Settings.model_validate(SERVER_SETTINGS)
    assert hosts["gpu2"][0]["_sudo"] is True
    assert parse_proxmox_data("pve1", hosts["pve1"][0]) == ProxmoxData()


def test_the_example_names_the_secrets_and_sets_none() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for secret in sorted(SECRETS):
        assert f"metalscribe_{secret}" in text
        assert not re.search(rf"metalscribe_{secret}\s*=", text)
    assert "METALSCRIBE_API_KEY" in text


def test_choices_are_the_ones_that_the_docstrings_name() -> None:
    for name, field in FIELDS.items():
        choices = [str(choice) for choice in field.annotation] if isinstance(field.annotation, type(Tls)) else []
        missing = [choice for choice in choices if choice not in (field.description or "")]
        assert not missing, name
