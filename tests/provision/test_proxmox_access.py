"""The host deploy's mapping, storage and token, executed against a simulated cluster, and used over its API.

The host is a folder, pvesh and pveum are the simulator's; the passthrough itself has tests of its own.
"""

from __future__ import annotations

import re
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fakes import HOST
from folder_host import FolderHost, joined
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.passthrough.data import ProxmoxData, parse_proxmox_data
from metalscribe_provision.proxmox.access import PRIVILEGES, ROLE
from metalscribe_provision.proxmox.deploy import api_token, image_storage, in_use, mapping
from pve.api import Simulator
from pve.serving import served
from pve.state import Cluster, Mapping, Node, Storage
from terraform.cluster import ENTRY, M4000

TESTS = Path(__file__).resolve().parents[1]
OTHERS = ENTRY.replace("pve1", "pve2").replace("0000:03:00", "0000:81:00")
SCRIPT = '#!/bin/sh\ncase "${0##*/} $*" in "hostname --short") echo pve1 ;; "uname -s") echo Linux ;; *) echo "not simulated: $0 $*" >&2; exit 127 ;; esac\n'


class PveHost(FolderHost):
    """A node whose GPU is bound already."""

    CHANGES = re.compile(
        r"pvesh (create|set|delete)|pveum (role (add|modify)|user add|acl modify|user token (add|remove))|^rm "
    )
    PATHS = "etc|sys|var/lib"

    def __init__(self, root: Path) -> None:
        super().__init__(root, SCRIPT, ["hostname", "uname"])
        for tool in ("pvesh", "pveum"):
            command = shlex.join([sys.executable, "-m", "pve.cli", str(root / "cluster.json"), tool])
            (root / "bin" / tool).write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(TESTS))} exec {command} "$@"\n')
            (root / "bin" / tool).chmod(0o755)
        self.cluster = root / "cluster.json"
        Cluster(
            nodes={
                "pve1": Node(
                    devices=[M4000],
                    storages={
                        "local": Storage(content={"iso", "vztmpl", "backup"}, path="/var/lib/vz"),
                        "local-lvm": Storage(content={"images"}),
                    },
                )
            },
            roles={"Administrator": set(PRIVILEGES) | {"Realm.Allocate"}},
        ).save(self.cluster)
        (root / "var/lib/vz").mkdir(parents=True)
        card = f"/sys/bus/pci/devices/{M4000.address}"
        for name, text in (
            ("vendor", "0x10de"),
            ("device", "0x13f1"),
            ("class", "0x030000"),
            ("subsystem_vendor", "0x10de"),
            ("subsystem_device", "0x1153"),
            ("modalias", "pci:x"),
        ):
            self.write(f"{card}/{name}", f"{text}\n")
        (self.root / card[1:] / "driver").symlink_to("../drivers/vfio-pci")
        (self.root / card[1:] / "iommu_group").symlink_to("../groups/52")

    def run(self, data: dict[str, Any]) -> None:
        wanted = parse_proxmox_data(HOST, {"terraform_env": str(self.root / "terraform/.env"), **data})
        for step in (in_use, mapping, image_storage, api_token):
            cast("Callable[[ProxmoxData], None]", step)(wanted)  # pyinfra's decorator gives them an operation's type

    @property
    def now(self) -> Cluster:
        return Cluster.load(self.cluster)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PveHost:
    host = PveHost(tmp_path / "node")
    joined(monkeypatch, lambda: host)
    return host


def exported(node: PveHost) -> dict[str, str]:
    """What the file for Terraform sets."""
    lines = (node.root / "terraform/.env").read_text().splitlines()
    return dict(
        line.removeprefix("export ").replace("'", "").split("=", 1) for line in lines if line.startswith("export")
    )


def test_everything_is_made_once(node: PveHost) -> None:
    assert node.deploy()

    cluster = node.now
    assert cluster.mappings["gpu"].entries == [ENTRY]
    assert cluster.roles[ROLE] == set(PRIVILEGES)
    assert cluster.nodes["pve1"].storages["local"].content == {"iso", "vztmpl", "backup", "import", "snippets"}
    assert "qemu-guest-agent" in node.text("/var/lib/vz/snippets/metalscribe.yaml")
    assert stat.S_IMODE((node.root / "terraform/.env").stat().st_mode) == 0o600

    assert node.deploy()

    assert node.changes == 0
    assert node.now == cluster


def test_the_token_does_what_the_module_needs(node: PveHost, tmp_path: Path) -> None:
    assert node.deploy()
    environment = exported(node)

    with served(Simulator(node.cluster), tmp_path) as pve:
        answer = httpx.get(
            f"{pve.endpoint}api2/json/cluster/mapping/pci",
            params={"check-node": "pve1"},
            headers={"Authorization": f"PVEAPIToken={environment['PROXMOX_VE_API_TOKEN']}"},
            verify=str(pve.certificate),
            trust_env=False,
        )

    assert [(one["id"], one["checks"]) for one in answer.json()["data"]] == [("gpu", [])]
    assert environment["PROXMOX_VE_ENDPOINT"].endswith(":8006/")


def test_other_nodes_and_mappings_stay(node: PveHost) -> None:
    cluster = node.now
    cluster.mappings = {name: Mapping(entries=[OTHERS]) for name in ("gpu", "nic")}
    cluster.save(node.cluster)

    assert node.deploy()

    assert sorted(node.now.mappings["gpu"].entries) == sorted([OTHERS, ENTRY])
    assert node.deploy(passthrough="absent")
    assert node.now.mappings["gpu"].entries == [OTHERS]
    assert node.now.mappings["nic"].entries == [OTHERS]
    assert not (node.root / "var/lib/vz/snippets/metalscribe.yaml").exists()


def test_a_card_that_moved_is_mapped_anew(node: PveHost) -> None:
    assert node.deploy()
    group = node.root / f"sys/bus/pci/devices/{M4000.address}/iommu_group"
    group.unlink()
    group.symlink_to("../groups/14")

    assert node.deploy()

    assert node.now.mappings["gpu"].entries == [ENTRY.replace("iommugroup=52", "iommugroup=14")]


def test_a_lost_file_is_a_new_secret(node: PveHost) -> None:
    assert node.deploy()
    before = exported(node)["PROXMOX_VE_API_TOKEN"]
    (node.root / "terraform/.env").unlink()

    assert node.deploy()

    after = exported(node)["PROXMOX_VE_API_TOKEN"]
    assert after != before
    [user] = node.now.users.values()
    assert after.endswith(user.tokens["terraform"].secret)


def test_more_privileges_than_needed_are_taken_back(node: PveHost) -> None:
    assert node.deploy()
    cluster = node.now
    cluster.roles[ROLE].add("Realm.Allocate")
    cluster.save(node.cluster)

    assert node.deploy()

    assert node.now.roles[ROLE] == set(PRIVILEGES)


def test_a_storage_without_a_folder_is_refused(node: PveHost) -> None:
    with pytest.raises(DeployError, match="image_storage=local-lvm is no storage with a folder"):
        node.deploy(image_storage="local-lvm")
    with pytest.raises(DeployError, match="image_storage=nas"):
        node.deploy(image_storage="nas")


def test_devices_in_use_are_not_taken_back(node: PveHost) -> None:
    assert node.deploy()
    node.write("/etc/pve/qemu-server/100.conf", "cores: 4\nhostpci0: mapping=gpu,pcie=1\n")

    with pytest.raises(DeployError, match="configuration of VM 100"):
        node.deploy(passthrough="absent")

    assert node.now.mappings["gpu"].entries == [ENTRY]
