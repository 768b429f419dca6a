"""First answers to requests that carried an Idempotency-Key, kept for those who ask again.

The header: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from metalscribe.errors import InvalidParameter
from metalscribe.store.database import Database, affected
from metalscribe.store.identity import Clock, utc_now
from metalscribe.store.models import IdempotencyRow

_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A finished HTTP answer.

    Attributes:
        fingerprint: digest of the request it answers; a retry with another one is not a retry.
        media_type: the Content-Type, None where the answer has no body.
        headers: those worth repeating; neither Content-Type, Content-Length nor anything of the connection.
        created_at: when it was stored, in UTC.
    """

    fingerprint: str
    status: int
    media_type: str | None
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    created_at: datetime


class IdempotencyStore:
    """Answers by API key and Idempotency-Key."""

    def __init__(self, database: Database, *, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def get(self, key_id: str, idempotency_key: str) -> StoredAnswer | None:
        """Return the answer stored for this API key's request, if there is one.

        Raises:
            InvalidParameter: the Idempotency-Key is empty, too long or not printable ASCII.
        """
        async with self._database.session(read_only=True) as session:
            row = await session.get(IdempotencyRow, (key_id, checked_idempotency_key(idempotency_key)))
        if row is None:
            return None
        return StoredAnswer(row.fingerprint, row.status, row.media_type, dict(row.headers), row.body, row.created_at)

    async def put(
        self,
        key_id: str,
        idempotency_key: str,
        *,
        fingerprint: str,
        status: int,
        media_type: str | None,
        headers: Mapping[str, str],
        body: bytes,
    ) -> bool:
        """Store an answer unless there is one: the first writer wins, and False tells the others to :meth:`get` his.

        Raises:
            InvalidParameter: the Idempotency-Key is empty, too long or not printable ASCII.
        """
        row = IdempotencyRow(
            key_id=key_id,
            idempotency_key=checked_idempotency_key(idempotency_key),
            fingerprint=fingerprint,
            status=status,
            media_type=media_type,
            headers=dict(headers),
            body=body,
            created_at=self._clock(),
        )
        try:
            async with self._database.session() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    async def purge(self, older_than: timedelta) -> int:
        """Delete the answers stored longer ago than that; return how many."""
        async with self._database.session() as session:
            result = await session.execute(
                delete(IdempotencyRow).where(IdempotencyRow.created_at < self._clock() - older_than)
            )
            return affected(result)


def checked_idempotency_key(text: str) -> str:
    """Return the Idempotency-Key if it can be stored.

    Raises:
        InvalidParameter: it is empty, longer than 255 characters or not printable ASCII.
    """
    if not (0 < len(text) <= _LONGEST_KEY and text.isascii() and text.isprintable()):
        raise InvalidParameter(
            f"The Idempotency-Key must have 1 to {_LONGEST_KEY} printable ASCII characters.", "Idempotency-Key"
        )
    return text
