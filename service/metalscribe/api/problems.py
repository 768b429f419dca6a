"""Errors as ``application/problem+json`` (RFC 9457), below ``/v1`` as OpenAI words them.

The one place where an error meets an HTTP status.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from metalscribe import errors
from metalscribe.api.requests import note
from metalscribe.errors import MetalscribeError

MEDIA_TYPE: Final = "application/problem+json"
_OPENAI: Final = "/v1/"

STATUS: Final[Mapping[type[MetalscribeError], int]] = {
    errors.InvalidParameter: 400,
    errors.AddressRefused: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.ModelNotFound: 404,
    errors.UploadStalled: 408,
    errors.Conflict: 409,
    errors.UploadTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.UndecodableMedia: 422,
    errors.NoAudioTrack: 422,
    errors.FetchFailed: 422,
    errors.IdempotencyMismatch: 422,
    errors.RateLimited: 429,
    errors.TryLater: 503,
    errors.QueueFull: 503,
    errors.ModelUnavailable: 503,
    errors.ModelUnloaded: 503,
    errors.ShuttingDown: 503,
    errors.ModelMissing: 503,
    errors.StorageFull: 507,
    errors.EngineFailed: 500,
}

_OPENAI_CODES: Final[Mapping[str, str]] = {
    errors.Unauthenticated.code: "invalid_api_key",
    errors.RateLimited.code: "rate_limit_exceeded",
}
"""Where clients look for a code of OpenAI's; the others are metalscribe's own."""

_CLOSED_BY_CLIENT: Final = 499  # nobody reads it; the log does

_log = structlog.get_logger(__name__)


def status_of(error: MetalscribeError) -> int:
    """The HTTP status for an error; 500 for those that are the service's own fault."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def document(error: MetalscribeError, request: Request) -> dict[str, Any]:
    """An error as a problem document, where it is too late for a response of its own."""
    return _document(request, status_of(error), error.code, error.title, error.detail, {})


def problem(error: MetalscribeError, request: Request) -> Response:
    """An error as a response."""
    note(problem=error.code)
    status = status_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.TryLater | errors.RateLimited):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, errors.DailyAudioSpent):
        headers["X-Should-Retry"] = "false"  # OpenAI's clients would try again within seconds, recording and all
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT}:
        headers["Connection"] = "close"  # the rest of the body will not be read
    parameter = _parameter(error)
    extra = {"parameter": parameter} if parameter else {}
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, errors.TryLater):
        _log.error("request failed", code=error.code, detail=error.detail)
    return _response(request, status, error.code, error.title, error.detail, headers, extra)


def envelope(error: MetalscribeError) -> dict[str, Any]:
    """An error as OpenAI words it, where it is too late for a response of its own."""
    return _envelope(status_of(error), error.code, error.detail, _parameter(error))


def _parameter(error: MetalscribeError) -> str | None:
    if isinstance(error, errors.ModelNotFound):
        return "model"
    return error.parameter if isinstance(error, errors.InvalidParameter) else None


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document."""

    async def on_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, MetalscribeError):
            raise error
        return with_rate_limit(request, problem(error, request))

    async def on_validation(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        return with_rate_limit(request, problem(invalid_parameter(error.errors()), request))

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        note(problem=code)
        detail = {404: "no such path; /docs lists them", 405: "this path does not take that method; /docs lists them"}
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = _allowed(request)  # of all routes of the path; the framework knows of one
        return _response(
            request,
            error.status_code,
            code,
            phrase,
            detail.get(error.status_code, str(error.detail)),
            headers,
            {},
        )

    async def on_disconnect(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=_CLOSED_BY_CLIENT)

    app.add_exception_handler(MetalscribeError, on_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def _allowed(request: Request) -> str:
    routes = itertools.chain.from_iterable(router.routes for router in request.app.state.routers)
    methods = (route.methods or () for route in routes if route.path_regex.match(request.url.path))
    return ", ".join(sorted(set(itertools.chain.from_iterable(methods))))


def unexpected(request: Request, error: BaseException) -> Response:
    """The answer to a defect of the service itself, and to a request that the service could not wait for at its end."""
    if isinstance(error, asyncio.CancelledError):
        return problem(errors.ShuttingDown("the service is shutting down; send the request again in a moment"), request)
    note(problem="internal_error")
    _log.error("unexpected error", exc_info=error)
    detail = "the service met an unexpected error; its log tells more under this request_id"
    return _response(request, 500, "internal_error", "Internal error", detail, {}, {})


def invalid_parameter(issues: Any) -> errors.InvalidParameter:
    """pydantic's list of issues as one error that names each parameter."""
    named = []
    for issue in issues:
        place = [str(part) for part in issue["loc"] if part not in {"body", "query", "path", "header"}]
        name = ".".join(place) or "body"
        if issue["type"] == "extra_forbidden":
            named.append((name, f"{name} is not a parameter of this path"))
        elif issue["type"] == "missing":
            named.append((name, f"{name} is missing"))
        else:
            message = issue["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            named.append(
                (name, f"{name}: {'must be ' if message != issue['msg'] and 'Input' in issue['msg'] else ''}{message}")
            )
    return errors.InvalidParameter(
        "; ".join(text for _, text in named) or "malformed request", named[0][0] if named else None
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the statuses that a path may answer with, 4xx and 5xx as problem documents."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string"},
            "request_id": {"type": "string"},
            "parameter": {"type": "string"},
        },
    }
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema, "example": _example(status)}},
        }
        for status in statuses
    }


def documented_envelopes(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """As :func:`documented`, for the paths below ``/v1``."""
    text_or_null = {"type": ["string", "null"]}
    schema = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": text_or_null,
                    "code": text_or_null,
                },
            }
        },
    }
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                "application/json": {
                    "schema": schema,
                    "example": _envelope(status, _kind(status).code, _EXPLANATION, None),
                }
            },
        }
        for status in statuses
    }


_EXPLANATION: Final = "what is wrong, and how to mend it"


def _kind(status: int) -> type[MetalscribeError]:
    return next(kind for kind, its in STATUS.items() if its == status)


def _example(status: int) -> dict[str, Any]:
    kind = _kind(status)
    return {
        "type": f"urn:metalscribe:problem:{kind.code}",
        "title": kind.title,
        "status": status,
        "detail": _EXPLANATION,
        "instance": "/",
        "request_id": "0af7651916cd43dd8448eb211c80319c",
    }


def _response(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    headers: Mapping[str, str],
    extra: Mapping[str, Any],
) -> Response:
    if request.url.path.startswith(_OPENAI):
        return JSONResponse(_envelope(status, code, detail, extra.get("parameter")), status, dict(headers))
    content = _document(request, status, code, title, detail, extra)
    return JSONResponse(content, status_code=status, headers=dict(headers), media_type=MEDIA_TYPE)


def _envelope(status: int, code: str, detail: str, parameter: str | None) -> dict[str, Any]:
    kind = "invalid_request_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "requests"
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    return {"error": {"message": detail, "type": kind, "param": parameter, "code": _OPENAI_CODES.get(code, code)}}


def _document(
    request: Request, status: int, code: str, title: str, detail: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "type": f"urn:metalscribe:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "request_id": getattr(request.state, "request_id", ""),
        **extra,
    }


def with_rate_limit(request: Request, response: Response) -> Response:
    """The X-RateLimit headers on refusals too; slowapi puts them on answers only."""
    spent = getattr(request.state, "view_rate_limit", None)
    if spent is not None:
        retry_after = response.headers.get("Retry-After")
        response = request.app.state.limits.limiter._inject_headers(response, spent)  # noqa: SLF001  (slowapi's own handler does so)
        if retry_after is not None:
            response.headers["Retry-After"] = retry_after
        elif "Retry-After" in response.headers:
            del response.headers["Retry-After"]
    return response
