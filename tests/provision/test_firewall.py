"""The packet filter: as text, in a kernel (a network namespace of its own), and as planned for a host."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import DEBIAN_12, commands, files, installed, named, plan
from pyinfra.api.exceptions import DeployError

from metalscribe_provision.common import CHECKOUT
from metalscribe_provision.firewall.deploy import firewall
from metalscribe_provision.firewall.facts import RULESET, UNIT
from metalscribe_provision.firewall.ruleset import ruleset, ssh_ports_of
from metalscribe_provision.hostdata import HostData, parse_host_data


def _host(**variables: Any) -> HostData:
    return parse_host_data("gpu1", {"driver": "none", **variables}, {})


def _accepted(text: str) -> list[str]:
    """What the rules say about TCP ports."""
    return re.findall(r"^\t\t((?:ip6? saddr .+ )?tcp dport .+) accept$", text, re.MULTILINE)


def test_ssh_and_https_are_open_and_nothing_else() -> None:
    text = ruleset(_host(), {22})
    assert _accepted(text) == ["tcp dport { 22 }", "tcp dport 443"]
    assert "policy drop;" in text
    assert "flush" not in text, "other tables are not ours"


def test_the_operators_ports_and_networks_are_kept() -> None:
    data = _host(https_port="8443", https_allow="10.0.0.0/8, 10.1.0.0/16, 192.0.2.7, 2001:db8::/32")
    assert _accepted(ruleset(data, {2222, 22})) == [
        "tcp dport { 22, 2222 }",
        "ip saddr { 10.0.0.0/8, 192.0.2.7/32 } tcp dport 8443",
        "ip6 saddr { 2001:db8::/32 } tcp dport 8443",
    ]


def test_port_80_is_open_for_the_acme_server_alone() -> None:
    acme = {"tls": "acme", "acme_email": "ops@example.org"}
    assert _accepted(ruleset(_host(**acme), {22}))[-1] == "tcp dport 80"
    dns = _host(**acme, acme_challenge="dns-01", acme_dns_plugin="rfc2136")
    assert "tcp dport 80" not in _accepted(ruleset(dns, {22}))


@pytest.mark.parametrize(
    ("wanted", "connection", "configured", "ports"),
    [
        ((), "192.0.2.1 50000 192.0.2.2 22", None, {22}),
        ((), "2001:db8::1 50000 2001:db8::2 2222", 22, {2222}),
        ((2022,), "192.0.2.1 50000 192.0.2.2 22", None, {22, 2022}),
        ((2022,), "", None, {2022}),
        ((), "", 2222, {2222}),
        ((), "", None, {22}),
        ((), "nonsense", None, {22}),
    ],
)
def test_whoever_deploys_can_come_again(
    wanted: tuple[int, ...], connection: str, configured: int | None, ports: set[int]
) -> None:
    assert ssh_ports_of(wanted, connection, configured) == ports


# --- in a kernel ---


@pytest.fixture
def namespace() -> list[str]:
    """The beginning of a command line: as root of a user namespace, in a network namespace."""
    if shutil.which("nft") is None or shutil.which("ip") is None:
        pytest.skip("nft or ip is not installed (apt-get install nftables iproute2)")
    command = ["unshare", "--map-root-user", "--net", "sh", "-euc"]
    if subprocess.run([*command, "nft list ruleset"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make a network namespace")
    return command


_EVERYTHING = {
    "https_allow": "10.0.0.0/8, 10.1.0.0/16, 2001:db8::/32",
    "tls": "acme",
    "acme_email": "ops@example.org",
    "ssh_ports": "22,2222",
}


def _rules(folder: Path, **variables: Any) -> Path:
    own = folder / "firewall.d"
    own.mkdir(exist_ok=True)
    path = folder / "firewall.nft"
    path.write_text(ruleset(_host(**variables), {22, 2222}, str(own)), encoding="utf-8")
    return path


def test_the_kernel_takes_the_rules_again_and_again(namespace: list[str], tmp_path: Path) -> None:
    path = _rules(tmp_path, **_EVERYTHING)
    (tmp_path / "firewall.d" / "own.nft").write_text("tcp dport 9100 accept\n", encoding="utf-8")
    script = (
        f"nft -c -f {path}; nft add table ip theirs; nft -f {path}; nft -s list ruleset >{tmp_path}/1; "
        f"nft add rule inet metalscribe input tcp dport 1 accept; nft -f {path}; nft -s list ruleset >{tmp_path}/2"
    )
    subprocess.run([*namespace, script], check=True, timeout=60)
    first, second = (sorted((tmp_path / name).read_text("utf-8").splitlines()) for name in ("1", "2"))
    assert first == second
    assert "table ip theirs {" in first
    assert "\t\ttcp dport 9100 accept" in first


_HOST = """
import socket, sys
listeners = []
for port in (22, 443, 8000):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listeners.append(socket.socket(family))
        if family == socket.AF_INET6:
            listeners[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listeners[-1].bind((address, port))
        listeners[-1].listen()
socket.create_connection(("127.0.0.1", 8000)).close()
print("ready", flush=True)
sys.stdin.read()
"""

_CLIENT = """
import concurrent.futures, socket
def tried(target):
    try:
        socket.create_connection(target, 2).close()
    except TimeoutError:
        return f"{target[0]} {target[1]} dropped"
    return f"{target[0]} {target[1]} open"
targets = [(address, port) for address in ("192.0.2.1", "198.51.100.1", "2001:db8::1") for port in (22, 443, 8000)]
with concurrent.futures.ThreadPoolExecutor(len(targets)) as threads:
    print(*threads.map(tried, targets), sep="\\n")
"""


def test_packets_meet_the_rules(namespace: list[str], tmp_path: Path) -> None:
    """A host and a client, each in a namespace of its own, with a cable between them."""
    path = _rules(tmp_path, https_allow="192.0.2.0/24, 2001:db8::/64")
    (tmp_path / "host.py").write_text(_HOST, encoding="utf-8")
    (tmp_path / "client.py").write_text(_CLIENT, encoding="utf-8")
    # The outer namespace is the host's, the inner one the client's; the latter lasts as long as its pipe is open.
    script = f"""
        cd {tmp_path}
        mkfifo host.in host.out client.in client.out
        unshare --net sh -c 'echo $$; exec cat' <client.in >client.out &
        exec 7>client.in; read client <client.out
        ip link set lo up
        ip link add host0 type veth peer name client0 netns "$client"
        ip addr add 192.0.2.1/24 dev host0; ip addr add 198.51.100.1/24 dev host0
        ip addr add 2001:db8::1/64 dev host0 nodad; ip link set host0 up
        client() {{ nsenter --net --target "$client" "$@"; }}
        client ip addr add 192.0.2.2/24 dev client0; client ip addr add 198.51.100.2/24 dev client0
        client ip addr add 2001:db8::2/64 dev client0 nodad; client ip link set client0 up
        nft -f {path}
        {sys.executable} host.py <host.in >host.out &
        exec 8>host.in; read ready <host.out
        client {sys.executable} client.py
        nft list table inet metalscribe
    """
    done = subprocess.run([*namespace, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    *tried, table = done.stdout.split("\n", 9)
    assert tried == [
        "192.0.2.1 22 open",
        "192.0.2.1 443 open",
        "192.0.2.1 8000 dropped",
        "198.51.100.1 22 open",
        "198.51.100.1 443 dropped",
        "198.51.100.1 8000 dropped",
        "2001:db8::1 22 open",
        "2001:db8::1 443 open",
        "2001:db8::1 8000 dropped",
    ]
    counted = re.search(r"counter packets (\d+)", table)
    assert counted is not None
    assert int(counted[1]) >= tried.count("dropped")


# --- planned ---


def _finished(text: str) -> dict[Any, Any]:
    """Responses of a host that has these rules."""
    sources = {
        "/etc/metalscribe/firewall.nft": text.encode(),
        f"/etc/systemd/system/{UNIT}": (CHECKOUT / "systemd" / UNIT).read_bytes(),
        "/etc/systemd/system/nftables.service.d/metalscribe.conf": (
            CHECKOUT / "systemd/nftables-metalscribe.conf"
        ).read_bytes(),
    }
    responses: dict[Any, Any] = {**installed("nftables"), "stamps/firewall-units": "yes"}
    for name, content in sources.items():
        path = Path(name)
        responses[re.compile(rf"sha1sum {path} ")] = f"{hashlib.sha1(content).hexdigest()}  {path}"
        responses |= _stat(path, "-rw-r--r--") | _stat(path.parent, "drwxr-xr-x")
    responses |= _stat(Path("/etc/metalscribe/firewall.d"), "drwxr-xr-x")
    responses["--property SubState"] = [f"Id={UNIT}", "SubState=exited"]
    responses["--property UnitFileState"] = [f"Id={UNIT}", "UnitFileState=enabled"]
    return responses


def _stat(path: Path, mode: str) -> dict[Any, Any]:
    told = f"user=root group=root mode={mode} atime=1 mtime=1 ctime=1 size=1 '{path}'"
    return {re.compile(rf"stat -c.* {path} "): told}


def _changing(data: dict[str, Any], responses: dict[Any, Any]) -> list[str]:
    planned = plan(firewall, {"driver": "none", **data}, {**responses, **DEBIAN_12})
    return [operation.name.removeprefix("Firewall | ") for operation in planned if operation.changes]


def test_a_fresh_host_gets_the_rules_checked_then_loaded() -> None:
    planned = plan(firewall, {"driver": "none"}, {"SSH_CONNECTION": "192.0.2.1 5 192.0.2.2 2222", **DEBIAN_12})
    assert "tcp dport { 2222 } accept" in files(planned)["/etc/metalscribe/firewall.nft.new"]
    check = named(planned, "Write the rules").commands[-1]
    assert check.startswith("nft -c -f /etc/metalscribe/firewall.nft.new && ")
    assert f"systemctl start {UNIT}" in commands(planned)
    assert f"systemctl enable {UNIT}" in commands(planned)


def test_a_finished_host_is_left_alone_until_the_kernel_differs() -> None:
    finished = _finished(ruleset(_host(), {22}))
    assert _changing({}, finished) == []
    assert _changing({}, {"unshare --net": "different", **finished}) == ["Load the rules"]
    assert _changing({}, {"unshare --net": "absent", **finished}) == ["Load the rules"]
    assert _changing({"https_port": "8443"}, finished) == ["Write the rules"]
    assert _changing({}, {"SSH_CONNECTION": "192.0.2.1 5 192.0.2.2 2222", **finished}) == ["Write the rules"]


@pytest.mark.parametrize(("other", "open_with"), [("ufw", "ufw allow 443/tcp"), ("firewalld", "firewall-cmd")])
def test_another_firewall_is_not_fought(other: str, open_with: str) -> None:
    with pytest.raises(DeployError, match=rf"{other} rules this host already.*firewall=false.*{open_with}"):
        plan(firewall, {"driver": "none"}, {"command -v ufw": other, **DEBIAN_12})
    planned = plan(firewall, {"driver": "none", "firewall": "false"}, {"command -v ufw": other, **DEBIAN_12})
    assert not any(operation.changes for operation in planned)


def test_a_firewall_that_is_not_wanted_is_removed() -> None:
    planned = plan(firewall, {"driver": "none", "firewall": "false"}, {"echo table": ["table", "unit", "ruleset"]})
    (command,) = named(planned, "Remove the firewall").commands
    assert "nft delete table inet metalscribe" in command
    assert command.endswith(f"rm -f {RULESET}")
