"""What systemd and the service tell each other: ready, alive, stopping, and the listening socket that outlives a restart.

The protocol is sd_notify(3)'s: datagrams to the socket named by ``NOTIFY_SOCKET``. Written here since no library on PyPI
passes file descriptors along without compiling against libsystemd.

The listening socket is put into systemd's file descriptor store (``FileDescriptorStoreMax=`` of the unit). Whenever the
service is restarted, or dies, systemd hands it to the next process: connections that arrive meanwhile wait in the kernel's
queue instead of being refused. When the service is stopped for good, systemd closes it.
"""

from __future__ import annotations

import array
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START
_OURS: Final = "http@"
_BACKLOG: Final = 2048
_PATIENCE_SECS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Notifier:
    """Speaks to systemd; silent where there is none.

    Attributes:
        address: systemd's socket, abstract ones with a leading NUL; None without systemd.
        watchdog_secs: how long systemd waits for a sign of life; None if it does not.
    """

    address: str | None
    watchdog_secs: float | None

    @classmethod
    def from_environment(cls) -> Notifier:
        """What systemd announced to this process; taken out of the environment, since children are not meant."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if not address.startswith(("/", "@")):
            return cls(None, None)
        watched = meant and microseconds.isdigit() and int(microseconds) > 0
        return cls(
            "\0" + address[1:] if address.startswith("@") else address, int(microseconds) / 1e6 if watched else None
        )

    def notify(self, *lines: str, descriptor: int | None = None) -> None:
        """Send assignments such as ``READY=1``, with a descriptor for ``FDSTORE=1``.

        A message that does not get through is let go: systemd then acts as if the service had said nothing, which is
        right for a watchdog. It is not waited for long: a systemd that hangs shall not take the service with it.
        """
        if self.address is None:
            return
        ancillary = []
        if descriptor is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_PATIENCE_SECS)
            channel.connect(self.address)
            channel.sendmsg(["\n".join(lines).encode()], ancillary)


def listening_socket(notifier: Notifier, host: str, port: int) -> socket.socket | None:
    """The socket to serve on: the one that systemd kept or opened for us, else a new one that it will keep.

    Returns:
        None without systemd.

    Raises:
        OSError: the address is taken, or not ours.
    """
    inherited = _inherited()
    if notifier.address is None:
        for _, descriptor in inherited:
            os.close(descriptor)
        return None
    wanted = _name(host, port)
    kept: socket.socket | None = None
    for name, descriptor in inherited:
        # A name that is not of ours was given by a .socket unit, whose address is its author's choice.
        if kept is None and (name == wanted or not name.startswith(_OURS)):
            kept = socket.socket(fileno=descriptor)
        else:
            notifier.notify("FDSTOREREMOVE=1", f"FDNAME={name}")
            os.close(descriptor)
    if kept is not None:
        return kept
    bound = _bound(host, port)
    notifier.notify("FDSTORE=1", f"FDNAME={wanted}", descriptor=bound.fileno())
    return bound


def let_go_unread(notifier: Notifier) -> None:
    """:func:`let_go` of whatever was inherited, for a service that cannot even read where it should listen."""
    for name, descriptor in _inherited():
        notifier.notify("FDSTOREREMOVE=1", f"FDNAME={name}")
        os.close(descriptor)


def let_go(notifier: Notifier, host: str, port: int) -> None:
    """Let systemd close the socket: a service that cannot start shall refuse connections, not leave them waiting."""
    notifier.notify("FDSTOREREMOVE=1", f"FDNAME={_name(host, port)}")


def _inherited() -> list[tuple[str, int]]:
    """The descriptors that systemd passed, each with its name; closed on exec from now on."""
    meant = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not meant or not count.isdigit():
        return []
    passed = []
    for index in range(int(count)):
        descriptor = _FIRST_DESCRIPTOR + index
        os.set_inheritable(descriptor, False)  # noqa: FBT003
        passed.append((names[index] if index < len(names) else "unknown", descriptor))
    return passed


def _name(host: str, port: int) -> str:
    """A name for the store, which takes no colons and 255 characters."""
    return (_OURS + re.sub(r"[^A-Za-z0-9._-]", "_", host) + f"@{port}")[:255]


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Now and not when serving begins: systemd throws a socket away that neither listens nor is connected.
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound
