"""``/asr``, as two services that are widely used answer it, and ``/detect-language``.

Parameters come in the query or the form, and unknown ones are ignored. With ``output_format``, or neither parameter, the answer is an
object that wraps the format (WhisperX services, Speakr); with ``output`` it is the format itself (whisper-asr-webservice).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api import examples
from metalscribe.api.documents import IDEMPOTENCY, in_query, object_of, properties_of
from metalscribe.api.forms import parse
from metalscribe.api.options import Prompt, Text
from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.api.transcribing import Transcribing
from metalscribe.api.uploads import Upload
from metalscribe.api.work import fingerprint
from metalscribe.errors import EngineFailed, InvalidParameter
from metalscribe.languages import language_name, wanted_language
from metalscribe.media.headless import give_head, has_head
from metalscribe.render import Format, render
from metalscribe.render.asr import Plain, to_plain_json, to_wrapped
from metalscribe.store.identity import ApiKey, Scope
from metalscribe.transcript import Done, LanguageDetected, Task, Transcript, TranscriptionRequest

_PROBLEMS: Final = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 507)
_ENGINE: Final = {"Asr-Engine": "metalscribe"}
_TIMED: Final = frozenset({Format.SRT, Format.VTT})


class AsrParameters(BaseModel):
    """What ``/asr`` takes."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    task: Task = Task.TRANSCRIBE
    """`transcribe`, or `translate` into English."""

    language: Text = None
    """Spoken language, a code such as `en` or a name such as `English`; detected where it is left out."""

    model: Text = None
    """Which of the models that are served; names may begin with `whisper-`, and OpenAI's stand for the default one."""

    initial_prompt: Prompt = None
    """Text before the recording: names and spelling to expect, the style to write in."""

    hotwords: Text = None
    """Words to expect, separated by commas."""

    word_timestamps: bool | None = None
    """List the words with their times; on where the answer is wrapped, else off."""

    vad_filter: bool = True
    """Leave silence out by voice activity detection."""

    output_format: Format | None = None
    """What the answer wraps: `json`, `text`, `srt`, `vtt` or `tsv`."""

    output: Plain | None = None
    """What the answer is: `txt`, `json`, `srt`, `vtt` or `tsv`; `text` is the same as `output_format=text`."""

    encode: bool = True
    """`false` where the recording may be bare samples (16 bit, 16 kHz, mono, little-endian), as Bazarr sends them."""

    diarize: bool | None = None
    """Say who speaks. Off where it is left out: speaker diarization is not installed."""

    enable_diarization: bool | None = None
    """The same."""

    num_speakers: int | None = Field(default=None, ge=1, le=100)
    """How many speak; for diarization."""

    min_speakers: int | None = Field(default=None, ge=1, le=100)
    """How many speak at least; for diarization."""

    max_speakers: int | None = Field(default=None, ge=1, le=100)
    """How many speak at most; for diarization."""

    return_speaker_embeddings: bool = False
    """Return the speakers' voice prints; for diarization."""

    def check(self) -> None:
        """Refuse what needs speaker diarization.

        Raises:
            InvalidParameter: it was asked for, and not told at the same time to be left out.
        """
        wishes = {name: getattr(self, name) for name in ("diarize", "enable_diarization")}
        asked = [f"{name}=true" for name, wish in wishes.items() if wish]
        if not asked and False not in wishes.values():
            numbers = {name: getattr(self, name) for name in ("num_speakers", "min_speakers", "max_speakers")}
            asked = [f"{name}={number}" for name, number in numbers.items() if number is not None]
        if self.return_speaker_embeddings:
            asked.append("return_speaker_embeddings=true")
        if asked:
            raise InvalidParameter(
                f"{asked[0]}: speaker diarization is not installed on this service; send diarize=false (Speakr: ASR_DIARIZE=false)",
                asked[0].partition("=")[0],
            )

    def to_request(self, upload: Upload, services: Services, key: ApiKey) -> TranscriptionRequest:
        """The engine's request for a recording.

        Raises:
            InvalidParameter: a value that the service does not know or cannot do.
            ModelNotFound: no such model.
        """
        self.check()
        form = self.form
        return TranscriptionRequest(
            path=upload.path,
            language=wanted_language(self.language),
            task=self.task,
            prompt=self.initial_prompt,
            hotwords=self.hotwords,
            vad=self.vad_filter,
            segments=form is not Format.TEXT,
            word_timestamps=self.words or form in _TIMED,
            name=upload.name,
            model=services.names.own(self.model),
            weight=key.weight,
        )

    @property
    def plain(self) -> Plain | None:
        """The plain dialect's format; None for the wrapped dialect."""
        return None if self.output_format is not None else self.output

    @property
    def form(self) -> Format:
        """The format, in either dialect."""
        return self.plain.shared if self.plain is not None else self.output_format or Format.JSON

    @property
    def words(self) -> bool:
        """Whether the answer lists words."""
        wanted = self.plain is None if self.word_timestamps is None else self.word_timestamps
        return wanted and self.form is Format.JSON


class DetectParameters(BaseModel):
    """What ``/detect-language`` takes."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    model: Text = None
    """Which of the models that are served."""

    encode: bool = True
    """As of `/asr`."""


def router(services: Services) -> APIRouter:
    """The dialects' routes."""
    routes = APIRouter(tags=["/asr"])
    authenticated = Depends(services.auth.require(Scope.TRANSCRIBE))

    @routes.post(
        "/asr",
        summary="Transcribe a recording, as whisper-asr-webservice and WhisperX services do",
        response_class=Response,
        responses={200: _ANSWER, **documented(*_PROBLEMS)},
        openapi_extra=_documentation(AsrParameters),
    )
    @services.limits.transcription
    async def asr(request: Request, key: ApiKey = authenticated) -> Response:
        work = await Transcribing.admitted(services, request, key)
        _parsed(request, {}).check()  # what the query asks for is judged before the upload is read
        async with work.upload(request, "audio_file") as upload:
            asked = _parsed(request, upload.fields)
            await _with_a_head(upload, raw=not asked.encode)
            wanted = asked.to_request(upload, services, key)
            services.engine.check_request(wanted)

            async def answer() -> Response:
                with upload.hand_over():
                    done = await work.whole(wanted)
                    return _answer(done.transcript, asked, upload.name)

            mark = fingerprint(upload.sha256, {"path": "/asr", "name": upload.name, **asked.model_dump()})
            return await services.desk.serve(request, key, mark, answer, twins=True)

    @routes.post(
        "/detect-language",
        summary="Tell the spoken language from what is said first",
        responses={200: _DETECTED, **documented(*_PROBLEMS)},
        openapi_extra=_documentation(DetectParameters),
    )
    @services.limits.transcription
    async def detect_language(request: Request, key: ApiKey = authenticated) -> Response:
        work = await Transcribing.admitted(services, request, key)
        async with work.upload(request, "audio_file") as upload:
            asked = parse(DetectParameters, request.query_params.multi_items(), upload.fields)
            await _with_a_head(upload, raw=not asked.encode)
            wanted = TranscriptionRequest(
                path=upload.path,
                segments=False,
                name=upload.name,
                model=services.names.own(asked.model),
                weight=key.weight,
            )

            async def answer() -> Response:
                with upload.hand_over():
                    return JSONResponse(_language(await _detected(work, wanted)))

            mark = fingerprint(upload.sha256, {"path": "/detect-language", **asked.model_dump()})
            return await services.desk.serve(request, key, mark, answer, twins=True)

    return routes


async def _with_a_head(upload: Upload, *, raw: bool) -> None:
    """``encode=false`` says that the recording is not to be converted: of a known kind, or samples without a head."""
    if raw and not await asyncio.to_thread(has_head, upload.path):
        await give_head(upload.path)


def _parsed(request: Request, form: dict[str, list[str]]) -> AsrParameters:
    """The parameters; ``output=text`` is the wrapped dialect's word in the other one's parameter."""
    given = [
        *request.query_params.multi_items(),
        *((name, value) for name, values in form.items() for value in values),
    ]
    pairs = [
        ("output_format", value) if (name, value) == ("output", "text") else (name, value) for name, value in given
    ]
    return parse(AsrParameters, pairs, {})


def _answer(transcript: Transcript, asked: AsrParameters, name: str) -> Response:
    plain = asked.plain
    if plain is None:
        return JSONResponse(to_wrapped(transcript, asked.form, words=asked.words), headers=_ENGINE)
    quoted = f"{quote(name, safe='')}.{plain.value}"  # once for clients that know RFC 6266, once for the others
    headers = {**_ENGINE, "Content-Disposition": f"attachment; filename=\"{quoted}\"; filename*=UTF-8''{quoted}"}
    if plain is Plain.JSON:
        return JSONResponse(to_plain_json(transcript, words=asked.words), headers=headers)
    return Response(render(transcript, plain.shared), headers=headers, media_type="text/plain; charset=utf-8")


async def _detected(work: Transcribing, wanted: TranscriptionRequest) -> LanguageDetected:
    found: LanguageDetected | None = None
    async with aclosing(work.events(wanted)) as events:
        async for event in events:
            if isinstance(event, LanguageDetected):
                found = event
            elif found is not None:  # what was decoded on the way is counted by now
                return found
            elif isinstance(event, Done):  # nobody spoke
                return LanguageDetected(event.transcript.language, event.transcript.language_probability)
    raise EngineFailed("the engine ended without a language")


def _language(found: LanguageDetected) -> dict[str, Any]:
    return {
        "detected_language": language_name(found.language),
        "language_code": found.language,
        "confidence": round(found.probability, 6),
    }


# --- documentation ----------------------------------------------------------------------------------------------------

_STRING: Final = {"type": "string"}
_NUMBER: Final = {"type": "number"}
_SEGMENTS: Final = {"type": "array", "items": {"type": "object"}}
_ANSWER: Final[dict[str, Any]] = {
    "description": "The transcript, wrapped or plain",
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    object_of(
                        {"text": _SEGMENTS, "language": _STRING, "segments": _SEGMENTS, "word_segments": _SEGMENTS}
                    ),
                    object_of({"language": _STRING, "segments": _SEGMENTS, "text": _STRING}),
                    *(object_of({name: _STRING}) for name in ("text", "srt", "vtt", "tsv")),
                ]
            },
            "example": examples.WRAPPED,
        },
        "text/plain": {"schema": _STRING, "example": examples.TRANSCRIPT_TEXTS["application/x-subrip"]},
    },
}
_DETECTED: Final[dict[str, Any]] = {
    "description": "The language, and how sure that is",
    "content": {
        "application/json": {
            "schema": object_of({"detected_language": _STRING, "language_code": _STRING, "confidence": _NUMBER}),
            "example": examples.DETECTED,
        }
    },
}


def _documentation(parameters: type[BaseModel]) -> dict[str, Any]:
    form = {
        "audio_file": {"type": "string", "format": "binary", "description": "Audio or video"},
        **properties_of(parameters),
    }
    schema = {"type": "object", "required": ["audio_file"], "properties": form}
    return {
        "parameters": [IDEMPOTENCY, *in_query(parameters)],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
    }
