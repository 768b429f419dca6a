"""Multipart uploads streamed to disk: memory does not grow with the file, and a limit is felt while it is crossed."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from metalscribe.api.requests import note
from metalscribe.errors import InvalidParameter, UploadStalled, UploadTooLarge
from metalscribe.media.newfile import NewFile

_FIELD_BYTES: Final = 64 * 1024
_FIELDS: Final = 64
_FORM_BYTES: Final = _FIELDS * _FIELD_BYTES
"""Of all fields but the file's."""
_HEADER_BYTES: Final = 16 * 1024
_STALL_SECONDS: Final = 60.0
_NAME_LENGTH: Final = 120
_LONGEST_BOUNDARY: Final = 70  # RFC 2046, section 5.1.1


@dataclass(slots=True)
class Upload:
    """A received form.

    Attributes:
        path: the file on disk, removed when the :func:`receive` block ends.
        name: what the caller calls the file, for messages only.
        size: bytes.
        sha256: hexadecimal digest of the file.
        fields: the other fields; a name that came several times has several values.
        handed_over: whoever called :meth:`hand_over` removes the file.
    """

    path: Path
    name: str
    size: int = 0
    sha256: str = ""
    fields: dict[str, list[str]] = field(default_factory=dict)
    handed_over: bool = False

    @contextmanager
    def hand_over(self) -> Iterator[None]:
        """Keep the file for as long as this block runs, also after its request has ended."""
        self.handed_over = True
        try:
            yield
        finally:
            self.path.unlink(missing_ok=True)


@dataclass(slots=True)
class _Part:
    """One part of the form while it arrives."""

    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


@asynccontextmanager
async def receive(
    request: Request, directory: Path, *, file_field: str, max_bytes: int, max_fields: int = _FIELDS
) -> AsyncIterator[Upload]:
    """Receive a multipart form with one file.

    Args:
        request: its body is read here, and no further than needed.
        directory: where the file goes for as long as the block runs.
        file_field: name of the form field that holds the file.
        max_bytes: of the file.
        max_fields: of the form.

    Raises:
        InvalidParameter: not a form, no file, two files, or fields beyond reason.
        UploadTooLarge: after reading no more than ``max_bytes`` and one network chunk.
        UploadStalled: nothing came for a minute.
        StorageFull: the disk is full.
    """
    boundary = _boundary(request, file_field)
    declared = declared_length(request)
    if declared is not None and declared > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)
    # An eager cleaner of temporary files may have been here.
    await asyncio.to_thread(directory.mkdir, mode=0o700, exist_ok=True)
    path = directory / uuid.uuid4().hex
    upload = None
    try:
        async with NewFile(path) as file:
            form = _Form(boundary, file_field, max_bytes, max_fields, Upload(path, "audio"))
            async for data in arriving(request):
                for piece in form.feed(data):
                    await file.write(piece)
            upload = form.finish()
        note(audio_bytes=upload.size)
        yield upload
    finally:
        # NewFile has removed what is incomplete; this is the end of a complete file that nobody took over.
        if upload is None or not upload.handed_over:
            path.unlink(missing_ok=True)


def declared_length(request: Request) -> int | None:
    """Bytes of the body as its header says; None where it says nothing."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


async def arriving(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises:
        UploadStalled: nothing came for a minute.
        ClientDisconnect: the caller left.
    """
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(_STALL_SECONDS):
                data = await anext(stream, None)
        except TimeoutError:
            raise UploadStalled(f"nothing came for {_STALL_SECONDS:g} seconds in the middle of the upload") from None
        if data is None:
            return
        yield data


class _Form:
    """The parser's callbacks; collects the pieces of the file that each chunk of the body holds."""

    def __init__(self, boundary: bytes, file_field: str, max_bytes: int, max_fields: int, upload: Upload) -> None:
        self._file_field = file_field
        self._max_bytes = max_bytes
        self._max_fields = max_fields
        self._field_bytes = 0
        self._upload = upload
        self._digest = hashlib.sha256()
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._header_bytes = 0
        self._parts = 0
        self._seen_file = False
        self._ended = False
        self._pieces: list[bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._form_ends,
            },
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Parse a chunk of the body; returns what of it belongs into the file."""
        self._pieces = []
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise InvalidParameter(f"the body is not a well-formed multipart form: {error}", self._file_field) from None
        return self._pieces

    def finish(self) -> Upload:
        """The body is over."""
        if not self._ended:
            raise InvalidParameter("the multipart form breaks off before its closing boundary", self._file_field)
        if not self._seen_file:
            raise InvalidParameter(
                f"the form has no file field {self._file_field!r}; send it with curl -F '{self._file_field}=@recording.mp3'",
                self._file_field,
            )
        self._upload.sha256 = self._digest.hexdigest()
        return self._upload

    # --- callbacks ---

    def _part_begins(self) -> None:
        self._part = _Part()
        self._header_bytes = 0
        self._parts += 1
        if self._parts > self._max_fields:
            raise InvalidParameter(f"the form has more than {self._max_fields} fields")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header[1].extend(data[start:end])

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _HEADER_BYTES:
            raise InvalidParameter(f"a field's header has more than {_HEADER_BYTES} bytes")

    def _header_ends(self) -> None:
        name, value = self._header
        self._part.headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace")
        self._header = (bytearray(), bytearray())

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition", "").encode())
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._part.filename = None if filename is None else filename.decode("utf-8", "replace")
        if self._part.name == self._file_field:
            if self._seen_file:
                raise InvalidParameter(
                    f"the form has two fields {self._file_field!r}; send one file a request", self._file_field
                )
            self._seen_file = True
            self._upload.name = _harmless(self._part.filename)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == self._file_field:
            self._upload.size += end - start
            if self._upload.size > self._max_bytes:
                raise _too_large(self._max_bytes)
            piece = data[start:end]
            self._digest.update(piece)
            self._pieces.append(piece)
            return
        self._part.data.extend(data[start:end])
        self._field_bytes += end - start
        if self._field_bytes > _FORM_BYTES:
            raise InvalidParameter(f"the form's fields have more than {_FORM_BYTES} bytes", self._part.name)
        if len(self._part.data) > _FIELD_BYTES:
            raise InvalidParameter(f"the field {self._part.name!r} has more than {_FIELD_BYTES} bytes", self._part.name)

    def _part_ends(self) -> None:
        if self._part.name != self._file_field:
            self._upload.fields.setdefault(self._part.name, []).append(self._part.data.decode("utf-8", "replace"))

    def _form_ends(self) -> None:
        self._ended = True


def _boundary(request: Request, file_field: str) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", "").encode())
    boundary = options.get(b"boundary", b"")
    if kind.lower() != b"multipart/form-data" or not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise InvalidParameter(
            f"send the recording as multipart/form-data: curl -F '{file_field}=@recording.mp3'", file_field
        )
    return boundary


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"the recording is larger than the {max_bytes / 1048576:g} MiB allowed")


def _harmless(filename: str | None) -> str:
    """The last component, printable and short: a name for messages, never for a path."""
    last = (filename or "audio").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable())[:_NAME_LENGTH] or "audio"
