"""The native dialect's parameters, from the query, the form or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from metalscribe.api.problems import invalid_parameter
from metalscribe.errors import InvalidParameter
from metalscribe.languages import wanted_language
from metalscribe.render import Format
from metalscribe.transcript import Mode, Task, TranscriptionRequest

_Model = TypeVar("_Model", bound=BaseModel)
_LONGEST_TEXT = 4000
_TIMED = frozenset({Format.SRT, Format.VTT, Format.TSV})


def blank_is_none(value: Any) -> Any:
    """A form's empty field as one that was left out."""
    return None if isinstance(value, str) and not value.strip() else value


Text = Annotated[Annotated[str, Field(max_length=_LONGEST_TEXT)] | None, BeforeValidator(blank_is_none)]
"""A text that may be left out, or empty in a form."""


def _end_of(value: Any) -> Any:
    return value[-_LONGEST_TEXT:] if isinstance(value, str) else value


Prompt = Annotated[str | None, BeforeValidator(_end_of), BeforeValidator(blank_is_none)]
"""As :data:`Text` for the compatible dialects: of a longer one the end counts, as it does to the model anyway."""


class NoParameters(BaseModel):
    """A path without parameters."""

    model_config = ConfigDict(extra="forbid")


class TranscriptionOptions(BaseModel):
    """How to transcribe, however the answer comes; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    language: Text = None
    """Spoken language, a code such as `en` or a name such as `English`; detected where it is left out or `auto`."""

    task: Task = Task.TRANSCRIBE
    """`transcribe`, or `translate` into English."""

    word_timestamps: bool = False
    """List the segments with the time of every word."""

    diarize: bool = False
    """Say who speaks."""

    prompt: Text = None
    """Text before the recording: names and spelling to expect, the style to write in."""

    hotwords: Text = None
    """Words to expect."""

    mode: Mode = Mode.FAST
    """`fast`, or `accurate`: one window after another, each reading on from the one before."""

    vad: bool = True
    """Leave silence out by voice activity detection."""

    audio_track: int = Field(default=0, ge=0, le=1000)
    """Which audio track of the file, counted from 0."""

    model: Text = None
    """Which of the models that are served; the default one where it is left out."""

    def to_request(self, path: Path, *, name: str, served: Mapping[str, str], weight: float) -> TranscriptionRequest:
        """The engine's request for a file.

        Args:
            path: the file.
            name: what messages call it.
            served: what a caller may call a model, and the model's own name.
            weight: the caller's share of the machine.

        Raises:
            InvalidParameter: a value that the service does not know or cannot do.
        """
        if self.model is not None and self.model not in served:
            raise InvalidParameter(
                f"model={self.model} is not served here; leave it out, or {served_names(served)}", "model"
            )
        if self.diarize:
            raise InvalidParameter("diarize=true: speaker diarization is not installed on this service", "diarize")
        return TranscriptionRequest(
            path=path,
            language=wanted_language(self.language),
            task=self.task,
            mode=self.mode,
            prompt=self.prompt,
            hotwords=self.hotwords,
            vad=self.vad,
            word_timestamps=self.word_timestamps,
            audio_track=self.audio_track,
            name=name,
            model=None if self.model is None else served[self.model],
            weight=weight,
        )


class NativeOptions(TranscriptionOptions):
    """What a caller of ``/transcribe`` may ask for."""

    include_segments: bool = False
    """List the segments with their times."""

    format: Format = Format.JSON
    """What the answer is written as."""

    stream: bool = False
    """Answer with server-sent events while the transcript is made."""

    debug: bool = False
    """Tell what the engine decided on the way."""

    @property
    def timed(self) -> bool:
        """Whether the answer shows times, which cost an alignment pass."""
        return self.include_segments or self.word_timestamps or self.format in _TIMED

    def to_request(self, path: Path, *, name: str, served: Mapping[str, str], weight: float) -> TranscriptionRequest:
        """See :meth:`TranscriptionOptions.to_request`."""
        if self.stream and self.format is not Format.JSON:
            raise InvalidParameter(f"stream=true sends JSON events; leave format={self.format} out", "stream")
        wanted = super().to_request(path, name=name, served=served, weight=weight)
        # Subtitles are cut between words, whether or not the caller sees them.
        return replace(wanted, segments=self.timed, word_timestamps=self.word_timestamps or self.format in _TIMED)


def served_names(served: Mapping[str, str]) -> str:
    """What to send as a model's name, in words. Their own names alone: others may say where the operator keeps a model."""
    return f"send {' or '.join(dict.fromkeys(served.values()))}"


def parse_options(model: type[_Model], query: Iterable[tuple[str, str]], form: Mapping[str, list[str]]) -> _Model:
    """Options from a query's pairs and a form's fields.

    Raises:
        InvalidParameter: unknown, malformed, or given twice.
    """
    given: dict[str, str] = {}
    pairs = [*query, *((name, value) for name, values in form.items() for value in values)]
    for name, value in pairs:
        if given.setdefault(name, value) != value:
            raise InvalidParameter(f"{name} is given twice with different values", name)
    return validated(model, given)


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """``values`` as a pydantic model; raises InvalidParameter that names each wrong field."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise invalid_parameter(error.errors()) from None
