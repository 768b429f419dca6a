"""Sending webhooks: at least once, signed, with growing pauses, and never more than a few to one receiver at a time.

A receiver that has failed several times in a row is left alone for a while, without its deliveries losing an attempt: it would
only keep others waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final

import httpx
import structlog

from metalscribe.errors import AddressRefused, InvalidParameter, MetalscribeError
from metalscribe.jobs.loop import Loop
from metalscribe.jobs.metrics import JobMetrics
from metalscribe.jobs.takeover import taken_over
from metalscribe.media.addresses import AddressPolicy
from metalscribe.media.network import Resolver
from metalscribe.media.transport import CheckedTransport, parse_url
from metalscribe.store.deliveries import Delivery, DeliveryStore

BACKOFF: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt."""

SIGNATURE: Final = "X-Metalscribe-Signature"

_TOGETHER: Final = 16
_TOGETHER_PER_TARGET: Final = 2
_ATTEMPT_SECONDS: Final = 30.0
_TIMEOUTS: Final = {"connect": 10.0, "read": 20.0, "write": 20.0, "pool": 10.0}
_LOOK_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 1.0
_FAILURES_TO_OPEN: Final = 5
_OPEN_SECONDS: Final = 30.0

_log = structlog.get_logger(__name__)


def signature(secret: str, body: bytes, at: int) -> str:
    """What the header :data:`SIGNATURE` says: the time, and HMAC-SHA256 over it, a dot and the body, in hexadecimal."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


def target_of(url: str) -> str:
    """Scheme, host and port of a URL: what is up or down.

    Raises:
        InvalidParameter, AddressRefused: it is not a URL that webhooks are sent to.
    """
    parsed = parse_url(url)
    return f"{parsed.scheme}://{parsed.host}:{parsed.port or {'http': 80, 'https': 443}[parsed.scheme]}"[:300]


@dataclass(slots=True)
class _Breaker:
    """What is known of a receiver."""

    failures: int = 0
    closed_again: float = field(default=0.0)  # on the monotonic clock


class Breakers:
    """Which receivers are left alone for now. Args: ``clock`` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Breaker] = {}

    def open(self) -> set[str]:
        """The targets that are left alone. After its time one attempt is let through, and tells how it goes on."""
        now = self._clock()
        return {target for target, breaker in self._known.items() if breaker.closed_again > now}

    def succeeded(self, target: str) -> None:
        """It works."""
        self._known.pop(target, None)

    def failed(self, target: str) -> bool:
        """It has failed; True where it is left alone from now on."""
        breaker = self._known.setdefault(target, _Breaker())
        breaker.failures += 1
        if breaker.failures < _FAILURES_TO_OPEN:
            return False
        breaker.closed_again = self._clock() + _OPEN_SECONDS
        return True


class Deliverer:
    """Sends what is due.

    Args:
        store: the outbox.
        policy: which addresses are connected to, the same as for recordings by URL.
        owner: this process.
        alive: whether another process lives.
        metrics: where attempts are counted.
        resolver: in place of the system's.
    """

    def __init__(
        self,
        store: DeliveryStore,
        policy: AddressPolicy,
        *,
        owner: str,
        alive: Callable[[str], bool],
        metrics: JobMetrics,
        resolver: Resolver | None = None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._owner = owner
        self._alive = alive
        self._metrics = metrics
        self._resolver = resolver
        self._breakers = Breakers()
        self._sending: dict[str, tuple[asyncio.Task[None], str]] = {}
        self._loop = Loop("webhooks", self._turn)

    def start(self) -> None:
        """Begin, with what dead processes have left behind."""
        self._loop.start()

    def wake(self) -> None:
        """Something is due."""
        self._loop.wake()

    async def close(self) -> None:
        """Stop; attempts under way are ended within their own time."""
        await self._loop.close()
        if self._sending:
            await asyncio.wait([task for task, _ in self._sending.values()])

    async def _turn(self) -> float:
        await taken_over(self._store, self._owner, self._alive)
        await self._send_due()
        due = await self._store.seconds_to_next()
        return _LOOK_SECONDS if due is None else min(_LOOK_SECONDS, max(0.05, due))

    async def _send_due(self) -> None:
        while not self._loop.stopping and len(self._sending) < _TOGETHER:
            busy = Counter(target for _, target in self._sending.values())
            left_alone = self._breakers.open() | {
                target for target, count in busy.items() if count >= _TOGETHER_PER_TARGET
            }
            # One by one: the next choice depends on whom this one goes to.
            claimed = await self._store.claim(
                self._owner, limit=1, horizon=timedelta(seconds=2 * BACKOFF[-1]), except_for=left_alone
            )
            if not claimed:
                return
            delivery = claimed[0]
            task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.id}")
            self._sending[delivery.id] = (task, delivery.target)
            task.add_done_callback(partial(self._ended, delivery.id))

    def _ended(self, delivery_id: str, _: asyncio.Task[None]) -> None:
        del self._sending[delivery_id]
        self._loop.wake()

    async def _deliver(self, delivery: Delivery) -> None:
        log = _log.bind(
            delivery=delivery.id, job=delivery.job_id, target=delivery.target, attempt=delivery.attempts + 1
        )
        error = await self._attempt(delivery)
        if error is None:
            self._breakers.succeeded(delivery.target)
            self._metrics.attempts.labels("delivered").inc()
            log.info("webhook delivered", event_type=delivery.event)
            await self._written(delivery, lambda: self._store.delivered(delivery))
            return
        if self._breakers.failed(delivery.target):
            log.warning("webhooks' receiver is left alone for a while", seconds=_OPEN_SECONDS)
        if delivery.attempts < len(BACKOFF):
            delay = BACKOFF[delivery.attempts]
            self._metrics.attempts.labels("postponed").inc()
            log.warning("webhook failed, tried again", error=error, retry_in=delay)
            await self._written(delivery, lambda: self._store.postponed(delivery, error, timedelta(seconds=delay)))
        else:
            self._metrics.attempts.labels("given_up").inc()
            log.error("webhook given up; `metalscribe jobs redeliver` sends it again", error=error)
            await self._written(delivery, lambda: self._store.failed(delivery, error))

    async def _written(self, delivery: Delivery, write: Callable[[], Awaitable[None]]) -> None:
        """Write an attempt's outcome down, until the database takes it or the service stops: then the next one sends it again."""
        while True:
            try:
                await write()
            except MetalscribeError as problem:
                _log.warning(
                    "webhook's outcome not written down", delivery=delivery.id, code=problem.code, detail=problem.detail
                )
            else:
                return
            if self._loop.stopping:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _attempt(self, delivery: Delivery) -> str | None:
        """Send it; returns what went wrong, None where nothing did."""
        try:
            secret = await self._store.secret(delivery.key_id)
            url = parse_url(delivery.url)
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "metalscribe",
                "Connection": "close",
                "X-Metalscribe-Event": delivery.event,
                "X-Metalscribe-Delivery": delivery.id,
                SIGNATURE: signature(secret, delivery.body, int(time.time())),
            }
            request = httpx.Request(
                "POST", url, headers=headers, content=delivery.body, extensions={"timeout": _TIMEOUTS}
            )
            async with (
                asyncio.timeout(_ATTEMPT_SECONDS),
                CheckedTransport(self._policy, resolver=self._resolver) as out,
            ):
                response = await out.handle_async_request(request)
                await response.aclose()
        except TimeoutError:
            return f"no answer within {_ATTEMPT_SECONDS:g} seconds"
        except (AddressRefused, InvalidParameter) as refused:
            return refused.detail
        except MetalscribeError as problem:
            return f"{problem.code}: {problem.detail}"
        except httpx.HTTPError as problem:
            return f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
        # Redirects are not followed: who receives webhooks says where.
        return None if response.is_success else f"answered with status {response.status_code}"
