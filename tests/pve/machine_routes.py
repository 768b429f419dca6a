"""Virtual machines: made, changed, started, stopped, destroyed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request

from . import machines
from .access import Caller
from .errors import PveError
from .routing import Table
from .state import Task

if TYPE_CHECKING:
    from .api import Simulator


class MachineRoutes:
    """Making, changing and destroying machines."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._cluster = simulator.cluster

    def table(self) -> Table:
        """Method, path, handler."""
        return (
            ("POST", "/nodes/{node}/qemu", self.create),
            ("GET", "/nodes/{node}/qemu/{vmid}/config", self.config),
            ("PUT", "/nodes/{node}/qemu/{vmid}/config", self.update),
            ("POST", "/nodes/{node}/qemu/{vmid}/config", self.update_later),
            ("PUT", "/nodes/{node}/qemu/{vmid}/cloudinit", self.cloudinit),
            ("PUT", "/nodes/{node}/qemu/{vmid}/resize", self.resize),
            ("DELETE", "/nodes/{node}/qemu/{vmid}", self.destroy),
            ("DELETE", "/nodes/{node}/qemu/{vmid}/", self.destroy),
        )

    async def create(self, request: Request, node: str) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        self._simulator.node(node)
        vmid = int(asked.pop("vmid"))
        who.need(f"/vms/{vmid}", "VM.Allocate")
        machines.check_options(who, vmid, asked)
        machines.check_values(self._cluster, node, asked)
        if vmid in self._cluster.machines:
            raise PveError(
                500,
                f"unable to create VM {vmid} - VM {vmid} already exists on node '{self._cluster.machines[vmid].node}'",
            )

        async def make(task: Task) -> None:
            machines.create(self._cluster, vmid, node, asked)
            task.log.append(f"VM {vmid} was created")

        return {"data": self._simulator.tasks.start(node, "qmcreate", str(vmid), who.name, make)}

    async def config(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.Audit")
        return {"data": machines.shown(self._simulator.machine(node, vmid))}

    def _change(self, who: Caller, node: str, vmid: int, asked: dict[str, Any]) -> Callable[[], None]:
        deleted = set(filter(None, re.split(r"[,; ]", asked.pop("delete", ""))))
        for name in ("digest", "force", "skiplock", "background_delay"):
            asked.pop(name, None)
        machines.check_options(who, vmid, asked, deleted)
        machine = self._simulator.machine(node, vmid)
        machines.check_values(self._cluster, node, asked)

        def apply() -> None:
            machines.forget(self._cluster, machine, deleted)
            machines.store(self._cluster, vmid, machine, asked)
            self._simulator.save()

        return apply

    async def update(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        self._change(who, node, vmid, asked)()
        return {"data": None}

    async def update_later(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        apply = self._change(who, node, vmid, asked)

        async def work(_: Task) -> None:
            apply()

        return {"data": self._simulator.tasks.start(node, "qmconfig", str(vmid), who.name, work)}

    async def cloudinit(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.Config.Cloudinit")
        self._simulator.machine(node, vmid)
        return {"data": None}

    async def resize(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, asked = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.Config.Disk")
        machine = self._simulator.machine(node, vmid)

        async def grow(_: Task) -> None:
            machines.resize(self._cluster, machine, asked["disk"], asked["size"])

        return {"data": self._simulator.tasks.start(node, "resize", str(vmid), who.name, grow)}

    async def destroy(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.Allocate")
        machine = self._simulator.machine(node, vmid)
        if machine.config.get("protection") == "1":
            raise PveError(500, f"can't remove VM {vmid} - protection mode enabled")
        if machine.running:
            raise PveError(500, f"VM {vmid} is running - destroy failed")

        async def remove(_: Task) -> None:
            machines.destroy(self._cluster, vmid)

        return {"data": self._simulator.tasks.start(node, "qmdestroy", str(vmid), who.name, remove)}


class PowerRoutes:
    """Starting and stopping them, and their guest agents."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._cluster = simulator.cluster

    def table(self) -> Table:
        """Method, path, handler."""
        return (
            ("GET", "/nodes/{node}/qemu/{vmid}/status/current", self.status),
            ("POST", "/nodes/{node}/qemu/{vmid}/status/{action}", self.power),
            ("POST", "/nodes/{node}/qemu/{vmid}/agent/ping", self.ping),
            ("GET", "/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces", self.interfaces),
        )

    async def status(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.Audit")
        machine = self._simulator.machine(node, vmid)
        state = "running" if machine.running else "stopped"
        return {
            "data": {
                "vmid": vmid,
                "name": machine.config.get("name", f"VM {vmid}"),
                "status": state,
                "qmpstatus": state,
                "cpus": int(machine.config.get("cores", "1")) * int(machine.config.get("sockets", "1")),
                "maxmem": int(machine.config.get("memory", "512")) * 1024**2,
                "uptime": int(machine.running),
                "ha": {"managed": 0},
            }
        }

    async def power(self, request: Request, node: str, vmid: int, action: str) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.PowerMgmt")
        machine = self._simulator.machine(node, vmid)
        if action not in {"start", "stop", "shutdown", "reboot"}:
            raise PveError(501, f"Method 'POST /nodes/{node}/qemu/{vmid}/status/{action}' not implemented")
        if action == "start" and machine.running:
            raise PveError(500, f"VM {vmid} already running")

        async def work(_: Task) -> None:
            if action != "start" and machine.running:
                await self._simulator.hypervisor.stop(vmid)
                machine.running = False
            if action in {"start", "reboot"}:
                machines.check_start(self._cluster, vmid)
                await self._simulator.hypervisor.start(vmid, machine)
                machine.running = True

        return {"data": self._simulator.tasks.start(node, f"qm{action}", str(vmid), who.name, work)}

    async def ping(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted")
        await _agent(self._simulator, node, vmid)
        return {"data": {"result": {}}}

    async def interfaces(self, request: Request, node: str, vmid: int) -> dict[str, Any]:
        who, _ = await self._simulator.asked_by(request)
        who.need(f"/vms/{vmid}", "VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted")
        return {"data": {"result": await _agent(self._simulator, node, vmid)}}


async def _agent(simulator: Simulator, node: str, vmid: int) -> list[dict[str, object]]:
    machine = simulator.machine(node, vmid)
    if not machine.running:
        raise PveError(500, f"VM {vmid} is not running")
    if not machine.config.get("agent", "").startswith(("1", "enabled=1")):
        raise PveError(500, "No QEMU guest agent configured")
    return await simulator.hypervisor.interfaces(vmid, machine)
