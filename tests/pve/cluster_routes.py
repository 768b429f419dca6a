"""Nodes, mappings and devices, each with the privileges that Proxmox asks for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request

from . import machines
from .errors import PveError, invalid
from .routing import Table, as_list
from .state import Cluster, Mapping

if TYPE_CHECKING:
    from .api import Simulator

_FIRST_ID: Final = 100


class ClusterRoutes:
    """Nodes, mappings, devices."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._cluster = simulator.cluster

    def table(self) -> Table:
        """Method, path, handler."""
        return (
            ("GET", "/version", self.version),
            ("GET", "/nodes", self.nodes),
            ("GET", "/pools", self.pools),
            ("GET", "/cluster/nextid", self.nextid),
            ("GET", "/cluster/resources", self.resources),
            ("GET", "/cluster/mapping/pci", self.mappings),
            ("POST", "/cluster/mapping/pci", self.make_mapping),
            ("GET", "/cluster/mapping/pci/{name}", self.mapping),
            ("PUT", "/cluster/mapping/pci/{name}", self.change_mapping),
            ("DELETE", "/cluster/mapping/pci/{name}", self.drop_mapping),
            ("GET", "/nodes/{node}/hardware/pci", self.devices),
        )

    async def version(self, request: Request) -> dict[str, Any]:
        await self._simulator.asked_by(request)
        return {
            "data": {
                "version": self._cluster.version,
                "release": self._cluster.version.rpartition(".")[0],
                "repoid": "simulated",
            }
        }

    async def nodes(self, request: Request) -> dict[str, Any]:
        await self._simulator.asked_by(request)
        return {"data": [{"node": name, "status": "online", "type": "node"} for name in self._cluster.nodes]}

    async def pools(self, request: Request) -> dict[str, Any]:
        await self._simulator.asked_by(request)
        return {"data": []}

    async def nextid(self, request: Request) -> dict[str, Any]:
        _, asked = await self._simulator.asked_by(request)
        if "vmid" in asked:
            if int(asked["vmid"]) in self._cluster.machines:
                raise invalid(vmid=f"VM {asked['vmid']} already exists")
            return {"data": asked["vmid"]}
        return {"data": str(next(n for n in range(_FIRST_ID, 10**9) if n not in self._cluster.machines))}

    async def resources(self, request: Request) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        return {
            "data": [
                {
                    "id": f"qemu/{vmid}",
                    "type": "qemu",
                    "vmid": vmid,
                    "node": machine.node,
                    "name": machine.config.get("name", f"VM {vmid}"),
                    "status": "running" if machine.running else "stopped",
                    "maxmem": int(machine.config.get("memory", "512")) * 1024**2,
                }
                for vmid, machine in self._cluster.machines.items()
                if who.has(f"/vms/{vmid}", "VM.Audit")
            ]
        }

    async def mappings(self, request: Request) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        listed = []
        for name, mapping in self._cluster.mappings.items():
            if not who.has(f"/mapping/pci/{name}", "Mapping.Audit", "Mapping.Use", "Mapping.Modify"):
                continue
            entry: dict[str, Any] = {
                "id": name,
                "map": mapping.entries,
                "description": mapping.description,
                "type": "pci",
            }
            if node := asked.get("check-node"):
                problem = machines.mapping_problem(self._cluster, node, name)
                warning = problem is not None and problem.startswith("No mapping")
                entry["checks"] = (
                    [{"severity": "warning" if warning else "error", "message": problem}] if problem is not None else []
                )
            listed.append(entry)
        return {"data": listed}

    async def make_mapping(self, request: Request) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        who.need("/mapping/pci", "Mapping.Modify")
        if asked["id"] in self._cluster.mappings:
            raise PveError(500, f"pci ID '{asked['id']}' already defined")
        self._cluster.mappings[asked["id"]] = Mapping(
            entries=as_list(asked["map"]), description=asked.get("description", ""), mdev=asked.get("mdev") == "1"
        )
        self._simulator.save()
        return {"data": None}

    async def mapping(self, request: Request, name: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/mapping/pci/{name}", "Mapping.Audit", "Mapping.Use", "Mapping.Modify")
        found = _mapping(self._cluster, name)
        return {
            "data": {
                "id": name,
                "type": "pci",
                "map": found.entries,
                "description": found.description,
                "mdev": int(found.mdev),
                "digest": hashlib.sha1("".join(found.entries).encode(), usedforsecurity=False).hexdigest(),
            }
        }

    async def change_mapping(self, request: Request, name: str) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        who.need(f"/mapping/pci/{name}", "Mapping.Modify")
        found = _mapping(self._cluster, name)
        if "map" in asked:
            found.entries = as_list(asked["map"])
        deleted = asked.get("delete", "").split(",")
        found.description = "" if "description" in deleted else asked.get("description", found.description)
        found.mdev = asked["mdev"] == "1" if "mdev" in asked else found.mdev
        self._simulator.save()
        return {"data": None}

    async def drop_mapping(self, request: Request, name: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/mapping/pci/{name}", "Mapping.Modify")
        _mapping(self._cluster, name)
        del self._cluster.mappings[name]
        self._simulator.save()
        return {"data": None}

    async def devices(self, request: Request, node: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need("/", "Sys.Audit", "Sys.Modify")
        self._simulator.node(node)
        return {
            "data": [
                {
                    "id": device.address,
                    "class": device.device_class,
                    "vendor": device.vendor,
                    "device": device.device,
                    "device_name": device.device_name,
                    "subsystem_vendor": device.subsystem_vendor,
                    "subsystem_device": device.subsystem_device,
                    "iommugroup": device.iommu_group,
                }
                for device in self._cluster.nodes[node].devices
            ]
        }


def _mapping(cluster: Cluster, name: str) -> Mapping:
    if name not in cluster.mappings:
        raise PveError(500, f"mapping '{name}' does not exist")
    return cluster.mappings[name]
