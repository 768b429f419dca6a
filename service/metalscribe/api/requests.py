"""What every request gets: an id, one line in the log, security headers, and witnesses who count it."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metalscribe.api.traffic import UNMATCHED, Exchange, Witness, surface_of

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_ERRORS_FROM: Final = 400
_EVENT_STREAM: Final = "text/event-stream"
_WORTH_SWALLOWING: Final = 64 * 1024
_LINGER_SECONDS: Final = 5.0
_LINGER_BYTES: Final = 8 * 1024 * 1024

_log = structlog.get_logger("metalscribe.request")

_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


def note(**facts: Any) -> None:
    """Add to the line that the log gets about the present request; works from tasks that it started, too."""
    known = _facts.get()
    if known is not None:
        known.update(facts)


class RequestLog:
    """ASGI middleware around everything else.

    The caller's ``X-Request-ID`` is kept where it is harmless, else one is made. What routes :func:`note` (key, audio
    seconds, …) appears in the request's line.

    Args:
        app: what to serve.
        on_error: the answer to an exception that nothing else has caught, or to the cancellation that ends a shutdown.
        witnesses: told of each request's beginning and end.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_error: Callable[[Request, BaseException], Response],
        witnesses: Sequence[Witness] = (),
    ) -> None:
        self._app = app
        self._on_error = on_error
        self._witnesses = witnesses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        facts: dict[str, Any] = {}
        _facts.set(facts)  # one object, shared by every task that inherits this context
        begin = time.perf_counter()
        status = 499  # nothing was sent: the client left
        streams = False
        unread = _unread_body(scope)
        surface = surface_of(scope["path"])
        for witness in self._witnesses:
            witness.began(surface)

        async def receive_counted() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                unread = False
            return message

        async def send_marked(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                streams = headers.get("Content-Type", "").startswith(_EVENT_STREAM)
                _mark(headers, request_id, status, close=unread)
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                # All of the answer, but not yet its end, upon which the connection is closed.
                await send({**message, "more_body": True})
                await _swallow(receive_counted)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._app(scope, receive_counted, send_marked)
        except (Exception, asyncio.CancelledError) as error:
            if status != 499:
                raise  # half an answer is out; the server must break the connection
            await self._on_error(Request(scope), error)(scope, receive_counted, send_marked)
        finally:
            seconds = time.perf_counter() - begin
            follows = streams and scope["method"] == "GET"
            template = _template(scope)
            exchange = Exchange(surface, template, scope["method"], status, seconds, follows, facts)
            for witness in self._witnesses:
                witness.ended(exchange)
            level = "debug" if scope["path"] in _QUIET and status < _ERRORS_FROM else "info"
            client = scope.get("client")
            getattr(_log, level)(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(seconds, 3),
                client=client[0] if client else None,
                **facts,
            )


def _template(scope: Scope) -> str:
    """The path of the route that a request has met, with its parameters as names."""
    route = scope.get("route")
    if route is None and "endpoint" in scope:  # not FastAPI's own kind of route: the documentation's files
        route = next((one for one in scope["app"].routes if scope["endpoint"] in _endpoints(one)), None)
    path: str | None = getattr(route, "path_format", None) or getattr(route, "path", None)
    return path or UNMATCHED


def _endpoints(route: BaseRoute) -> tuple[object, object]:
    """What a route or a mount names as the endpoint of the requests that it takes."""
    return getattr(route, "endpoint", None), getattr(route, "app", None)


def _mark(headers: MutableHeaders, request_id: str, status: int, *, close: bool) -> None:
    headers["X-Request-ID"] = request_id
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Cache-Control", "no-store")
    if close:
        headers["Connection"] = "close"  # rather than swallow a body that nobody wants
    if status < _ERRORS_FROM and "Retry-After" in headers:
        del headers["Retry-After"]  # slowapi puts it on every answer
    if "X-RateLimit-Reset" in headers:
        headers["X-RateLimit-Reset"] = headers["X-RateLimit-Reset"].partition(".")[0]  # whole seconds, as everywhere


async def _swallow(receive: Receive) -> None:
    """Read on for a moment, until the caller has the answer and leaves.

    A connection that is closed while something unread is in it is reset, and a reset can overtake the answer: a proxy that
    is still sending reports a bad gateway instead (RFC 9112, section 9.6, asks for the same in stages). Not for ever: who
    goes on sending has not read it and will not.
    """
    swallowed = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while swallowed < _LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                swallowed += len(message.get("body", b""))


def _unread_body(scope: Scope) -> bool:
    """Whether so much of a body may be coming that it is better not read to its end for nothing."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return True
    length = headers.get(b"content-length", b"0")
    return not length.isdigit() or int(length) > _WORTH_SWALLOWING


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return str(text)
    return uuid.uuid4().hex
