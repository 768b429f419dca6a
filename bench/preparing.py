"""Finding the recordings, or making some where there are none."""

from __future__ import annotations

import itertools
import wave
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from faster_whisper import decode_audio
from numpy.typing import NDArray

from bench.errors import BenchmarkError
from bench.recordings import Recording, Recordings

_RATE: Final = 16_000
_SHORT_SECONDS: Final = 5.0
_CHUNK_SECONDS: Final = 30.0
_QUICK_LONG_SECONDS: Final = 180.0
_QUICK_EVERY: Final = 3
_MADE_LONG_SECONDS: Final = 300.0

_Samples = NDArray[np.float32]


class RecordingsBroken(BenchmarkError):
    """Recordings are there, but not what they should be."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where recordings may be.

    Attributes:
        clips: folder with ``ref.tsv`` (name, tab, text) and ``NAME.flac`` each.
        long: a recording; ``NAME.txt`` beside it is its text, ``NAME.ref.tsv`` its utterances (start, end, …, text).
    """

    clips: Path
    long: Path

    @property
    def missing(self) -> list[Path]:
        """Those that are not there."""
        return [
            path for path, there in ((self.clips, self.clips.is_dir()), (self.long, self.long.is_file())) if not there
        ]


def prepare(places: Places, scratch: Path, *, quick: bool = False) -> Recordings:
    """The recordings: the real ones, or made ones where one of the real ones is missing.

    Args:
        places: where to look.
        scratch: folder for what has to be cut or made.
        quick: a third of the clips, and three minutes of the long recording.

    Raises:
        RecordingsBroken: the real ones are not what they should be.
    """
    if not places.missing:
        clips = _clips(places.clips)
        long = _long(places.long, scratch, _QUICK_LONG_SECONDS if quick else None)
        source = f"{places.clips.name}, {places.long.name}"
    else:
        clips, long = _made(scratch, _QUICK_LONG_SECONDS if quick else _MADE_LONG_SECONDS)
        source = "synthesised: the project's sample, repeated"
    head = decode_audio(str(long.path), sampling_rate=_RATE)[: int(_CHUNK_SECONDS * _RATE)]
    short = min(clips, key=lambda clip: abs(clip.seconds - _SHORT_SECONDS))
    return Recordings(
        clips=tuple(clips[::_QUICK_EVERY] if quick else clips),
        long=long,
        short=short,
        chunk=_written(scratch / "chunk.wav", head, None),
        source=source,
    )


def _clips(folder: Path) -> list[Recording]:
    lines = _table(folder / "ref.tsv", columns=2)
    return [_recording(folder / f"{name}.flac", text) for name, text in lines]


def _long(path: Path, scratch: Path, limit: float | None) -> Recording:
    text = path.with_suffix(".txt")
    if limit is None:
        return _recording(path, text.read_text() if text.is_file() else None)
    utterances = path.with_suffix(".ref.tsv")
    samples = decode_audio(str(path), sampling_rate=_RATE)
    if not utterances.is_file():
        return _written(scratch / "long.wav", samples[: int(limit * _RATE)], None)
    rows = [row for row in _table(utterances, columns=5) if float(row[1]) <= limit]
    end = max(float(row[1]) for row in rows)
    return _written(scratch / "long.wav", samples[: int(end * _RATE)], " ".join(row[4] for row in rows))


def _made(scratch: Path, long_seconds: float) -> tuple[list[Recording], Recording]:
    samples_folder = files("metalscribe") / "samples"
    with as_file(samples_folder / "sample.flac") as sample:
        spoken = decode_audio(str(sample), sampling_rate=_RATE)
    text = (samples_folder / "sample.txt").read_text()
    # A cut has no reference: only whole repetitions count for accuracy.
    clips = [_written(scratch / f"whole{index}.wav", spoken, text) for index in range(8)]
    clips += [
        _written(scratch / f"cut{seconds}.wav", spoken[: seconds * _RATE], None) for seconds in (3, 5, 7, 9, 11, 13)
    ]
    times = int(long_seconds * _RATE / spoken.size) + 1
    return clips, _written(scratch / "long.wav", np.tile(spoken, times), " ".join(itertools.repeat(text, times)))


def _table(path: Path, *, columns: int) -> list[list[str]]:
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines() if line]
    except OSError as error:
        raise RecordingsBroken(f"{path}: {error.strerror}") from error
    if not rows or any(len(row) != columns for row in rows):
        raise RecordingsBroken(f"{path}: expected {columns} columns separated by tabs")
    return rows


def _recording(path: Path, reference: str | None) -> Recording:
    try:
        with av.open(str(path)) as container:
            duration = container.duration
    except OSError as error:
        raise RecordingsBroken(f"{path}: {error.strerror}") from error
    if duration is None:
        raise RecordingsBroken(f"{path}: its header does not tell its length")
    return Recording(path, duration / av.time_base, reference)


def _written(path: Path, samples: _Samples, reference: str | None) -> Recording:
    frames: NDArray[Any] = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(frames.tobytes())
    return Recording(path, samples.size / _RATE, reference)
