"""Ansible's connection variables as pyinfra's: how a host is reached, as whom, and how it becomes root.

Names and precedence are those of Ansible's plugins ``ssh`` and ``sudo``
(https://docs.ansible.com/ansible/latest/collections/ansible/builtin/ssh_connection.html); where a variable has several
names, the last one wins, as there. What pyinfra's SSH client cannot do is named as a problem: nothing that a connection's
security hangs on is left out in silence. ``ansible.cfg`` is not consulted for connections, only the inventory is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SECRETS: Final = frozenset(
    {
        *("ansible_password", "ansible_ssh_pass", "ansible_ssh_password"),
        *("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass"),
    }
)
"""Variables that hold a password: they are handed on under pyinfra's name alone."""

ARGUMENTS: Final = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")
"""Variables that hold arguments of ``ssh``."""

_TEXTS: Final = {
    "ssh_hostname": ("ansible_host", "ansible_ssh_host"),
    "ssh_user": ("ansible_user", "ansible_ssh_user"),
    "ssh_key": ("ansible_private_key_file", "ansible_ssh_private_key_file"),
    "ssh_password": ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password"),
}

_REFUSED: Final = {
    "ansible_private_key": "name the key's file in ansible_ssh_private_key_file",
    "ansible_ssh_private_key": "name the key's file in ansible_ssh_private_key_file",
    "ansible_ssh_pkcs11_provider": "load the token into ssh-agent (ssh-add -s)",
    "ansible_ssh_executable": "connections are made in Python, not by an ssh program",
    "ansible_paramiko_proxy_command": "write ansible_ssh_common_args='-o ProxyCommand=…'",
    "ansible_become_exe": "sudo is called by its name",
    "ansible_sudo_exe": "sudo is called by its name",
    "ansible_become_flags": "sudo is called with the deploy's own flags",
    "ansible_sudo_flags": "sudo is called with the deploy's own flags",
}

_OVER_SSH: Final = frozenset({"ssh", "smart", "paramiko", "paramiko_ssh"})

_FLAGS: Final = {
    "J": "proxyjump",
    "p": "port",
    "l": "user",
    "i": "identityfile",
    "F": "configfile",
    "o": "",  # its value names the option
}
"""Flags of ssh(1) that take a value, as the option of ssh_config(5) that they stand for."""

_WITHOUT_EFFECT: Final = frozenset(
    {
        *(
            "controlmaster",
            "controlpersist",
            "controlpath",
            "compression",
            "loglevel",
            "tcpkeepalive",
            "serveralivecountmax",
        ),
        *("batchmode", "connectionattempts", "preferredauthentications", "addressfamily", "requesttty", "sendenv"),
        *("hashknownhosts", "updatehostkeys", "visualhostkey", "globalknownhostsfile", "gssapiauthentication"),
        *("passwordauthentication", "kbdinteractiveauthentication"),
    }
)
"""Options that pyinfra's connection, which never asks and keeps its one connection open, is as good or as strict without."""

_BY_CONFIGURATION: Final = {
    "proxyjump": "ProxyJump",
    "proxycommand": "ProxyCommand",
    "identityagent": "IdentityAgent",
    "connecttimeout": "ConnectTimeout",
    "serveraliveinterval": "ServerAliveInterval",
}
"""Options that pyinfra takes from an SSH configuration file only."""

_HOST_KEY_CHECKING: Final = {
    **{word: word for word in ("yes", "no", "ask", "accept-new")},
    "true": "yes",
    "false": "no",
    "off": "no",
}


@dataclass(slots=True)
class Connection:
    """How one host is reached."""

    data: dict[str, Any] = field(default_factory=dict)
    """pyinfra's host data: ``ssh_*``, and ``_sudo*``."""

    configuration: dict[str, str] = field(default_factory=dict)
    """Options (ssh_config(5)) that have to be in the host's SSH configuration file, ``ssh_config_file``."""

    problems: list[str] = field(default_factory=list)
    """What cannot be honoured, each with the variable's name, never with its value."""


def connection(variables: Mapping[str, Any]) -> Connection:
    """Translate one host's variables; the rest of them is left alone."""
    result = Connection()
    kind = str(variables.get("ansible_connection") or "ssh").lower()
    if kind.removeprefix("ansible.builtin.").removeprefix("ansible.legacy.") not in _OVER_SSH:
        result.problems.append(f"ansible_connection={kind} cannot be honoured: hosts are reached over SSH")
        return result
    for name, remedy in _REFUSED.items():
        if variables.get(name):
            result.problems.append(f"{name} cannot be honoured: {remedy}")
    # In the order of Ansible's ssh command line, where the first mention of an option counts.
    _take_arguments(result, variables, "ansible_ssh_args")
    _take_variables(result, variables)
    _take_arguments(result, variables, "ansible_ssh_common_args")
    _take_arguments(result, variables, "ansible_ssh_extra_args")
    _take_sudo(result, variables)
    return result


def configuration_file(host: str, reached: Connection, base: str) -> str:
    """Render the SSH configuration file of one host, whose own options go before those of the file ``base``."""
    own = dict(reached.configuration)
    # For %p and %r in a ProxyCommand, which are filled in from the file alone.
    for option, key in (("Port", "ssh_port"), ("User", "ssh_user")):
        if key in reached.data:
            own[option] = str(reached.data[key])
    lines = [
        f"Host {reached.data.get('ssh_hostname', host)}",
        *(f"  {option} {value}" for option, value in own.items()),
    ]
    return "\n".join([*lines, "Host *", f"Include {base}", ""])


def _take_variables(result: Connection, variables: Mapping[str, Any]) -> None:
    for key, names in _TEXTS.items():
        name, value = _last(variables, names)
        if value is None:
            continue
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            result.data.setdefault(key, str(value))
        else:
            result.problems.append(f"{name} has to be text")
    name, value = _last(variables, ("ansible_port", "ansible_ssh_port"))
    if value is not None:
        _take_port(result, value, name)
    name, value = _last(variables, ("ansible_host_key_checking", "ansible_ssh_host_key_checking"))
    if value is not None:
        checking = _boolean(value)
        if checking is None:
            result.problems.append(f"{name} is neither true nor false")
        else:
            result.data.setdefault("ssh_strict_host_key_checking", "yes" if checking else "no")


def _take_sudo(result: Connection, variables: Mapping[str, Any]) -> None:
    value = variables.get("ansible_become")
    if value is None:
        return
    become = _boolean(value)
    if become is None:
        result.problems.append("ansible_become is neither true nor false")
        return
    result.data["_sudo"] = become
    if not become:
        return
    method = str(variables.get("ansible_become_method") or "sudo")
    if method.removeprefix("ansible.builtin.") != "sudo":
        result.problems.append(f"ansible_become_method={method} cannot be honoured: root is reached by sudo")
    _, user = _last(variables, ("ansible_become_user", "ansible_sudo_user"))
    if user is not None and user != "root":  # who sudo means anyway; naming root would need setfacl on the host
        result.data["_sudo_user"] = str(user)
    _, password = _last(variables, ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass"))
    if password is not None:
        result.data["_sudo_password"] = str(password)


def _take_arguments(result: Connection, variables: Mapping[str, Any], name: str) -> None:
    text = variables.get(name)
    if not text:
        return
    try:
        options = list(_options(str(text)))
    except ValueError as error:
        result.problems.append(f"{name}: {error}")
        return
    for option, value in options:
        _take_option(result, option, value, name)


def _take_option(result: Connection, option: str, value: str, source: str) -> None:
    plain = {
        "user": "ssh_user",
        "hostname": "ssh_hostname",
        "identityfile": "ssh_key",
        "configfile": "ssh_config_file",
        "userknownhostsfile": "ssh_known_hosts_file",
    }
    if option in plain:
        if option == "userknownhostsfile" and len(value.split()) > 1:
            result.problems.append(f"{source}: UserKnownHostsFile can be one file only")
        result.data.setdefault(plain[option], value)
    elif option in _BY_CONFIGURATION:
        # A jump host and a proxy command exclude each other: the first of them counts.
        taken = set(result.configuration)
        if not (option.startswith("proxy") and taken & {"ProxyJump", "ProxyCommand"}):
            result.configuration.setdefault(_BY_CONFIGURATION[option], value)
    elif option == "port":
        _take_port(result, value, f"{source}: Port")
    elif option == "stricthostkeychecking":
        if value.lower() in _HOST_KEY_CHECKING:
            result.data.setdefault("ssh_strict_host_key_checking", _HOST_KEY_CHECKING[value.lower()])
        else:
            result.problems.append(f"{source}: StrictHostKeyChecking is yes, no, ask or accept-new")
    elif option == "forwardagent" and _boolean(value) is not None:
        result.data.setdefault("ssh_forward_agent", _boolean(value))
    elif option == "identitiesonly" and _boolean(value) is not None:
        result.data.setdefault("ssh_allow_agent", not _boolean(value))
    elif option not in _WITHOUT_EFFECT:
        result.problems.append(f"{source}: {option} cannot be honoured; leave it out, or put it into ~/.ssh/config")


def _take_port(result: Connection, value: Any, name: str) -> None:
    text = str(value)
    if text.isdecimal() and 1 <= int(text) <= 65535:
        result.data.setdefault("ssh_port", int(text))
    else:
        result.problems.append(f"{name} is not a port")


def _options(arguments: str) -> Iterator[tuple[str, str]]:
    """Yield ssh's arguments as options of ssh_config(5) in lower case, flags that only change its output left out.

    Raises:
        ValueError: an argument is unknown, or lacks its value.
    """
    words = iter(shlex.split(arguments))
    for word in words:
        if len(word) < 2 or word[0] != "-":
            raise ValueError("an argument is no option of ssh")
        flag = word[1]
        if flag in "Aa" and len(word) == 2:
            yield "forwardagent", "yes" if flag == "A" else "no"
        elif flag in _FLAGS:
            value = word[2:] or next(words, "")
            option = _FLAGS[flag]
            if flag == "o":
                option, separator, value = value.replace("=", " ", 1).strip().partition(" ")
                value = value.strip().strip('"') if separator else ""
            if not value:
                raise ValueError(f"-{flag} lacks its value")
            yield option.lower(), value
        elif set(word[1:]) - set("CqvTtx46"):
            raise ValueError(f"-{flag} cannot be honoured")


def _last(variables: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """Return the last of these names that is set, and its value; an empty one is not set."""
    for name in reversed(names):
        value = variables.get(name)
        if value is not None and value != "":
            return name, value
    return names[-1], None


def _boolean(value: Any) -> bool | None:
    """Ansible's truth values; None for anything else."""
    text = str(value).lower()
    if text in {"y", "yes", "on", "1", "true", "t", "1.0"}:
        return True
    return False if text in {"n", "no", "off", "0", "false", "f", "0.0"} else None
