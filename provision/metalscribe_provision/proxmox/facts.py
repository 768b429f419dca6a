"""What the deploys ask a cluster through pvesh and pveum, which speak with the API as root@pam."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase
from typing_extensions import override

from metalscribe_provision.proxmox import access, mapping, storage

_MARK: Final = "== metalscribe =="


class Node(FactBase[str]):
    """This node's name in the cluster; empty on a machine that is no Proxmox host."""

    default = str

    @override
    def command(self) -> str:
        return "! command -v pvesh >/dev/null || hostname --short"

    @override
    def process(self, output: Iterable[str]) -> str:
        return "".join(output).strip()


class PciMappings(FactBase[mapping.Mappings]):
    """The cluster's PCI mappings."""

    default = mapping.Mappings

    @override
    def command(self) -> str:
        return "pvesh get /cluster/mapping/pci --output-format json"

    @override
    def process(self, output: Iterable[str]) -> mapping.Mappings:
        try:
            return mapping.parse_mappings("\n".join(output))
        except ValueError as error:
            raise FactProcessError(f"pvesh printed no PCI mappings: {error}") from error


class MappingUsers(FactBase[tuple[str, ...]]):
    """Ids of this node's virtual machines that have a mapping in their configuration."""

    default = tuple

    @override
    def command(self, pci_mapping: str) -> str:
        pattern = shlex.quote(rf"^hostpci[0-9]*:.*mapping={pci_mapping}(,|$)")
        return (
            f'for config in /etc/pve/qemu-server/*.conf; do [ ! -f "$config" ] || ! grep -Eqs {pattern} "$config" || '
            'basename "$config" .conf; done'
        )

    @override
    def process(self, output: Iterable[str]) -> tuple[str, ...]:
        return tuple(line.strip() for line in output)


class TerraformAccess(FactBase[access.Access]):
    """What the cluster has of Terraform's role, user and token."""

    default = access.Access

    @override
    def command(self, user: str, token: str) -> str:
        quoted = shlex.quote(user)
        listings = ("role list", "user list", "acl list")
        tokens = f"pveum user token list {quoted} --output-format json 2>/dev/null || echo '[]'"
        parts = [f"pveum {listing} --output-format json" for listing in listings]
        return "set -e; " + f"; echo; echo '{_MARK}'; ".join([*parts, tokens])

    @override
    def process(self, output: Iterable[str]) -> access.Access:
        said = "\n".join(output).split(_MARK)
        try:
            roles, users, acl, tokens = said
            return access.parse_access(roles, users, acl, tokens)
        except (ValueError, KeyError) as error:
            raise FactProcessError(f"pveum printed no lists of roles, users and rights: {error}") from error


class StorageConfig(FactBase[storage.Storage]):
    """A storage as the cluster has it configured; without a path where there is none of that name."""

    default = storage.Storage

    @override
    def command(self, storage_name: str) -> str:
        return f"pvesh get {shlex.quote(f'/storage/{storage_name}')} --output-format json 2>/dev/null || echo '{{}}'"

    @override
    def process(self, output: Iterable[str]) -> storage.Storage:
        try:
            return storage.parse_storage("\n".join(output))
        except ValueError as error:
            raise FactProcessError(f"pvesh printed no storage: {error}") from error
