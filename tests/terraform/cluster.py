"""A small cluster and a token that may do what the host deploy's role says, and nothing more."""

from __future__ import annotations

from metalscribe_provision.proxmox.access import PRIVILEGES, ROLE
from pve.state import Cluster, Device, Grant, Mapping, Node, Storage, Token, User, Volume

SECRET = "9d2a1d26-4f6e-4a2c-9c0c-6b9a3f0e7d55"
USER = "metalscribe@pve"
TOKEN = f"{USER}!terraform={SECRET}"
M4000 = Device(
    address="0000:03:00.0",
    vendor="0x10de",
    device="0x13f1",
    subsystem_vendor="0x10de",
    subsystem_device="0x1153",
    device_name="GM204GL [Quadro M4000]",
    iommu_group=52,
)
ENTRY = "id=10de:13f1,iommugroup=52,node=pve1,path=0000:03:00,subsystem-id=10de:1153"
SNIPPET = "local:snippets/metalscribe.yaml"


def cluster() -> Cluster:
    """Two nodes, the first with a GPU that has a mapping."""
    storages = {
        "local": Storage(content={"iso", "vztmpl", "backup", "snippets", "import"}, path="/var/lib/vz"),
        "local-lvm": Storage(content={"images", "rootdir"}),
    }
    return Cluster(
        nodes={"pve1": Node(devices=[M4000], storages=storages), "pve2": Node(storages=storages)},
        users={USER: User(tokens={"terraform": Token(secret=SECRET)})},
        roles={ROLE: set(PRIVILEGES)},
        grants=[Grant(path="/", user=USER, role=ROLE)],
        mappings={"gpu": Mapping(entries=[ENTRY])},
        volumes={
            f"{node}/local": {SNIPPET: Volume(content="snippets", size=400, format="yaml")} for node in ("pve1", "pve2")
        },
    )
