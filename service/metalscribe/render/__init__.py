"""Transcripts as documents: pure functions, one place that every API dialect shares."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from metalscribe.render.cues import Cue, cues
from metalscribe.render.native import debug_json, segment_json, to_json
from metalscribe.render.plain import to_text, to_tsv
from metalscribe.render.subtitles import to_srt, to_vtt
from metalscribe.transcript import Transcript

__all__ = [
    "MEDIA_TYPES",
    "Cue",
    "Format",
    "cues",
    "debug_json",
    "render",
    "segment_json",
    "to_json",
    "to_srt",
    "to_text",
    "to_tsv",
    "to_vtt",
]


class Format(StrEnum):
    """What a transcript can be written as."""

    JSON = "json"
    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    TSV = "tsv"


MEDIA_TYPES: Final[Mapping[Format, str]] = MappingProxyType(
    {
        Format.JSON: "application/json",
        Format.TEXT: "text/plain; charset=utf-8",
        Format.SRT: "application/x-subrip; charset=utf-8",
        Format.VTT: "text/vtt; charset=utf-8",
        Format.TSV: "text/tab-separated-values; charset=utf-8",
    }
)


def render(transcript: Transcript, format: Format) -> str:  # noqa: A002  (the parameter's name in every dialect)
    """Write the transcript in one of the text formats.

    Raises:
        ValueError: JSON was asked for, which each dialect shapes its own way; see :func:`to_json`.
    """
    match format:
        case Format.TEXT:
            return to_text(transcript)
        case Format.SRT:
            return to_srt(transcript)
        case Format.VTT:
            return to_vtt(transcript)
        case Format.TSV:
            return to_tsv(transcript)
        case Format.JSON:
            raise ValueError("JSON has a shape per dialect: call to_json for the native one")
