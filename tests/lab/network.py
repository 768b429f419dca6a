"""The lab's network: namespaces on a bridge that has no way out, and touches nothing of this machine's own network.

The bridge lives in a namespace too, the controller's, which routes between the two subnets. Being cut off from the machine, the addresses are
the same in every lab, whatever network the machine is in.
"""

from __future__ import annotations

import ctypes
import ipaddress
import re
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Subnet = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

INSIDE: Final[Subnet] = (ipaddress.IPv4Network("10.77.0.0/24"), ipaddress.IPv6Network("fd77::/64"))
"""The operator's own network: containers, the controller, clients."""

OUTSIDE: Final[Subnet] = (ipaddress.IPv4Network("203.0.113.0/24"), ipaddress.IPv6Network("2001:db8:77::/64"))
"""Everybody else, behind the router (addresses for documentation, RFC 5737 and RFC 3849)."""

_CLONE_NEWNET: Final = 0x40000000  # setns(2)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_CONTROLLER: Final = 1  # the controller's place in either subnet


class Namespace:
    """A network namespace, and commands in it.

    Args:
        name: as ``ip netns`` lists it.
        addresses: its IPv4 and IPv6 address; none if it is connected to nothing.
    """

    def __init__(self, name: str, addresses: Sequence[str] = ()) -> None:
        self.name = name
        self.addresses = tuple(addresses)

    @property
    def path(self) -> Path:
        """What stands for it among the files."""
        return Path("/run/netns") / self.name

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return self.addresses[0]

    def enter(self, *command: str) -> list[str]:
        """The command that runs ``command`` in it."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def connect(self, address: str, port: int, timeout: float) -> socket.socket:
        """Open a TCP connection from it.

        Raises:
            OSError: as ``socket.create_connection``.
        """
        with ThreadPoolExecutor(1) as thread:  # its sockets stay there
            return thread.submit(self._connect, address, port, timeout).result()

    def listen(self, port: int) -> socket.socket:
        """Listen for TCP connections at its IPv4 address."""
        with ThreadPoolExecutor(1) as thread:  # the socket stays there
            return thread.submit(self._listen, port).result()

    def _listen(self, port: int) -> socket.socket:
        self.enter_thread()
        return socket.create_server((self.address, port))

    def _connect(self, address: str, port: int, timeout: float) -> socket.socket:
        self.enter_thread()
        return socket.create_connection((address, port), timeout)

    def enter_thread(self) -> None:
        """Let the calling thread, and no other, be in it from now on."""
        with self.path.open("rb") as namespace:
            if _LIBC.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.name}")

    def run(
        self, *command: str, check: bool = True, timeout: float = 60.0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it and capture what it says.

        Raises:
            AssertionError: it failed, unless ``check`` is false; says what it printed.
        """
        done = subprocess.run(
            self.enter(*command), check=False, capture_output=True, text=True, timeout=timeout, **more
        )
        if check:
            assert done.returncode == 0, (
                f"{' '.join(command)} failed in {self.name} ({done.returncode}):\n{done.stdout}{done.stderr}"
            )
        return done


@dataclass(frozen=True, slots=True)
class Plug:
    """Where a virtual machine is plugged in: a network device on the bridge, in the controller's namespace.

    Attributes:
        device: its name.
        hardware: the address that the machine's own end has. Its last four bytes are ``address``, so that a machine can know its address
            without being told.
        address: its IPv4 address.
    """

    device: str
    hardware: str
    address: str


class Network:
    """The bridge, its controller, and who is attached to it.

    Args:
        prefix: what the names of all its namespaces begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._places: dict[Subnet, list[str]] = {INSIDE: [], OUTSIDE: []}
        self.controller = self._add("controller", INSIDE, _CONTROLLER)
        for bridge, subnet in (("inside", INSIDE), ("outside", OUTSIDE)):
            _ip(self.controller, "link", "add", bridge, "type", "bridge")
            _configure(self.controller, bridge, subnet, _CONTROLLER)
        for family in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            self.controller.run("sysctl", "--quiet", "--write", f"net.{family}=1")

    def attach(self, name: str, subnet: Subnet = INSIDE) -> Namespace:
        """A namespace with addresses in ``subnet`` and a way to the other subnet, but nowhere else.

        Who has been there before gets the same addresses again.

        Args:
            name: what it is called in this lab, 15 characters at most (a network device has that name).
            subnet: ``INSIDE`` or ``OUTSIDE``.
        """
        place = self._place(name, subnet)
        namespace = self._add(name, subnet, place)
        # The hardware address is its own too, or the others would look for it at the one from before.
        hardware = f"02:00:00:00:{0 if subnet is INSIDE else 1:02x}:{place:02x}"
        peer = ("peer", "name", "host0", "address", hardware, "netns", namespace.name)
        _ip(self.controller, "link", "add", name, "type", "veth", *peer)
        _ip(self.controller, "link", "set", name, "master", "inside" if subnet is INSIDE else "outside", "up")
        _configure(namespace, "host0", subnet, place)
        for network, there in zip(subnet, OUTSIDE if subnet is INSIDE else INSIDE, strict=True):
            _ip(namespace, "route", "add", str(there), "via", str(network[_CONTROLLER]))
        return namespace

    def plug(self, name: str) -> Plug:
        """A place in ``INSIDE`` for a virtual machine; who has been there before gets the same again.

        Args:
            name: what the machine is called in this lab, 15 characters at most.
        """
        place = self._place(name, INSIDE)
        address = str(INSIDE[0][place])
        devices = self.controller.run("ip", "-brief", "link", "show").stdout
        if not re.search(rf"^{name}\b", devices, re.MULTILINE):
            _ip(self.controller, "tuntap", "add", name, "mode", "tap")
            _ip(self.controller, "link", "set", name, "master", "inside", "up")
        return Plug(name, "02:00:" + ":".join(f"{int(byte):02x}" for byte in address.split(".")), address)

    def unattached(self, name: str) -> Namespace:
        """A namespace that is connected to nothing: what succeeds from there proves nothing about the network."""
        return self._add(name, None, 0)

    def detach(self, namespace: Namespace) -> None:
        """Remove a namespace and with it its end of the cable."""
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True)

    def _place(self, name: str, subnet: Subnet) -> int:
        places = self._places[subnet]
        if name not in places:
            places.append(name)
        return _CONTROLLER + 1 + places.index(name)

    def _add(self, name: str, subnet: Subnet | None, place: int) -> Namespace:
        namespace = Namespace(f"{self._prefix}{name}", [str(network[place]) for network in subnet or ()])
        subprocess.run(["ip", "netns", "add", namespace.name], check=True)
        _ip(namespace, "link", "set", "lo", "up")
        return namespace


def _configure(namespace: Namespace, device: str, subnet: Subnet, place: int) -> None:
    for network in subnet:
        nodad = ("nodad",) if network.version == 6 else ()  # usable at once: nobody else can have the address
        _ip(namespace, "address", "add", f"{network[place]}/{network.prefixlen}", "dev", device, *nodad)
    _ip(namespace, "link", "set", device, "up")


def _ip(namespace: Namespace, *arguments: str) -> None:
    subprocess.run(["ip", "-netns", namespace.name, *arguments], check=True)
