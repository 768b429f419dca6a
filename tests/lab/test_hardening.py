"""What the deployed host shows to attackers: as little as possible, judged by tools that others have written."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from lab.container import Container
from lab.controller import BIN
from lab.https import Client
from lab.network import Namespace

MOST_EXPOSED: Final = 1.5
"""The service's exposure by systemd-analyze's scale, from 0 (confined) to 10."""

METRICS: Final = ("/metrics", "/queue-metrics")
ADMINISTRATION: Final = ("/model/load", "/docs", "/docs/oauth2-redirect", "/openapi.json")

LISTENING: Final = 31337

AT_ONCE: Final = 4096
"""Ports that are knocked at together."""


@pytest.fixture(scope="module")
def intruder(stranger: Namespace, host: Container, api: Client) -> Client:
    """Somebody on the internet who has got hold of a key."""
    return Client(stranger, host, api.authority, api.key)


# --- systemd ---


def test_the_service_is_confined(host: Container) -> None:
    judged = host.run("systemd-analyze security --no-pager metalscribe.service").stdout
    found = re.search(r"Overall exposure level for metalscribe\.service: ([\d.]+)", judged)
    assert found is not None, judged
    assert float(found[1]) <= MOST_EXPOSED, judged


def test_systemd_has_no_complaint(host: Container) -> None:
    units = host.run("ls /etc/systemd/system/*metalscribe* -d").stdout.split()
    ours = [unit for unit in units if unit.endswith((".service", ".slice", ".timer"))]
    assert {Path(unit).name for unit in ours} >= {
        *("metalscribe.service", "metalscribe.slice"),
        *("metalscribe-backup.service", "metalscribe-backup.timer", "metalscribe-firewall.service"),
    }
    complaint = host.run(f"systemd-analyze verify --man=no {' '.join(ours)} nginx.service 2>&1")
    assert complaint.stdout == ""


def test_what_the_service_may_not_do_it_cannot_do(host: Container) -> None:
    """The directives are in force, not only written down: a program in the unit's place tries."""
    attempts = {
        "write to /etc": "open('/etc/metalscribe/x', 'w')",
        "write to its own release": "open('/opt/metalscribe/current/x', 'w')",
        "read the keys": "open('/etc/metalscribe/credentials/metalscribe_api_key')",
        "read the certificate's key": "open('/etc/metalscribe/tls/current/privkey.pem')",
        "see other processes": "open('/proc/1/cmdline')",
        "see homes": "os.listdir('/root')",
        "make a namespace": "os.unshare(os.CLONE_NEWUSER) if hasattr(os, 'unshare') else _unshare()",
        "mount": "_mount()",
        "open a raw socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "become root": "os.setuid(0)",
    }
    program = "\n".join(
        [
            "import ctypes, json, os, socket",
            "libc = ctypes.CDLL(None, use_errno=True)",
            "def _checked(status):",
            "    if status: raise OSError(ctypes.get_errno(), 'refused')",
            "def _unshare(): _checked(libc.unshare(0x10000000))",
            "def _mount(): _checked(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))",
            "done = []",
            f"for what, how in {attempts!r}.items():",
            "    try: eval(how)",
            "    except OSError: continue",
            "    done.append(what)",
            "print(json.dumps({'succeeded': done, 'user': os.getuid()}))",
        ]
    )
    host.put(program, "/usr/local/lib/attempts.py")
    unit = "/run/systemd/system/metalscribe-attempts.service"
    host.run(
        f"cp /etc/systemd/system/metalscribe.service {unit}; mkdir {unit}.d;"
        f"printf '%s\\n' '[Service]' Type=oneshot Restart=no WatchdogSec=0 ExecStart= "
        f"'ExecStart=/usr/bin/python3 -I /usr/local/lib/attempts.py' > {unit}.d/attempts.conf;"
        "systemctl daemon-reload; systemctl start metalscribe-attempts"
    )
    said = [entry["MESSAGE"] for entry in host.journal("--unit=metalscribe-attempts", "--boot")]
    (result,) = [json.loads(line) for line in said if line.startswith("{")]
    host.run(f"rm -r {unit} {unit}.d /usr/local/lib/attempts.py; systemctl daemon-reload")
    assert result["user"] == int(host.run("id --user metalscribe").stdout)
    assert result["succeeded"] == []


# --- nginx ---


def test_nginx_takes_its_configuration_without_a_warning(host: Container) -> None:
    assert host.run("nginx -t -q 2>&1").stdout == ""


def test_gixy_finds_nothing(host: Container, tmp_path: Path) -> None:
    """In what the deploy has written; what is around it is the distribution's."""
    shutil.copytree(host.root / "etc/nginx/metalscribe", tmp_path / "metalscribe")
    (tmp_path / "nginx.conf").write_text(
        "worker_rlimit_nofile 1024;\nevents { worker_connections 512; }\nhttp { include metalscribe/site.conf; }\n",
        encoding="utf-8",
    )
    status, found = gixy(tmp_path / "nginx.conf")
    assert (status, "No issues found" in found) == (0, True), found
    proxy = tmp_path / "metalscribe/proxy.conf"
    proxy.write_text(proxy.read_text(encoding="utf-8").replace(" $host", " $http_host"), encoding="utf-8")
    status, found = gixy(tmp_path / "nginx.conf")
    assert (status, "host_spoofing" in found) == (1, True), f"gixy has not read all of it:\n{found}"


def gixy(configuration: Path) -> tuple[int, str]:
    command = [str(BIN / "gixy"), "--format", "text", str(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "Total issues" in done.stdout, done.stdout + done.stderr
    return done.returncode, done.stdout


def test_tls_is_what_mozilla_calls_intermediate(api: Client, host: Container) -> None:
    options = ("--mozilla_config", "intermediate", "--certinfo_ca_file", str(api.authority), "--sni", host.name)
    done = api.namespace.run(str(BIN / "sslyze"), *options, f"{host.address}:443", check=False, timeout=180)
    assert "OK - Compliant" in done.stdout, done.stdout + done.stderr


# --- who reaches what ---


def test_from_the_internet_metrics_and_administration_are_closed_even_with_a_key(intruder: Client) -> None:
    assert intruder.ask("/healthz").status == 200
    for path in (*METRICS, *ADMINISTRATION):
        answer = intruder.ask(path)
        assert (path, answer.status, answer.json["title"]) == (path, 403, "Not from this address")


def test_whoever_claims_another_address_gets_no_further(intruder: Client) -> None:
    claims = dict.fromkeys(("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP"), "127.0.0.1")
    for path in (*METRICS, *ADMINISTRATION):
        assert intruder.ask(path, headers=claims).status == 403, path


def test_from_the_operators_network_administration_is_open_and_metrics_are_not(api: Client) -> None:
    assert api.ask("/openapi.json").status == 200
    for path in METRICS:
        assert api.ask(path).status == 403, path


def test_on_the_host_itself_metrics_are_not_closed(host: Container) -> None:
    asked = "curl -s -o /dev/null -w '%{http_code}' --cacert /etc/metalscribe/tls/ca.crt"
    for path in METRICS:
        by_loopback = host.run(f"{asked} --connect-to ::127.0.0.1: https://{host.address}{path}").stdout
        by_address = host.run(f"{asked} https://{host.address}{path}").stdout
        assert (by_loopback != "403", by_address) == (True, "403"), path


@pytest.fixture
def listening(host: Container, stranger: Namespace) -> Iterator[None]:
    """Something that listens on the host, and that nothing but the firewall keeps from everybody."""
    host.run(
        "systemd-run --quiet --unit=listening --service-type=notify --property=NotifyAccess=all "
        f"sh -c 'python3 -m http.server {LISTENING} --bind :: & "
        f"until curl -s -o /dev/null http://127.0.0.1:{LISTENING}; do :; done; systemd-notify --ready; wait'"
    )
    host.run("systemctl stop metalscribe-firewall")
    for address in host.namespace.addresses:
        stranger.connect(address, LISTENING, timeout=10).close()
    host.run("systemctl start metalscribe-firewall")
    yield
    host.run("systemctl stop listening")


@pytest.fixture
def sockets() -> Iterator[None]:
    """As many open files as three scans take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * AT_ONCE), max(hard, 4 * AT_ONCE)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("listening", "sockets")
def test_only_ssh_and_https_are_open(host: Container, stranger: Namespace, client: Namespace) -> None:
    ipv4, ipv6 = host.namespace.addresses
    with ThreadPoolExecutor(3) as scanners:
        scans = [scanners.submit(open_ports, *scan) for scan in ((stranger, ipv4), (stranger, ipv6), (client, ipv4))]
        assert [scan.result() for scan in scans] == [{22, 443}] * 3


def open_ports(namespace: Namespace, address: str) -> set[int]:
    """Knock at every TCP port of an address from a namespace."""

    def scan() -> set[int]:
        namespace.enter_thread()
        return {port for first in range(1, 65536, AT_ONCE) for port in _answering(address, first)}

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(scan).result()


def _answering(address: str, first: int) -> Iterator[int]:
    """Of the ports from ``first`` on, those that take a connection while half a second goes by: who is asked is on this machine."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        ports = {}
        answers = select.poll()
        for port in range(first, min(first + AT_ONCE, 65536)):
            knocking = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            status = knocking.connect_ex((address, port))
            assert status in {0, errno.EINPROGRESS}, os.strerror(status)
            ports[knocking.fileno()] = (port, knocking)
            answers.register(knocking, select.POLLOUT)
        end = time.monotonic() + 0.5
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in answers.poll(left * 1000):
                port, knocking = ports[descriptor]
                answers.unregister(knocking)
                status = knocking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if status == 0:
                    yield port
                else:  # how a firewall may refuse
                    assert status in {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES}, os.strerror(status)
