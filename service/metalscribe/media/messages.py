"""What the service, the sandbox's parent and a decoder say to each other over their channels."""

from __future__ import annotations

from typing import Any

import msgspec


class Limits(msgspec.Struct, frozen=True, tag="limits"):
    """What one decoder may use.

    Attributes:
        memory_bytes: address space beyond what the process starts with.
        cpu_seconds: processor time.
        audio_seconds: length of the recording.
    """

    memory_bytes: int = 768 * 1024 * 1024
    cpu_seconds: int = 600
    audio_seconds: float = 24 * 3600.0


class Decode(msgspec.Struct, frozen=True, tag="decode"):
    """Service to sandbox: decode the file of the descriptors sent along (channel, file, ring).

    Attributes:
        ticket: names the decoder in the answers.
        stage: ``module:factory`` of what consumes the samples; one of the sandbox's preloaded modules.
        options: for the stage.
        capacity: of the ring, in samples.
        track: which audio stream, from 0.
    """

    ticket: int
    stage: str
    options: dict[str, Any]
    capacity: int
    track: int
    limits: Limits


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Sandbox to service: the decoder runs; a pidfd comes along."""

    ticket: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Sandbox to service: the machine has no process left for this decoder."""

    ticket: int
    reason: str


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """Sandbox to service: the decoder ended, with an exit code, or a negative signal number."""

    ticket: int
    status: int


class Confinement(msgspec.Struct, frozen=True, tag="confinement"):
    """Sandbox to service, once at start: how it is shut in, for the log."""

    network_namespace: bool
    reason: str
    seccomp: bool


SandboxMessage = Started | Refused | Exited | Confinement


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The container was recognised.

    Attributes:
        container, codec: FFmpeg's names.
        duration: seconds, where the header tells.
        tracks: number of audio streams.
    """

    container: str
    codec: str
    duration: float | None
    tracks: int


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A run of samples that stood together in the recording: where it began there, and how long it is."""

    source: int
    length: int


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """Samples ``[start, start + length)`` of the ring's endless axis are ready.

    Attributes:
        pieces: where they come from.
        voiced: seconds of voice among them; None where nobody listened for it.
    """

    start: int
    length: int
    pieces: list[Piece]
    voiced: float | None = None


class Decoded(msgspec.Struct, frozen=True, tag="decoded"):
    """So many samples (16 kHz) of the recording are decoded; also the decoder's sign of life."""

    samples: int


class RingFull(msgspec.Struct, frozen=True, tag="full"):
    """The decoder waits for :class:`Release`; sent again after each one that does not make room enough."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The whole recording is decoded. ``damaged`` counts packets that were skipped."""

    samples: int
    damaged: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The decoder gave up; ``code`` is that of one of :mod:`metalscribe.errors`' media errors."""

    code: str
    detail: str


DecoderMessage = Opened | Chunk | Decoded | RingFull | Ended | Failed


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Service to decoder: samples before ``position`` are no longer needed."""

    position: int
