"""What Ansible's commands say about an inventory, read: hosts and groups, values that still need Ansible, and its messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from metalscribe_provision.ansible_connection import ARGUMENTS, SECRETS
from metalscribe_provision.hostdata import HostData
from metalscribe_provision.service_settings import SETTING_PREFIX

OUR_GROUPS: Final = ("gpu_hosts", "proxmox_hosts")
"""Groups of metalscribe's own hosts; an inventory may hold others beside them."""

_CONNECTION: Final = re.compile(
    r"ansible_((ssh_)?(host|port|user|password|private_key|private_key_file|host_key_checking)|connection|(become|sudo)(_\w+)?|"
    r"ssh_(pass|executable|pkcs11_provider)|paramiko_proxy_command)"
)


@dataclass(frozen=True, slots=True)
class InventoryHost:
    """One host: its groups from ``all`` downwards, and its variables as merged by Ansible."""

    name: str
    groups: tuple[str, ...]
    variables: Mapping[str, Any]


def parse_inventory(text: str) -> list[InventoryHost]:
    """Read ``ansible-inventory --list``, hosts in the inventory's order.

    Raises:
        ValueError: it is not what that command prints.
    """
    listing = json.loads(text)
    if not isinstance(listing, dict):
        raise ValueError("not an inventory")  # noqa: TRY004  (its text is wrong, whatever the type)
    variables = listing.get("_meta", {}).get("hostvars", {})
    groups: dict[str, list[str]] = {}
    for host, group in _members(listing, "all", ()):
        groups.setdefault(host, []).extend(name for name in group if name not in groups.get(host, ()))
    return [InventoryHost(name, tuple(inside), variables.get(name, {})) for name, inside in groups.items()]


def unresolved(variables: Mapping[str, Any]) -> list[str]:
    """Names of the variables that matter here and that only Ansible can read: templates, and values that are vaulted singly."""
    return [name for name, value in variables.items() if _matters(name) and _needs_ansible(value)]


def parse_debug(text: str) -> dict[str, Any]:
    """Read what ``ansible -m debug`` prints: the message per host, or None for a host that it failed for."""
    values: dict[str, Any] = {}
    decoder = json.JSONDecoder()
    for found in re.finditer(r"^(\S+) \| (SUCCESS|FAILED!|UNREACHABLE!) => (?={)", text, re.MULTILINE):
        result, _ = decoder.raw_decode(text, found.end())
        values[found[1]] = result.get("msg") if found[2] == "SUCCESS" else None
    return values


def messages(stderr: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of an Ansible command, each in one line.

    Ansible quotes the line of an inventory that it cannot read; the values in it are left out here, they may be secrets.
    """
    errors: list[str] = []
    warnings: list[str] = []
    for block in re.split(r"^(?=\[?(?:ERROR|WARNING|DEPRECATION WARNING)\]?: )", stderr, flags=re.MULTILINE):
        kind, separator, rest = block.partition(": ")
        if not separator or kind.strip("[]") not in {"ERROR", "WARNING", "DEPRECATION WARNING"}:
            continue
        text = _without_values(" ".join(rest.split("\n\n")[0].split()))
        target = errors if "ERROR" in kind else warnings
        if text not in target:
            target.append(text)
    return errors, warnings


def _members(listing: Mapping[str, Any], group: str, above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every host below ``group`` with the groups on the way to it."""
    entry = listing.get(group, {})
    inside = (*above, group)
    for host in entry.get("hosts", ()):
        yield host, inside
    for child in entry.get("children", ()):
        yield from _members(listing, child, inside)


def _matters(name: str) -> bool:
    return (
        name in HostData.model_fields
        or name in SECRETS
        or name in ARGUMENTS
        or name.startswith((SETTING_PREFIX, "ssh_"))
        or _CONNECTION.fullmatch(name) is not None
    )


def _needs_ansible(value: Any) -> bool:
    if isinstance(value, str):
        return any(mark in value for mark in ("{{", "{%"))
    if isinstance(value, Mapping):
        return "__ansible_vault" in value or any(map(_needs_ansible, value.values()))
    return isinstance(value, list) and any(map(_needs_ansible, value))


def _without_values(text: str) -> str:
    text = re.sub(r"(?<=got: )(\S+)\s.*", r"\1 …", text)
    return re.sub(r"(?<=\w)=(?!value,)(\"[^\"]*\"|'[^']*'|[^\s'\"]+)", "=…", text)
