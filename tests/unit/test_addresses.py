from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metalscribe.errors import AddressRefused, ConfigurationError
from metalscribe.media.addresses import AddressPolicy

PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0")
PUBLIC_V6 = ("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::200e", "2400:cb00::1")

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "100.64.0.1": "carrier",
    "100.100.100.200": "carrier",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "cloud",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.192": "protocols",
    "192.0.2.1": "documentation",
    "192.88.99.1": "6to4",
    "192.168.1.1": "private",
    "198.18.0.1": "benchmarks",
    "198.19.255.255": "benchmarks",
    "198.51.100.7": "documentation",
    "203.0.113.7": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::ffff:8.8.8.8": "written as IPv6",
    "::ffff:0:8.8.8.8": "reserved",
    "::8.8.8.8": "reserved",
    "64:ff9b::8.8.8.8": "NAT64",
    "64:ff9b:1::8.8.8.8": "NAT64",
    "100::1": "reserved",
    "2001::1": "Teredo",
    "2001:2::1": "protocols",
    "2001:10::1": "protocols",
    "2001:20::1": "protocols",
    "2001:db8::1": "documentation",
    "2002:808:808::1": "6to4",
    "2a00:1450::5efe:8.8.8.8": "ISATAP",
    "2a00:1450::200:5efe:8.8.8.8": "ISATAP",
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private",
    "fd00:ec2::254": "private",
    "fe80::1": "link-local",
    "fe80::1%eth0": "one network link",
    "2606:4700:4700::1111%2": "one network link",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
}

v4_addresses = st.ip_addresses(v=4) | st.sampled_from([IPv4Address(a) for a in REFUSED if ":" not in a])


def permits(policy: AddressPolicy, ip: str | IPv4Address | IPv6Address) -> bool:
    with contextlib.suppress(AddressRefused):
        policy.check(ip)
        return True
    return False


def wrappings(v4: IPv4Address) -> dict[str, IPv6Address]:
    """Every way in which an IPv6 address carries ``v4``."""
    bits = int(v4)
    return {
        "mapped": IPv6Address(0xFFFF << 32 | bits),
        "compatible": IPv6Address(bits),
        "translated": IPv6Address(0xFFFF << 48 | bits),
        "6to4": IPv6Address(0x2002 << 112 | bits << 80 | 1),
        "NAT64": IPv6Address(int(IPv6Address("64:ff9b::")) | bits),
        "NAT64 local": IPv6Address(int(IPv6Address("64:ff9b:1::")) | bits),
        "Teredo server": IPv6Address(0x2001_0000 << 96 | bits << 64 | (0xFFFF_FFFF ^ int(IPv4Address("8.8.8.8")))),
        "Teredo client": IPv6Address(
            0x2001_0000 << 96 | int(IPv4Address("8.8.8.8")) << 64 | (0xFFFF_FFFF ^ bits)
        ),
        "ISATAP": IPv6Address(int(IPv6Address("2a00:1450::5efe:0:0")) | bits),
        "ISATAP public": IPv6Address(int(IPv6Address("2a00:1450::200:5efe:0:0")) | bits),
    }  # fmt: skip


@pytest.mark.parametrize("ip", PUBLIC + PUBLIC_V6)
def test_public_addresses_are_permitted(ip: str) -> None:
    AddressPolicy(()).check(ip)


@pytest.mark.parametrize(("ip", "kind"), REFUSED.items())
def test_special_addresses_are_refused_by_name(ip: str, kind: str) -> None:
    with pytest.raises(AddressRefused, match=kind) as refusal:
        AddressPolicy(()).check(ip)
    assert ip not in refusal.value.detail


@pytest.mark.parametrize(
    "text", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "", "localhost", "[::1]", "1.1.1.1 "]
)
def test_only_canonical_numeric_addresses_are_judged(text: str) -> None:
    with pytest.raises(AddressRefused, match="numeric"):
        AddressPolicy(("0.0.0.0/0", "::/0")).check(text)


def test_an_allowed_network_is_permitted_and_its_neighbours_are_not() -> None:
    policy = AddressPolicy(("10.20.0.0/16", "fd12::/16", "192.168.7.7"))
    for ip in ("10.20.0.1", "10.20.255.255", "fd12::1", "192.168.7.7"):
        policy.check(ip)
    for ip in ("10.21.0.0", "10.19.255.255", "fd13::1", "192.168.7.8", "127.0.0.1"):
        assert not permits(policy, ip)


def test_an_allowed_network_may_have_host_bits() -> None:
    AddressPolicy(("10.20.3.4/16",)).check("10.20.200.1")


@pytest.mark.parametrize("text", ["10.0.0.0/33", "intranet", "", "10.0.0"])
def test_a_wrong_network_is_a_configuration_error_that_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match="METALSCRIBE_ALLOW_NETWORKS"):
        AddressPolicy((text,))


def test_a_wrapped_address_needs_both_to_be_allowed() -> None:
    assert not permits(AddressPolicy(("10.0.0.0/8",)), "::ffff:10.0.0.1")
    assert not permits(AddressPolicy(("::ffff:0:0/96",)), "::ffff:10.0.0.1")
    AddressPolicy(("::ffff:0:0/96", "10.0.0.0/8")).check("::ffff:10.0.0.1")


def test_nat64_can_be_allowed_without_opening_private_networks() -> None:
    policy = AddressPolicy(("64:ff9b::/96",))
    policy.check("64:ff9b::8.8.8.8")
    assert not permits(policy, "64:ff9b::127.0.0.1")
    assert not permits(policy, "64:ff9b::10.0.0.1")


def test_scoped_addresses_stay_refused_when_their_network_is_allowed() -> None:
    policy = AddressPolicy(("fe80::/10",))
    policy.check("fe80::1")
    assert not permits(policy, "fe80::1%eth0")


# The addresses of RFC 6052 §2.4's table for 192.0.2.33 and 8.8.8.8, moved to the local prefix 64:ff9b:1::/48.
@pytest.mark.parametrize(
    ("network", "public", "private"),
    [
        ("64:ff9b:1::/48", "64:ff9b:1:808:8:800::", "64:ff9b:1:c000:2:2100::"),
        ("64:ff9b:1:100::/56", "64:ff9b:1:108:8:808::", "64:ff9b:1:1c0:0:221::"),
        ("64:ff9b:1:122::/64", "64:ff9b:1:122:8:808:800:0", "64:ff9b:1:122:c0:2:2100:0"),
        ("64:ff9b:1::/96", "64:ff9b:1::808:808", "64:ff9b:1::c000:221"),
    ],
)
def test_local_nat64_is_read_by_the_length_of_the_allowed_prefix(network: str, public: str, private: str) -> None:
    policy = AddressPolicy((network,))
    policy.check(public)
    assert not permits(policy, private)
    AddressPolicy((network, "192.0.2.33")).check(private)


@pytest.mark.parametrize("ip", ["64:ff9b:1:7f00:0:100:808:808", "64:ff9b:1:808:8:800:7f00:1"])
def test_local_nat64_is_read_in_every_way_where_the_prefix_is_unknown(ip: str) -> None:
    assert not permits(AddressPolicy(("::/0",)), ip)


@given(v4_addresses)
def test_no_wrapping_of_any_address_is_permitted_by_default(v4: IPv4Address) -> None:
    policy = AddressPolicy(())
    assert [name for name, v6 in wrappings(v4).items() if permits(policy, v6)] == []


@given(v4_addresses)
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("0.0.0.1"))
def test_wrappings_are_refused_whenever_the_plain_address_is_even_where_all_ipv6_is_allowed(v4: IPv4Address) -> None:
    policy = AddressPolicy(("::/0", "64:ff9b:1::/96"))
    plain = permits(policy, v4)
    # ::1 is loopback itself, not a wrapping of 0.0.0.1.
    judged = {name: permits(policy, v6) for name, v6 in wrappings(v4).items() if v6 != IPv6Address("::1")}
    assert judged == dict.fromkeys(judged, plain)


@given(st.ip_addresses(v=6))
def test_ipv6_outside_global_unicast_is_never_permitted(v6: IPv6Address) -> None:
    if permits(AddressPolicy(()), v6):
        assert v6 in IPv6Network("2000::/3")
        assert not v6.is_private
        assert not v6.is_multicast


@given(st.ip_addresses(v=4))
def test_permitted_ipv4_is_public_by_the_standard_library_too(v4: IPv4Address) -> None:
    if permits(AddressPolicy(()), v4):
        assert v4.is_global
        assert not v4.is_multicast


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_an_allowed_network_permits_all_of_itself(v4: IPv4Address, length: int) -> None:
    network = IPv4Network((v4, length), strict=False)
    policy = AddressPolicy((str(network),))
    policy.check(v4)
    policy.check(network[0])
    policy.check(network[-1])
