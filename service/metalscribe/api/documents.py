"""What several dialects say alike in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

from metalscribe.api import examples
from metalscribe.render import MEDIA_TYPES, Format

WORD: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["start", "end", "word", "probability"],
    "properties": {
        "start": {"type": "number"},
        "end": {"type": "number"},
        "word": {"type": "string"},
        "probability": {"type": ["number", "null"]},
    },
}
SEGMENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["index", "start", "end", "text", "words", "avg_logprob", "no_speech_prob", "compression_ratio"],
    "properties": {
        "index": {"type": "integer"},
        "start": {"type": "number"},
        "end": {"type": "number"},
        "text": {"type": "string"},
        "words": {"type": "array", "items": WORD},
        "speaker": {"type": "string"},
        "avg_logprob": {"type": ["number", "null"]},
        "no_speech_prob": {"type": ["number", "null"]},
        "compression_ratio": {"type": ["number", "null"]},
    },
}
TEXT_OR_NULL: Final = {"type": ["string", "null"]}
LAST_EVENT: Final = "Last-Event-ID"
LAST_EVENT_PARAMETER: Final = {
    "name": LAST_EVENT,
    "in": "header",
    "required": False,
    "description": "The id of the last event seen; what came after it is sent first.",
    "schema": {"type": "string"},
}
IDEMPOTENCY: Final[Mapping[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes a retry safe: it attaches to the running work, or gets the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


def events_of(example: str) -> dict[str, Any]:
    """Content by media type: server-sent events; the schema is that of one of them."""
    text = {"type": "string"}
    schema = {"type": "object", "required": ["data"], "properties": {"data": text, "event": text, "id": text}}
    return {"text/event-stream": {"schema": schema, "example": example}}


def texts() -> dict[str, Any]:
    """Contents by media type: a transcript as plain text and as subtitles."""
    return {
        (kind := full.partition(";")[0]): {"schema": {"type": "string"}, "example": examples.TRANSCRIPT_TEXTS[kind]}
        for name, full in MEDIA_TYPES.items()
        if name is not Format.JSON
    }


def object_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": dict(properties)}


def in_query(model: type[BaseModel]) -> list[dict[str, Any]]:
    """A model's fields as parameters of the query."""
    return [
        {"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema}
        for name, schema in properties_of(model).items()
    ]


def properties_of(model: type[BaseModel], *, nullable: bool = False) -> dict[str, dict[str, Any]]:
    """A model's fields as a schema's properties.

    Args:
        model: what the fields are of.
        nullable: keep null as a value; in JSON it is one, in a form or a query it would be a word.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    properties = {name: _inlined(value, definitions) for name, value in schema["properties"].items()}
    return properties if nullable else {name: _without_null(value) for name, value in properties.items()}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    rest = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    plain = {name: value for name, value in schema.items() if name != "anyOf" and (name, value) != ("default", None)}
    return {**plain, **(rest[0] if len(rest) == 1 else {"anyOf": rest})} if rest else plain


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """``schema`` with references to ``definitions`` replaced by what they name."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
        return {**target, **{name: value for name, value in schema.items() if name != "$ref"}}
    return {name: _inlined(value, definitions) for name, value in schema.items()}


def correct(document: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    """Make FastAPI's OpenAPI document true: null is a value in an example, and nobody here answers with FastAPI's own 422."""
    for route in routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        for method in route.methods or ():
            answers = document["paths"][route.path_format][method.lower()]["responses"]
            if HTTPStatus.UNPROCESSABLE_ENTITY not in route.responses:
                answers.pop(str(HTTPStatus.UNPROCESSABLE_ENTITY.value), None)
            for status, answer in route.responses.items():
                for kind, content in answer.get("content", {}).items():
                    if "example" in content:
                        answers[str(status)]["content"][kind]["example"] = content["example"]
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
