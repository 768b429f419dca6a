"""Fetching a recording from a URL that a caller sent: checked, bounded in size and time, straight to disk.

Addresses are checked by :mod:`metalscribe.media.network` for the first request and for every redirect. No HTTP client
stands between, so there are no cookies, no proxies and credentials from the environment, and no log line with the
URL, whose query is often a signature.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from metalscribe.errors import AddressRefused, FetchFailed, UploadTooLarge
from metalscribe.media.network import NameNotResolved
from metalscribe.media.newfile import NewFile
from metalscribe.media.transport import (
    CheckedTransport,
    check_url,
    default_ssl_context,
    host_of,
    parse_url,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from metalscribe.media.addresses import AddressPolicy
    from metalscribe.media.network import Resolver

MAX_REDIRECTS = 5
ANSWER_SECS = 60.0
"""From the start of a request to the end of its response's headers: name, connection, TLS and the server's thinking."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WHOLE = frozenset({200, 203})
_HEADERS = {
    "User-Agent": "metalscribe",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # a recording is compressed already, and what is not unpacked cannot explode
    "Connection": "close",
}
_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Fetched:
    """A recording on disk.

    ``bytes`` is its size. ``final_url`` is where it came from after redirects; it may hold a signature, so keep it out
    of logs. ``name`` is the end of the caller's URL made harmless, for messages only, never for a path.
    """

    bytes: int
    final_url: str
    name: str


class Fetcher:
    """Fetches from addresses that ``policy`` permits; one instance serves any number of fetches at a time.

    ``max_bytes`` bounds the file, ``timeout_secs`` one fetch in all; ``connect_secs`` bounds a connection to one
    address and ``idle_secs`` the wait for the next bytes. ``resolver`` and ``ssl_context`` replace the system's
    resolver and the usual certificate authorities.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        max_bytes: int,
        timeout_secs: float,
        connect_secs: float = 10.0,
        idle_secs: float = 30.0,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout_secs = timeout_secs
        self._timeouts = {"connect": connect_secs, "read": idle_secs, "write": idle_secs, "pool": connect_secs}
        self._resolver = resolver
        self._ssl_context = ssl_context or default_ssl_context()

    async def fetch(self, url: str, target: Path) -> Fetched:
        """Download ``url`` into the new file ``target`` (mode 0600); on failure and on cancellation no file is left.

        Up to five redirects are followed, never from https to http. The answer must be 200 (or 203), uncompressed, not
        empty and not cut short.

        Raises:
            InvalidParameter: not a URL.
            AddressRefused: the URL, or one it redirects to, is not one that the service connects to.
            UploadTooLarge: more than ``max_bytes``, by announcement or by count.
            FetchFailed: anything else that the other side or the network did.
            StorageFull: the disk is full.
            FileExistsError: something, a symbolic link included, is at ``target``; it is left alone.
        """
        first = parse_url(url)
        deadline = asyncio.timeout(self._timeout_secs)
        try:
            async with deadline, self._transport() as transport:
                final, response = await self._follow(transport, first)
                try:
                    size = await self._store(response, host_of(final), target)
                finally:
                    await response.aclose()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise FetchFailed(
                f"{host_of(first)} did not deliver the recording within {self._timeout_secs:g} seconds. "
                "Upload the file instead, or raise METALSCRIBE_FETCH_TIMEOUT_SECS."
            ) from None
        return Fetched(bytes=size, final_url=str(final), name=_name(first))

    def _transport(self) -> CheckedTransport:
        return CheckedTransport(self._policy, resolver=self._resolver, ssl_context=self._ssl_context)

    async def _follow(self, transport: CheckedTransport, url: httpx.URL) -> tuple[httpx.URL, httpx.Response]:
        """The response at the end of the redirects, its body unread."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(transport, url)
            if response.status_code not in _REDIRECTS:
                return url, response
            await response.aclose()
            url = _redirected(url, response)
        raise FetchFailed(f"{host_of(url)} redirects more than {MAX_REDIRECTS} times. Send the final URL.")

    async def _get(self, transport: CheckedTransport, url: httpx.URL) -> httpx.Response:
        request = httpx.Request("GET", url, headers=_HEADERS, extensions={"timeout": self._timeouts})
        deadline = asyncio.timeout(ANSWER_SECS)
        try:
            async with deadline:
                return await transport.handle_async_request(request)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise FetchFailed(f"{host_of(url)} did not answer within {ANSWER_SECS:g} seconds.") from None
        except httpx.TransportError as error:
            raise FetchFailed(_explain(error, host_of(url))) from error

    async def _store(self, response: httpx.Response, host: str, target: Path) -> int:
        """Write the body to ``target`` and return its size."""
        if response.status_code not in _WHOLE:
            raise FetchFailed(f"{host} answered with status {response.status_code} instead of the recording.")
        if response.headers.get("content-encoding", "identity").strip().lower() not in {"identity", ""}:
            raise FetchFailed(f"{host} sent the recording compressed although it was asked not to.")
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        size = 0
        async with NewFile(target) as file:
            try:
                pieces = 0
                async for piece in response.aiter_raw():
                    size += len(piece)
                    if size > self._max_bytes:
                        raise self._too_large()
                    await file.write(piece)
                    pieces += 1
                    if pieces % 64 == 0:  # a body in one-byte chunks must not hold up everyone else
                        await asyncio.sleep(0)
            except httpx.TransportError as error:
                raise FetchFailed(_explain(error, host)) from error
            if size == 0:
                raise FetchFailed(f"{host} answered with an empty file.")
        return size

    def _too_large(self) -> UploadTooLarge:
        return UploadTooLarge(
            f"The recording is larger than {self._max_bytes / 2**20:g} MiB, the limit set by METALSCRIBE_MAX_UPLOAD_MB."
        )


def _redirected(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    """Where ``response``, a redirect from ``url``, leads."""
    try:
        target = url.join(response.headers["location"])
    except (KeyError, httpx.InvalidURL, UnicodeError):
        raise FetchFailed(
            f"{host_of(url)} answered with status {response.status_code}, a redirect, but not with where to."
        ) from None
    if url.scheme == "https" and target.scheme == "http":
        raise AddressRefused(f"{host_of(url)} redirects from https to http, where anyone could change the recording.")
    check_url(target)
    return target


def _explain(error: httpx.TransportError, host: str) -> str:
    """Put into a sentence for the caller; what the network said in detail stays in the exception's cause."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"The TLS certificate of {host} was not accepted: {cause.verify_message.rstrip('.')}."
        if isinstance(cause, ssl.SSLError):
            return f"{host} does not speak TLS as this service understands it."
    sentences: tuple[tuple[type[httpx.TransportError], str], ...] = (
        (NameNotResolved, f"The name {host} could not be resolved."),
        (httpx.ConnectTimeout, f"{host} did not accept a connection in time."),
        (httpx.ConnectError, f"No connection to {host} could be made."),
        (httpx.TimeoutException, f"{host} stopped sending before the recording was complete."),
        (httpx.ProtocolError, f"{host} broke off before the recording was complete, or did not speak HTTP."),
        (httpx.TransportError, f"The connection to {host} broke before the recording was complete."),
    )
    return next(sentence for kind, sentence in sentences if isinstance(error, kind))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _name(url: httpx.URL) -> str:
    """The last component of the path, without what could break a message or a terminal."""
    last = url.path.rsplit("/", 1)[-1]
    kept = "".join(character if character.isprintable() and character not in "/\\" else "_" for character in last)
    return kept.strip(" .")[:_NAME_LENGTH] or "recording"
