"""The stand-in for Proxmox, against what is known of Proxmox."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import msgspec
import pytest
from fastapi.routing import APIRoute

from pve.api import Simulator
from pve.serving import Served
from pve.state import Cluster, Mapping, Token

from .cluster import ENTRY, TOKEN, USER
from .published_check import call_of, unpublished_names, unpublished_parameters

MACHINE = {
    "vmid": "100",
    "name": "whisper-gpu",
    "cores": "4",
    "memory": "16384",
    "balloon": "0",
    "onboot": "1",
    "efidisk0": "file=local-lvm:1,format=raw,efitype=4m,pre-enrolled-keys=0",
    "scsi0": "file=local-lvm:8,discard=on,iothread=1",
    "ide2": "file=local-lvm:cloudinit,",
    "net0": "model=virtio,bridge=vmbr0,firewall=0",
    "hostpci0": "mapping=gpu,pcie=1,rombar=1,x-vga=0",
    "agent": "enabled=1,fstrim_cloned_disks=0,type=virtio",
    "ipconfig0": "ip=192.168.20.30/24,gw=192.168.20.1",
}


@pytest.fixture
def client(pve: Served) -> Iterator[httpx.Client]:
    """Every answer that it gets has no names but those that Proxmox publishes; neither has a request."""

    def check(answer: httpx.Response) -> None:
        if answer.is_success:
            request = answer.request
            assert not unpublished_names(request.method, request.url.path, json.loads(answer.read()))

    with httpx.Client(
        base_url=f"{pve.endpoint}api2/json",
        verify=str(pve.certificate),
        headers={"Authorization": f"PVEAPIToken={TOKEN}"},
        event_hooks={"response": [check]},
        trust_env=False,
    ) as opened:
        yield opened
    assert not unpublished_parameters(pve.simulator.asked)


def test_every_route_is_published(simulator: Simulator) -> None:
    routes = [route for route in simulator.routes.routes if isinstance(route, APIRoute)]
    for route in routes:
        for method in route.methods or ():
            path = route.path.replace("{name:path}", "x").replace("{action}", "start")
            call_of(method, re.sub(r"\{\w+\}", "x", path))
    assert len(routes) > 25


def test_reading_answers_everywhere(client: httpx.Client) -> None:
    created(client)
    for path in ("/version", "/nodes", "/pools", "/cluster/nextid", "/cluster/resources", "/nodes/pve1/hardware/pci"):
        assert client.get(path).json()["data"] is not None
    assert client.get("/cluster/mapping/pci/gpu").json()["data"]["map"] == [ENTRY]
    assert client.get("/nodes/pve1/storage/local-lvm/content/vm-100-disk-1").json()["data"]["size"] == 8 * 1024**3
    assert client.put("/nodes/pve1/qemu/100/cloudinit").status_code == 200


def finished(client: httpx.Client, answer: httpx.Response, node: str = "pve1") -> str:
    """A task's exit status."""
    assert answer.status_code == 200, answer.text
    upid = answer.json()["data"]
    for _ in range(200):
        status: dict[str, Any] = client.get(f"/nodes/{node}/tasks/{upid}/status").json()["data"]
        if status["status"] == "stopped":
            return str(status["exitstatus"])
        time.sleep(0.02)
    raise AssertionError(f"{upid} does not end")


def created(client: httpx.Client, **changed: str) -> None:
    assert finished(client, client.post("/nodes/pve1/qemu", data=MACHINE | changed)) == "OK"


def config(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/nodes/pve1/qemu/100/config").json()["data"])


def test_configurations_are_told_as_they_are_stored(client: httpx.Client) -> None:
    created(client)

    stored = config(client)

    assert stored["scsi0"] == "local-lvm:vm-100-disk-1,discard=on,iothread=1,size=8G"
    assert stored["efidisk0"] == "local-lvm:vm-100-disk-0,efitype=4m,pre-enrolled-keys=0,size=4M"
    assert stored["ide2"] == "local-lvm:vm-100-cloudinit,media=cdrom,size=4M"
    assert stored["net0"].startswith("virtio=BC:24:11:")
    assert stored["net0"].endswith(",bridge=vmbr0,firewall=0")
    assert stored["cores"] == 4
    assert stored["memory"] == "16384"
    assert len(stored["digest"]) == 40


def test_a_machine_lives_and_goes(client: httpx.Client) -> None:
    created(client)
    assert finished(client, client.put("/nodes/pve1/qemu/100/resize", data={"disk": "scsi0", "size": "64G"})) == "OK"
    assert config(client)["scsi0"].endswith("size=64G")
    assert finished(client, client.post("/nodes/pve1/qemu/100/status/start")) == "OK"
    assert client.get("/nodes/pve1/qemu/100/status/current").json()["data"]["status"] == "running"
    told = client.get("/nodes/pve1/qemu/100/agent/network-get-interfaces").json()["data"]["result"]
    assert told[1]["ip-addresses"][0]["ip-address"] == "192.168.20.30"
    again = client.post("/nodes/pve1/qemu/100/status/start")
    assert (again.status_code, again.json()["message"]) == (500, "VM 100 already running\n")
    assert "is running" in client.delete("/nodes/pve1/qemu/100/?purge=1").json()["message"]

    assert finished(client, client.post("/nodes/pve1/qemu/100/status/stop")) == "OK"
    assert finished(client, client.delete("/nodes/pve1/qemu/100/?destroy-unreferenced-disks=1&purge=1")) == "OK"

    gone = client.get("/nodes/pve1/qemu/100/status/current")
    assert gone.status_code == 500
    assert gone.json()["message"] == "Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist\n"
    assert client.get("/nodes/pve1/storage/local-lvm/content").json()["data"] == []


def test_a_protected_machine_stays(client: httpx.Client) -> None:
    created(client, protection="1")

    refused = client.delete("/nodes/pve1/qemu/100/")

    assert "protection mode enabled" in refused.json()["message"]
    assert client.put("/nodes/pve1/qemu/100/config", data={"protection": "0"}).status_code == 200
    assert finished(client, client.delete("/nodes/pve1/qemu/100/")) == "OK"


def test_disks_do_not_shrink(client: httpx.Client) -> None:
    created(client)

    ended = finished(client, client.put("/nodes/pve1/qemu/100/resize", data={"disk": "scsi0", "size": "4G"}))

    assert ended == "shrinking disks is not supported"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "No ticket"),
        ("Bearer x", "no tokenid specified"),
        ("PVEAPIToken=nobody@pve!terraform=x", "no such user ('nobody@pve')"),
        (f"PVEAPIToken={USER}!other=x", f"no such token 'other' for user '{USER}'"),
        (f"PVEAPIToken={USER}!terraform=x", "invalid token value!"),
    ],
)
def test_strangers_are_told_why(pve: Served, header: str | None, words: str) -> None:
    answer = httpx.get(
        f"{pve.endpoint}api2/json/version",
        verify=str(pve.certificate),
        headers={"Authorization": header} if header else {},
        trust_env=False,
    )

    assert answer.status_code == 401
    assert answer.json()["message"].strip() == words


@pytest.mark.parametrize(
    ("privilege", "path"),
    [
        ("VM.Allocate", "/vms/100"),
        ("VM.Config.CPU", "/vms/100"),
        ("VM.Config.Memory", "/vms/100"),
        ("VM.Config.Disk", "/vms/100"),
        ("VM.Config.HWType", "/vms/100"),
        ("VM.Config.Options", "/vms/100"),
        ("VM.Config.Network", "/vms/100"),
        ("Datastore.AllocateSpace", "/storage/local-lvm"),
        ("Mapping.Use", "/mapping/pci/gpu"),
        ("SDN.Use", "/sdn/zones/localnetwork/vmbr0"),
    ],
)
def test_creating_needs_each_privilege(client: httpx.Client, pve: Served, privilege: str, path: str) -> None:
    for privileges in pve.simulator.cluster.roles.values():
        privileges.discard(privilege)

    refused = client.post("/nodes/pve1/qemu", data=MACHINE)

    assert refused.status_code == 403
    assert refused.json()["message"].startswith(f"Permission check failed ({path}, ")
    assert privilege in refused.json()["message"]


def test_a_token_may_not_name_devices(client: httpx.Client) -> None:
    refused = client.post("/nodes/pve1/qemu", data=MACHINE | {"hostpci0": "0000:03:00,pcie=1"})

    assert refused.status_code == 500
    assert refused.json()["message"] == "only root can set 'hostpci0' config for non-mapped devices\n"


def test_a_token_of_its_own_privileges_has_both(client: httpx.Client, pve: Served) -> None:
    pve.simulator.cluster.users[USER].tokens["terraform"] = Token(secret=TOKEN.rpartition("=")[2], privsep=True)

    assert client.get("/nodes/pve1/hardware/pci").status_code == 403


def test_a_nearer_grant_replaces_those_above(client: httpx.Client, pve: Served) -> None:
    cluster = pve.simulator.cluster
    cluster.roles["NoAccess"] = set()
    cluster.grants.append(msgspec.structs.replace(cluster.grants[0], path="/mapping/pci/gpu", role="NoAccess"))

    assert client.get("/cluster/mapping/pci/gpu").status_code == 403
    assert client.get("/cluster/mapping/pci").json()["data"] == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ENTRY.replace("13f1", "1c03"), "'id' does not match"),
        (ENTRY.replace("iommugroup=52", "iommugroup=7"), "'iommugroup' does not match"),
        (ENTRY.replace("10de:1153", "1458:3701"), "'subsystem-id' does not match"),
        (ENTRY.replace("03:00", "04:00"), "not found"),
        (ENTRY.replace("pve1", "pve2"), "for node 'pve1'"),
    ],
)
def test_a_mapping_that_is_not_so_any_more_keeps_a_machine_down(
    client: httpx.Client, pve: Served, entry: str, words: str
) -> None:
    created(client)
    pve.simulator.cluster.mappings["gpu"] = Mapping(entries=[entry])

    assert words in finished(client, client.post("/nodes/pve1/qemu/100/status/start"))
    checks = client.get("/cluster/mapping/pci", params={"check-node": "pve1"}).json()["data"][0]["checks"]
    assert len(checks) == 1


def test_one_device_is_in_one_running_machine(client: httpx.Client) -> None:
    created(client)
    created(client, vmid="101")
    assert finished(client, client.post("/nodes/pve1/qemu/100/status/start")) == "OK"

    refused = finished(client, client.post("/nodes/pve1/qemu/101/status/start"))

    assert refused == "PCI device '0000:03:00.0' already in use by VMID '100'"


@pytest.fixture
def images(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """An HTTP server with one image."""
    folder = tmp_path / "images"
    folder.mkdir()
    content = b"qcow2" * 10_000
    (folder / "debian.qcow2").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/debian.qcow2", content
        server.shutdown()


def test_images_are_fetched_and_checked(client: httpx.Client, images: tuple[str, bytes]) -> None:
    url, content = images
    asked = {"content": "import", "filename": "debian.qcow2", "url": url, "checksum-algorithm": "sha512"}
    path = "/nodes/pve1/storage/local/download-url"

    told = client.get("/nodes/pve1/query-url-metadata", params={"url": url}).json()["data"]
    bad = finished(client, client.post(path, data=asked | {"checksum": "00"}))
    good = finished(client, client.post(path, data=asked | {"checksum": hashlib.sha512(content).hexdigest()}))

    assert (told["filename"], told["size"]) == ("debian.qcow2", len(content))
    assert bad.startswith("checksum mismatch")
    assert good == "OK"
    [kept] = client.get("/nodes/pve1/storage/local/content", params={"content": "import"}).json()["data"]
    assert (kept["volid"], kept["size"]) == ("local:import/debian.qcow2", len(content))
    again = client.post(path, data=asked)
    assert again.json()["message"] == "refusing to override existing file 'debian.qcow2'\n"
    created(client, scsi0="file=local-lvm:0,import-from=local:import/debian.qcow2,size=8589934592")
    assert "import-from" not in config(client)["scsi0"]
    assert finished(client, client.delete("/nodes/pve1/storage/local/content/import%2Fdebian.qcow2")) == "OK"


def test_faults_are_the_tasks_own_words(client: httpx.Client, pve: Served) -> None:
    created(client)
    pve.simulator.cluster.faults["qmstart"] = ["start failed: got timeout"]
    answer = client.post("/nodes/pve1/qemu/100/status/start")

    assert finished(client, answer) == "start failed: got timeout"
    log = client.get(f"/nodes/pve1/tasks/{answer.json()['data']}/log").json()["data"]
    assert log == [{"n": 1, "t": "TASK ERROR: start failed: got timeout"}]
    assert finished(client, client.post("/nodes/pve1/qemu/100/status/start")) == "OK"


def test_the_state_outlives_the_process(client: httpx.Client, simulator: Simulator) -> None:
    created(client)
    client.post("/cluster/mapping/pci", data={"id": "other", "map": [ENTRY, ENTRY.replace("pve1", "pve2")]})

    kept = Cluster.load(simulator.file)

    assert kept.machines == simulator.cluster.machines
    assert len(kept.mappings["other"].entries) == 2
