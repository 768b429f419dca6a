"""The HTTP service as a process, until SIGTERM; then it drains.

Under systemd it also says when it is ready, feeds the watchdog as long as the engine is well, and serves on a socket that
outlives a restart (see :mod:`metalscribe.systemd`).
"""

from __future__ import annotations

import asyncio
import faulthandler
import resource
import signal
import socket
import time
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from metalscribe.api.services import Services
from metalscribe.app import create_app
from metalscribe.errors import ConfigurationError, MetalscribeError
from metalscribe.settings import Settings
from metalscribe.systemd import Notifier, let_go, listening_socket

_HEAD_BYTES: Final = 64 * 1024
_LAST_WORDS_SECONDS: Final = 5
"""After the grace period, what still runs is cancelled and gets so long to be told."""

_FIRST_WORDS_SECONDS: Final = 1.0
"""A connection that was accepted just before the end gets so long to say what it wants."""

_log = structlog.get_logger("metalscribe.serve")


def run(settings: Settings) -> None:
    """Serve until SIGTERM.

    Raises:
        ConfigurationError: the address is taken.
        MetalscribeError: a part of the service does not start.
    """
    _allow_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failure = runner.run(_serve(settings))
    if failure is not None:
        raise failure


def _allow_connections() -> None:
    """As many descriptors as the machine lets this process have: shells and systemd set 1024, and each follower of a job takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: Settings) -> MetalscribeError | None:
    notifier = Notifier.from_environment()
    try:
        kept = listening_socket(notifier, settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return ConfigurationError(f"cannot listen on {settings.host} port {settings.port}: {reason}")
    if notifier.watchdog_secs is not None:
        # systemd ends a process that hangs with SIGABRT: let it say where it hung.
        faulthandler.enable()
    app = _FailureKept(create_app(settings))
    server = _DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            # httptools, uvicorn's faster parser, takes request heads of any length, before anybody has shown a key.
            http="h11",
            h11_max_incomplete_event_size=_HEAD_BYTES,
            proxy_headers=True,
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=int(settings.shutdown_grace_secs) + _LAST_WORDS_SECONDS,
            lifespan="on",
        ),
        app.app,
        settings.shutdown_grace_secs,
        notifier,
    )
    reporting = asyncio.create_task(_report(server, app.app, notifier), name="systemd")
    try:
        await server.serve([kept] if kept is not None else None)
    except SystemExit:
        let_go(notifier, settings.host, settings.port)
        if app.failure is None and not server.lifespan.should_exit:
            # uvicorn's answer to an address that is taken or not ours; it has logged which.
            return ConfigurationError(f"cannot listen on {settings.host} port {settings.port}; is it taken?")
        return app.failure or MetalscribeError("the service did not start; its log tells why")
    finally:
        reporting.cancel()
    return app.failure


async def _report(server: uvicorn.Server, app: FastAPI, notifier: Notifier) -> None:
    """Tell systemd how the service is, for as long as there is one of each.

    The watchdog is fed only while the engine's own heartbeat is as it should be; a loop that is blocked feeds nothing.
    """
    if notifier.address is None:
        return
    pause = min(5.0, (notifier.watchdog_secs or 20.0) / 4)
    ready = False
    while True:
        services: Services | None = getattr(app.state, "services", None)
        if server.should_exit:
            return  # how long stopping may take is the unit's TimeoutStopSec=
        if not server.started:
            await asyncio.sleep(0.1)
            continue
        if not ready:
            notifier.notify("READY=1")
            ready = True
        if services is not None:
            status, stuck = services.engine.status, services.engine.stuck()
            if stuck is None:
                notifier.notify("WATCHDOG=1", f"STATUS=model {status.model} {status.state}, {status.requests} requests")
            else:
                _log.error("the engine is stuck; leaving it to systemd's watchdog", reason=stuck)
        await asyncio.sleep(pause)


class _FailureKept:
    """ASGI wrapper that remembers why start-up failed; uvicorn would only print a traceback."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.failure: MetalscribeError | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_quietly(message: Any) -> None:
            # Without its message uvicorn logs one line and leaves the telling to us.
            await send({**message, "message": ""} if message["type"].endswith(".failed") else message)

        try:
            await self.app(scope, receive, send_quietly)
        except MetalscribeError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001  (told in one line like any other failure to start)
            _log.exception("unexpected error")
            self.failure = MetalscribeError(f"the service met an unexpected error: {type(error).__name__}: {error}")


class _DrainingServer(uvicorn.Server):
    """On SIGTERM: take no more connections, finish what runs, cancel what does not finish in time and say so."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace: float, notifier: Notifier) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._notifier = notifier
        self._cancelling: asyncio.Task[None] | None = None

    def _cancel(self, services: Services) -> None:
        self._cancelling = asyncio.create_task(services.engine.close(), name="shutdown")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C does not wait."""
        del frame
        # Not uvicorn's own handler: that one raises the signal again at the end, and a service that was told to stop
        # and did has exit status 0.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        # In a turn of its own: the signal may have come while the loop was accepting a connection, which a listening
        # socket that is closed under its hands would reset.
        asyncio.get_running_loop().call_soon_threadsafe(self._stop_listening)

    def _stop_listening(self) -> None:
        services = getattr(self._app.state, "services", None)
        if services is not None and not services.draining:
            services.stopping.set()
            self._notifier.notify("STOPPING=1", "STATUS=finishing what runs")
            _log.info("shutting down", running=services.engine.status.requests, grace_seconds=self._grace)
            loop = asyncio.get_running_loop()
            # Still starting, it serves nobody yet, and need not wait for its model.
            loop.call_later(self._grace if self.started else 0, self._cancel, services)
        for server in self.servers:
            server.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain; whoever was accepted a moment ago is heard before uvicorn closes what it takes for idle."""
        await asyncio.sleep(0)  # for who was accepted in this very turn to be among the connections
        until = time.monotonic() + _FIRST_WORDS_SECONDS
        while time.monotonic() < until and any(map(_unheard, self.server_state.connections)):  # noqa: ASYNC110  (uvicorn tells nobody)
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def _unheard(connection: object) -> bool:
    """Whether this connection has not told any request yet (``cycle`` is uvicorn's for the request under way or last)."""
    return getattr(connection, "cycle", None) is None
