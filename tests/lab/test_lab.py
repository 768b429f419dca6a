"""The lab itself: hosts boot, reboot, are cut off as they should be, and leave nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import cgroup
from lab.conftest import HERE, MakeContainer
from lab.container import NSPAWN, Container
from lab.image import INSTALLABLE
from lab.lab import FOLDER, Lab, sweep
from lab.network import Namespace

GREETING = "hello from c2"


@pytest.fixture(scope="module")
def c1(make_container: MakeContainer) -> Container:
    return make_container("c1")


@pytest.fixture(scope="module")
def c2(make_container: MakeContainer) -> Container:
    """A host that serves a page."""
    c2 = make_container("c2")
    c2.put(GREETING, "/srv/index.html")
    c2.put(
        "import http.server, os, socket\n"
        "http.server.ThreadingHTTPServer.address_family = socket.AF_INET6\n"
        "server = http.server.ThreadingHTTPServer(('::', 80), http.server.SimpleHTTPRequestHandler)\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:\n"
        "    notify.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n"
        "server.serve_forever()\n",
        "/root/serve.py",
    )
    c2.run("systemd-run --quiet --unit=page --service-type=notify --working-directory=/srv python3 /root/serve.py")
    return c2


# --- a host ---


def test_a_host_is_a_fresh_debian_in_which_all_is_well(c1: Container) -> None:
    assert c1.run("systemctl is-system-running").stdout == "running\n"
    assert 'VERSION_ID="12"' in c1.run("cat /etc/os-release").stdout
    assert c1.run("hostname --fqdn").stdout == "c1\n"
    assert c1.run("echo $LANG").stdout == "C.UTF-8\n"
    assert c1.run("command -v nginx nft", check=False).stdout == ""


def test_the_unprivileged_user_may_do_everything_with_sudo_only(c1: Container) -> None:
    assert c1.run("id -un; sudo -n id -un", user="deployer").stdout == "deployer\nroot\n"
    assert c1.run("cat /etc/shadow", user="deployer", check=False).returncode != 0


def test_packages_install_although_there_is_no_network(c1: Container) -> None:
    c1.run("apt-get -qq update")
    c1.run(f"apt-get -qq --simulate install {' '.join(INSTALLABLE)}")
    c1.run("DEBIAN_FRONTEND=noninteractive apt-get -qq install nftables")
    c1.run("nft add table inet mine && nft list ruleset | grep -q 'table inet mine' && nft delete table inet mine")


def test_a_listing_tells_what_has_changed(c1: Container) -> None:
    before = c1.listing("/etc", "/opt")
    assert c1.listing("/etc", "/opt") == before
    c1.run("touch --date=@0 /opt/new; echo x >> /etc/motd; chmod 600 /etc/issue")
    after = c1.listing("/etc", "/opt")
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == {
        *("/opt", "/opt/new", "/etc/motd", "/etc/issue")
    }


def test_a_reboot_is_one(c1: Container) -> None:
    c1.put("kept\n", "/root/kept")
    c1.run("touch /run/lost")
    uptime = float(c1.run("cut -d' ' -f1 /proc/uptime").stdout)
    boot = c1.boot_id()
    c1.reboot()
    assert c1.boot_id() != boot
    assert float(c1.run("cut -d' ' -f1 /proc/uptime").stdout) < uptime
    assert c1.run("cat /root/kept; ls /run/lost", check=False).stdout == "kept\n"
    assert c1.run("systemctl is-system-running").stdout == "running\n"
    assert {entry["_BOOT_ID"] for entry in c1.journal("--identifier=systemd", "_PID=1")} >= {boot.replace("-", "")}


def test_power_cut_and_halt_are_survived(c1: Container) -> None:
    c1.cut_power()
    assert not c1.on
    assert c1.run("true", check=False).returncode == 255, "SSH has nobody to talk to"
    c1.boot()
    c1.run("systemctl poweroff", check=False)
    c1.halt()
    assert not c1.on
    assert "Shutting down." in [entry["MESSAGE"] for entry in c1.journal("--identifier=systemd", "--boot")]
    c1.boot()
    assert c1.run("systemctl is-system-running").stdout == "running\n"


def test_a_host_starts_from_a_snapshot_as_often_as_one_likes(lab: Lab, make_container: MakeContainer) -> None:
    taken = make_container("c3")
    taken.run("echo before > /etc/motd; rm -r /etc/cron.daily; mkdir /etc/cron.daily; touch /etc/cron.daily/mine")
    addresses, key = taken.namespace.addresses, taken.run("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
    snapshot = lab.snapshot(taken)
    assert "c3" not in lab.containers
    for _ in range(2):
        host = make_container("c3", snapshot)
        assert host.run("cat /etc/motd; ls /etc/cron.daily").stdout == "before\nmine\n"
        assert (host.namespace.addresses, host.run("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout) == (addresses, key)
        assert host.run("systemctl is-system-running").stdout == "running\n"
        host.run("echo after > /etc/motd; rm /etc/cron.daily/mine")
        lab.stop(host)
    fresh = make_container("c3")
    assert fresh.namespace.addresses == addresses
    assert fresh.run("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout != key


def test_whatever_systemd_tells_the_lab_it_waits_for_nobody(c1: Container) -> None:
    # Each of these is a notification or more, and a socket holds some ten of them.
    c1.run("for i in $(seq 15); do systemctl daemon-reload; systemctl restart cron; done")
    c1.reboot()


def test_a_host_is_known_by_its_key(lab: Lab, c1: Container, c2: Container) -> None:
    known = lab.access.known_hosts.read_text(encoding="ascii")
    assert c1.run("true").returncode == 0
    try:
        lab.access.known_hosts.write_text(
            known.replace(c1.address, "0.0.0.0").replace(c2.address, c1.address), encoding="ascii"
        )
        refused = c1.run("true", check=False)
    finally:
        lab.access.known_hosts.write_text(known, encoding="ascii")
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


# --- its network ---


def fetch(url: str) -> list[str]:
    return ["curl", "--silent", "--show-error", "--globoff", "--noproxy", "*", "--max-time", "10", url]


def test_hosts_and_clients_reach_a_host(
    lab: Lab, c1: Container, c2: Container, client: Namespace, stranger: Namespace, nowhere: Namespace
) -> None:
    for address in c2.namespace.addresses:
        url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
        assert c1.run(" ".join(map(repr, fetch(url)))).stdout == GREETING
        for namespace in (lab.network.controller, client, stranger):
            assert namespace.run(*fetch(url)).stdout == GREETING, namespace.name
        unreachable = nowhere.run(*fetch(url), check=False)
        assert (unreachable.returncode, unreachable.stdout) == (7, "")


@pytest.fixture
def way_out() -> Iterator[str]:
    """A service of this machine itself, outside of the lab, on every address; the address that its way out has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: asks the routing table
        address = probe.getsockname()[0]
    with socket.create_server(("", 0)) as server:
        yield f"http://{address}:{server.getsockname()[1]}/"


def test_nothing_reaches_out(c1: Container, client: Namespace, stranger: Namespace, way_out: str) -> None:
    address, port = way_out.removeprefix("http://").rstrip("/").rsplit(":", 1)
    socket.create_connection((address, int(port)), timeout=5).close()  # so it is reachable for who is not in the lab
    asked = c1.run(" ".join(map(repr, fetch(way_out))), check=False)
    assert asked.returncode == 7, asked.stderr
    for namespace in (client, stranger):
        assert namespace.run(*fetch(way_out), check=False).returncode == 7, namespace.name
    assert c1.run("getent hosts example.org", check=False).returncode != 0


# --- what is left of it ---


def traces(lab: str) -> list[str]:
    """Everything on this machine that has a lab's id in its name."""
    namespaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout.splitlines()
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    groups = [group for top in cgroup.hierarchies(mounts) for group in top.iterdir()]
    state = [path for folder in (FOLDER, NSPAWN) if folder.is_dir() for path in folder.rglob("*")]
    running = [
        command.decode(errors="replace").replace("\0", " ")
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (command := _command(folder))
    ]
    return [
        what
        for what in [*namespaces, *mounts.splitlines(), *map(str, groups), *map(str, state), *running]
        if lab in what
    ]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_a_lab_leaves_nothing_even_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), Lab() as other:
        root = other.start("c1").root.stat()
        lock = NSPAWN / "locks" / f"inode-{root.st_dev}:{root.st_ino}"
        assert lock.exists()
        other.start("c2")
        other.stop(other.containers["c2"])
        assert len(traces(other.id)) >= 5, "there is something to remove"
        raise ZeroDivisionError
    assert traces(other.id) == []
    assert not lock.exists()


@contextmanager
def session() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another session with a host that is up; its process and its lab's id."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        str(HERE / "interrupted_session.py"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("up "):
                break
        else:
            pytest.fail(f"the session did not come up:\n{''.join(printed)}")
        try:
            yield process, line.removeprefix("up ").strip()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_session_leaves_nothing(lab: Lab, c1: Container, number: signal.Signals) -> None:
    with session() as (process, other):
        assert len(traces(other)) >= 5, "there is something to remove"
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode != 0, said
    assert traces(other) == []
    assert c1.run("true").returncode == 0, "this lab's hosts are somebody else's"


def test_what_a_killed_session_leaves_is_removed_by_the_next(lab: Lab, c1: Container) -> None:
    with session() as (process, other):
        assert other not in sweep(), "it is alive"
        process.kill()
        process.wait()
        assert traces(other) != []
        assert sweep() == [other]
    assert traces(other) == []
    assert traces(lab.id) != []
    assert c1.run("true").returncode == 0, "this lab is alive"
