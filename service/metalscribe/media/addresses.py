"""Which addresses the service may connect to on a caller's behalf: public ones, and those the operator allows.

Pure judgement of numeric addresses; names are resolved, and the verdict enforced, in :mod:`metalscribe.media.network`.
The tables are written out rather than left to ``ipaddress.is_global``, whose answers differ between Python versions.

Known limit: a NAT64 gateway on a prefix of the operator's own (RFC 6052 §2.2, network-specific) looks like any public
address. Such a gateway must itself refuse private destinations.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from metalscribe.errors import AddressRefused, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class AddressPolicy:
    """Permits globally routable unicast addresses and the networks of ``allow_networks`` (e.g. ``10.20.0.0/16``).

    An IPv6 address that carries an IPv4 address is judged twice: both must be permitted. So ``::ffff:10.0.0.1`` needs
    ``::ffff:0:0/96`` *and* ``10.0.0.1`` to be allowed, and a host that reaches IPv4 through NAT64 allows
    ``64:ff9b::/96`` without opening its private IPv4 networks. For the local NAT64 prefix ``64:ff9b:1::/48`` the length
    of the allowed network tells where the IPv4 address sits, so allow exactly the prefix that the gateway uses.
    Addresses with a scope id (``fe80::1%eth0``) are never permitted.

    Raises:
        ConfigurationError: an entry of ``allow_networks`` is neither an address nor a network.
    """

    __slots__ = ("_allowed",)

    def __init__(self, allow_networks: Sequence[str] = ()) -> None:
        self._allowed = tuple(_network(text) for text in allow_networks)

    def check(self, ip: str | IPv4Address | IPv6Address) -> None:
        """Return if ``ip`` may be connected to.

        Raises:
            AddressRefused: it may not, or it is not a numeric address in its canonical spelling. The message names
                the kind of address but not the address, which may be one that the caller does not know.
        """
        kind = self._refusal(_address(ip))
        if kind is not None:
            raise AddressRefused(
                f"This address is {kind}, not on the public internet. "
                "The operator can permit its network in METALSCRIBE_ALLOW_NETWORKS."
            )

    def _refusal(self, address: IPv4Address | IPv6Address) -> str | None:
        """The kind of address that stands in the way, or None."""
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return "valid on one network link only"
        allowed = [network for network in self._allowed if network.version == address.version and address in network]
        if not allowed:
            kind = _special_v4(address) if isinstance(address, IPv4Address) else _special_v6(address)
            if kind is not None:
                return kind
        if isinstance(address, IPv6Address):
            prefix_length = max((network.prefixlen for network in allowed), default=0)
            for embedded in _embedded(address, prefix_length):
                kind = self._refusal(embedded)
                if kind is not None:
                    return f"a wrapping of one that is {kind}"
        return None


# --- special addresses ------------------------------------------------------------------------------------------------

# IANA IPv4 Special-Purpose Address Registry, multicast (RFC 5771), and one address that a cloud took from public space.
_SPECIAL_V4 = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),  # RFC 1122; Linux connects 0.0.0.0 to itself
        ("10.0.0.0/8", "private"),  # RFC 1918
        ("100.64.0.0/10", "shared by a carrier"),  # RFC 6598; also some clouds' metadata
        ("127.0.0.0/8", "loopback"),  # RFC 1122
        ("168.63.129.16/32", "a cloud's platform service"),  # Azure's WireServer
        ("169.254.0.0/16", "link-local"),  # RFC 3927; clouds' metadata at 169.254.169.254
        ("172.16.0.0/12", "private"),  # RFC 1918
        ("192.0.0.0/24", "reserved for protocols"),  # RFC 6890
        ("192.0.2.0/24", "for documentation"),  # RFC 5737
        ("192.88.99.0/24", "a 6to4 relay"),  # RFC 7526
        ("192.168.0.0/16", "private"),  # RFC 1918
        ("198.18.0.0/15", "for benchmarks"),  # RFC 2544
        ("198.51.100.0/24", "for documentation"),  # RFC 5737
        ("203.0.113.0/24", "for documentation"),  # RFC 5737
        ("224.0.0.0/4", "multicast"),  # RFC 5771
        ("240.0.0.0/4", "reserved"),  # RFC 1112, with the broadcast address
    )
)

# Everything outside global unicast is refused whatever it is; the names here only make messages clearer.
_GLOBAL_V6 = IPv6Network("2000::/3")  # RFC 4291, IANA IPv6 Global Unicast Address Assignments
_SPECIAL_V6 = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "an IPv4 address written as IPv6"),  # RFC 4291 §2.5.5.2
        ("64:ff9b::/96", "behind NAT64"),  # RFC 6052
        ("64:ff9b:1::/48", "behind NAT64"),  # RFC 8215
        ("2001::/32", "a Teredo tunnel"),  # RFC 4380
        (
            "2001::/23",
            "reserved for protocols",
        ),  # RFC 2928: benchmarks 2001:2::/48, ORCHID 2001:10::/28 and :20::/28, …
        ("2001:db8::/32", "for documentation"),  # RFC 3849
        ("2002::/16", "a 6to4 tunnel"),  # RFC 3056
        ("3fff::/20", "for documentation"),  # RFC 9637
        ("fc00::/7", "private"),  # RFC 4193; AWS's metadata at fd00:ec2::254
        ("fe80::/10", "link-local"),  # RFC 4291
        ("fec0::/10", "site-local"),  # RFC 3879
        ("ff00::/8", "multicast"),  # RFC 4291
    )
)


def _special_v4(address: IPv4Address) -> str | None:
    return next((kind for network, kind in _SPECIAL_V4 if address in network), None)


def _special_v6(address: IPv6Address) -> str | None:
    kind = next((kind for network, kind in _SPECIAL_V6 if address in network), None)
    if kind is None and address not in _GLOBAL_V6:
        return "reserved"
    if kind is None and _is_isatap(address):
        return "an ISATAP tunnel"
    return kind


# --- IPv4 inside IPv6 -------------------------------------------------------------------------------------------------

_COMPATIBLE = IPv6Network("::/96")  # RFC 4291 §2.5.5.1
_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_NAT64_LENGTHS = (48, 56, 64, 96)  # those of RFC 6052 §2.2 that fit into it
_SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056
_TEREDO = IPv6Network("2001::/32")  # RFC 4380
_LOW_32 = 0xFFFF_FFFF


def _embedded(address: IPv6Address, prefix_length: int) -> Iterator[IPv4Address]:
    """Every IPv4 address that ``address`` may lead to; ``prefix_length`` is that of the allowed network it is in."""
    bits = int(address)
    low = bits & _LOW_32
    if address.is_loopback:  # ::1 lies among the IPv4-compatible addresses by its bits only
        return
    if any(address in network for network in (_COMPATIBLE, _MAPPED, _TRANSLATED, _NAT64)) or _is_isatap(address):
        yield IPv4Address(low)
    elif address in _NAT64_LOCAL:
        known = [length for length in _NAT64_LENGTHS if length <= prefix_length]
        # Allowed by a network that does not tell the prefix: whichever it is, no private address may come of it.
        for length in known[-1:] or _NAT64_LENGTHS:
            yield _translated(bits, length)
    if address in _SIX_TO_FOUR:
        yield IPv4Address(bits >> 80 & _LOW_32)
    if address in _TEREDO:
        yield IPv4Address(bits >> 64 & _LOW_32)  # the relay's server
        yield IPv4Address(low ^ _LOW_32)  # the client, written inverted


def _is_isatap(address: IPv6Address) -> bool:
    """Whether the interface id is ``[02]00:5efe:a.b.c.d`` (RFC 5214 §6.1); the universal and group bits are free."""
    return int(address) >> 32 & 0xFCFF_FFFF == 0x0000_5EFE


def _translated(bits: int, length: int) -> IPv4Address:
    """The IPv4 address after a NAT64 prefix of ``length`` bits (RFC 6052 §2.2), where bits 64 to 71 are skipped."""
    if length == 96:  # the one form whose IPv4 address lies whole behind the skipped octet
        return IPv4Address(bits & _LOW_32)
    without_octet = (bits >> 64 << 56) | (bits & (1 << 56) - 1)  # 120 bits
    return IPv4Address(without_octet >> (88 - length) & _LOW_32)


# --- parsing ----------------------------------------------------------------------------------------------------------


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is not an address or network such as 10.0.0.0/8; correct METALSCRIBE_ALLOW_NETWORKS."
        ) from None


def _address(ip: str | IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    try:
        return ipaddress.ip_address(ip)
    except ValueError:
        raise AddressRefused("This is not a numeric address such as 192.0.2.1 or 2001:db8::1.") from None
