"""Bringing many or large files to a host over SSH, verified there, and picked up where an interrupted deploy left off.

Small files travel together as tar archives: one transfer and two commands for tens of megabytes instead of for each file.
Large ones travel in pieces of at most :data:`PIECE` bytes. Either way what is under way at a time is small: with sudo, pyinfra
uploads by way of ``/tmp``, which Debian 13 keeps in memory.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Final, cast

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.context import host
from typing_extensions import Buffer, override

from metalscribe_provision.common import ROOT
from metalscribe_provision.runtime.facts import FilesIn

INCOMING: Final = ROOT / "incoming"
"""What deploys bring to a host, for root alone; empty between deploys."""

PIECE: Final = 32 << 20
"""Bytes that are under way at a time."""

SUMS: Final = "SHA256SUMS"
"""Written beside the files, for ``sha256sum -c``."""

_PIECE_PATH: Final = INCOMING / "piece"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to bring to a host: its name below the folder there, what it is, its size in bytes, its SHA-256."""

    name: str
    source: Path | bytes
    size: int
    sha256: str

    @classmethod
    def text(cls, name: str, text: str) -> Upload:
        """A file with this text."""
        return cls.content(name, text.encode())

    @classmethod
    def content(cls, name: str, content: bytes) -> Upload:
        """A file with this content."""
        return cls(name, content, len(content), hashlib.sha256(content).hexdigest())

    @property
    def unfinished(self) -> str:
        """Name while it is not all there; of its content, so that it is only ever continued with the same."""
        return f"{self.name}.{self.sha256[:16]}.part"


@dataclass(frozen=True, slots=True)
class Together:
    """Files that travel in one archive."""

    uploads: tuple[Upload, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of a large file; the last one completes it."""

    upload: Upload
    offset: int
    length: int

    @property
    def last(self) -> bool:
        """Whether the file is complete with it."""
        return self.offset + self.length == self.upload.size


def shipments(
    uploads: Iterable[Upload], there: Mapping[str, tuple[int, str]], piece: int
) -> Iterator[Together | Slice]:
    """Divide what is not on a host yet into transfers of at most ``piece`` bytes.

    Args:
        uploads: what is to be there.
        there: what is: name → size in bytes and SHA-256.
        piece: bytes.
    """
    batch: list[Upload] = []
    for upload in sorted(uploads, key=lambda upload: upload.name):
        if there.get(upload.name) == (upload.size, upload.sha256):
            continue
        if upload.size > piece:
            arrived, _ = there.get(upload.unfinished, (0, ""))
            # A piece that was cut off is sent again whole, at its own place.
            done = min(arrived, upload.size - 1) // piece * piece
            for offset in range(done, upload.size, piece):
                yield Slice(upload, offset, min(piece, upload.size - offset))
            continue
        if batch and sum(other.size for other in batch) + upload.size > piece:
            yield Together(tuple(batch))
            batch = []
        batch.append(upload)
    if batch:
        yield Together(tuple(batch))


def uploaded(
    uploads: Iterable[Upload], folder: PurePath, user: str | None = None, piece: int = PIECE
) -> Generator[StringCommand | FileUploadCommand]:
    """Commands that bring files into a folder of the host and verify every one of them there.

    What is there already is not sent again. Files that arrive damaged are removed, so that the next deploy sends them again.

    Args:
        uploads: all that the folder is to have.
        folder: made if it is not there.
        user: who writes into the folder, where that is not root's: root never writes where somebody else may lay links.
        piece: bytes that are under way at a time.
    """
    wanted = list(uploads)
    sums = Upload.text(SUMS, "".join(f"{upload.sha256}  {upload.name}\n" for upload in wanted))
    there = host.get_fact(FilesIn, path=str(folder))
    yield StringCommand("install", "-d", "-m", "700", QuoteString(str(INCOMING)))
    yield _as(user, "mkdir", "-p", *sorted({str((folder / upload.name).parent) for upload in [*wanted, sums]}))
    for shipment in shipments([*wanted, sums], there, piece):
        yield FileUploadCommand(cast("IO[bytes]", _Transfer(shipment)), str(_PIECE_PATH))
        if isinstance(shipment, Together):
            # What it replaces may be a damaged file that somebody protected.
            yield _as(
                user, "tar", "-x", "-f", "-", "--no-same-owner", "--unlink-first", "-C", str(folder), stdin=_PIECE_PATH
            )
        else:
            upload = shipment.upload
            unfinished = str(folder / upload.unfinished)
            where = ("oflag=seek_bytes", f"seek={shipment.offset}", "conv=notrunc", "iflag=fullblock", "bs=1M")
            yield _as(user, "dd", f"of={unfinished}", *where, "status=none", stdin=_PIECE_PATH)
            if shipment.last:
                yield _as(user, "mv", "-f", "-T", unfinished, str(folder / upload.name))
    yield StringCommand("rm", "-f", QuoteString(str(_PIECE_PATH)))
    verify = 'cd "$1" && sha256sum --check --strict --quiet "$2" || { rm -rf "$1"; echo "$3" >&2; exit 1; }'
    damaged = f"files in {folder} arrived damaged and were removed; run the deploy again"
    yield _as(user, "sh", "-c", verify, "sh", str(folder), SUMS, damaged)


class _Transfer(io.RawIOBase):
    """What a transfer sends, in memory only meanwhile: pyinfra keeps an operation's commands until all of them have run."""

    def __init__(self, shipment: Together | Slice) -> None:
        super().__init__()
        self._shipment = shipment
        self._buffer: io.BytesIO | None = None

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._opened().seek(offset, whence)

    @override
    def tell(self) -> int:
        return self._opened().tell()

    @override
    def readinto(self, buffer: Buffer) -> int:
        """Read the next bytes; the end of the content lets go of it."""
        count = self._opened().readinto(buffer)
        if not count:
            self._buffer = None
        return count

    def _opened(self) -> io.BytesIO:
        if self._buffer is None:
            self._buffer = io.BytesIO(_content(self._shipment))
        return self._buffer


def _as(user: str | None, *arguments: str, stdin: PurePosixPath | None = None) -> StringCommand:
    bits: list[str | QuoteString] = [QuoteString(argument) for argument in arguments]
    if user is not None:
        bits = ["runuser", "-u", QuoteString(user), "--", *bits]
    if stdin is not None:
        bits += ["<", QuoteString(str(stdin))]  # opened by root's shell: the folder is root's
    return StringCommand(*bits)


def _content(shipment: Together | Slice) -> bytes:
    if isinstance(shipment, Slice):
        return _read(shipment.upload, shipment.offset, shipment.length)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for upload in shipment.uploads:
            entry = tarfile.TarInfo(upload.name)
            entry.size = upload.size
            entry.mode = 0o644
            entry.mtime = int(time.time())
            archive.addfile(entry, io.BytesIO(_read(upload, 0, upload.size)))
    return buffer.getvalue()


def _read(upload: Upload, offset: int, length: int) -> bytes:
    if isinstance(upload.source, bytes):
        return upload.source[offset : offset + length]
    with upload.source.open("rb") as handle:
        handle.seek(offset)
        return handle.read(length)
