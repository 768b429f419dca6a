"""An HTTP transport that connects to checked addresses only, for every request made on a caller's behalf.

The checks of addresses are in :mod:`metalscribe.media.network`, beneath HTTP and TLS: the Host header, the TLS server
name and the certificate check keep the name of the URL.

:class:`CheckedTransport` goes into ``httpx.AsyncClient(transport=…, trust_env=False)`` or is used by itself; either way
proxies from the environment do not apply, and each redirect that a client follows is checked like a first request.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import httpcore
import httpx

from metalscribe.errors import AddressRefused, InvalidParameter
from metalscribe.media.network import BoundedStream, CheckedNetwork, is_literal, resolve_by_system

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator

    from metalscribe.media.addresses import AddressPolicy
    from metalscribe.media.network import Resolver

_WEB_PORTS = frozenset({80, 443})
_FIRST_UNPRIVILEGED_PORT = 1024
_LAST_PORT = 65535


def default_ssl_context() -> ssl.SSLContext:
    """Verifies certificates against certifi's authorities and those that the operator added to the system."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def parse_url(text: str) -> httpx.URL:
    """Parse and check a URL that a caller sent; its addresses are checked when it is connected to.

    Raises:
        InvalidParameter: not a URL.
        AddressRefused: a URL that :func:`check_url` refuses.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        raise InvalidParameter("url is not a well-formed URL such as https://example.com/talk.mp3.", "url") from None
    check_url(url)
    return url


def check_url(url: httpx.URL) -> None:
    """Refuse a URL for what it says itself.

    Permitted: http and https; a host of letters, digits, dots, hyphens and underscores (after IDNA encoding) or a
    literal address; the ports 80, 443 and 1024 to 65535, since below those live mail, databases' and administrators'
    protocols rather than recordings; no user name or password, which would end up in logs.

    Raises:
        AddressRefused: not permitted; the message says which rule and never repeats the URL, which may hold a secret.
    """
    if url.scheme not in {"http", "https"}:
        raise AddressRefused("Only absolute http:// and https:// URLs are fetched.")
    if url.userinfo:
        raise AddressRefused("The URL holds a user name or password. Use a signed URL instead, or upload the file.")
    if not _is_host(url):
        raise AddressRefused("The URL's host is neither a host name nor an address.")
    port = _port(url)
    if port not in _WEB_PORTS and not _FIRST_UNPRIVILEGED_PORT <= port <= _LAST_PORT:
        raise AddressRefused(f"Port {port} is not fetched from; use 80, 443 or one from 1024 to 65535.")


def host_of(url: httpx.URL) -> str:
    """Return the host as it is resolved and sent: ASCII, after IDNA encoding, an IPv6 address without brackets."""
    return url.raw_host.decode("ascii")


class CheckedTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over connections whose address ``policy`` permits; no connection is used twice.

    If any address of a name is refused then so is the name: a name that mixes public and private addresses is either
    an attack or a mistake in DNS, and picking the good ones would hide it.

    ``resolver`` defaults to the system's; a literal address never reaches it. Closing (``async with`` or ``aclose``)
    closes what is still open. Requests raise httpx's errors, :class:`metalscribe.media.network.NameNotResolved` among
    them, and :class:`metalscribe.errors.AddressRefused`. How many run at a time is the caller's business.
    """

    def __init__(
        self, policy: AddressPolicy, *, resolver: Resolver | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or default_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=CheckedNetwork(policy, resolver or resolve_by_system),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` and return its response as soon as the headers are there."""
        check_url(request.url)
        raw = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx_errors():
            response = await self._pool.handle_async_request(raw)
        stream = response.extensions["network_stream"]
        if isinstance(stream, BoundedStream):  # else it speaks another protocol now (status 101), and stays bounded
            stream.head_is_over()
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    """The response's bytes, as they arrive."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for piece in self._response.aiter_stream():
                yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


@contextlib.contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise _httpx_error(error)(str(error)) from error


def _httpx_error(error: Exception) -> type[httpx.TransportError]:
    """Give httpx's class for one of httpcore's; the two hierarchies have the same shape."""
    same = {
        httpcore.ConnectTimeout: httpx.ConnectTimeout,
        httpcore.ReadTimeout: httpx.ReadTimeout,
        httpcore.WriteTimeout: httpx.WriteTimeout,
        httpcore.PoolTimeout: httpx.PoolTimeout,
        httpcore.ConnectError: httpx.ConnectError,
        httpcore.ReadError: httpx.ReadError,
        httpcore.WriteError: httpx.WriteError,
        httpcore.LocalProtocolError: httpx.LocalProtocolError,
        httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    }
    return same.get(type(error), httpx.TransportError)


def _is_host(url: httpx.URL) -> bool:
    host = host_of(url)
    if is_literal(host):
        return "%" not in host
    try:
        decoded = url.host  # httpx decodes IDNA wherever it uses a URL, and raises on a name that only looks encoded
    except UnicodeError:
        return False
    return bool(decoded) and re.fullmatch(r"[a-z0-9._-]{1,255}", host) is not None


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]
