"""Names the passed devices for the cluster's virtual machines, and lets Terraform in."""

from __future__ import annotations

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host
from pyinfra.operations import files

from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.passthrough.data import Passthrough, ProxmoxData
from metalscribe_provision.passthrough.facts import Bus
from metalscribe_provision.passthrough.refusal import Refused
from metalscribe_provision.passthrough.selection import choose
from metalscribe_provision.proxmox import operations
from metalscribe_provision.proxmox.facts import MappingUsers, Node, StorageConfig


def in_use(data: ProxmoxData) -> None:
    """Refuse to take devices back that virtual machines are configured with.

    Raises:
        DeployError: some are; they would not start any more.
    """
    if data.passthrough is Passthrough.PRESENT or not host.get_fact(Node):
        return
    machines = host.get_fact(MappingUsers, pci_mapping=data.pci_mapping)
    if machines:
        raise DeployError(
            f"{host.name}: the mapping {data.pci_mapping} is in the configuration of VM {', '.join(machines)}: destroy them (terraform "
            "destroy) or take the device out of them first. Nothing was changed"
        )


@deploy("Mapping")
def mapping(data: ProxmoxData) -> None:
    """The cluster's PCI mapping for this node's devices; after ``passthrough``, which has proven them."""
    node = host.get_fact(Node)
    if not node:
        logger.warning("%s has no pvesh: it is no Proxmox host, and there is no mapping", host.name)
        return
    if data.passthrough is Passthrough.ABSENT:
        operations.unmapped(
            mapping=data.pci_mapping, node=node, _serial=True, name=f"No mapping {data.pci_mapping} for this node"
        )
        return
    try:
        cards = choose(host.get_fact(Bus), data.passthrough_devices, boot_vga=data.passthrough_boot_vga)
    except Refused as refused:
        raise DeployError(f"{host.name}: {refused}") from refused
    operations.mapped(
        mapping=data.pci_mapping, cards=cards, node=node, _serial=True, name=f"Mapping {data.pci_mapping} for this node"
    )


@deploy("Image storage")
def image_storage(data: ProxmoxData) -> None:
    """Where the cloud image goes, and what its cloud-init does: Terraform cannot put that there without logging in to the node.

    Raises:
        DeployError: the storage is no folder on this node.
    """
    if not host.get_fact(Node):
        return
    snippet = host.get_fact(StorageConfig, storage_name=data.image_storage).snippet
    if data.passthrough is Passthrough.ABSENT:
        if snippet is not None:
            files.file(path=str(snippet), present=False, name=f"No {snippet}")
        return
    if snippet is None:
        raise DeployError(
            f"{host.name}: image_storage={data.image_storage} is no storage with a folder on this node: name one of the type dir, "
            "such as local (Datacenter, Storage)"
        )
    operations.contents(
        storage=data.image_storage, _serial=True, name=f"Storage {data.image_storage} may hold images and snippets"
    )
    files.put(
        src=str(CHECKOUT / "terraform" / "vendor-data.yaml"),
        dest=str(snippet),
        mode="644",
        create_remote_dir=True,
        name=f"What cloud-init does besides user and keys, {snippet}",
    )


@deploy("API token")
def api_token(data: ProxmoxData) -> None:
    """Role, user and token of Terraform; the token's secret goes to the machine that deploys, and nowhere else.

    Host by host: those of one cluster share all of it, and the first one makes it.
    """
    if data.passthrough is Passthrough.ABSENT or not data.terraform_access or not host.get_fact(Node):
        return
    endpoint = data.proxmox_endpoint or f"https://{host.data.get('ssh_hostname') or host.name}:8006/"
    user, token = data.terraform_user, data.terraform_token_name
    operations.role(user=user, token=token, _serial=True, name="Role for Terraform")
    operations.user(user=user, token=token, _serial=True, name=f"User {data.terraform_user}")
    operations.token(
        user=user,
        token=token,
        file=data.terraform_env,
        endpoint=endpoint,
        _serial=True,
        name=f"Token in {data.terraform_env}",
    )
