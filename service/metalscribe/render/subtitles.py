"""Subtitle files: SubRip (SRT) and WebVTT."""

from __future__ import annotations

from metalscribe.render.cues import Cue, cues, speaker_prefix
from metalscribe.render.times import srt_timestamp, vtt_timestamp
from metalscribe.transcript import Transcript


def to_srt(transcript: Transcript) -> str:
    """The transcript as SubRip, cues numbered from 1, the speaker as ``[SPEAKER_00] `` before the text.

    Empty where the transcript is. SubRip has no escapes: the text stands as it was spoken.
    """
    return "\n".join(_srt_cue(number, cue) for number, cue in enumerate(cues(transcript), 1))


def to_vtt(transcript: Transcript) -> str:
    """The transcript as WebVTT (https://www.w3.org/TR/webvtt1/), the speaker as a voice tag ``<v SPEAKER_00>``.

    ``WEBVTT`` and a line end where the transcript is empty.
    """
    return "\n".join(["WEBVTT\n", *(_vtt_cue(cue) for cue in cues(transcript))])


def _srt_cue(number: int, cue: Cue) -> str:
    prefix = speaker_prefix(cue.speaker) if cue.speaker else ""
    text = prefix + "\n".join(cue.lines)
    return f"{number}\n{srt_timestamp(cue.start_ms)} --> {srt_timestamp(cue.end_ms)}\n{text}\n"


def _vtt_cue(cue: Cue) -> str:
    # A voice span that holds the whole cue needs no end tag.
    voice = f"<v {_escaped(cue.speaker).replace('>', '&gt;')}>" if cue.speaker else ""
    text = voice + "\n".join(_escaped(line) for line in cue.lines)
    return f"{vtt_timestamp(cue.start_ms)} --> {vtt_timestamp(cue.end_ms)}\n{text}\n"


def _escaped(text: str) -> str:
    """The two characters that begin something in cue text; an arrow cannot occur there any more."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
