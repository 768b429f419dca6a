"""Running a transcription for a caller who may leave, come back, or ask for the same thing twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from metalscribe.errors import IdempotencyMismatch, MetalscribeError
from metalscribe.store.idempotency import IdempotencyStore, checked_idempotency_key
from metalscribe.store.identity import ApiKey

_log = structlog.get_logger(__name__)

Answer = Callable[[], Awaitable[Response]]


@dataclass(slots=True, eq=False)
class _Work:
    """A running answer and how many callers wait for it."""

    fingerprint: str
    task: asyncio.Task[Response]
    callers: int = field(default=0)


def fingerprint(content: str, options: Mapping[str, Any]) -> str:
    """What makes two requests the same: the recording's digest (or address) and every option."""
    return hashlib.sha256(json.dumps([content, options], sort_keys=True, default=str).encode()).hexdigest()


class Desk:
    """Where callers wait for their transcriptions.

    A caller who hangs up cancels the work, unless another waits for the same. An ``Idempotency-Key`` (IETF draft
    httpapi-idempotency-key-header) attaches to the running work of that key, or gets its first answer again. Refusals are
    not kept: they cost nothing to repeat, and what was refused may pass next time.
    """

    def __init__(self, answers: IdempotencyStore) -> None:
        self._answers = answers
        self._running: dict[tuple[str, str], _Work] = {}
        # Held from the question whether a request is known to the claim to it, so that two cannot both find it is not.
        self._claiming = asyncio.Lock()

    async def serve(self, request: Request, key: ApiKey, mark: str, answer: Answer) -> Response:
        """Answer a request.

        Args:
            request: its body has been read.
            key: the caller's.
            mark: the request's :func:`fingerprint`.
            answer: does the work.

        Raises:
            ClientDisconnect: the caller left.
            IdempotencyMismatch: the Idempotency-Key was used for something else.
            MetalscribeError: whatever ``answer`` raises.
        """
        header = request.headers.get("Idempotency-Key")
        if header is None:
            return await self._wait(request, _Work(mark, asyncio.create_task(_run(answer))))
        name = (key.id, checked_idempotency_key(header))
        async with self._claiming:
            work = self._running.get(name)
            stored = await self._answers.get(*name) if work is None else None
            if work is None and stored is None:
                work = _Work(mark, asyncio.create_task(self._run_once(name, mark, answer)))
                self._running[name] = work
        if stored is not None:
            _require_same(stored.fingerprint, mark)
            headers = {**stored.headers, "Idempotent-Replayed": "true"}
            return Response(stored.body, stored.status, headers, stored.media_type)
        if work is None:
            raise RuntimeError("neither running nor answered")
        _require_same(work.fingerprint, mark)
        return await self._wait(request, work)

    async def knows(self, request: Request, key: ApiKey) -> bool:
        """Whether a request repeats, by its ``Idempotency-Key``, one that is under way or was answered.

        Raises:
            InvalidParameter: the header is malformed.
        """
        header = request.headers.get("Idempotency-Key")
        if header is None:
            return False
        name = (key.id, checked_idempotency_key(header))
        return name in self._running or await self._answers.get(*name) is not None

    async def _run_once(self, name: tuple[str, str], mark: str, answer: Answer) -> Response:
        try:
            response = await answer()
            await self._keep(name, mark, response)
            async with self._claiming:  # whoever asks now finds it stored
                self._forget(name)
        except BaseException:
            self._forget(name)
            raise
        return response

    def _forget(self, name: tuple[str, str]) -> None:
        """End the present task's claim to the name; another may have taken it over."""
        running = self._running.get(name)
        if running is not None and running.task is asyncio.current_task():
            del self._running[name]

    async def _keep(self, name: tuple[str, str], mark: str, response: Response) -> None:
        try:
            await self._answers.put(
                *name,
                fingerprint=mark,
                status=response.status_code,
                media_type=response.headers.get("content-type"),
                headers={},
                body=bytes(response.body),
            )
        except MetalscribeError as error:
            # The caller gets its answer all the same; only a retry would cost the work again.
            _log.error("answer not kept for retries", code=error.code, detail=error.detail)

    async def _wait(self, request: Request, work: _Work) -> Response:
        work.callers += 1
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({work.task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.task.done():
                raise ClientDisconnect
            first = work.task.result()
            # Each caller gets headers of its own: the rate limit's differ.
            return (
                Response(first.body, first.status_code, None, first.headers.get("content-type"))
                if work.callers > 1
                else first
            )
        finally:
            gone.cancel()
            work.callers -= 1
            if not work.callers and not work.task.done():
                _log.info("cancelled", reason="the caller left")
                # Who comes back from now on must not attach to what is being torn down.
                for name in [name for name, running in self._running.items() if running is work]:
                    del self._running[name]
                work.task.cancel()
                await asyncio.wait({work.task})


async def _run(answer: Answer) -> Response:
    return await answer()


async def _disconnected(request: Request) -> None:
    """Return when the caller hangs up; the body has been read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_same(known: str, mark: str) -> None:
    if known != mark:
        raise IdempotencyMismatch("this Idempotency-Key was used for a different recording or options; send a new key")
