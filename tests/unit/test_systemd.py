"""The service's side of sd_notify(3), against a socket that plays systemd's part."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metalscribe.systemd import Notifier, listening_socket

_PROBE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from metalscribe.systemd import Notifier, listening_socket
kept = listening_socket(Notifier.from_environment(), "127.0.0.1", int(sys.argv[1]))
print(kept.fileno(), kept.getsockname()[1], os.get_inheritable(kept.fileno()), "LISTEN_FDS" in os.environ)
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The receiving end; its address is announced as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            monkeypatch.delenv(name, raising=False)
        yield channel


def _received(channel: socket.socket) -> tuple[list[str], list[int]]:
    data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(64))
    descriptors = array.array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    return data.decode().split("\n"), list(descriptors)


def test_without_systemd_there_is_nothing_to_say_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier.from_environment()
    notifier.notify("READY=1")
    assert listening_socket(notifier, "127.0.0.1", 0) is None


def test_what_systemd_announces_is_read_once(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notifier = Notifier.from_environment()
    assert notifier.watchdog_secs == 30
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(os.environ)
    notifier.notify("READY=1", "STATUS=well")
    assert _received(systemd) == (["READY=1", "STATUS=well"], [])


@pytest.mark.parametrize("name", ["WATCHDOG_PID", "WATCHDOG_USEC"])
def test_a_watchdog_that_watches_another_process_is_not_fed(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    del systemd
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv(name, "0")
    assert Notifier.from_environment().watchdog_secs is None


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        name = f"metalscribe-test-{os.getpid()}"
        channel.bind(f"\0{name}")
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Notifier.from_environment().notify("WATCHDOG=1")
        assert _received(channel)[0] == ["WATCHDOG=1"]


def test_a_systemd_that_is_gone_does_no_harm(systemd: socket.socket) -> None:
    notifier = Notifier.from_environment()
    systemd.close()
    notifier.notify("WATCHDOG=1")


def test_a_systemd_that_hangs_does_not_take_the_service_with_it(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket of datagrams is full after some messages (net.unix.max_dgram_qlen), and nobody takes them."""
    monkeypatch.setattr("metalscribe.systemd._PATIENCE_SECS", 0.01)
    notifier = Notifier.from_environment()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.connect(systemd.getsockname())
        filling.setblocking(False)  # noqa: FBT003
        with pytest.raises(BlockingIOError):
            while True:
                filling.send(b"WATCHDOG=1")
    notifier.notify("READY=1")


def test_a_new_socket_is_given_to_systemd_to_keep(systemd: socket.socket) -> None:
    with listening_socket(Notifier.from_environment(), "127.0.0.1", 0) or pytest.fail("no socket") as ours:
        lines, (kept,) = _received(systemd)
        assert lines == ["FDSTORE=1", "FDNAME=http@127.0.0.1@0"]
        with socket.socket(fileno=kept) as theirs:
            assert theirs.getsockname() == ours.getsockname()


def test_a_taken_address_is_told(systemd: socket.socket) -> None:
    del systemd
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        listening_socket(Notifier.from_environment(), "127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("http@127.0.0.1@{port}", True),
        ("metalscribe.socket", True),
        ("http@127.0.0.1@1", False),
        ("http@10.0.0.1@{port}", False),
    ],
)
def test_the_socket_that_systemd_kept_is_used_again(
    systemd: socket.socket, tmp_path: Path, name: str, used: bool
) -> None:
    """A process started as systemd starts one: the socket is descriptor 3."""
    kept = socket.create_server(("127.0.0.1", 0))
    port = kept.getsockname()[1]
    wanted = port if used else 0
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": name.format(port=port),
    }
    # os.dup2 makes 3 inheritable; the shell keeps it through exec, as systemd does.
    done = subprocess.run(
        ["bash", "-c", f'exec {sys.executable} -c "$0" {wanted} 3<&{kept.fileno()}', _PROBE],
        env=environment,
        pass_fds=[kept.fileno()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    descriptor, bound, inheritable, announced = done.stdout.split()
    assert (inheritable, announced) == ("False", "False")
    if used:
        assert (descriptor, int(bound)) == ("3", port)
    else:
        assert int(bound) != port
        assert _received(systemd)[0] == ["FDSTOREREMOVE=1", f"FDNAME={environment['LISTEN_FDNAMES']}"]
        assert _received(systemd)[0][0] == "FDSTORE=1"
    kept.close()


def test_a_service_that_cannot_read_its_settings_lets_the_socket_go(systemd: socket.socket, tmp_path: Path) -> None:
    """Clients are refused, rather than left waiting for a service that will not come."""
    kept = socket.create_server(("127.0.0.1", 0))
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "http@127.0.0.1@8000",
        "METALSCRIBE_PORT": "many",
    }
    # The shell's process id is the service's, as LISTEN_PID demands.
    done = subprocess.run(
        ["bash", "-c", f'export LISTEN_PID=$$; exec "$0" -m metalscribe serve 3<&{kept.fileno()}', sys.executable],
        env=environment,
        pass_fds=[kept.fileno()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "METALSCRIBE_PORT" in done.stderr
    assert _received(systemd)[0] == ["FDSTOREREMOVE=1", "FDNAME=http@127.0.0.1@8000"]
    kept.close()
