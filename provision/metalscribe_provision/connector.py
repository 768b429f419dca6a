"""pyinfra's ``@ansible/FILE``: the hosts of an Ansible inventory, reached over SSH.

Ansible itself reads the inventory (``ansible-inventory --list``), so ranges, children, ``group_vars/``, ``host_vars/``,
dynamic inventories and the vault are what they are in its playbooks, the vault's password included
(``ANSIBLE_VAULT_PASSWORD_FILE``, or ``vault_password_file`` in ``ansible.cfg``). Templates in the variables that matter
here, and values that are vaulted singly, are resolved by Ansible too (``ansible -m debug``), only where there are some.

Hosts have their inventory's names and groups: ``--limit gpu1``, ``--limit gpu_hosts``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import platformdirs
from pyinfra import logger
from pyinfra.api.exceptions import InventoryError
from pyinfra.connectors.base import BaseConnector

from metalscribe_provision.ansible_connection import SECRETS, Connection, configuration_file, connection
from metalscribe_provision.ansible_inventory import (
    OUR_GROUPS,
    InventoryHost,
    messages,
    parse_debug,
    parse_inventory,
    unresolved,
)
from metalscribe_provision.transport import prompt_transport

_ENVIRONMENT: Final = {
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",  # whatever ansible.cfg prefers to look at
    "ANSIBLE_FORCE_COLOR": "false",
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",  # by default that is a warning, and no hosts
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "false",  # the format of parse_debug
    "ANSIBLE_LOG_PATH": os.devnull,  # what is printed here holds secrets
    "ANSIBLE_NOCOLOR": "true",
}

Names = Iterator[tuple[str, dict[str, Any], list[str]]]


class AnsibleInventoryConnector(BaseConnector):
    """Read an Ansible inventory, for example ``pyinfra @ansible/inventory.ini provision/site.py --limit gpu_hosts``."""

    handles_execution = False

    @staticmethod
    def make_names_data(name: str | None = None) -> Names:
        """Yield each host's name, data and groups.

        Raises:
            InventoryError: the inventory cannot be read, or says something about a connection that cannot be honoured.
        """
        if not name:
            raise InventoryError("@ansible needs the inventory's file: @ansible/inventory.ini")
        # pyinfra asks twice for one run, and writes into what it gets.
        for host, data, groups in _read(name):
            yield host, dict(data), list(groups)


@functools.cache
def _read(file: str) -> list[tuple[str, dict[str, Any], tuple[str, ...]]]:
    described, problems = [], []
    for host, missing in _resolved(file, _hosts(file)):
        reached = connection(host.variables)
        reached.problems += [f"Ansible cannot resolve {variable} before it knows the host" for variable in missing]
        own = (variable for variable in host.variables if variable.startswith("_"))
        reached.problems += [f"{variable} is pyinfra's own, write ansible_become and its like" for variable in own]
        if not reached.problems:
            described.append((host.name, _data(host, reached), host.groups))
        elif set(OUR_GROUPS).intersection(host.groups):
            problems += [f"{host.name}: {problem}" for problem in reached.problems]
        else:  # somebody else's host: nothing is to be done to it here
            logger.warning("%s is left out of the inventory: %s", host.name, "; ".join(reached.problems))
    if problems:
        raise InventoryError(f"{file}: " + "; ".join(problems))
    return described


def _hosts(file: str) -> list[InventoryHost]:
    if not Path(file).exists():
        raise InventoryError(f"{file}: there is no such inventory; inventory.example.ini is one to begin with")
    listing = _ansible("ansible-inventory", "-i", file, "--list")
    errors, warnings = messages(listing.stderr)
    if listing.returncode != 0:
        raise InventoryError(f"{file}: {_reason(errors, warnings)}")
    for warning in warnings:
        logger.warning("ansible-inventory: %s", warning)
    hosts = parse_inventory(listing.stdout)
    if not hosts:
        raise InventoryError(f"{file}: there are no hosts in it")
    return hosts


def _resolved(file: str, hosts: Sequence[InventoryHost]) -> Iterator[tuple[InventoryHost, list[str]]]:
    """Let Ansible resolve what only it can; with each host, the variables that it could not."""
    wanted = {host.name: names for host in hosts if (names := unresolved(host.variables))}
    values: dict[str, Any] = {}
    if wanted:
        templates = {name: f"{{{{ {name} | default(none) }}}}" for names in wanted.values() for name in names}
        task = ("-m", "ansible.builtin.debug", "-a", json.dumps({"msg": templates}))
        debug = _ansible("ansible", "-i", file, *task, ",".join(wanted))
        errors, warnings = messages(debug.stderr)
        values = parse_debug(debug.stdout)
        if errors and not values:
            raise InventoryError(f"{file}: {_reason(errors, warnings)}")
    for host in hosts:
        found = values.get(host.name) or {}
        known = {name: found[name] for name in wanted.get(host.name, ()) if found.get(name) is not None}
        missing = [name for name in wanted.get(host.name, ()) if name not in known]
        rest = {name: value for name, value in host.variables.items() if name not in missing}
        yield InventoryHost(host.name, host.groups, {**rest, **known}), missing


def _data(host: InventoryHost, reached: Connection) -> dict[str, Any]:
    variables = {name: value for name, value in host.variables.items() if name not in SECRETS}
    data = {"ssh_paramiko_connect_kwargs": {"transport_factory": prompt_transport}, **reached.data, **variables}
    if reached.configuration:
        base = str(data.get("ssh_config_file", "~/.ssh/config"))
        data["ssh_config_file"] = str(_written(configuration_file(host.name, reached, base)))
    return data


def _written(configuration: str) -> Path:
    """Write an SSH configuration file, which is all that pyinfra takes a jump host from, where the same one is found again."""
    folder = platformdirs.user_cache_path("metalscribe") / "ssh"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / hashlib.sha256(configuration.encode()).hexdigest()[:16]
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            file.write(configuration)
        Path(file.name).replace(path)
    return path


def _ansible(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the Ansible that is installed beside this Python."""
    path = Path(sys.executable).parent / command
    try:
        return subprocess.run(  # noqa: S603  (a list, no shell)
            [path, *arguments],
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    except FileNotFoundError:
        raise InventoryError(
            f"{path} is missing: install metalscribe with its extra provision, which brings Ansible"
        ) from None


def _reason(errors: Sequence[str], warnings: Sequence[str]) -> str:
    reason = "; ".join([*warnings, *errors]) or "ansible-inventory failed without a word"
    if "vault secrets" in reason:
        reason += (
            " Name the vault's password file in ANSIBLE_VAULT_PASSWORD_FILE, or in ansible.cfg (vault_password_file)."
        )
    if "YAML" in reason:  # Ansible does not say which file
        reason += " Look in group_vars/ and host_vars/ beside the inventory."
    return reason
