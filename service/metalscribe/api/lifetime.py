"""What lasts as long as a request does."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send


class Lifetime:
    """ASGI middleware that ends what requests :func:`hold`.

    A route returns before its answer is out, and a streamed answer is made after it: their true end is where the server
    has nothing more to do with the request, be it answered, refused, or left by its caller.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        with ExitStack() as held:
            scope.setdefault("state", {})["held"] = held
            await self._app(scope, receive, send)


def hold(request: HTTPConnection, what: AbstractContextManager[object]) -> None:
    """Enter ``what`` now, and leave it when all of the request is over."""
    held: ExitStack = request.state.held
    held.enter_context(what)
