"""The whole deploy of a GPU host as ``--dry`` plans it on a fresh one: every supported system, every kind of certificate."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from driver_hosts import H200, M4000, RTX_2080, RTX_4090, host
from fakes import DISTRIBUTIONS, SYSTEMD, PlannedOperation, Responses, commands, files, fit, plan

from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.driver.deploy import driver
from metalscribe_provision.edge.deploy import edge
from metalscribe_provision.firewall.deploy import firewall
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.model.deploy import model
from metalscribe_provision.monitoring.deploy import monitoring
from metalscribe_provision.preflight.deploy import preflight
from metalscribe_provision.preflight.python import DISTRIBUTION_PYTHON
from metalscribe_provision.runtime.deploy import runtime
from metalscribe_provision.service.deploy import service

DEPLOYS: tuple[Any, ...] = (preflight, driver, runtime, model, service, firewall, edge, monitoring)

CARDS = {"debian-12": (M4000, RTX_4090), "debian-13": (H200,), "ubuntu-22.04": (RTX_2080,), "ubuntu-24.04": (M4000,)}

ACME = {"tls": "acme", "acme_email": "ops@example.org", "server_names": "stt.example.org"}


def gpu_host(data: HostData) -> None:
    """What ``provision/gpu_host.py`` does to one host."""
    for each in DEPLOYS:
        each(data)


def fresh(distribution: str, *cards: int) -> Responses:
    """What such a host answers; the service's deploy asks for systemd and the cards with one command."""
    lines = [f"systemd {SYSTEMD[distribution]} (made up)", *("0x030000" for _ in cards)]
    return {"head -n 1; for device in /sys": lines} | fit(distribution) | host(distribution, *cards)


def planned(distribution: str, *cards: int, **data: Any) -> list[PlannedOperation]:
    return plan(gpu_host, data, fresh(distribution, *cards))


def test_the_order_is_the_deploys_own() -> None:
    called = [
        node.value.func.id
        for node in ast.parse((CHECKOUT / "provision/gpu_host.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    ]
    assert called == [inspect.unwrap(each).__name__ for each in DEPLOYS]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_fresh_host_with_a_gpu_is_planned_to_its_end(distribution: str, tmp_path: Path) -> None:
    cards = CARDS[distribution]
    operations = planned(distribution, *cards, node_exporter=True, gpu_exporter="nvml", ca_dir=str(tmp_path / "ca"))
    order = dict.fromkeys(operation.name.partition(" | ")[0] for operation in operations)
    assert list(order) == ["Driver", "Runtime", "Model", "Service", "Firewall", "Edge", "Monitoring"]
    assert not (tmp_path / "ca").exists()

    name, _, version = distribution.partition("-")
    python = DISTRIBUTION_PYTHON[name, version]
    shell, written = commands(operations), files(operations)
    assert f"install python{python} python{python}-venv ca-certificates" in shell
    assert f" /usr/bin/python{python} " in shell, "the release is built with it"
    assert "metalscribe model download" in shell
    unit = written["/opt/metalscribe/staged/metalscribe.service"]
    assert unit.count("DeviceAllow=/dev/nvidia") == 4 + len(cards)
    assert ("RestartSteps=" in unit) == (SYSTEMD[distribution] >= 254)
    assert "METALSCRIBE_DEVICE=cuda\n" in written["/opt/metalscribe/staged/metalscribe.env"]
    assert "/etc/systemd/system/metalscribe-gpu.service" in written
    assert "tcp dport { 22 } accept" in written["/etc/metalscribe/firewall.nft.new"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "variables",
    [
        {"ca_dir": "CA"},
        ACME,
        {**ACME, "acme_challenge": "dns-01", "acme_dns_plugin": "cloudflare"},
        {"ca_dir": "CA", "firewall": False},
        {"ca_dir": "CA", "metalscribe_database_url": "postgresql+psycopg://u:sesame@db.example/m"},
    ],
    ids=["internal CA", "ACME by HTTP", "ACME by DNS", "no firewall", "PostgreSQL"],
)
def test_a_fresh_host_without_a_gpu_is_planned_to_its_end(
    distribution: str, variables: dict[str, Any], tmp_path: Path
) -> None:
    own = {name: str(tmp_path / "ca") if value == "CA" else value for name, value in variables.items()}
    operations = planned(distribution, driver="none", model="demo", **own)
    shell, written = commands(operations), files(operations)
    unit = written["/opt/metalscribe/staged/metalscribe.service"]
    assert "PrivateDevices=yes" in unit
    assert "nvidia" not in shell.lower() + "".join(written)
    assert ("LoadCredential=metalscribe_database_url" in unit) == ("metalscribe_database_url" in variables)
    assert ("certbot" in shell) == (variables.get("tls") == "acme")
    assert ("/etc/metalscribe/firewall.nft.new" in written) == variables.get("firewall", True)
    assert "sesame" not in shell + "".join(
        text for path, text in written.items() if not path.startswith("/tmp/.metalscribe-")
    )
