"""OpenAI's dialect below ``/v1``: transcriptions, translations and models, as its published clients speak it.

What metalscribe does not need to be told (``chunking_strategy``) is taken and left alone; parameters that nobody knows are
ignored, since clients send more of them with every version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from metalscribe.api import examples
from metalscribe.api.documents import events_of, object_of, properties_of
from metalscribe.api.forms import parse
from metalscribe.api.names import ListedModel
from metalscribe.api.options import Prompt, Text
from metalscribe.api.problems import documented_envelopes, envelope
from metalscribe.api.services import Services
from metalscribe.api.streaming import Dialect, refuse_idempotency, stream
from metalscribe.api.transcribing import Transcribing
from metalscribe.api.uploads import Upload
from metalscribe.api.work import fingerprint
from metalscribe.errors import InvalidParameter, MetalscribeError
from metalscribe.languages import parse_language, wanted_language
from metalscribe.render import MEDIA_TYPES, Format, render
from metalscribe.render.lettering import encodable
from metalscribe.render.openai import to_openai_json, to_verbose_json, word_logprobs
from metalscribe.store.identity import ApiKey, Scope
from metalscribe.transcript import Done, Event, Segment, SegmentsReady, Task, TranscriptionRequest

_PROBLEMS: Final = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 507)
_NEWLINE: Final = "\n"


class ResponseFormat(StrEnum):
    """What OpenAI calls the formats of an answer."""

    JSON = "json"
    TEXT = "text"
    SRT = "srt"
    VERBOSE_JSON = "verbose_json"
    VTT = "vtt"
    DIARIZED_JSON = "diarized_json"


_SUBTITLES: Final = frozenset({ResponseFormat.SRT, ResponseFormat.VTT})
_TEXTS: Final = {
    ResponseFormat.TEXT: (Format.TEXT, MEDIA_TYPES[Format.TEXT]),
    ResponseFormat.SRT: (Format.SRT, MEDIA_TYPES[Format.TEXT]),
    ResponseFormat.VTT: (Format.VTT, MEDIA_TYPES[Format.VTT]),
}


def _chunking(value: Any) -> Any:
    """OpenAI's own clients send the object of ``server_vad`` as fields of their own, others as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)["type"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return value
    return value


_Chunking = Annotated[Literal["auto", "server_vad"] | None, BeforeValidator(_chunking)]


class SpeechParameters(BaseModel):
    """What ``/v1/audio/translations`` takes, and ``/v1/audio/transcriptions`` too."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    model: Text = None
    """A model of `GET /v1/models`; the default one where it is left out, or one of OpenAI's names."""

    prompt: Prompt = None
    """Text before the recording: names and spelling to expect, the style to write in."""

    response_format: ResponseFormat = ResponseFormat.JSON
    """What the answer is written as."""

    temperature: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Above 0 the text is sampled; at 0 it is searched for, and sampled only where that yields nothing plausible."""

    hotwords: Text = None
    """Words to expect; not OpenAI's."""

    @property
    def words(self) -> bool:
        """Whether the answer shows words."""
        return False

    def to_request(self, upload: Upload, services: Services, key: ApiKey, task: Task) -> TranscriptionRequest:
        """The engine's request for a recording.

        Raises:
            InvalidParameter: a value that the service does not know or cannot do.
            ModelNotFound: no such model.
        """
        if self.response_format is ResponseFormat.DIARIZED_JSON:
            raise InvalidParameter(
                "response_format=diarized_json: speaker diarization is not installed on this service", "response_format"
            )
        return TranscriptionRequest(
            path=upload.path,
            task=task,
            prompt=self.prompt,
            hotwords=self.hotwords,
            segments=self.response_format is ResponseFormat.VERBOSE_JSON,
            # Subtitles are cut between words.
            word_timestamps=self.words or self.response_format in _SUBTITLES,
            temperature=self.temperature,
            name=upload.name,
            model=services.names.own(self.model),
            weight=key.weight,
        )


class TranscriptionParameters(SpeechParameters):
    """What ``/v1/audio/transcriptions`` takes."""

    language: Text = None
    """Spoken language, a code such as `en` or a name such as `English`; detected where it is left out."""

    languages: tuple[Annotated[str, Field(max_length=100)], ...] = Field(default=(), max_length=100)
    """Languages among which to detect it."""

    keywords: tuple[Annotated[str, Field(max_length=400)], ...] = Field(default=(), max_length=400)
    """Words and phrases to expect."""

    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ()
    """What a `verbose_json` lists: `segment`, `word`, or both; segments where it is left out."""

    stream: bool = False
    """Answer with server-sent events while the transcript is made, whatever the format."""

    include: tuple[Literal["logprobs"], ...] = ()
    """`logprobs`: the log-probability of each word, in `json` and in streams."""

    chunking_strategy: _Chunking = None
    """Taken, and left alone: recordings are always cut where nobody speaks."""

    chunking_type: _Chunking = Field(default=None, alias="chunking_strategy[type]")
    """As `chunking_strategy`."""

    known_speaker_names: tuple[str, ...] = ()
    """For diarization, which is not installed."""

    known_speaker_references: tuple[str, ...] = ()
    """For diarization, which is not installed."""

    @property
    def words(self) -> bool:
        """Whether the answer shows words."""
        return bool(self.include) or "word" in self.timestamp_granularities

    def to_request(self, upload: Upload, services: Services, key: ApiKey, task: Task) -> TranscriptionRequest:
        """See :meth:`SpeechParameters.to_request`."""
        if self.timestamp_granularities and self.response_format is not ResponseFormat.VERBOSE_JSON:
            raise InvalidParameter(
                f"timestamp_granularities[] goes with response_format=verbose_json, not {self.response_format}",
                "timestamp_granularities",
            )
        if self.include and not self.stream and self.response_format is not ResponseFormat.JSON:
            raise InvalidParameter(
                f"include[]=logprobs goes with response_format=json, not {self.response_format}", "include"
            )
        if self.known_speaker_names or self.known_speaker_references:
            raise InvalidParameter(
                "known_speaker_names: speaker diarization is not installed on this service", "known_speaker_names"
            )
        wanted = super().to_request(upload, services, key, task)
        codes = list(dict.fromkeys(_code(language) for language in self.languages))
        language = wanted_language(self.language)
        if language is None and len(codes) == 1:
            language = codes[0]
        hotwords = ", ".join([*filter(None, [self.hotwords]), *self.keywords])
        return replace(wanted, language=language, languages=tuple(codes), hotwords=hotwords or None)


def router(services: Services) -> APIRouter:
    """The dialect's routes."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI's dialect"])
    authenticated = Depends(services.auth.require(Scope.TRANSCRIBE))
    anybody = Depends(services.auth.require(None))

    @routes.post(
        "/audio/transcriptions",
        summary="Transcribe a recording",
        response_class=Response,
        responses={200: _TRANSCRIPTION, **documented_envelopes(*_PROBLEMS)},
        openapi_extra=_documentation(TranscriptionParameters),
    )
    @services.limits.transcription
    async def transcriptions(request: Request, key: ApiKey = authenticated) -> Response:
        return await _serve(services, request, key, TranscriptionParameters, Task.TRANSCRIBE)

    @routes.post(
        "/audio/translations",
        summary="Translate a recording into English",
        response_class=Response,
        responses={200: _TRANSLATION, **documented_envelopes(*_PROBLEMS)},
        openapi_extra=_documentation(SpeechParameters),
    )
    @services.limits.transcription
    async def translations(request: Request, key: ApiKey = authenticated) -> Response:
        return await _serve(services, request, key, SpeechParameters, Task.TRANSLATE)

    @routes.get(
        "/models",
        summary="List the models' names",
        dependencies=[anybody],
        responses={200: _MODELS, **documented_envelopes(401, 429)},
    )
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(listed) for listed in services.names.listed()]})

    @routes.get(
        "/models/{model:path}",
        summary="Show one model",
        dependencies=[anybody],
        responses={200: _ONE_MODEL, **documented_envelopes(401, 404, 429)},
    )
    async def one_model(model: str) -> Response:
        return JSONResponse(_model(services.names.one(model)))

    return routes


async def _serve(
    services: Services, request: Request, key: ApiKey, parameters: type[SpeechParameters], task: Task
) -> Response:
    work = await Transcribing.admitted(services, request, key)
    async with work.upload(request, "file") as upload:
        asked = parse(parameters, request.query_params.multi_items(), upload.fields)
        wanted = asked.to_request(upload, services, key, task)
        services.engine.check_request(wanted)
        if isinstance(asked, TranscriptionParameters) and asked.stream:
            refuse_idempotency(request)
            await services.desk.make_way(request, key)
            dialect = _dialect(logprobs=bool(asked.include))
            return await stream(request, work.events(wanted), dialect, upload.hand_over())

        async def answer() -> Response:
            with upload.hand_over():
                return _answer(await work.whole(wanted), asked)

        mark = fingerprint(upload.sha256, {"path": request.url.path, **asked.model_dump()})
        return await services.desk.serve(request, key, mark, answer, twins=True)


def _answer(done: Done, asked: SpeechParameters) -> Response:
    transcript = done.transcript
    if asked.response_format in _TEXTS:
        kind, media_type = _TEXTS[asked.response_format]
        return Response(render(transcript, kind), media_type=media_type)
    if asked.response_format is ResponseFormat.VERBOSE_JSON:
        listed = asked.timestamp_granularities if isinstance(asked, TranscriptionParameters) else ()
        return JSONResponse(
            to_verbose_json(transcript, segments=not listed or "segment" in listed, words="word" in listed)
        )
    return JSONResponse(to_openai_json(transcript, logprobs=asked.words))


def _dialect(*, logprobs: bool) -> Dialect:
    """``transcript.text.delta`` for each finished piece, then ``transcript.text.done`` with the whole text."""
    begun = False

    def delta(segment: Segment) -> ServerSentEvent:
        nonlocal begun
        text = segment.text if begun else segment.text.lstrip()
        begun = begun or bool(text)
        return _event("transcript.text.delta", delta=encodable(text), **_logprobs([segment], wanted=logprobs))

    def told(event: Event) -> Iterable[ServerSentEvent]:
        if isinstance(event, SegmentsReady):
            return [delta(segment) for segment in event.segments]
        if isinstance(event, Done):
            transcript = event.transcript
            extra = _logprobs(transcript.segments, wanted=logprobs)
            return [_event("transcript.text.done", text=encodable(transcript.text), **extra)]
        return []

    def failed(error: MetalscribeError) -> ServerSentEvent:
        return ServerSentEvent(data=json.dumps({"type": "error", **envelope(error)}), event="error", sep=_NEWLINE)

    return Dialect(told, failed)


def _logprobs(segments: Iterable[Segment], *, wanted: bool) -> dict[str, Any]:
    return {"logprobs": word_logprobs(segments)} if wanted else {}


def _code(language: str) -> str:
    try:
        return parse_language(language)
    except InvalidParameter as error:
        raise InvalidParameter(f"languages: {error.detail}", "languages") from None


def _event(kind: str, **data: Any) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps({"type": kind, **data}, ensure_ascii=False), sep=_NEWLINE)


def _model(listed: ListedModel) -> dict[str, Any]:
    return {
        "id": listed.name,
        "object": "model",
        "created": listed.created,
        "owned_by": "metalscribe",
        "served": listed.model is not None,
        "serves": listed.model,
    }


# --- documentation ----------------------------------------------------------------------------------------------------

_USAGE: Final = object_of({"type": {"type": "string"}, "seconds": {"type": "number"}})
_NUMBER: Final = {"type": "number"}
_STRING: Final = {"type": "string"}
_TIMES: Final = {"start": _NUMBER, "end": _NUMBER}
_LOGPROB: Final = object_of(
    {"token": _STRING, "bytes": {"type": "array", "items": {"type": "integer"}}, "logprob": _NUMBER}
)
_VERBOSE: Final = {
    **object_of(
        {
            "task": _STRING,
            "language": _STRING,
            "duration": _NUMBER,
            "text": _STRING,
            "usage": _USAGE,
        }
    )
}
_VERBOSE["properties"] |= {
    "segments": {
        "type": "array",
        "items": object_of(
            {
                "id": {"type": "integer"},
                "seek": {"type": "integer"},
                **_TIMES,
                "text": _STRING,
                "tokens": {"type": "array", "items": {"type": "integer"}},
                "temperature": _NUMBER,
                "avg_logprob": _NUMBER,
                "compression_ratio": _NUMBER,
                "no_speech_prob": _NUMBER,
            }
        ),
    },
    "words": {"type": "array", "items": object_of({"word": _STRING, **_TIMES})},
}
_SHORT: Final = object_of({"text": _STRING, "usage": _USAGE})
_SHORT["properties"]["logprobs"] = {"type": "array", "items": _LOGPROB}
_CONTENTS: Final = {
    "application/json": {"schema": {"anyOf": [_VERBOSE, _SHORT]}, "example": examples.OPENAI_VERBOSE},
    **{kind: {"schema": _STRING, "example": examples.TRANSCRIPT_TEXTS[kind]} for kind in ("text/plain", "text/vtt")},
}
_TRANSLATION: Final[dict[str, Any]] = {"description": "The translation, in the format asked for", "content": _CONTENTS}
_TRANSCRIPTION: Final[dict[str, Any]] = {
    "description": "The transcript, in the format asked for",
    "content": {**_CONTENTS, **events_of(examples.OPENAI_EVENTS)},
}
_LISTED: Final = object_of(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _STRING,
        "served": {"type": "boolean", "description": "Whether a transcription with this name is answered here"},
        "serves": {"type": ["string", "null"], "description": "The name of the model that answers"},
    }
)
_ONE_MODEL: Final[dict[str, Any]] = {
    "description": "A model by one of its names",
    "content": {"application/json": {"schema": _LISTED, "example": examples.OPENAI_MODEL}},
}
_MODELS: Final[dict[str, Any]] = {
    "description": "The models that are served, OpenAI's names for the default one, and those that the operator could add",
    "content": {
        "application/json": {
            "schema": object_of({"object": {"const": "list"}, "data": {"type": "array", "items": _LISTED}}),
            "example": {"object": "list", "data": [examples.OPENAI_MODEL]},
        }
    },
}


def _documentation(parameters: type[SpeechParameters]) -> dict[str, Any]:
    form: dict[str, Mapping[str, Any]] = {
        "file": {"type": "string", "format": "binary", "description": "Audio or video"}
    }
    for name, schema in properties_of(parameters).items():
        form[f"{name}[]" if schema.get("type") == "array" else name] = schema
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": form}}
            },
        },
    }
