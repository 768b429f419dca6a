"""The Terraform module with the real provider: its own checks, and a simulated cluster over TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pve.api import Simulator
from pve.machines import Paper
from pve.serving import Served
from pve.state import Machine

from .cluster import ENTRY, SECRET, TOKEN
from .driver import BINARY, ROOT, Terraform
from .published_check import unpublished_parameters

pytestmark = [
    pytest.mark.skipif(not BINARY.exists(), reason="the provider is not built: make terraform"),
    pytest.mark.timeout(400),
]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHlQf3h0bWx0c2NyaWJlLXRlc3Qta2V5LW5vdC1yZWFs operator@laptop"
IMAGE = b"a cloud image" * 1000
MACHINE = {"node": "pve1", "vm_id": 100, "address": "192.168.20.30/24", "gateway": "192.168.20.1"}

Make = Callable[..., Terraform]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An image on an HTTP server, as the variable wants it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "debian-12.qcow2").write_bytes(IMAGE)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "url": f"http://127.0.0.1:{server.server_address[1]}/debian-12.qcow2",
            "checksum": hashlib.sha512(IMAGE).hexdigest(),
        }
        server.shutdown()


@pytest.fixture
def make(pve: Served, image: dict[str, str], tmp_path: Path) -> Iterator[Make]:
    """A configuration of one machine, changed as asked; every request that it led to is one that Proxmox publishes."""

    def made(token: str = TOKEN, machine: dict[str, Any] | None = None, **variables: Any) -> Terraform:
        terraform = Terraform.copied(
            tmp_path / "terraform",
            PROXMOX_VE_ENDPOINT=pve.endpoint,
            PROXMOX_VE_API_TOKEN=token,
            SSL_CERT_FILE=str(pve.certificate),
        )
        terraform.variables(
            **{"ssh_keys": [KEY], "image": image, "machines": {"whisper-gpu": MACHINE | (machine or {})}} | variables
        )
        return terraform

    yield made
    assert not unpublished_parameters(pve.simulator.asked)


def test_is_formatted_and_valid(tmp_path: Path) -> None:
    for module in (".", "modules/gpu_vm"):
        terraform = Terraform.copied(tmp_path / module.replace("/", "-").replace(".", "root"), module)

        assert terraform.run("fmt", "-check", "-recursive").status == 0
        valid = terraform.run("validate")
        assert valid.status == 0, valid.output


@pytest.mark.parametrize("module", [".", "modules/gpu_vm"])
def test_its_own_tests(tmp_path: Path, module: str) -> None:
    ended = Terraform.copied(tmp_path / "terraform", module).run("test")

    assert ended.status == 0, ended.output
    assert " 0 failed" in ended.output


def test_a_machine_from_nothing_to_nothing(make: Make, pve: Served) -> None:
    terraform = make()
    cluster = pve.simulator.cluster

    applied = terraform.apply()

    assert applied.status == 0, applied.output
    machine = cluster.machines[100]
    assert machine.running
    assert machine.config["hostpci0"].startswith("mapping=gpu,pcie=1")
    assert machine.config["balloon"] == "0"
    assert machine.config["scsi0"].endswith("size=64G")
    assert machine.config["cicustom"] == "vendor=local:snippets/metalscribe.yaml"
    outputs = terraform.outputs()
    assert outputs["addresses"] == {"whisper-gpu": "192.168.20.30"}
    assert outputs["pyinfra_inventory"]["gpu_hosts"][0]["ssh_hostname"] == "192.168.20.30"
    assert "whisper-gpu ansible_host=192.168.20.30 ansible_user=debian" in outputs["ansible_inventory"]
    assert not terraform.changes()

    destroyed = terraform.destroy()

    assert destroyed.status == 0, destroyed.output
    assert cluster.machines == {}
    assert cluster.volumes_of("pve1", "local-lvm") == {}
    deadline = time.monotonic() + 5  # the provider does not wait for the task that removes the image
    while len(cluster.volumes_of("pve1", "local")) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(cluster.volumes_of("pve1", "local")) == {"local:snippets/metalscribe.yaml"}
    assert set(cluster.mappings) == {"gpu"}  # the host deploy's, not Terraform's


def test_more_memory(make: Make, pve: Served) -> None:
    terraform = make()
    assert terraform.apply().status == 0

    terraform.variables(
        **json.loads((terraform.folder / "test.auto.tfvars.json").read_text())
        | {"machines": {"whisper-gpu": MACHINE | {"memory_mib": 24576}}}
    )
    applied = terraform.apply()

    assert applied.status == 0, applied.output
    assert "1 changed" in applied.output
    assert pve.simulator.cluster.machines[100].config["memory"] == "24576"
    assert pve.simulator.cluster.machines[100].running
    assert not terraform.changes()


def test_a_machine_that_somebody_deleted_is_made_again(make: Make, pve: Served) -> None:
    terraform = make()
    assert terraform.apply().status == 0
    pve.simulator.cluster.machines.clear()
    pve.simulator.cluster.volumes["pve1/local-lvm"].clear()

    assert terraform.changes()
    applied = terraform.apply()

    assert applied.status == 0, applied.output
    assert list(pve.simulator.cluster.machines) == [100]
    assert not terraform.changes()


def test_a_mapping_of_its_own(make: Make, pve: Served) -> None:
    del pve.simulator.cluster.mappings["gpu"]
    device = {
        "node": "pve1",
        "path": "0000:03:00",
        "id": "10de:13f1",
        "subsystem_id": "10de:1153",
        "iommu_group": 52,
    }
    terraform = make(mappings={"m4000": [device]}, machine={"gpus": ["m4000"]})

    applied = terraform.apply()

    assert applied.status == 0, applied.output
    assert sorted(pve.simulator.cluster.mappings["m4000"].entries[0].split(",")) == sorted(ENTRY.split(","))
    assert not terraform.changes()
    assert terraform.destroy().status == 0
    assert pve.simulator.cluster.mappings == {}


def test_two_nodes_and_dhcp(make: Make, pve: Served) -> None:
    cluster = pve.simulator.cluster
    cluster.nodes["pve2"].devices = cluster.nodes["pve1"].devices
    cluster.mappings["gpu"].entries.append(ENTRY.replace("pve1", "pve2"))
    terraform = make(machines={"one": MACHINE, "two": {"node": "pve2", "vm_id": 101}})

    applied = terraform.apply()

    assert applied.status == 0, applied.output
    assert {machine.node for machine in cluster.machines.values()} == {"pve1", "pve2"}
    addresses = terraform.outputs()["addresses"]
    assert addresses["one"] == "192.168.20.30"
    assert addresses["two"].startswith("10.0.")
    assert not terraform.changes()


def test_the_secret_is_nowhere(make: Make) -> None:
    terraform = make()
    said = terraform.run("plan", "-out=plan").output + terraform.run("apply", "plan").output

    assert "1 added" in said or "2 added" in said, said
    assert SECRET not in said
    for file in terraform.folder.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (TOKEN.replace(SECRET, "00000000-0000-0000-0000-000000000000"), "invalid token value!"),
        (TOKEN.replace("!terraform=", "!gone="), "no such token 'gone'"),
    ],
)
def test_a_wrong_token(make: Make, pve: Served, token: str, words: str) -> None:
    refused = make(token).apply()

    assert refused.status == 1
    assert words in refused.words
    assert pve.simulator.cluster.machines == {}


@pytest.mark.parametrize(
    ("privilege", "words"),
    [
        ("Mapping.Use", "Permission check failed (/mapping/pci/gpu, Mapping.Use)"),
        ("VM.Allocate", "Permission check failed (/vms/100, VM.Allocate)"),
        ("Datastore.AllocateTemplate", "Permission check failed (/storage/local, Datastore.AllocateTemplate)"),
    ],
)
def test_a_missing_permission(make: Make, pve: Served, privilege: str, words: str) -> None:
    terraform = make()
    [privileges] = pve.simulator.cluster.roles.values()
    privileges.discard(privilege)

    refused = terraform.apply()

    assert refused.status == 1
    assert words in refused.words
    privileges.add(privilege)
    assert terraform.apply().status == 0
    assert not terraform.changes()


def test_a_mapping_that_there_is_not(make: Make, pve: Served) -> None:
    terraform = make(machine={"gpus": ["gpux"]})

    refused = terraform.run("plan")

    assert refused.status == 1
    assert "cannot use the PCI mapping gpux (there is none of that name). It can use: gpu." in refused.words
    assert "proxmox_host.py" in refused.words


def test_a_mapping_of_another_node(make: Make) -> None:
    refused = make(machine={"node": "pve2"}).run("plan")

    assert refused.status == 1
    assert "Node pve2 cannot use the PCI mapping gpu (No mapping for node pve2)" in refused.words


@pytest.mark.parametrize("kind", ["qmcreate", "qmstart", "resize", "download"])
def test_a_failing_task(make: Make, pve: Served, kind: str) -> None:
    terraform = make()
    pve.simulator.cluster.faults[kind] = ["the storage is full"]

    failed = terraform.apply()

    assert failed.status == 1
    assert "the storage is full" in failed.words
    again = terraform.apply()
    assert again.status == 0, again.output
    assert pve.simulator.cluster.machines[100].running
    assert pve.simulator.cluster.machines[100].config["scsi0"].endswith("size=64G")
    assert not terraform.changes()


class Slow(Paper):
    """Locks memory for a long time, the first time."""

    def __init__(self) -> None:
        self.starts = 0

    async def start(self, vmid: int, machine: Machine) -> None:
        self.starts += 1
        if self.starts == 1:
            await asyncio.sleep(12)


def test_a_start_that_takes_too_long(make: Make, pve: Served, simulator: Simulator) -> None:
    simulator.hypervisor = Slow()
    terraform = make(machine={"start_timeout_seconds": 4})

    failed = terraform.apply()

    assert failed.status == 1
    assert "timeout while waiting for task" in failed.words
    again = terraform.apply()
    assert again.status == 0, again.output
    assert not terraform.changes()


def test_a_protected_machine_is_not_destroyed(make: Make, pve: Served) -> None:
    terraform = make(machine={"protected": True})
    assert terraform.apply().status == 0

    refused = terraform.destroy()

    assert refused.status == 1
    assert "protection mode enabled" in refused.words
    assert list(pve.simulator.cluster.machines) == [100]


def test_the_provider_is_the_one_version_that_was_tested() -> None:
    pinned = (ROOT / "terraform" / "versions.tf").read_text()

    [version] = re.findall(r'source *= "bpg/proxmox"\n *version *= "([^"]*)"', pinned)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{version} is a range"
    assert BINARY.with_name(f"provider-{version}").is_dir()
