"""Running a transcription for a caller who may leave, come back, or ask for the same thing twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from metalscribe.errors import IdempotencyMismatch, MetalscribeError
from metalscribe.store.idempotency import IdempotencyStore, checked_idempotency_key
from metalscribe.store.identity import ApiKey

_LINGER_SECONDS: Final = 30.0
_LINGERING_PER_KEY: Final = 8
_GRACE_SECONDS: Final = 1.0
_OF_ONE_CALLER: Final = frozenset({"content-length", "content-type"})

_log = structlog.get_logger(__name__)

Answer = Callable[[], Awaitable[Response]]


@dataclass(slots=True, eq=False)
class _Work:
    """A running answer, and who waits for it.

    Attributes:
        fingerprint: of the request.
        task: makes the answer; the headers that come with it are noted, since each caller's own are added later.
        callers: how many wait for it.
        lingers: goes on for a while after the last caller left.
    """

    fingerprint: str
    task: asyncio.Task[Response]
    lingers: bool = False
    callers: int = 0
    leaving: asyncio.Task[None] | None = None


def fingerprint(content: str, options: Mapping[str, Any]) -> str:
    """What makes two requests the same: the recording's digest (or address) and every option."""
    return hashlib.sha256(json.dumps([content, options], sort_keys=True, default=str).encode()).hexdigest()


class Desk:
    """Where callers wait for their transcriptions.

    A caller who hangs up cancels the work, unless another waits for the same. An ``Idempotency-Key`` (IETF draft
    httpapi-idempotency-key-header) attaches to the running work of that key, or gets its first answer again. Refusals are
    not kept: they cost nothing to repeat, and what was refused may pass next time.

    Some clients give up after a while and send the same request once more, without saying so. For those dialects, identical
    requests of one API key share their work, and what its caller has left goes on for half a minute, so that the retry
    finds it; for longer while that key is sending a recording, which may be the same one.

    Args:
        answers: to requests with an ``Idempotency-Key``.
        linger: seconds that work goes on for nobody.
    """

    def __init__(self, answers: IdempotencyStore, linger: float = _LINGER_SECONDS) -> None:
        self._answers = answers
        self._linger = linger
        self._running: dict[tuple[str, str], _Work] = {}
        self._twins: dict[tuple[str, str], _Work] = {}
        self._sending: Counter[str] = Counter()
        self._sent: dict[str, asyncio.Event] = {}
        # Held from the question whether a request is known to the claim to it, so that two cannot both find it is not.
        self._claiming = asyncio.Lock()

    async def close(self) -> None:
        """Cancel what goes on for nobody."""
        leaving = [work.leaving for work in self._twins.values() if work.leaving is not None]
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)

    @contextmanager
    def receiving(self, key: ApiKey) -> Iterator[None]:
        """While this runs the key's abandoned work goes on: the recording that arrives may be the same again."""
        self._sending[key.id] += 1
        sent = self._sent.setdefault(key.id, asyncio.Event())
        try:
            yield
        finally:
            self._sending[key.id] -= 1
            if not self._sending[key.id]:
                del self._sending[key.id], self._sent[key.id]
                sent.set()

    def abandoned(self, key: ApiKey) -> bool:
        """Whether work of this key goes on for nobody, so that its next request may cost nothing."""
        return any(owner == key.id and not work.callers for (owner, _), work in self._twins.items())

    async def serve(self, request: Request, key: ApiKey, mark: str, answer: Answer, *, twins: bool = False) -> Response:
        """Answer a request.

        Args:
            request: its body has been read.
            key: the caller's.
            mark: the request's :func:`fingerprint`.
            answer: does the work.
            twins: identical requests share their work, and find it after the first caller has left.

        Raises:
            ClientDisconnect: the caller left.
            IdempotencyMismatch: the Idempotency-Key was used for something else.
            MetalscribeError: whatever ``answer`` raises.
        """
        header = request.headers.get("Idempotency-Key")
        if header is None:
            work = self._twin((key.id, mark), answer) if twins else _Work(mark, asyncio.create_task(_run(answer)))
            return await self._wait(request, work)
        name = (key.id, checked_idempotency_key(header))
        known: _Work | None
        async with self._claiming:
            known = self._running.get(name)
            stored = await self._answers.get(*name) if known is None else None
            if known is None and stored is None:
                known = _Work(mark, asyncio.create_task(self._run_once(name, mark, answer)))
                self._running[name] = known
        if stored is not None:
            _require_same(stored.fingerprint, mark)
            headers = {**stored.headers, "Idempotent-Replayed": "true"}
            return Response(stored.body, stored.status, headers, stored.media_type)
        if known is None:
            raise RuntimeError("neither running nor answered")
        _require_same(known.fingerprint, mark)
        return await self._wait(request, known)

    def _twin(self, name: tuple[str, str], answer: Answer) -> _Work:
        """The work for an identical request of the same key, begun now if there is none."""
        work = self._twins.get(name)
        if work is None:
            work = _Work(name[1], asyncio.create_task(_run(answer)), lingers=True)
            self._twins[name] = work
            work.task.add_done_callback(lambda task: self._twin_done(name, task))
        return work

    def _twin_done(self, name: tuple[str, str], task: asyncio.Task[Response]) -> None:
        """Forget work that has ended, unless its answer is there and nobody was there to take it."""
        work = self._twins.get(name)
        if work is None or work.task is not task:
            return
        if work.callers or task.cancelled() or task.exception() is not None:
            del self._twins[name]

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
            response = await _run(answer)
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
                headers={key: value for key, value in response.headers.items() if key not in _OF_ONE_CALLER},
                body=bytes(response.body),
            )
        except MetalscribeError as error:
            # The caller gets its answer all the same; only a retry would cost the work again.
            _log.error("answer not kept for retries", code=error.code, detail=error.detail)

    async def _wait(self, request: Request, work: _Work) -> Response:
        work.callers += 1
        if work.leaving is not None:
            _log.info("attached", reason="the same request came again")
            work.leaving.cancel()
            work.leaving = None
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({work.task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.task.done():
                raise ClientDisconnect
            return _copy(work.task.result())
        finally:
            gone.cancel()
            work.callers -= 1
            if not work.callers:
                await self._left(work)

    async def _left(self, work: _Work) -> None:
        """Nobody waits for the work any more."""
        if work.task.done():
            self._forget_twin(work)
        elif work.lingers and self._linger > 0:
            work.leaving = asyncio.create_task(self._leave(work), name="work whose caller left")
            await self._make_room(work)
        else:
            await self._cancel(work)

    async def _leave(self, work: _Work) -> None:
        """Let the work go on for a while, then end it."""
        try:
            await asyncio.sleep(self._linger)
            while (sent := self._sent.get(self._owner(work))) is not None:
                await sent.wait()
                await asyncio.sleep(_GRACE_SECONDS)  # from the last byte to the question whether it is the same again
        finally:
            if work.leaving is asyncio.current_task():  # nobody has come back
                await self._cancel(work)

    async def _make_room(self, work: _Work) -> None:
        """End the oldest of a key's abandoned work where there is too much of it."""
        owner = self._owner(work)
        idle = [one for (key, _), one in self._twins.items() if key == owner and one.leaving is not None]
        for one in idle[:-_LINGERING_PER_KEY]:
            await self._cancel(one)

    async def _cancel(self, work: _Work) -> None:
        # Who comes back from now on must not attach to what is being torn down.
        self._forget_twin(work)
        for name in [name for name, running in self._running.items() if running is work]:
            del self._running[name]
        if not work.task.done():
            _log.info("cancelled", reason="the caller left")
            work.task.cancel()
            await asyncio.wait({work.task})

    def _forget_twin(self, work: _Work) -> None:
        for name in [name for name, twin in self._twins.items() if twin is work]:
            del self._twins[name]

    def _owner(self, work: _Work) -> str:
        """Id of the key whose work it is; empty where it is not kept for anybody."""
        return next((key for (key, _), twin in self._twins.items() if twin is work), "")


async def _run(answer: Answer) -> Response:
    return await answer()


def _copy(response: Response) -> Response:
    """An answer for one caller, to which headers of its own are added: each has another rest of its rate limit."""
    copy = Response(response.body, response.status_code)
    copy.raw_headers = list(response.raw_headers)
    return copy


async def _disconnected(request: Request) -> None:
    """Return when the caller hangs up; the body has been read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_same(known: str, mark: str) -> None:
    if known != mark:
        raise IdempotencyMismatch("this Idempotency-Key was used for a different recording or options; send a new key")
