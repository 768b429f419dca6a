"""An HTTP/1.1 client that costs next to nothing: on a small machine the client takes its time from the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_BOUNDARY: Final = "b9d4c1a7e83f4f52"
_LINE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case) of an answer."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream: its name and its data, read as JSON."""

    name: str
    data: Any


class Refused(RuntimeError):
    """An answer with another status than 2xx.

    Attributes:
        status: its status.
    """

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


class Client:
    """Keeps its connections open and uses them again.

    Args:
        port: on loopback.
        key: sent as ``X-API-Key``.
    """

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop()[1].close()

    async def get(self, target: str) -> bytes:
        """GET a document.

        Raises:
            Refused: it was refused.
        """
        async with self._exchange("GET", target, b"", {}) as (_, body):
            return await _whole(body)

    async def delete(self, target: str) -> None:
        """DELETE something.

        Raises:
            Refused: it was not.
        """
        async with self._exchange("DELETE", target, b"", {}) as (_, body):
            await _whole(body)

    @asynccontextmanager
    async def upload(
        self, target: str, path: Path, fields: Mapping[str, str], field: str = "file"
    ) -> AsyncIterator[tuple[Head, AsyncIterator[bytes]]]:
        """POST a file in the form field ``field``; the answer's body comes in pieces, to be read to its end.

        Raises:
            Refused: it was refused.
        """
        content = path.read_bytes()  # noqa: ASYNC240  (from the page cache: quicker than a thread)
        kind = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        async with self._exchange("POST", target, form(path.name, content, fields, field), kind) as answer:
            yield answer

    @asynccontextmanager
    async def _exchange(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[Head, AsyncIterator[bytes]]]:
        reader, writer = await self._connection()
        finished = False
        try:
            sent = {"Host": "127.0.0.1", "X-API-Key": self._key, "Content-Length": str(len(body)), **headers}
            head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in sent.items())
            writer.write(head.encode() + b"\r\n" + body)
            await writer.drain()
            answer = parse_head(await reader.readuntil(b"\r\n\r\n"))
            pieces = read_body(reader, answer)
            if answer.status // 100 != 2:
                text = (await _whole(pieces)).decode()
                raise Refused(f"{method} {target}: {answer.status}, {text}", answer.status)
            yield answer, pieces
            finished = answer.headers.get("connection", "").lower() != "close"
        finally:
            if finished:
                self._idle.append((reader, writer))
            else:
                writer.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server may have closed it meanwhile
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port, limit=_LINE_BYTES)


def form(name: str, content: bytes, fields: Mapping[str, str], field: str = "file") -> bytes:
    """A multipart form: the fields, then the file."""
    head = "".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name_of_it}"\r\n\r\n{value}\r\n'
        for name_of_it, value in fields.items()
    )
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
    kind = "Content-Type: application/octet-stream"
    head += f"--{_BOUNDARY}\r\n{disposition}\r\n{kind}\r\n\r\n"
    return b"".join((head.encode(), content, f"\r\n--{_BOUNDARY}--\r\n".encode()))


def parse_head(data: bytes) -> Head:
    """Status line and headers, up to and with the empty line."""
    first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Head(int(first.split()[1]), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def read_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The body in pieces, by its length or by chunks."""
    if head.headers.get("transfer-encoding", "").lower() != "chunked":
        yield await reader.readexactly(int(head.headers.get("content-length", "0")))
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass  # trailers


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events out of a body (WHATWG HTML, 9.2); comments are left out."""
    rest = b""
    async for piece in pieces:
        *blocks, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            fields: dict[str, str] = {}
            for line in block.decode().split("\n"):
                name, _, value = line.partition(":")
                if name:
                    value = value.removeprefix(" ")
                    fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            if "data" in fields:
                yield ServerSentEvent(fields.get("event", "message"), json.loads(fields["data"]))


async def _whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])
