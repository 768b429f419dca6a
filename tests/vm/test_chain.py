"""The whole story: a Proxmox host gives its GPU away, Terraform makes a machine that has it, the deploy makes that a service, a client
transcribes, Terraform takes the machine away. ``make chain``.

Real: the host's kernel, boot loader and IOMMU; the three commands of docs/proxmox.md; Terraform, its provider, TLS and the token;
cloud-init, the guest agent, systemd, nginx, the model. Simulated: the GPU (QEMU's ``edu``), the cluster's API and Proxmox' tools
(``tests/pve``, ``vm/node.py``), and how it runs its machines (``vm/hypervisor.py``).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

from lab.access import Access, make_key
from lab.checkout import Checkout
from lab.controller import CHECKOUT, Controller
from lab.host import Host
from lab.https import Client
from lab.lab import Lab
from metalscribe_provision.proxmox.access import PRIVILEGES
from metalscribe_provision.proxmox.storage import SNIPPET
from pve.api import Simulator
from pve.serving import Served, served
from pve.state import Cluster, Node, Storage, Volume
from terraform.driver import BINARY, Terraform
from vm.conftest import MakeMachine
from vm.golden import HOST, Golden
from vm.hypervisor import Qemu
from vm.machine import Hardware, Machine
from vm.node import exported, hardware_of, install_tools, serve_tools

PORT: Final = 8006
GPU: Final = "1234:11e8"  # QEMU's edu; QEMU has no device of NVIDIA's
VMID: Final = 100
NAME: Final = "whisper"
USER: Final = "debian"
WITHIN: Final = 2400.0  # seconds for a deploy to a machine that QEMU emulates, fifty times slower than it would be

HARDWARE: Final = Hardware(
    devices=("-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "edu,bus=rp1"), memory=1024
)


@pytest.fixture(scope="module")
def host(make_machine: MakeMachine, disks: Golden) -> Machine:
    """The node, with a device for virtual machines."""
    host = make_machine(HOST, disks.grub, HARDWARE)
    host.run("update-grub", timeout=120)
    return host


@pytest.fixture(scope="module")
def hypervisor(lab: Lab, host: Machine) -> Iterator[Qemu]:
    """What runs the cluster's machines."""

    async def read(path: str) -> str:
        return await asyncio.to_thread(host.text, path)

    made = Qemu(lab.folder / "machines", lab.network.controller, lab.network.plug(NAME), read)
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster(lab: Lab, hypervisor: Qemu, host: Machine) -> Iterator[Served]:
    """A cluster of that node, without a mapping, a user or a token."""
    folder = lab.folder / "cluster"
    folder.mkdir()
    storages = {
        "local": Storage(content={"iso", "vztmpl", "backup"}, path="/var/lib/vz"),
        "local-lvm": Storage(content={"images", "rootdir"}),
    }
    everything = {"Administrator": set(PRIVILEGES)}
    Cluster(nodes={HOST: Node(storages=storages)}, roles=everything).save(folder / "cluster.json")
    simulator = hypervisor.simulator = Simulator(folder / "cluster.json", hypervisor)
    serve_tools(simulator)
    with served(simulator, folder, lab.network.controller.listen(PORT)) as running:
        install_tools(host, running)
        yield running


@pytest.fixture(scope="module")
def image(lab: Lab, disks: Golden) -> Iterator[dict[str, str]]:
    """The cloud image on an HTTP server, as the variable wants it."""
    folder = lab.folder / "images"
    folder.mkdir()
    os.link(disks.cloud, folder / "debian-12.qcow2")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with disks.cloud.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").hexdigest()
        yield {"url": f"http://127.0.0.1:{server.server_address[1]}/debian-12.qcow2", "checksum": digest}
        server.shutdown()


@pytest.fixture(scope="module")
def checkout(lab: Lab) -> Checkout:
    """This checkout, with a bundle for a host that has no way out."""
    return Checkout.of(CHECKOUT, lab.folder / "checkout")


@pytest.mark.skipif(not BINARY.exists(), reason="the provider is not built: make terraform")
def test_from_a_host_to_a_transcription_and_back(
    lab: Lab,
    host: Machine,
    cluster: Served,
    hypervisor: Qemu,
    image: dict[str, str],
    checkout: Checkout,
    access: Access,
    request: pytest.FixtureRequest,
) -> None:
    clock = _Clock()
    operator = Controller(lab.network.controller, access, lab.folder / "operator", checkout.folder)

    # 1. The host.
    environment = lab.folder / "terraform.env"
    inventory = operator.inventory(
        [host],
        {
            "passthrough_devices": GPU,
            "allow_reboot": True,
            "terraform_env": environment,
            "proxmox_endpoint": cluster.endpoint,
        },
        group="proxmox_hosts",
    )
    operator.deploy(inventory, script="proxmox_host.py", within=WITHIN).succeeded()
    clock.lap("host prepared")
    assert operator.deploy(inventory, script="proxmox_host.py", within=WITHIN).succeeded().changes == []
    clock.lap("host prepared again")
    state = cluster.simulator.cluster
    state.nodes[HOST].devices = hardware_of(host)
    assert list(state.mappings) == ["gpu"]
    snippet = f"local:snippets/{SNIPPET}"
    state.volumes_of(HOST, "local")[snippet] = Volume(content="snippets", size=1, format="yaml")

    # 2. The machine.
    plug = lab.network.plug(NAME)
    key = lab.folder / "operator-key"
    make_key(key, "operator")
    secrets = exported(environment.read_text(encoding="utf-8"))
    assert environment.stat().st_mode & 0o777 == 0o600
    terraform = Terraform.copied(lab.folder / "terraform", SSL_CERT_FILE=str(cluster.certificate), **secrets)
    terraform.within, terraform.prefix = WITHIN, tuple(lab.network.controller.enter())
    terraform.variables(
        ssh_keys=[key.with_suffix(".pub").read_text(encoding="ascii").strip()],
        image=image,
        machines={
            NAME: {
                "node": HOST,
                "vm_id": VMID,
                "address": f"{plug.address}/24",
                "gateway": lab.network.controller.address,
                "cores": 2,
                "memory_mib": 4096,
                "disk_gib": 24,
            }
        },
    )
    applied = terraform.apply()
    assert applied.status == 0, applied.output + _tail(hypervisor.console(VMID))
    clock.lap("terraform apply")
    assert not terraform.changes()
    assert terraform.outputs()["addresses"] == {NAME: plug.address}

    # 3. The service.
    machines = operator.folder / "machines.ini"
    machines.write_text(terraform.run("output", "-raw", "ansible_inventory").output, encoding="utf-8")
    known_hosts = operator.folder / "known_hosts"
    machine = Host(NAME, plug.address, controller=lab.network.controller, access=Access(key, known_hosts))
    known_hosts.write_text(lab.network.controller.run("ssh-keyscan", "-t", "ed25519", plug.address).stdout)
    machine.run("cloud-init status --wait", user=USER, timeout=WITHIN)
    clock.lap("cloud-init")
    variables = {
        "driver": "none",
        "model": "demo",
        "bundle": checkout.bundle,
        "ca_dir": operator.folder / "ca",
        "min_disk_gb": 3,
        "ansible_ssh_private_key_file": key,
        "ansible_ssh_common_args": " ".join(machine.access.options),
        "ssh_known_hosts_file": known_hosts,
    }
    group = operator.folder / "group_vars" / "gpu_hosts.yml"
    group.parent.mkdir()
    group.write_text("".join(f"{name}: {value}\n" for name, value in variables.items()), encoding="utf-8")
    operator.deploy(machines, within=WITHIN).succeeded()
    clock.lap("service deployed")

    # 4. A client.
    secret = machine.run("sudo cat /etc/metalscribe/credentials/metalscribe_api_key", user=USER).stdout.strip()
    api = Client(lab.network.attach("client"), machine, operator.folder / "ca" / "ca.crt", secret, patience=WITHIN)
    sample = checkout.folder / "service/metalscribe/samples/sample.flac"
    answer = api.transcribe(sample.read_bytes())
    assert answer.status == 200, answer.body
    assert "the train leaves at" in answer.json["text"].lower()
    clock.lap("transcribed")

    # 5. And away.
    destroyed = terraform.destroy()
    assert destroyed.status == 0, destroyed.output
    assert state.machines == {}
    assert not hypervisor.running(VMID)
    assert list(state.mappings) == ["gpu"]
    clock.lap("terraform destroy")
    request.node.add_report_section("call", "seconds", clock.text)


class _Clock:
    """How long each step takes."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.text = ""

    def lap(self, step: str) -> None:
        now = time.monotonic()
        self.text += f"{step}: {now - self._last:.0f} s\n"
        sys.stderr.write(f"{step}: {now - self._last:.0f} s\n")
        self._last = now


def _tail(console: Path, lines: int = 40) -> str:
    said = console.read_text(encoding="utf-8", errors="replace") if console.is_file() else ""
    return "\n".join(re.sub(r"[\x00-\x08\x0b-\x1f]", "", said).splitlines()[-lines:])
