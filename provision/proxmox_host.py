"""A Proxmox host whose GPU is for a virtual machine: ``pyinfra @ansible/inventory.ini provision/proxmox_host.py --limit pve1``."""

from collections.abc import Sequence

from pyinfra import host, inventory
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.passthrough.data import parse_proxmox_hosts
from metalscribe_provision.passthrough.deploy import passthrough
from metalscribe_provision.proxmox.deploy import api_token, image_storage, in_use, mapping


def belongs(groups: Sequence[str]) -> bool:
    """Tell a Proxmox host: one of that group, or one that is named on the command line (pyinfra's groups for those begin with @)."""
    return "proxmox_hosts" in groups or all(group.startswith("@") for group in groups)


if not belongs(host.groups):
    raise DeployError(
        f"{host.name} is not in the group proxmox_hosts: add it there, or choose hosts with --limit proxmox_hosts"
    )

# The data of all hosts, so that one run tells of every mistake; nothing is planned anywhere before they are right.
chosen = sorted((each for each in inventory.get_active_hosts() if belongs(each.groups)), key=str)
data = parse_proxmox_hosts({each.name: each.data.dict() for each in chosen})[host.name]

in_use(data)
passthrough(data)
mapping(data)
image_storage(data)
api_token(data)
