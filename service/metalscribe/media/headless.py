"""Recordings that are bare samples, as some clients send them to ``/asr``: given the head of a WAV file, they are media like any other."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Final

from metalscribe.media.newfile import PIECE, NewFile

_RATE: Final = 16_000
_BYTES: Final = 2
_LONGEST: Final = 0xFFFFFFFF - 36

# The first bytes of the containers that clients send, MPEG audio without tags left out: in quiet samples its mark is frequent.
_BEGINNINGS: Final = (
    b"RIFF",
    b"RF64",
    b"RIFX",
    b"fLaC",
    b"OggS",
    b"ID3",
    b"\x1aE\xdf\xa3",
    b"FORM",
    b"caff",
    b"\x30\x26\xb2\x75",
    b"#!AMR",
)
_ISO_MEDIA: Final = b"ftyp"
"""Four bytes into the file."""


def has_head(path: Path) -> bool:
    """Whether a file begins like one of the usual containers."""
    with path.open("rb") as file:
        begin = file.read(16)
    return begin.startswith(_BEGINNINGS) or begin[4:8] == _ISO_MEDIA


async def give_head(path: Path) -> None:
    """Put the head of a WAV file before a file of samples: 16 bit, little-endian, 16 kHz, mono.

    Raises:
        StorageFull: the disk is full; the file is as it was.
    """
    made = path.with_name(f"{path.name}.wav")
    async with NewFile(made) as file:
        with path.open("rb") as samples:
            await file.write(_head(os.fstat(samples.fileno()).st_size))
            while piece := await asyncio.to_thread(samples.read, PIECE):
                await file.write(piece)
    await asyncio.to_thread(made.replace, path)


def _head(size: int) -> bytes:
    size = min(size, _LONGEST)
    form = struct.pack("<HHIIHH", 1, 1, _RATE, _BYTES * _RATE, _BYTES, 8 * _BYTES)
    return (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + struct.pack("<I", len(form))
        + form
        + b"data"
        + struct.pack("<I", size)
    )
