"""Virtual machines: what a request for one needs, how Proxmox stores it, and what it takes to start."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from . import properties
from .access import Caller
from .errors import PveError, invalid
from .state import Cluster, Device, Machine, Volume

_DRIVE: Final = re.compile(r"(scsi|virtio|sata|ide)\d+|efidisk0|tpmstate0")
_NET: Final = re.compile(r"net\d+")
_HOSTPCI: Final = re.compile(r"hostpci\d+")
_EFI_BYTES: Final = {"2m": 128 * 1024, "4m": 4 * 1024**2}
_CLOUD_INIT_BYTES: Final = 4 * 1024**2
_GIB: Final = 1024**3

_CPU: Final = {"cores", "sockets", "cpu", "cpuunits", "cpulimit", "vcpus", "numa", "affinity"}
_MEMORY: Final = {"memory", "balloon", "shares"}
_HARDWARE: Final = {"acpi", "bios", "machine", "scsihw", "vga", "tablet", "kvm", "audio0", "rng0"}
_OPTIONS: Final = {
    "name",
    "description",
    "onboot",
    "ostype",
    "agent",
    "startup",
    "tags",
    "protection",
    "smbios1",
    "keyboard",
}
_OPTIONS_TOO: Final = {"hotplug", "template", "localtime", "reboot", "vmgenid"}
_CLOUD_INIT: Final = {"ciuser", "cipassword", "sshkeys", "cicustom", "citype", "ciupgrade"}
_CLOUD_NET: Final = re.compile(r"ipconfig\d+|nameserver|searchdomain")
_INTEGERS: Final = _CPU - {"cpu", "affinity"} | {"balloon", "onboot", "protection", "tablet", "acpi", "kvm", "template"}


class Hypervisor(Protocol):
    """What makes a machine more than an entry in a file."""

    async def start(self, vmid: int, machine: Machine) -> None:
        """Start it, with what its configuration says.

        Raises:
            PveError: it does not start.
        """

    async def stop(self, vmid: int) -> None:
        """Stop it at once."""

    async def interfaces(self, vmid: int, machine: Machine) -> list[dict[str, object]]:
        """What the guest agent would say of its network.

        Raises:
            PveError: the agent does not answer.
        """


class Paper:
    """No hypervisor: a machine that is said to run has the address that it was given, or one that looks like DHCP's."""

    async def start(self, vmid: int, machine: Machine) -> None:
        """Nothing to do."""

    async def stop(self, vmid: int) -> None:
        """Nothing to do."""

    async def interfaces(self, vmid: int, machine: Machine) -> list[dict[str, object]]:
        """The loopback and ``net0``."""
        wanted = properties.parse(machine.config.get("ipconfig0", "")).get("ip", "dhcp")
        address, _, prefix = (f"10.0.{vmid // 250}.{vmid % 250 + 1}/24" if wanted == "dhcp" else wanted).partition("/")
        mac = properties.parse(machine.config["net0"])["virtio"]
        return [
            interface("lo", "00:00:00:00:00:00", "127.0.0.1", 8),
            interface("eth0", mac.lower(), address, int(prefix)),
        ]


def interface(name: str, mac: str, address: str, prefix: int) -> dict[str, object]:
    """One entry of ``network-get-interfaces``."""
    return {
        "name": name,
        "hardware-address": mac,
        "ip-addresses": [{"ip-address": address, "ip-address-type": "ipv4", "prefix": prefix}],
    }


_PRIVILEGES: Final = (
    (re.compile("|".join(sorted(_CPU))), ("VM.Config.CPU",)),
    (re.compile("|".join(sorted(_MEMORY))), ("VM.Config.Memory",)),
    (re.compile("|".join(sorted(_HARDWARE)) + r"|serial\d+|hostpci\d+"), ("VM.Config.HWType",)),
    (re.compile("|".join(sorted(_OPTIONS | _OPTIONS_TOO))), ("VM.Config.Options",)),
    (re.compile("|".join(sorted(_CLOUD_INIT))), ("VM.Config.Cloudinit",)),
    (_CLOUD_NET, ("VM.Config.Cloudinit", "VM.Config.Network")),
    (re.compile("boot"), ("VM.Config.Disk",)),
    (_NET, ("VM.Config.Network",)),
    (_DRIVE, ()),
)
"""Which of the privileges is needed for which options; those of drives depend on the drive."""


def check_options(caller: Caller, vmid: int, wanted: dict[str, str], deleted: AbstractSet[str] = frozenset()) -> None:
    """Raise unless the caller may set these options of a machine.

    Raises:
        PveError: 403 for a privilege; 500 for what root alone may; 400 for an option that there is not.
    """
    at = f"/vms/{vmid}"
    for name in {*wanted, *deleted}:
        privileges = next((needed for names, needed in _PRIVILEGES if names.fullmatch(name)), None)
        if privileges is None:
            raise invalid(
                **{name: "property is not defined in schema and the schema does not allow additional properties"}
            )
        if privileges:
            caller.need(at, *privileges)
        _check_value(caller, at, name, wanted.get(name, ""), deleted=name in deleted)


def _check_value(caller: Caller, at: str, name: str, value: str, *, deleted: bool) -> None:
    if _NET.fullmatch(name) and (bridge := properties.parse(value).get("bridge")):
        caller.need(f"/sdn/zones/localnetwork/{bridge}", "SDN.Use")
    elif name.startswith("serial") and not deleted and value != "socket":
        raise PveError(500, f"only root can set '{name}' config for real devices")
    elif _HOSTPCI.fullmatch(name):
        _check_hostpci(caller, name, value, deleted=deleted)
    elif _DRIVE.fullmatch(name):
        _check_drive(caller, at, value)


def _check_hostpci(caller: Caller, name: str, value: str, *, deleted: bool) -> None:
    mapping = properties.parse(value, "host").get("mapping")
    if mapping is not None:
        caller.need(f"/mapping/pci/{mapping}", "Mapping.Use")
    elif not deleted:
        raise PveError(500, f"only root can set '{name}' config for non-mapped devices")


def _check_drive(caller: Caller, at: str, value: str) -> None:
    drive = properties.parse(value, "file")
    storage, _, rest = drive.get("file", "").partition(":")
    if rest == "cloudinit":
        caller.need(at, "VM.Config.Cloudinit")
        caller.need(at, "VM.Config.CDROM")
    else:
        caller.need(at, "VM.Config.Disk")
    if storage and storage != "none":
        caller.need(f"/storage/{storage}", "Datastore.AllocateSpace")
    if source := drive.get("import-from"):
        caller.need(f"/storage/{source.partition(':')[0]}", "Datastore.Audit", "Datastore.AllocateSpace")


def check_values(cluster: Cluster, node: str, wanted: dict[str, str]) -> None:
    """Raise unless what the options name is there.

    Raises:
        PveError: 400 or 500, as Proxmox words it.
    """
    if "memory" in wanted and (not wanted["memory"].isdigit() or int(wanted["memory"]) < 16):
        raise invalid(memory="value must have a minimum value of 16")
    for name, value in wanted.items():
        if _NET.fullmatch(name):
            bridge = properties.parse(value).get("bridge", "")
            if bridge and bridge not in cluster.nodes[node].bridges:
                raise PveError(500, f"bridge '{bridge}' does not exist")
        if _DRIVE.fullmatch(name):
            drive = properties.parse(value, "file")
            storage = drive.get("file", "").partition(":")[0]
            if storage and storage != "none" and storage not in cluster.nodes[node].storages:
                raise PveError(500, f"storage '{storage}' does not exist")
            source = drive.get("import-from")
            if source and source not in cluster.volumes_of(node, source.partition(":")[0]):
                raise PveError(500, f"volume '{source}' does not exist")


def store(cluster: Cluster, vmid: int, machine: Machine, wanted: dict[str, str]) -> None:
    """Put options into a machine's configuration as Proxmox would, with the volumes that they ask for."""
    for name, value in sorted(wanted.items()):
        if _DRIVE.fullmatch(name):
            machine.config[name] = _stored_drive(cluster, vmid, machine, name, value)
        elif _NET.fullmatch(name):
            machine.config[name] = _stored_net(vmid, machine.config.get(name, ""), value)
        else:
            machine.config[name] = value


def forget(cluster: Cluster, machine: Machine, deleted: set[str]) -> None:
    """Take options out, and the volumes of drives."""
    for name in deleted:
        value = machine.config.pop(name, None)
        if value is not None and _DRIVE.fullmatch(name):
            _free(cluster, machine.node, properties.parse(value, "file")["file"])


def _stored_drive(cluster: Cluster, vmid: int, machine: Machine, name: str, value: str) -> str:
    drive = properties.parse(value, "file")
    storage, _, asked = drive["file"].partition(":")
    options = {key: text for key, text in sorted(drive.items()) if key not in {"file", "import-from", "size", "format"}}
    volumes = cluster.volumes_of(machine.node, storage)
    if asked == "cloudinit":
        volume, size = f"{storage}:vm-{vmid}-cloudinit", _CLOUD_INIT_BYTES
        options["media"] = "cdrom"
    elif asked.replace(".", "").isdigit():
        number = next(n for n in range(100) if f"{storage}:vm-{vmid}-disk-{n}" not in volumes)
        volume = f"{storage}:vm-{vmid}-disk-{number}"
        size = _new_size(cluster, machine.node, name, drive, asked)
    else:  # it has its volume
        volume = drive["file"]
        size = volumes[volume].size if volume in volumes else 0
    if size:
        source = drive.get("import-from")
        volumes[volume] = Volume(content="images", size=size, format="raw", vmid=vmid, source=source)
        options["size"] = properties.size_in_words(size)
    return properties.join({"file": volume, **options}, "file")


def _new_size(cluster: Cluster, node: str, name: str, drive: dict[str, str], asked: str) -> int:
    if source := drive.get("import-from"):
        return cluster.volumes_of(node, source.partition(":")[0])[source].size
    if name == "efidisk0":
        return _EFI_BYTES[drive.get("efitype", "2m")]
    return int(float(asked) * _GIB)


def _stored_net(vmid: int, before: str, value: str) -> str:
    net = properties.parse(value)
    model = net.pop("model", "virtio")
    kept = properties.parse(before).get(model)
    digest = hashlib.sha256(f"{vmid}/{value}".encode()).hexdigest().upper()
    mac = net.pop("macaddr", None) or kept or "BC:24:11:" + ":".join(digest[n : n + 2] for n in (0, 2, 4))
    return properties.join({model: mac, **dict(sorted(net.items()))})


def _free(cluster: Cluster, node: str, volume: str) -> None:
    cluster.volumes_of(node, volume.partition(":")[0]).pop(volume, None)


def create(cluster: Cluster, vmid: int, node: str, wanted: dict[str, str]) -> None:
    """Make a machine."""
    machine = Machine(node=node, config={})
    unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{vmid}")
    store(cluster, vmid, machine, {"smbios1": f"uuid={unique}", "vmgenid": str(uuid.uuid4()), **wanted})
    machine.config["meta"] = "creation-qemu=10.0.2,ctime=1767225600"
    cluster.machines[vmid] = machine


def destroy(cluster: Cluster, vmid: int) -> None:
    """Remove a machine and its volumes."""
    machine = cluster.machines.pop(vmid)
    for storage in cluster.nodes[machine.node].storages:
        volumes = cluster.volumes_of(machine.node, storage)
        for name in [name for name, volume in volumes.items() if volume.vmid == vmid]:
            del volumes[name]


def resize(cluster: Cluster, machine: Machine, disk: str, wanted: str) -> None:
    """Grow a disk.

    Raises:
        PveError: it would shrink, or there is none.
    """
    if disk not in machine.config:
        raise PveError(500, f"disk '{disk}' does not exist")
    drive = properties.parse(machine.config[disk], "file")
    volume = cluster.volumes_of(machine.node, drive["file"].partition(":")[0])[drive["file"]]
    try:
        size = properties.size_in_bytes(wanted.lstrip("+")) + (volume.size if wanted.startswith("+") else 0)
    except ValueError:
        raise invalid(size="value does not match the regex pattern") from None
    if size < volume.size:
        raise PveError(500, "shrinking disks is not supported")
    volume.size = size
    machine.config[disk] = properties.join({**drive, "size": properties.size_in_words(size)}, "file")


def check_start(cluster: Cluster, vmid: int) -> None:
    """Raise unless the devices that a machine wants are there and free.

    Raises:
        PveError: 500, with the task's words.
    """
    machine = cluster.machines[vmid]
    custom = properties.parse(machine.config.get("cicustom", ""))
    for snippet in custom.values():
        if snippet not in cluster.volumes_of(machine.node, snippet.partition(":")[0]):
            raise PveError(500, f"volume '{snippet}' does not exist")
    mine = _mapped(cluster, machine)
    for other, running in cluster.machines.items():
        if other != vmid and running.running and running.node == machine.node:
            for device in _mapped(cluster, running):
                if any(device.address == own.address for own in mine):
                    raise PveError(500, f"PCI device '{device.address}' already in use by VMID '{other}'")


def _mapped(cluster: Cluster, machine: Machine) -> list[Device]:
    found = []
    for name, value in machine.config.items():
        mapping = properties.parse(value, "host").get("mapping") if _HOSTPCI.fullmatch(name) else None
        if mapping is None:
            continue
        if mapping not in cluster.mappings:
            raise PveError(500, f"PCI device mapping '{mapping}' does not exist")
        entries = [properties.parse(entry) for entry in cluster.mappings[mapping].entries]
        here = [entry for entry in entries if entry.get("node") == machine.node]
        if not here:
            raise PveError(500, f"no device in mapping '{mapping}' for node '{machine.node}'")
        found.append(_device(cluster, machine.node, mapping, here[0]))
    return found


def _device(cluster: Cluster, node: str, mapping: str, entry: dict[str, str]) -> Device:
    path = entry["path"]
    address = path if "." in path else f"{path}.0"
    device = next((one for one in cluster.nodes[node].devices if one.address == address), None)
    if device is None:
        raise PveError(500, f"PCI device mapping invalid (hardware probably changed): pci device '{path}' not found")
    expected = {
        "id": f"{device.vendor}:{device.device}".replace("0x", ""),
        "subsystem-id": f"{device.subsystem_vendor}:{device.subsystem_device}".replace("0x", ""),
        "iommugroup": str(device.iommu_group),
    }
    for key, value in expected.items():
        if key in entry and entry[key] != value:
            raise PveError(
                500,
                f"PCI device mapping invalid (hardware probably changed): '{key}' does not match for '{mapping}' "
                f"({value} != {entry[key]})",
            )
    return device


def mapping_problem(cluster: Cluster, node: str, name: str) -> str | None:
    """Why a node cannot use a mapping; None where it can."""
    entries = [properties.parse(entry) for entry in cluster.mappings[name].entries]
    here = [entry for entry in entries if entry.get("node") == node]
    if not here:
        return f"No mapping for node {node}"
    try:
        for entry in here:
            _device(cluster, node, name, entry)
    except PveError as error:
        return f"Configuration for {name} not correct ('{error.message}')"
    return None


def shown(machine: Machine) -> dict[str, object]:
    """A configuration as the API answers it."""
    text = "\n".join(f"{name}: {value}" for name, value in sorted(machine.config.items()))
    return {
        **{name: int(value) if name in _INTEGERS else value for name, value in machine.config.items()},
        "digest": hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
    }
