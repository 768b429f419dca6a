"""Who Terraform is in the cluster: a role with what the module does and nothing more, a user that has it, a token of that user."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ROLE: Final = "MetalscribeTerraform"

PRIVILEGES: Final = (
    *("VM.Allocate", "VM.Audit", "VM.PowerMgmt", "VM.GuestAgent.Audit"),
    *(f"VM.Config.{part}" for part in ("CDROM", "CPU", "Cloudinit", "Disk", "HWType", "Memory", "Network", "Options")),
    *("Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit"),
    *("Mapping.Audit", "Mapping.Modify", "Mapping.Use"),
    *("Pool.Audit", "SDN.Use", "Sys.Audit", "Sys.Modify"),
)
"""What the Terraform module needs: machines, their disks and image, the mapping, and the node's own data.

Proxmox asks for Datastore.Allocate where an image is deleted, for Sys.Modify (with Sys.Audit) where one is downloaded.
"""

_BEFORE_9: Final = {"VM.GuestAgent.Audit": "VM.Monitor"}
"""Proxmox VE 9 parted what the guest agent may be asked; before, one privilege held for all of it."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a cluster has of roles, users, rights and of one user's tokens.

    Attributes:
        roles: name → privileges; Administrator has all that this version of Proxmox knows.
        users: ids, such as metalscribe@pve.
        grants: (user, path, role) of those that are inherited downwards.
        tokens: names of the one user's.
    """

    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)
    users: frozenset[str] = frozenset()
    grants: frozenset[tuple[str, str, str]] = frozenset()
    tokens: frozenset[str] = frozenset()

    @property
    def privileges(self) -> tuple[str, ...]:
        """What the role is to have, as this version calls it."""
        known = self.roles.get("Administrator", frozenset())
        named = (name if name in known else _BEFORE_9.get(name, name) for name in PRIVILEGES)
        return tuple(name for name in named if name in known)


def parse_access(roles: str, users: str, acl: str, tokens: str) -> Access:
    """What ``pveum … --output-format json`` printed for roles, users, the access list and the user's tokens.

    Raises:
        ValueError: it is not that.
    """
    return Access(
        roles={str(one["roleid"]): frozenset(str(one.get("privs", "")).split(",")) - {""} for one in _objects(roles)},
        users=frozenset(str(one["userid"]) for one in _objects(users)),
        grants=frozenset(
            (str(one["ugid"]), str(one["path"]), str(one["roleid"]))
            for one in _objects(acl)
            if one["type"] == "user" and int(one.get("propagate", 1)) == 1
        ),
        tokens=frozenset(str(one["tokenid"]) for one in _objects(tokens)),
    )


def token_secret(answer: str) -> tuple[str, str]:
    """Full name and secret of a token, of what ``pveum user token add … --output-format json`` printed.

    Raises:
        ValueError: it is not that.
    """
    found: Mapping[str, Any] = json.loads(answer)
    if "full-tokenid" not in found or "value" not in found:
        raise ValueError("pveum gave no token")
    return str(found["full-tokenid"]), str(found["value"])


def environment(endpoint: str, name: str, secret: str) -> str:
    """The file that a shell reads before ``terraform``: where the API is, and the token."""
    return (
        "# Written by metalscribe: `. this file` before terraform. It holds the token's secret; keep it to yourself.\n"
        f"export PROXMOX_VE_ENDPOINT='{endpoint}'\n"
        f"export PROXMOX_VE_API_TOKEN='{name}={secret}'\n"
    )


def _objects(text: str) -> Sequence[Mapping[str, Any]]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("not a list of objects")
    return found
