from __future__ import annotations

import asyncio
import errno
import gzip
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metalscribe.errors import (
    AddressRefused,
    FetchFailed,
    InvalidParameter,
    MetalscribeError,
    StorageFull,
    UploadTooLarge,
)
from metalscribe.media import newfile
from metalscribe.media.addresses import AddressPolicy
from metalscribe.media.fetch import MAX_REDIRECTS, Fetched, Fetcher
from metalscribe.media.transport import CheckedTransport, parse_url

WAIT = 20.0
"""Seconds after which a wait for an event fails its test."""

MIB = 1 << 20
LOOPBACK = AddressPolicy(("127.0.0.0/8", "::1"))
NOTHING_PRIVATE = AddressPolicy(())


# --- real servers -----------------------------------------------------------------------------------------------------


class Exchange(NamedTuple):
    head: str
    writer: asyncio.StreamWriter
    released: asyncio.Event

    @property
    def path(self) -> str:
        return self.head.split(" ")[1]

    def header(self, name: str) -> str | None:
        lines = [line.partition(":") for line in self.head.split("\r\n")[1:]]
        return next((value.strip() for key, _, value in lines if key.lower() == name.lower()), None)


Answer = bytes | Callable[[Exchange], Awaitable[None]]


@dataclass
class Site:
    """What a test server saw."""

    port: int = 0
    connections: int = 0
    heads: list[Exchange] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Yield the port of a server whose every conversation is over when the block is left."""
    conversations: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # the client left, which some tests want
            await talk(reader, writer)
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, host, port, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    if conversations:
        _, unfinished = await asyncio.wait(conversations, timeout=WAIT)
        assert not unfinished


@asynccontextmanager
async def serving(
    answer: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    site = Site()
    released = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            exchange = Exchange(head, writer, released)
            site.heads.append(exchange)
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(exchange)
        finally:
            site.closed.set()

    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: site.server_names.append(name)
    async with listening(talk, host, port, tls) as site.port:
        try:
            yield site
        finally:
            released.set()


def ok(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


class Names:
    """A resolver whose answers change with each question; the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(rounds) for name, rounds in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        rounds = self._answers.get(host)
        if rounds is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return rounds.pop(0) if len(rounds) > 1 else rounds[0]


@pytest.fixture(scope="module")
def trusting_nobody() -> ssl.SSLContext:
    """For plain HTTP; loading the usual authorities takes time that most tests do not need."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


FetcherFactory = Callable[..., Fetcher]


@pytest.fixture
def fetcher(trusting_nobody: ssl.SSLContext) -> FetcherFactory:
    def make(policy: AddressPolicy = LOOPBACK, **options: object) -> Fetcher:
        settings: dict[str, object] = {
            "max_bytes": 4 * MIB,
            "timeout_secs": WAIT,
            "ssl_context": trusting_nobody,
            **options,
        }
        return Fetcher(policy, **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "download"


@pytest.fixture
async def canary() -> AsyncIterator[Site]:
    """A server on 127.0.0.1 that nobody may connect to."""
    async with serving(ok(b"secret")) as site:
        yield site


# --- fetching ---------------------------------------------------------------------------------------------------------


async def test_a_recording_arrives_whole_and_private(fetcher: FetcherFactory, target: Path) -> None:
    body = os.urandom(3 * MIB + 17)
    async with serving(ok(body)) as site:
        fetched = await fetcher().fetch(f"http://127.0.0.1:{site.port}/a/talk%20one.mp3?sig=1", target)
    assert fetched == Fetched(len(body), f"http://127.0.0.1:{site.port}/a/talk%20one.mp3?sig=1", "talk one.mp3")
    assert target.read_bytes() == body
    assert target.stat().st_mode & 0o7777 == 0o600


async def test_a_chunked_recording_arrives_whole(fetcher: FetcherFactory, target: Path) -> None:
    async with serving(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1000 + b"3\r\nend\r\n0\r\n\r\n"
    ) as site:
        await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert target.read_bytes() == b"a" * 1000 + b"end"


async def test_the_request_asks_for_plain_bytes_by_the_original_name(fetcher: FetcherFactory, target: Path) -> None:
    names = Names(media_test=[["127.0.0.1"]])
    async with serving(ok(b"x")) as site:
        await fetcher(resolver=names).fetch(f"http://media.test:{site.port}/x", target)
    (request,) = site.heads
    assert request.header("Host") == f"media.test:{site.port}"
    assert request.header("Accept-Encoding") == "identity"
    assert names.asked == ["media.test"]


async def test_the_next_address_is_tried_when_one_does_not_answer(fetcher: FetcherFactory, target: Path) -> None:
    async with serving(ok(b"x"), host="127.0.0.3") as site:
        names = Names(media_test=[["127.0.0.2", "127.0.0.3"]])
        await fetcher(resolver=names).fetch(f"http://media.test:{site.port}/x", target)
    assert target.read_bytes() == b"x"


async def test_the_systems_resolver_is_the_default(fetcher: FetcherFactory, target: Path) -> None:
    async with serving(ok(b"x")) as site:
        await fetcher().fetch(f"http://localhost:{site.port}/x", target)
    assert target.read_bytes() == b"x"


async def test_proxies_and_netrc_from_the_environment_are_ignored(
    fetcher: FetcherFactory, target: Path, tmp_path: Path, canary: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{canary.port}")
    async with serving(ok(b"x")) as site:
        await fetcher().fetch(f"http://127.0.0.1:{site.port}/x", target)
    assert canary.connections == 0
    assert site.heads[0].header("Authorization") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "recording"),
        ("", "recording"),
        ("/a/b.ogg", "b.ogg"),
        ("/a/..%2f..%2fetc%2fpasswd", "passwd"),
        ("/a/%1b[31mred%0a.mp3", "_[31mred_.mp3"),
        ("/%E2%80%AEgpj.mp3", "_gpj.mp3"),
        ("/%5C%5Chost%5Cshare", "__host_share"),
        ("/" + "x" * 300, "x" * 100),
    ],
)
async def test_the_name_is_harmless(fetcher: FetcherFactory, target: Path, path: str, name: str) -> None:
    async with serving(ok(b"x")) as site:
        fetched = await fetcher().fetch(f"http://127.0.0.1:{site.port}{path}", target)
    assert fetched.name == name


# --- refused URLs and addresses ---------------------------------------------------------------------------------------

LOOPBACK_SPELLINGS = (
    "127.0.0.1",
    "localhost",
    "LOCALHOST.",
    "127.1",
    "0x7f000001",
    "0x7f.0.0.1",
    "2130706433",
    "0177.0.0.1",
    "127.0.0.1.",
    "0.0.0.0",
    "0",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[::1%25lo]",
    "127%2e0%2e0%2e1",
    "%31%32%37.0.0.1",
    "１２７.０.０.１",
    "127。0。0。1",
    "①27.0.0.1",
    "localhost%00.example.com",
)


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
async def test_no_spelling_of_loopback_reaches_it(
    fetcher: FetcherFactory, target: Path, canary: Site, host: str
) -> None:
    with pytest.raises((AddressRefused, InvalidParameter, FetchFailed)):
        await fetcher(NOTHING_PRIVATE).fetch(f"http://{host}:{canary.port}/", target)
    assert canary.connections == 0
    assert not target.exists()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f000001", "0.0.0.0", "[::1]", "[2002:7f00:1::]"],
)
async def test_spellings_that_resolve_are_refused_for_their_address(
    fetcher: FetcherFactory, target: Path, host: str
) -> None:
    with pytest.raises(AddressRefused, match="METALSCRIBE_ALLOW_NETWORKS"):
        await fetcher(NOTHING_PRIVATE).fetch(f"http://{host}:8080/", target)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:10.0.0.1]", "10.0.0.1", "100.64.0.1"])
async def test_literal_addresses_are_refused(fetcher: FetcherFactory, target: Path, host: str) -> None:
    with pytest.raises(AddressRefused, match="not on the public internet"):
        await fetcher(NOTHING_PRIVATE).fetch(f"http://{host}/latest/meta-data/", target)


async def test_a_literal_address_is_never_left_to_the_resolver(
    fetcher: FetcherFactory, target: Path, canary: Site
) -> None:
    names = Names(**{"10.0.0.1": [["127.0.0.1"]]})
    with pytest.raises(AddressRefused):
        await fetcher(resolver=names).fetch(f"http://10.0.0.1:{canary.port}/", target)
    assert names.asked == []
    assert canary.connections == 0


async def test_a_name_that_leads_inside_is_refused_without_telling_where(
    fetcher: FetcherFactory, target: Path, canary: Site
) -> None:
    names = Names(intranet_test=[["127.0.0.1"]])
    with pytest.raises(AddressRefused, match=r"intranet\.test leads to") as refusal:
        await fetcher(NOTHING_PRIVATE, resolver=names).fetch(f"http://intranet.test:{canary.port}/", target)
    assert "127." not in refusal.value.detail
    assert "loopback" not in refusal.value.detail
    assert canary.connections == 0


@pytest.mark.parametrize("order", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
async def test_one_refused_address_refuses_the_name(
    fetcher: FetcherFactory, target: Path, canary: Site, order: list[str]
) -> None:
    policy = AddressPolicy(("127.0.0.2",))
    async with serving(ok(b"x"), host="127.0.0.2", port=canary.port) as site:
        with pytest.raises(AddressRefused):
            await fetcher(policy, resolver=Names(media_test=[order])).fetch(f"http://media.test:{site.port}/", target)
    assert site.connections == canary.connections == 0


async def test_a_resolver_that_answers_no_address_at_all_is_not_trusted(fetcher: FetcherFactory, target: Path) -> None:
    for answer in ("localhost", "127.1", ""):
        with pytest.raises(AddressRefused):
            await fetcher(resolver=Names(media_test=[[answer]])).fetch("http://media.test/", target)
    with pytest.raises(FetchFailed, match="could not be resolved"):
        await fetcher(resolver=Names(media_test=[[]])).fetch("http://media.test/", target)


async def test_rebinding_finds_no_second_resolution(fetcher: FetcherFactory, target: Path, canary: Site) -> None:
    """127.0.0.2 stands for the public address that the name has at first, 127.0.0.1 for the one it has from then on."""
    policy = AddressPolicy(("127.0.0.2",))
    names = Names(rebind_test=[["127.0.0.2"], ["127.0.0.1"]])
    async with serving(ok(b"public"), host="127.0.0.2", port=canary.port) as public:
        url = f"http://rebind.test:{public.port}/x"
        await fetcher(policy, resolver=names).fetch(url, target)
        assert target.read_bytes() == b"public"
        assert names.asked == ["rebind.test"]
        with pytest.raises(AddressRefused):
            await fetcher(policy, resolver=names).fetch(url, target.with_name("second"))
    assert names.asked == ["rebind.test"] * 2
    assert public.connections == 1
    assert canary.connections == 0


async def test_rebinding_between_redirects_is_refused(fetcher: FetcherFactory, target: Path, canary: Site) -> None:
    policy = AddressPolicy(("127.0.0.2",))
    names = Names(rebind_test=[["127.0.0.2"], ["127.0.0.1"]])
    async with serving(redirect("/again"), host="127.0.0.2", port=canary.port) as public:
        with pytest.raises(AddressRefused):
            await fetcher(policy, resolver=names).fetch(f"http://rebind.test:{public.port}/x", target)
    assert names.asked == ["rebind.test"] * 2
    assert (public.connections, canary.connections) == (1, 0)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a.mp3",
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/_x",
        "data:audio/wav;base64,AAAA",
        "//example.com/a.mp3",
        "example.com/a.mp3",
        "/etc/passwd",
        "",
        "http:///a.mp3",
        "http://",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://:secret@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://example.com:22/",
        "http://example.com:25/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://exa$mple.com/",
        "http://a b/",
        "http://[fe80::1%25eth0]/",
        "http://xn--a.com/",
    ],
)
def test_urls_refused_for_what_they_say(url: str) -> None:
    with pytest.raises(AddressRefused) as refusal:
        parse_url(url)
    assert "secret" not in refusal.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/",
        "http://[1.2.3.4]/",
        "http://exam\nple.com/",
        "http://example.com:port/",
        "http://256.1.1.1/",
        "\ud800:",
    ],
)
def test_malformed_urls_name_the_parameter(url: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        parse_url(url)
    assert refusal.value.parameter == "url"


@pytest.mark.parametrize("port", ["", ":80", ":443", ":1024", ":8080", ":65535"])
def test_web_ports_are_permitted(port: str) -> None:
    assert parse_url(f"https://example.com{port}/a").raw_host == b"example.com"


@given(st.text() | st.text().map("http://{}".format) | st.from_regex(r"https?://[^/]+/.*"))
@example("http://xn--a.com/")
@example("http://a/\ud800")
@example("http://\ud800/")
def test_any_text_is_a_url_or_a_clean_refusal(text: str) -> None:
    try:
        url = parse_url(text)
    except MetalscribeError:
        return
    assert url.scheme in {"http", "https"}
    assert url.raw_host


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(fetcher: FetcherFactory, target: Path, status: int) -> None:
    async def answer(exchange: Exchange) -> None:
        to_end = exchange.path == "/end"
        exchange.writer.write(ok(b"x") if to_end else redirect("/end", status))
        await exchange.writer.drain()

    async with serving(answer) as site:
        fetched = await fetcher().fetch(f"http://127.0.0.1:{site.port}/start.mp3", target)
    assert fetched.final_url == f"http://127.0.0.1:{site.port}/end"
    assert fetched.name == "start.mp3"
    assert target.read_bytes() == b"x"


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:{port}/", "//127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::ffff:7f00:1]:{port}/"],
)
async def test_a_redirect_to_loopback_is_refused(
    fetcher: FetcherFactory, target: Path, canary: Site, location: str
) -> None:
    policy = AddressPolicy(("127.0.0.2",))
    async with serving(redirect(location.format(port=canary.port)), host="127.0.0.2") as site:
        with pytest.raises(AddressRefused):
            await fetcher(policy).fetch(f"http://127.0.0.2:{site.port}/", target)
    assert site.connections == 1
    assert canary.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "gopher://x/",
        "http://me:secret@example.com/",
        "http://example.com:22/",
        "http://xn--a.com/",
    ],
)
async def test_a_redirect_obeys_the_rules_of_urls(fetcher: FetcherFactory, target: Path, location: str) -> None:
    async with serving(redirect(location)) as site:
        with pytest.raises(AddressRefused):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)


async def test_a_redirect_loop_ends(fetcher: FetcherFactory, target: Path) -> None:
    async with serving(redirect("/")) as site:
        with pytest.raises(FetchFailed, match=rf"more than {MAX_REDIRECTS} times"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert site.connections == MAX_REDIRECTS + 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", redirect("http://[::1/")])
async def test_a_redirect_to_nowhere_fails(fetcher: FetcherFactory, target: Path, answer: bytes) -> None:
    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match="302"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)


async def test_cookies_are_not_carried_along(fetcher: FetcherFactory, target: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        cookie = b"HTTP/1.1 302 Found\r\nLocation: /end\r\nSet-Cookie: id=1\r\nContent-Length: 0\r\n\r\n"
        exchange.writer.write(ok(b"x") if exchange.path == "/end" else cookie)
        await exchange.writer.drain()

    async with serving(answer) as site:
        await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert [request.header("Cookie") for request in site.heads] == [None, None]


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_an_announced_size_is_refused_before_the_body(fetcher: FetcherFactory, target: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4194305\r\n\r\n")
        await exchange.writer.drain()
        await exchange.released.wait()

    async with serving(answer) as site:
        with pytest.raises(UploadTooLarge, match="4 MiB"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Connection: close"])
async def test_an_endless_body_is_cut_off(fetcher: FetcherFactory, target: Path, framing: str) -> None:
    piece = b"x" * 65536
    if "chunked" in framing:
        piece = b"10000\r\n" + piece + b"\r\n"

    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        while True:
            exchange.writer.write(piece)
            await exchange.writer.drain()

    async with serving(answer) as site:
        with pytest.raises(UploadTooLarge):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
        await asyncio.wait_for(site.closed.wait(), WAIT)
    assert not target.exists()


async def test_the_limit_itself_is_permitted(fetcher: FetcherFactory, target: Path) -> None:
    async with serving(ok(b"x" * 1000)) as site:
        await fetcher(max_bytes=1000).fetch(f"http://127.0.0.1:{site.port}/", target)
        with pytest.raises(UploadTooLarge):
            await fetcher(max_bytes=999).fetch(f"http://127.0.0.1:{site.port}/", target.with_name("other"))
    assert target.stat().st_size == 1000


async def test_a_gzip_bomb_is_not_unpacked(fetcher: FetcherFactory, target: Path) -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    async with serving(ok(bomb, "Content-Encoding: gzip")) as site:
        with pytest.raises(FetchFailed, match="compressed"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


async def test_a_server_that_stops_sending_times_out(fetcher: FetcherFactory, target: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        await exchange.writer.drain()
        await exchange.released.wait()

    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match="stopped sending"):
            await fetcher(idle_secs=0.2).fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_the_whole_fetch_is_bounded_in_time(fetcher: FetcherFactory, target: Path, sent: bytes) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(sent)
        await exchange.writer.drain()
        await exchange.released.wait()

    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match=r"within 0\.3 seconds"):
            await fetcher(timeout_secs=0.3).fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


async def test_a_resolver_that_hangs_is_bounded_in_time(fetcher: FetcherFactory, target: Path) -> None:
    async def hang(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(FetchFailed, match=r"within 0\.2 seconds"):
        await fetcher(timeout_secs=0.2, resolver=hang).fetch("http://media.test/", target)


async def test_endless_headers_are_bounded(fetcher: FetcherFactory, target: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            exchange.writer.write(b"X-More: " + b"x" * 8000 + b"\r\n")
            await exchange.writer.drain()

    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match="did not speak HTTP"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)


async def test_endless_interim_responses_are_bounded(fetcher: FetcherFactory, target: Path) -> None:
    async def answer(exchange: Exchange) -> None:
        while True:
            exchange.writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
            await exchange.writer.drain()

    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match="did not speak HTTP"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)


async def test_a_change_of_protocol_fails(fetcher: FetcherFactory, target: Path) -> None:
    async with serving(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nxxxx") as site:
        with pytest.raises(FetchFailed, match=r"101|did not speak HTTP"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", ["404 Not Found", "500 Oops", "204 No Content", "206 Partial Content", "304 Not Modified"]
)
async def test_other_statuses_are_named_and_bodies_are_not_repeated(
    fetcher: FetcherFactory, target: Path, status: str
) -> None:
    async with serving(f"HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\nsecret".encode()) as site:
        with pytest.raises(FetchFailed, match=status[:3]) as failure:
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/?sig=secret", target)
    assert "secret" not in failure.value.detail
    assert not target.exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_a_broken_answer_fails_and_leaves_nothing(fetcher: FetcherFactory, target: Path, answer: bytes) -> None:
    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match="before the recording was complete"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


@pytest.mark.parametrize("answer", [ok(b""), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"])
async def test_an_empty_body_fails(fetcher: FetcherFactory, target: Path, answer: bytes) -> None:
    async with serving(answer) as site:
        with pytest.raises(FetchFailed, match="empty"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


async def test_a_name_without_address_fails(fetcher: FetcherFactory, target: Path) -> None:
    with pytest.raises(FetchFailed, match=r"nowhere\.test could not be resolved"):
        await fetcher(resolver=Names()).fetch("http://nowhere.test/", target)


async def test_a_name_that_the_system_cannot_even_ask_for_fails(fetcher: FetcherFactory, target: Path) -> None:
    with pytest.raises(FetchFailed, match="could not be resolved"):
        await fetcher().fetch(f"http://{'a' * 70}..test/", target)


async def test_a_refused_connection_fails_without_naming_the_address(fetcher: FetcherFactory, target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        port = unused.getsockname()[1]
        with pytest.raises(FetchFailed, match=r"No connection to media\.test") as failure:
            await fetcher(resolver=Names(media_test=[["127.0.0.1"]])).fetch(f"http://media.test:{port}/", target)
    assert "127." not in failure.value.detail


class WatchedDisk:
    """Tells when a piece reaches the disk, and holds the disk up there until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, held: bool) -> None:
        self.reached = asyncio.Event()
        self.written: list[int] = []
        self._free = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._write = os.write
        if not held:
            self._free.set()
        monkeypatch.setattr(os, "write", self._watched)

    def let_go(self) -> None:
        self._free.set()

    def _watched(self, descriptor: int, data: memoryview) -> int:
        if not self._free.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self._free.wait(WAIT)
        self.written.append(self._write(descriptor, data))
        self._loop.call_soon_threadsafe(self.reached.set)
        return self.written[-1]


async def half_a_recording(exchange: Exchange) -> None:
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n" + bytes(2 * MIB))
    await exchange.writer.drain()
    await exchange.released.wait()


async def test_cancellation_removes_the_partial_file(
    fetcher: FetcherFactory, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = WatchedDisk(monkeypatch, held=False)
    async with serving(half_a_recording) as site:
        task = asyncio.create_task(fetcher().fetch(f"http://127.0.0.1:{site.port}/", target))
        await asyncio.wait_for(disk.reached.wait(), WAIT)
        assert target.stat().st_size > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not target.exists()


async def test_cancellation_during_a_write_waits_for_it_and_removes_the_file(
    fetcher: FetcherFactory, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = WatchedDisk(monkeypatch, held=True)
    async with serving(half_a_recording) as site:
        task = asyncio.create_task(fetcher().fetch(f"http://127.0.0.1:{site.port}/", target))
        await asyncio.wait_for(disk.reached.wait(), WAIT)
        task.cancel()
        disk.let_go()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not target.exists()
    assert sum(disk.written) >= MIB, "the write had its file to the end"


async def test_a_cancelled_scope_ends_when_the_partial_file_is_removed(
    fetcher: FetcherFactory, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = WatchedDisk(monkeypatch, held=True)
    async with serving(half_a_recording) as site:
        async with anyio.create_task_group() as group:
            group.start_soon(fetcher().fetch, f"http://127.0.0.1:{site.port}/", target)
            await asyncio.wait_for(disk.reached.wait(), WAIT)
            group.cancel_scope.cancel()
            asyncio.get_running_loop().call_later(0.2, disk.let_go)
        assert disk.written, "the scope ended while the disk was still writing"
        assert not target.exists()


# --- the file ---------------------------------------------------------------------------------------------------------


async def test_a_symbolic_link_is_not_followed(fetcher: FetcherFactory, target: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    target.symlink_to(elsewhere)
    async with serving(ok(b"x")) as site:
        with pytest.raises(FileExistsError):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert target.is_symlink()
    assert not elsewhere.exists()


async def test_an_existing_file_is_left_alone(fetcher: FetcherFactory, target: Path) -> None:
    target.write_bytes(b"mine")
    async with serving(ok(b"x")) as site:
        with pytest.raises(FileExistsError):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_and_leaves_nothing(
    fetcher: FetcherFactory, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full disk cannot be made without privileges; what is simulated is the one system call that reports it."""

    def full(_descriptor: int, _data: memoryview) -> int:
        raise OSError(number, os.strerror(number))

    async with serving(ok(bytes(2 * MIB))) as site:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageFull, match="Free some space"):
            await fetcher().fetch(f"http://127.0.0.1:{site.port}/", target)
    assert not target.exists()


async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    data = os.urandom(MIB + 5)
    async with newfile.NewFile(tmp_path / "new") as file:
        await file.write(data)
    assert (tmp_path / "new").read_bytes() == data


async def test_a_file_that_cannot_be_created_leaks_no_thread(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with newfile.NewFile(tmp_path / "missing" / "new"):
            pytest.fail("the directory does not exist")


# --- TLS --------------------------------------------------------------------------------------------------------------


class Certificate(NamedTuple):
    file: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.file))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A throwaway authority that is its own server, media.test."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=media.test", "-addext", "subjectAltName=DNS:media.test",
         "-keyout", str(made.key), "-out", str(made.file)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


async def test_tls_verifies_the_name_of_the_url_and_not_the_address(
    fetcher: FetcherFactory, target: Path, certificate: Certificate
) -> None:
    names = Names(media_test=[["127.0.0.1"]])
    async with serving(ok(b"x"), tls=certificate.server()) as site:
        fetching = fetcher(resolver=names, ssl_context=certificate.trusting())
        await fetching.fetch(f"https://media.test:{site.port}/x", target)
    assert target.read_bytes() == b"x"
    assert site.server_names == ["media.test"]


async def test_a_certificate_for_another_name_is_refused(
    fetcher: FetcherFactory, target: Path, certificate: Certificate
) -> None:
    names = Names(other_test=[["127.0.0.1"]])
    async with serving(ok(b"x"), tls=certificate.server()) as site:
        fetching = fetcher(resolver=names, ssl_context=certificate.trusting())
        with pytest.raises(FetchFailed, match=r"certificate of other\.test .*mismatch"):
            await fetching.fetch(f"https://other.test:{site.port}/x", target)
    assert site.heads == []


async def test_an_unknown_authority_is_refused_by_default(target: Path, certificate: Certificate) -> None:
    names = Names(media_test=[["127.0.0.1"]])
    async with serving(ok(b"x"), tls=certificate.server()) as site:
        fetching = Fetcher(LOOPBACK, max_bytes=MIB, timeout_secs=WAIT, resolver=names)
        with pytest.raises(FetchFailed, match=r"certificate of media\.test was not accepted"):
            await fetching.fetch(f"https://media.test:{site.port}/x", target)
    assert site.heads == []


async def test_https_to_a_server_without_tls_fails(fetcher: FetcherFactory, target: Path) -> None:
    async def speak_first(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(b"x"))
        await writer.drain()

    async with listening(speak_first) as port:
        with pytest.raises(FetchFailed, match="does not speak TLS"):
            await fetcher().fetch(f"https://127.0.0.1:{port}/", target)


async def test_a_redirect_from_https_to_http_is_refused(
    fetcher: FetcherFactory, target: Path, certificate: Certificate, canary: Site
) -> None:
    names = Names(media_test=[["127.0.0.1"]])
    async with serving(redirect(f"http://127.0.0.1:{canary.port}/"), tls=certificate.server()) as site:
        fetching = fetcher(resolver=names, ssl_context=certificate.trusting())
        with pytest.raises(AddressRefused, match="from https to http"):
            await fetching.fetch(f"https://media.test:{site.port}/x", target)
    assert site.connections == 1
    assert canary.connections == 0


# --- the transport inside a client, as for webhooks -------------------------------------------------------------------


async def test_a_client_over_the_transport_is_checked_on_each_hop(
    trusting_nobody: ssl.SSLContext, canary: Site
) -> None:
    policy = AddressPolicy(("127.0.0.2",))
    transport = CheckedTransport(policy, ssl_context=trusting_nobody)
    async with serving(redirect(f"http://127.0.0.1:{canary.port}/", 307), host="127.0.0.2") as site:
        client = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=True)
        async with client:
            with pytest.raises(AddressRefused):
                await client.post(f"http://127.0.0.2:{site.port}/hook", json={"a": 1})
            with pytest.raises(AddressRefused):
                await client.post("http://127.0.0.2:22/hook")
    assert site.connections == 1
    assert canary.connections == 0


async def test_a_client_over_the_transport_posts_each_time_on_a_new_connection(trusting_nobody: ssl.SSLContext) -> None:
    """A connection that was kept would escape the check of a name that leads elsewhere by now."""
    connections = 0

    async def keep_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while not reader.at_eof():
            if await reader.readline() == b"\r\n" and await reader.readexactly(7) == b'{"a":1}':
                writer.write(ok(b"thanks"))
                await writer.drain()

    async with listening(keep_open) as port:
        transport = CheckedTransport(LOOPBACK, ssl_context=trusting_nobody)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            url = f"http://127.0.0.1:{port}/hook"
            answers = [await client.post(url, json={"a": 1}) for _ in range(2)]
    assert [answer.text for answer in answers] == ["thanks", "thanks"]
    assert connections == 2


async def test_a_client_over_the_transport_gets_httpx_errors(trusting_nobody: ssl.SSLContext) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx") as site:
        transport = CheckedTransport(LOOPBACK, resolver=Names(), ssl_context=trusting_nobody)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"http://127.0.0.1:{site.port}/")
            with pytest.raises(httpx.ConnectError):
                await client.get("http://nowhere.test/")
