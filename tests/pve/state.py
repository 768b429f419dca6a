"""What a cluster is, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec

# Structs and no models of pydantic: each call of pvesh reads all of this in a process of its own.


class Device(msgspec.Struct):
    """A PCI device of a node, as ``hardware/pci`` tells it."""

    address: str
    vendor: str
    device: str
    subsystem_vendor: str
    subsystem_device: str
    device_class: str = "0x030000"
    device_name: str = ""
    iommu_group: int = 1


class Storage(msgspec.Struct):
    """A storage of a node; ``content`` is what may lie there, ``path`` where it is a folder."""

    content: set[str]
    format: str = "raw"
    path: str | None = None


class Node(msgspec.Struct):
    """A node of the cluster."""

    devices: list[Device] = []
    storages: dict[str, Storage] = {}
    bridges: set[str] = msgspec.field(default_factory=lambda: {"vmbr0"})


class Volume(msgspec.Struct):
    """What lies in a storage: a disk image, or a file that was fetched. ``source`` is the volume that it was copied from."""

    content: str
    size: int
    format: str
    vmid: int | None = None
    source: str | None = None


class Mapping(msgspec.Struct):
    """A PCI mapping: entries of all nodes, as property strings."""

    entries: list[str]
    description: str = ""
    mdev: bool = False


class Machine(msgspec.Struct):
    """A virtual machine. ``config`` is what its file would have."""

    node: str
    config: dict[str, str]
    running: bool = False


class Task(msgspec.Struct):
    """A task, while it runs and after."""

    node: str
    type: str
    id: str
    user: str
    started: int
    status: str = "running"
    exitstatus: str | None = None
    log: list[str] = []


class Token(msgspec.Struct):
    """An API token."""

    secret: str
    privsep: bool = False


class User(msgspec.Struct):
    """A user with tokens by name."""

    tokens: dict[str, Token] = {}


class Grant(msgspec.Struct):
    """A role that a user has at a path and, with ``propagate``, below it."""

    path: str
    user: str
    role: str
    propagate: bool = True


class Cluster(msgspec.Struct, kw_only=True):
    """All of it. ``faults`` are the tests': a task type, and what its next runs end with."""

    version: str = "9.0.3"
    nodes: dict[str, Node]
    users: dict[str, User] = {}
    roles: dict[str, set[str]] = {}
    grants: list[Grant] = []
    mappings: dict[str, Mapping] = {}
    machines: dict[int, Machine] = {}
    volumes: dict[str, dict[str, Volume]] = {}
    tasks: dict[str, Task] = {}
    faults: dict[str, list[str]] = {}

    @classmethod
    def load(cls, file: Path) -> Self:
        """From its file."""
        return msgspec.json.decode(file.read_bytes(), type=cls)

    def save(self, file: Path) -> None:
        """To its file, whole or not at all."""
        new = file.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))
        new.replace(file)

    def volumes_of(self, node: str, storage: str) -> dict[str, Volume]:
        """What lies in a node's storage, by volume id."""
        return self.volumes.setdefault(f"{node}/{storage}", {})
