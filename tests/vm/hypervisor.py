"""What runs the simulated cluster's machines for real: QEMU with what a machine's configuration says, from its cloud image on.

Like Proxmox it makes the disk of the image, gives cloud-init its four files, and asks the guest's agent for addresses. Unlike Proxmox:

* there is no hardware virtualisation, so that ``cpu=host`` is what QEMU can emulate;
* the mapped GPU is QEMU's ``edu``, a PCI device that no driver wants; all else of ``hostpci`` is as configured;
* cloud-init's disk is a FAT file system and not an ISO, which its NoCloud source takes as well;
* the bridge is the lab's, and the machine's hardware address is as configured.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from lab.network import Namespace, Plug
from pve import properties
from pve.api import Simulator
from pve.errors import PveError
from pve.state import Machine
from vm.machine import QEMU, firmware, overlay, serial, started

GPU: Final = ("-device", "pcie-root-port,id=gpu,chassis=1,slot=1", "-device", "edu,bus=gpu")

_AGENT_SECONDS: Final = 5.0
_AGENT: Final = "org.qemu.guest_agent.0"
_VARIABLES: Final = "/usr/share/OVMF/OVMF_VARS_4M.fd"

ReadFile = Callable[[str], Awaitable[str]]


@dataclass(slots=True)
class Guest:
    """A machine that runs."""

    process: subprocess.Popen[bytes]
    folder: Path


class Qemu:
    """A hypervisor for :class:`pve.api.Simulator`, for one machine at a time.

    Args:
        folder: for the machines' disks and consoles.
        namespace: where the bridge is.
        plug: what the machine's network device is plugged into.
        snippet: reads a file of the node's.
    """

    def __init__(self, folder: Path, namespace: Namespace, plug: Plug, snippet: ReadFile) -> None:
        self.simulator: Simulator | None = None
        self._folder = folder
        self._namespace = namespace
        self._plug = plug
        self._snippet = snippet
        self._guests: dict[int, Guest] = {}

    def console(self, vmid: int) -> Path:
        """What the machine has printed on its serial line."""
        return self._folder / str(vmid) / "console.log"

    def running(self, vmid: int) -> bool:
        """Whether its process is there."""
        guest = self._guests.get(vmid)
        return guest is not None and guest.process.poll() is None

    async def start(self, vmid: int, machine: Machine) -> None:
        """Start it; its disk is made at the first start."""
        config = machine.config
        folder = self._folder / str(vmid)
        if not folder.exists():
            folder.mkdir(parents=True)
            self._make_disk(machine, folder / "disk.qcow2")
            shutil.copyfile(_VARIABLES, folder / "vars.fd")
        vendor = properties.parse(config.get("cicustom", "")).get("vendor")
        files = cloud_init(vmid, config, await self._snippet(self._path(machine, vendor)) if vendor else "")
        _seed(folder, files)
        network = properties.parse(config["net0"])
        command = [
            *QEMU,
            *("-machine", config["machine"], "-smp", config["cores"], "-m", config["memory"]),
            *firmware(folder / "vars.fd"),
            *("-device", "virtio-scsi-pci,id=scsi"),
            *("-drive", f"if=none,id=disk,file={folder / 'disk.qcow2'},cache=unsafe", "-device", "scsi-hd,drive=disk"),
            *("-drive", f"if=none,id=seed,format=raw,readonly=on,file={folder / 'seed.img'}"),
            *("-device", "scsi-hd,drive=seed"),
            *("-netdev", f"tap,id=net,ifname={self._plug.device},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={network['virtio']}"),
            *("-device", "virtio-serial", "-chardev", f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=agent,name={_AGENT}", "-device", "virtio-rng-pci"),
            *(GPU if "hostpci0" in config else ()),
            *serial(self.console(vmid)),
        ]
        self._guests[vmid] = Guest(started(self._namespace.enter(*command), self.console(vmid)), folder)
        await asyncio.sleep(1)
        if not self.running(vmid):
            raise PveError(500, f"start failed: QEMU exited with code {self._guests[vmid].process.returncode}")

    async def stop(self, vmid: int) -> None:
        """Stop it at once."""
        guest = self._guests.pop(vmid, None)
        if guest is not None:
            guest.process.kill()
            await asyncio.to_thread(guest.process.wait)

    async def interfaces(self, vmid: int, machine: Machine) -> list[dict[str, object]]:
        """What the guest's agent says of its network."""
        guest = self._guests[vmid]
        try:
            async with asyncio.timeout(_AGENT_SECONDS):
                return await _ask_agent(guest.folder / "agent", "guest-network-get-interfaces")
        except (TimeoutError, OSError, ValueError):
            raise PveError(500, "QEMU guest agent is not running") from None

    def close(self) -> None:
        """End what still runs."""
        for guest in self._guests.values():
            guest.process.kill()
            guest.process.wait()

    def _make_disk(self, machine: Machine, disk: Path) -> None:
        simulator = self.simulator
        assert simulator is not None
        drive = properties.parse(machine.config["scsi0"], "file")["file"]
        volume = simulator.cluster.volumes_of(machine.node, drive.partition(":")[0])[drive]
        assert volume.source is not None, f"{drive} was not made of an image"
        image = simulator.file_of(volume.source)
        overlay(image, disk)
        subprocess.run(["qemu-img", "resize", "-q", disk, str(volume.size)], check=True, capture_output=True)

    def _path(self, machine: Machine, volume: str) -> str:
        assert self.simulator is not None
        storage, _, name = volume.partition(":")
        return f"{self.simulator.cluster.nodes[machine.node].storages[storage].path}/{name}"


def cloud_init(vmid: int, config: dict[str, str], vendor: str) -> dict[str, str]:
    """The files that Proxmox makes of a machine's configuration (its "Cloud-Init FAQ", and what ``qm cloudinit dump`` prints)."""
    name = config["name"]
    keys = "".join(f"  - {key}\n" for key in unquote(config.get("sshkeys", "")).splitlines() if key)
    user = (
        f"#cloud-config\nhostname: {name}\nmanage_etc_hosts: true\nfqdn: {name}\nuser: {config['ciuser']}\n"
        f"ssh_authorized_keys:\n{keys}chpasswd:\n  expire: False\nusers:\n  - default\npackage_upgrade: true\n"
    )
    address = properties.parse(config["ipconfig0"])
    wanted = ipaddress.ip_interface(address["ip"])
    network = {
        "version": 1,
        "config": [
            {
                "type": "physical",
                "name": "eth0",
                "mac_address": properties.parse(config["net0"])["virtio"].lower(),
                "subnets": [
                    {
                        "type": "static",
                        "address": str(wanted.ip),
                        "netmask": str(wanted.netmask),
                        "gateway": address["gw"],
                    }
                ],
            }
        ],
    }
    return {
        "meta-data": f"instance-id: vm-{vmid}\n",
        "user-data": user,
        "vendor-data": vendor,
        "network-config": json.dumps(network),
    }


def _seed(folder: Path, files: dict[str, str]) -> None:
    """A disk that cloud-init's NoCloud source knows by its label."""
    image = folder / "seed.img"
    image.unlink(missing_ok=True)
    subprocess.run(["mkfs.vfat", "-C", "-n", "CIDATA", image, "1024"], check=True, capture_output=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        subprocess.run(["mcopy", "-i", image, folder / name, f"::{name}"], check=True, capture_output=True)


async def _ask_agent(path: Path, question: str) -> list[dict[str, Any]]:
    """The agent's answer; a half-finished one of before is skipped by the synchronisation (QEMU guest agent protocol)."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        mark = 4711
        writer.write(b"\xff" + json.dumps({"execute": "guest-sync", "arguments": {"id": mark}}).encode() + b"\n")
        while json.loads((await reader.readline()).lstrip(b"\xff")).get("return") != mark:
            continue
        writer.write(json.dumps({"execute": question}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        found: list[dict[str, Any]] = answer["return"]
        return found
    finally:
        writer.close()
