"""The packet filter as text. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from metalscribe_provision.common import ETC
from metalscribe_provision.hostdata import AcmeChallenge, HostData, Tls

OWN_RULES: Final = ETC / "firewall.d"
SSH: Final = 22

_HTTP: Final = 80

_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  (nft's language, not HTML)
)


def ruleset(data: HostData, ssh_ports: Collection[int], own_rules: str = str(OWN_RULES)) -> str:
    """A file for ``nft -f`` that replaces our table.

    Args:
        data: the host as its operator wants it.
        ssh_ports: what stays open for SSH, see :func:`ssh_ports_of`.
        own_rules: folder of the operator's own rules.
    """
    networks = [ipaddress.ip_network(network) for network in data.https_allow]
    answers_acme = data.tls is Tls.ACME and data.acme_challenge is AcmeChallenge.HTTP_01
    values: dict[str, Any] = {
        "own_rules": own_rules,
        "ssh_ports": sorted(ssh_ports),
        "https_port": data.https_port,
        "https_everybody": not networks,
        "https_ipv4": _merged(network for network in networks if isinstance(network, ipaddress.IPv4Network)),
        "https_ipv6": _merged(network for network in networks if isinstance(network, ipaddress.IPv6Network)),
        "http_port": _HTTP if answers_acme else None,
    }
    return _TEMPLATES.get_template("ruleset.nft.j2").render(values)


def ssh_ports_of(wanted: Sequence[int], connection: str, configured: int | None) -> frozenset[int]:
    """The ports that SSH keeps.

    The one that the deploy itself came in by is always among them: whoever runs it must be able to come again.

    Args:
        wanted: ``ssh_ports``.
        connection: ``SSH_CONNECTION`` (sshd(8): client's address and port, server's address and port), empty without SSH.
        configured: the port that the inventory names, for when the host does not tell.
    """
    words = connection.split()
    own = int(words[3]) if len(words) == 4 and words[3].isdigit() else None
    if own is not None:
        return frozenset({*wanted, own})
    return frozenset(wanted) or frozenset({configured or SSH})


def _merged(networks: Any) -> list[str]:
    """nft takes no set of networks that overlap."""
    return [str(network) for network in ipaddress.collapse_addresses(networks)]
