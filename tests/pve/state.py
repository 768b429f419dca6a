"""What a cluster is, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field


class Device(BaseModel):
    """A PCI device of a node, as ``hardware/pci`` tells it."""

    address: str
    vendor: str
    device: str
    subsystem_vendor: str
    subsystem_device: str
    device_class: str = "0x030000"
    device_name: str = ""
    iommu_group: int = 1


class Storage(BaseModel):
    """A storage of a node; ``content`` is what may lie there, ``path`` where it is a folder."""

    content: set[str]
    format: str = "raw"
    path: str | None = None


class Node(BaseModel):
    """A node of the cluster."""

    devices: list[Device] = Field(default_factory=list)
    storages: dict[str, Storage] = Field(default_factory=dict)
    bridges: set[str] = Field(default_factory=lambda: {"vmbr0"})


class Volume(BaseModel):
    """What lies in a storage: a disk image, or a file that was fetched. ``source`` is the volume that it was copied from."""

    content: str
    size: int
    format: str
    vmid: int | None = None
    source: str | None = None


class Mapping(BaseModel):
    """A PCI mapping: entries of all nodes, as property strings."""

    entries: list[str]
    description: str = ""
    mdev: bool = False


class Machine(BaseModel):
    """A virtual machine. ``config`` is what its file would have."""

    node: str
    config: dict[str, str]
    running: bool = False


class Task(BaseModel):
    """A task, while it runs and after."""

    node: str
    type: str
    id: str
    user: str
    started: int
    status: str = "running"
    exitstatus: str | None = None
    log: list[str] = Field(default_factory=list)


class Token(BaseModel):
    """An API token."""

    secret: str
    privsep: bool = False


class User(BaseModel):
    """A user with tokens by name."""

    tokens: dict[str, Token] = Field(default_factory=dict)


class Grant(BaseModel):
    """A role that a user has at a path and, with ``propagate``, below it."""

    path: str
    user: str
    role: str
    propagate: bool = True


class Cluster(BaseModel):
    """All of it. ``faults`` are the tests': a task type, and what its next runs end with."""

    version: str = "9.0.3"
    nodes: dict[str, Node]
    users: dict[str, User] = Field(default_factory=dict)
    roles: dict[str, set[str]] = Field(default_factory=dict)
    grants: list[Grant] = Field(default_factory=list)
    mappings: dict[str, Mapping] = Field(default_factory=dict)
    machines: dict[int, Machine] = Field(default_factory=dict)
    volumes: dict[str, dict[str, Volume]] = Field(default_factory=dict)
    tasks: dict[str, Task] = Field(default_factory=dict)
    faults: dict[str, list[str]] = Field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Self:
        """From its file."""
        return cls.model_validate(json.loads(file.read_text(encoding="utf-8")))

    def save(self, file: Path) -> None:
        """To its file, whole or not at all."""
        new = file.with_suffix(".new")
        new.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        new.replace(file)

    def volumes_of(self, node: str, storage: str) -> dict[str, Volume]:
        """What lies in a node's storage, by volume id."""
        return self.volumes.setdefault(f"{node}/{storage}", {})
