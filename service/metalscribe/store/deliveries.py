"""Webhooks in the database: written in the transaction that makes them due, so that none is lost, and sent at least once."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from metalscribe.errors import NotFound
from metalscribe.store.database import Database, affected
from metalscribe.store.identity import Clock, utc_now
from metalscribe.store.job import Webhook
from metalscribe.store.models import DeliveryRow, WebhookAddressRow, WebhookSecretRow

_PREFIX: Final = "whsec_"


class DeliveryStatus(StrEnum):
    """Where a webhook is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook and what became of it. Times carry UTC.

    Attributes:
        id: a UUID, the same in every attempt: receivers tell repetitions by it.
        job_id: None for what concerns a model.
        attempts: that were made.
        due_at: of the next one.
        error: of the last one.
    """

    id: str
    key_id: str
    job_id: str | None
    event: str
    url: str = field(repr=False)
    target: str
    body: bytes = field(repr=False)
    status: DeliveryStatus
    attempts: int
    due_at: datetime
    error: str | None
    created_at: datetime
    ended_at: datetime | None


class DeliveryStore:
    """The outbox of all processes that share a database."""

    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def secret(self, key_id: str) -> str:
        """What a key's webhooks are signed with; made when it is asked for first."""
        async with self._database.session(read_only=True) as session:
            row = await session.get(WebhookSecretRow, key_id)
        if row is not None:
            return row.secret
        made = _PREFIX + secrets.token_urlsafe(32)
        try:
            async with self._database.session() as session:
                session.add(WebhookSecretRow(key_id=key_id, secret=made))
        except IntegrityError:
            return await self.secret(key_id)  # another process was faster
        return made

    async def remember(self, key_id: str, url: str) -> None:
        """Tell this address of the models' lives too, from now on."""
        digest = hashlib.sha256(url.encode()).digest()
        async with self._database.session(read_only=True) as session:
            if await session.get(WebhookAddressRow, (key_id, digest)) is not None:
                return
        try:
            async with self._database.session() as session:
                session.add(WebhookAddressRow(key_id=key_id, digest=digest, url=url))
        except IntegrityError:
            return

    async def announce(self, event: str, body: bytes, target_of: Callable[[str], str]) -> int:
        """Make something due to every address that is remembered; returns to how many."""
        async with self._database.session() as session:
            addresses = list(await session.scalars(select(WebhookAddressRow)))
            for address in addresses:
                webhook = Webhook(event, address.url, target_of(address.url), body)
                enqueue(session, address.key_id, None, webhook, self._clock())
            return len(addresses)

    async def claim(
        self, owner: str, *, limit: int, horizon: timedelta, except_for: Collection[str] = ()
    ) -> list[Delivery]:
        """Take deliveries that are due, those that are due first first.

        Args:
            owner: the process that will send them.
            limit: how many at most.
            horizon: the longest wait there can be; what is due later than that was planned by a clock that has been set back.
            except_for: targets that shall be left alone for now.
        """
        now = self._clock()
        wanted: list[ColumnElement[bool]] = [
            DeliveryRow.status == DeliveryStatus.PENDING.value,
            DeliveryRow.owner.is_(None),
            or_(DeliveryRow.due_at <= now, DeliveryRow.due_at > now + horizon),
        ]
        if except_for:
            wanted.append(DeliveryRow.target.not_in(except_for))
        async with self._database.session() as session:
            rows = list(
                await session.scalars(
                    select(DeliveryRow)
                    .where(*wanted)
                    .order_by(DeliveryRow.due_at, DeliveryRow.number)
                    .limit(limit)
                    .with_for_update(skip_locked=True)
                )
            )
            for row in rows:
                row.owner = owner
            return [_delivery(row) for row in rows]

    async def seconds_to_next(self) -> float | None:
        """Until the next delivery is due, None where there is none to send."""
        async with self._database.session(read_only=True) as session:
            due = await session.scalar(
                select(DeliveryRow.due_at)
                .where(DeliveryRow.status == DeliveryStatus.PENDING.value, DeliveryRow.owner.is_(None))
                .order_by(DeliveryRow.due_at)
                .limit(1)
            )
        return None if due is None else (due - self._clock()).total_seconds()

    async def delivered(self, delivery: Delivery) -> None:
        """It has arrived."""
        await self._change(
            delivery.id,
            status=DeliveryStatus.DELIVERED.value,
            attempts=delivery.attempts + 1,
            error=None,
            ended_at=self._clock(),
        )

    async def postponed(self, delivery: Delivery, error: str, delay: timedelta) -> None:
        """An attempt has failed, and there will be another."""
        await self._change(delivery.id, attempts=delivery.attempts + 1, error=error, due_at=self._clock() + delay)

    async def failed(self, delivery: Delivery, error: str) -> None:
        """The last attempt has failed; kept, so that it can be sent again by order."""
        await self._change(
            delivery.id,
            status=DeliveryStatus.FAILED.value,
            attempts=delivery.attempts + 1,
            error=error,
            ended_at=self._clock(),
        )

    async def give_back(self, owner: str) -> int:
        """Let others send what a dead process was sending; returns how many there are."""
        async with self._database.session() as session:
            return affected(
                await session.execute(update(DeliveryRow).where(DeliveryRow.owner == owner).values(owner=None))
            )

    async def owners(self) -> set[str]:
        """The processes that send something, dead ones among them."""
        async with self._database.session(read_only=True) as session:
            return {owner for owner in await session.scalars(select(DeliveryRow.owner).distinct()) if owner is not None}

    async def redeliver(self, job_id: str) -> int:
        """Make a job's webhooks due again, whatever became of them; returns how many there are.

        Raises:
            NotFound: the job has none.
        """
        async with self._database.session() as session:
            count = affected(
                await session.execute(
                    update(DeliveryRow)
                    .where(DeliveryRow.job_id == job_id, DeliveryRow.owner.is_(None))
                    .values(
                        status=DeliveryStatus.PENDING.value, attempts=0, due_at=self._clock(), error=None, ended_at=None
                    )
                )
            )
        if not count:
            raise NotFound(f"the job {job_id} has no webhook that could be sent again")
        return count

    async def of_job(self, job_id: str) -> Sequence[Delivery]:
        """A job's webhooks."""
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(
                select(DeliveryRow).where(DeliveryRow.job_id == job_id).order_by(DeliveryRow.number)
            )
            return [_delivery(row) for row in rows]

    async def forget(self, older_than: timedelta) -> int:
        """Delete what ended longer ago than that; returns how many."""
        async with self._database.session() as session:
            return affected(
                await session.execute(delete(DeliveryRow).where(DeliveryRow.ended_at < self._clock() - older_than))
            )

    async def _change(self, delivery_id: str, **values: Any) -> None:
        async with self._database.session() as session:
            await session.execute(update(DeliveryRow).where(DeliveryRow.id == delivery_id).values(owner=None, **values))


def enqueue(session: AsyncSession, key_id: str, job_id: str | None, webhook: Webhook, now: datetime) -> None:
    """Make a webhook due with the transaction that it tells of."""
    session.add(
        DeliveryRow(
            id=str(uuid.uuid4()),
            key_id=key_id,
            job_id=job_id,
            event=webhook.event,
            url=webhook.url,
            target=webhook.target,
            body=webhook.body,
            status=DeliveryStatus.PENDING.value,
            owner=None,
            attempts=0,
            due_at=now,
            created_at=now,
        )
    )


def _delivery(row: DeliveryRow) -> Delivery:
    return Delivery(
        id=row.id,
        key_id=row.key_id,
        job_id=row.job_id,
        event=row.event,
        url=row.url,
        target=row.target,
        body=row.body,
        status=DeliveryStatus(row.status),
        attempts=row.attempts,
        due_at=row.due_at,
        error=row.error,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )
