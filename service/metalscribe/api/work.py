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
        owner: id of the key whose it is.
        fingerprint: of the request.
        task: makes the answer.
        lingers: goes on for a while after the last caller left.
        callers: how many wait for it.
        leaving: ends it after that while; None as long as somebody waits.
    """

    owner: str
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
    finds it; for longer while that key is sending a recording, which may be the same one. What is new goes before what was
    left: it never makes a key have more under way than it may.

    Args:
        answers: to requests with an ``Idempotency-Key``.
        linger: seconds that work goes on for nobody.
    """

    def __init__(self, answers: IdempotencyStore, linger: float = _LINGER_SECONDS) -> None:
        self._answers = answers
        self._linger = linger
        self._running: dict[tuple[str, str], _Work] = {}
        self._twins: dict[tuple[str, str], _Work] = {}
        self._left: list[_Work] = []  # for nobody, the oldest first
        self._sending: Counter[str] = Counter()
        self._sent: dict[str, asyncio.Event] = {}
        # Held from the question whether a request is known to the claim to it, so that two cannot both find it is not.
        self._claiming = asyncio.Lock()

    async def close(self) -> None:
        """Cancel what goes on for nobody."""
        for work in list(self._left):
            await self._end(work)

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
        return any(work.owner == key.id for work in self._left)

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

    @staticmethod
    def put_off(request: Request, refusal: MetalscribeError) -> None:
        """Refuse the request only if it turns out to begin something new."""
        request.state.put_off = refusal

    async def make_way(self, request: Request, key: ApiKey) -> None:
        """Something new begins for a key: what goes on for nobody ends where the key would have too much under way.

        Raises:
            MetalscribeError: what was put off.
        """
        refusal: MetalscribeError | None = getattr(request.state, "put_off", None)
        if refusal is not None:
            raise refusal
        left = [work for work in self._left if work.owner == key.id]
        room = _LINGERING_PER_KEY
        if key.concurrency is not None:
            waited_for = sum(work.owner == key.id and work.callers > 0 for work in self._twins.values())
            room = min(room, max(0, key.concurrency - waited_for - 1))
        for work in left[: max(0, len(left) - room)]:
            await self._end(work)

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
            MetalscribeError: whatever ``answer`` raises, or what was put off.
        """
        header = request.headers.get("Idempotency-Key")
        if header is not None:
            return await self._serve_once(request, key, checked_idempotency_key(header), mark, answer, lingers=twins)
        name = (key.id, mark)
        work = self._twins.get(name) if twins else None
        if work is None:
            await self.make_way(request, key)
            work = self._twins.get(name) if twins else None
        if work is None:
            work = _Work(key.id, mark, asyncio.create_task(_run(answer)), lingers=twins)
            if twins:
                self._twins[name] = work
                work.task.add_done_callback(lambda task: self._twin_done(name, task))
        return await self._wait(request, work)

    def _twin_done(self, name: tuple[str, str], task: asyncio.Task[Response]) -> None:
        """Forget work that has ended, unless its answer is there and nobody was there to take it."""
        work = self._twins.get(name)
        if work is None or work.task is not task:
            return
        if work.callers or task.cancelled() or task.exception() is not None:
            del self._twins[name]

    async def _serve_once(
        self, request: Request, key: ApiKey, header: str, mark: str, answer: Answer, *, lingers: bool
    ) -> Response:
        name = (key.id, header)
        work: _Work | None
        async with self._claiming:
            work = self._running.get(name)
            stored = await self._answers.get(*name) if work is None else None
            if work is None and stored is None:
                await self.make_way(request, key)
                task = asyncio.create_task(self._run_once(name, mark, answer))
                work = _Work(key.id, mark, task, lingers=lingers)
                self._running[name] = work
        if stored is not None:
            _require_same(stored.fingerprint, mark)
            headers = {**stored.headers, "Idempotent-Replayed": "true"}
            return Response(stored.body, stored.status, headers, stored.media_type)
        if work is None:
            raise RuntimeError("neither running nor answered")
        _require_same(work.fingerprint, mark)
        return await self._wait(request, work)

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
            self._left.remove(work)
        gone = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait({work.task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.task.done():
                raise ClientDisconnect
            return _copy(work.task.result())
        finally:
            gone.cancel()
            work.callers -= 1
            if not work.callers:
                await self._nobody_waits(work)

    async def _nobody_waits(self, work: _Work) -> None:
        if work.task.done() or not work.lingers or self._linger <= 0:
            await self._end(work)
            return
        work.leaving = asyncio.create_task(self._leave(work), name="work whose caller left")
        self._left.append(work)
        for old in [one for one in self._left if one.owner == work.owner][:-_LINGERING_PER_KEY]:
            await self._end(old)

    async def _leave(self, work: _Work) -> None:
        """Let the work go on for a while, then end it."""
        await asyncio.sleep(self._linger)
        while (sent := self._sent.get(work.owner)) is not None:
            await sent.wait()
            await asyncio.sleep(_GRACE_SECONDS)  # from the last byte to the question whether it is the same again
        await self._end(work)

    async def _end(self, work: _Work) -> None:
        """Forget work, and cancel it where it still runs."""
        # Who comes back from now on must not attach to what is being torn down.
        for known in (self._twins, self._running):
            for name in [name for name, one in known.items() if one is work]:
                del known[name]
        if work in self._left:
            self._left.remove(work)
        if work.leaving is not None and work.leaving is not asyncio.current_task():
            work.leaving.cancel()
        if not work.task.done():
            _log.info("cancelled", reason="the caller left")
            work.task.cancel()
            await asyncio.wait({work.task})


async def _run(answer: Answer) -> Response:
    return await answer()


def _copy(response: Response) -> Response:
    """An answer for one caller, to which headers of its own are added: each has another rest of its rate limit."""
    copy = Response(response.body, response.status_code)
    copy.raw_headers = list(response.raw_headers)
    return copy


async def disconnected(request: Request) -> None:
    """Return when the caller hangs up; the body has been read, so that nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_same(known: str, mark: str) -> None:
    if known != mark:
        raise IdempotencyMismatch("this Idempotency-Key was used for a different recording or options; send a new key")
