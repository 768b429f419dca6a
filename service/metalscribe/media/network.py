"""Connections to checked addresses, beneath HTTP and TLS.

Where a check before the request leaves a gap (the name is resolved again for the connection, and may by then lead
elsewhere: DNS rebinding), here the connection itself resolves the name, once, checks *every* address it got and
connects to one of those.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from metalscribe.errors import AddressRefused

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from metalscribe.media.addresses import AddressPolicy

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Takes a host name and a port, returns numeric addresses in the order to try; raises OSError where there are none."""

MAX_ADDRESSES = 6
"""How many addresses of one name are tried."""

MAX_HEAD = 256 * 1024
"""Bytes of a response before its body, interim responses (status 1xx) included."""

_HEAD_READ = 4096


class NameNotResolved(httpx.ConnectError):
    """The URL's host name has no address."""


async def resolve_by_system(host: str, port: int) -> list[str]:
    """The addresses of ``host`` by the system's resolver (``getaddrinfo``), in its order (RFC 6724)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = []
    for *_, sockaddr in found:
        scope = sockaddr[3] if len(sockaddr) > 3 else 0  # IPv6: address, port, flow, scope
        addresses.append(f"{sockaddr[0]}%{scope}" if scope else str(sockaddr[0]))
    return addresses


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Where a connection is made: resolve, check all, connect to what was checked."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's interface)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a checked address of ``host``; raises AddressRefused where there is none."""
        failure: Exception = NameNotResolved("no address")
        for address in (await self._permitted(host, port))[:MAX_ADDRESSES]:
            try:
                stream = await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return BoundedStream(stream)
        raise failure

    async def _permitted(self, host: str, port: int) -> list[str]:
        try:
            addresses = [host] if is_literal(host) else await self._resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise NameNotResolved("the name has no address") from error
        addresses = list(dict.fromkeys(addresses))
        try:
            for address in addresses:
                self._policy.check(address)
        except AddressRefused as refusal:
            if is_literal(host):
                raise
            # What the name leads to inside the operator's network is not the caller's to know.
            raise AddressRefused(
                f"{host} leads to an address that is not on the public internet. "
                "The operator can permit its network in METALSCRIBE_ALLOW_NETWORKS."
            ) from refusal
        return addresses


class BoundedStream(httpcore.AsyncNetworkStream):
    """A connection on which a response's head is read in small pieces, and only so much of it.

    Parsing happens in one go for all that one read brought, and h11 bounds a single head but not how many interim
    responses come before it. Without this, a server that sends nothing else would hold up the event loop.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left: int | None = MAX_HEAD

    def head_is_over(self) -> None:
        """From now on it is the body, which whoever reads it bounds."""
        self._left = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  (httpcore's)
        """Read at most ``max_bytes``; raises RemoteProtocolError when a head has no end."""
        if self._left is None:
            return await self._stream.read(max_bytes, timeout)
        data = await self._stream.read(min(max_bytes, _HEAD_READ), timeout)
        self._left -= len(data)
        if self._left < 0:
            raise httpcore.RemoteProtocolError("the head of the response has no end")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  (httpcore's)
        """Write all of ``buffer``."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's)
    ) -> httpcore.AsyncNetworkStream:
        """The same bounds, beneath TLS."""
        return BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """What the connection knows about itself."""
        return self._stream.get_extra_info(info)


def is_literal(host: str) -> bool:
    """Whether ``host`` is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
