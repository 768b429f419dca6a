"""What is remembered of a chunk that is done, so that another process need not do it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from metalscribe.engine.settle import Settled

_VERSION: Final = 1


class _Kept(msgspec.Struct, array_like=True):
    """The chunk ``[start, start + length)`` of the speech's samples, and what it says."""

    version: int
    start: int
    length: int
    settled: list[Settled]


_decoder: Final = msgspec.msgpack.Decoder(_Kept)


def kept(start: int, length: int, settled: Sequence[Settled]) -> bytes:
    """What to remember of a chunk."""
    return msgspec.msgpack.encode(_Kept(_VERSION, start, length, list(settled)))


def recalled(data: bytes | None, start: int, length: int) -> list[Settled] | None:
    """What was remembered, None where it is of no use: by another version, or of a chunk that is cut differently now."""
    if data is None:
        return None
    try:
        found = _decoder.decode(data)
    except msgspec.MsgspecError:
        return None
    return found.settled if (found.version, found.start, found.length) == (_VERSION, start, length) else None
