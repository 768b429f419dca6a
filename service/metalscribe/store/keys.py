"""API keys: made, listed, changed, rotated, revoked and verified."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypedDict

import structlog
from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from metalscribe.errors import ConfigurationError, Conflict, MetalscribeError, NotFound
from metalscribe.store import identity
from metalscribe.store.database import Database
from metalscribe.store.identity import ApiKey, Clock, KeyState, NewKey, Scope, utc_now
from metalscribe.store.models import ApiKeyRow, ApiKeySecretRow

__all__ = ["ApiKey", "KeySettings", "KeyState", "KeyStore", "NewKey", "Scope"]

_TOUCH_EVERY = timedelta(minutes=1)
_GUESSABLE = 16
_ID_ATTEMPTS = 5
_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "rate_limit": identity.checked_rate_limit,
    "weight": identity.checked_weight,
    "concurrency": identity.checked_concurrency,
    "daily_audio_seconds": identity.checked_daily_audio,
}

_log = structlog.get_logger(__name__)


class KeySettings(TypedDict, total=False):
    """What a key may do, as far as it is set or changed; see :class:`metalscribe.store.identity.ApiKey`."""

    scopes: Iterable[Scope | str]
    expires_in: timedelta | None
    """Life from now on; None for one without an end."""
    rate_limit: str | None
    weight: float
    concurrency: int | None
    daily_audio_seconds: float | None


class KeyStore:
    """The keys in the database, and the one key that the settings may hold.

    Args:
        database: open.
        configured: text of the key in METALSCRIBE_API_KEY. It has every scope and is never stored.
        clock: the time, for tests.

    Raises:
        ConfigurationError: the configured key could not be sent in an HTTP header.
    """

    def __init__(self, database: Database, *, configured: str | None = None, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock
        self._touched: dict[str, float] = {}
        self._touches: set[asyncio.Task[None]] = set()
        # Without a configured key, a digest that no text has: verifying takes the same steps either way.
        self._configured_digest = secrets.token_bytes(32) if configured is None else _configured_digest(configured)
        self._configured = None if configured is None else _configured_key(clock)

    @property
    def configured(self) -> ApiKey | None:
        """The key of METALSCRIBE_API_KEY, if it is set; :meth:`list` leaves it out."""
        return self._configured

    async def close(self) -> None:
        """Wait for the notes of last use that are still being written; call it before the database closes."""
        await asyncio.gather(*self._touches)

    async def verify(self, presented: str) -> ApiKey | None:
        """Return the key whose text this is, or None: unknown, revoked, expired or no key at all.

        Digests are compared in constant time; how long an answer takes depends on the shape of the text and on whether
        its public id exists, never on how much of a secret is right.
        """
        if len(presented) > identity.LONGEST_KEY or not presented.isascii():
            return None
        digest = identity.digest_of(presented)
        is_configured = hmac.compare_digest(digest, self._configured_digest)
        key_id = identity.id_in(presented)
        stored = await self._verify_stored(key_id, digest) if key_id is not None else None
        return self._configured if is_configured else stored

    async def any_exists(self) -> bool:
        """Tell whether anybody could get in: a key is configured, or an active one stored."""
        if self._configured is not None:
            return True
        now = self._clock()
        active = select(ApiKeyRow.id).where(
            ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now)
        )
        async with self._database.session(read_only=True) as session:
            return (await session.execute(active.limit(1))).first() is not None

    async def list(self) -> tuple[ApiKey, ...]:
        """All stored keys, oldest first, the revoked and expired ones too."""
        async with self._database.session(read_only=True) as session:
            rows = await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return tuple(_api_key(row) for row in rows)

    async def create(
        self,
        name: str,
        scopes: Iterable[Scope | str],
        expires_in: timedelta | None = None,
        rate_limit: str | None = None,
        *,
        weight: float = 1.0,
        concurrency: int | None = None,
        daily_audio_seconds: float | None = None,
    ) -> NewKey:
        """Make a key. Its text is in the result and nowhere else.

        Raises:
            InvalidParameter: an argument is malformed.
            Conflict: a key has, or once had, this name.
        """
        now = self._clock()
        settings = KeySettings(
            scopes=scopes,
            expires_in=expires_in,
            rate_limit=rate_limit,
            weight=weight,
            concurrency=concurrency,
            daily_audio_seconds=daily_audio_seconds,
        )
        columns = {"name": identity.checked_name(name), "created_at": now, **_columns(settings, now)}
        for _ in range(_ID_ATTEMPTS):
            row = ApiKeyRow(id=identity.new_id(), **columns)
            try:
                async with self._database.session() as session:
                    session.add(row)
                    await session.flush()
                    key_text = self._add_secret(session, row)
            except IntegrityError:
                if await self._name_is_taken(name):
                    raise Conflict(
                        f"There is, or was, a key named {name}. Names are not used twice, so that logs stay unambiguous: choose another."
                    ) from None
                continue  # the id was taken, once in 36^8 keys
            return NewKey(key_text, _api_key(row))
        raise MetalscribeError("No free id was found for the key; is the source of randomness broken?")

    async def change(self, name_or_id: str, settings: KeySettings) -> ApiKey:
        """Give a key other settings; those that are left out stay, and so does its text.

        Every request reads its key, so that the next one meets them, in whichever process.

        Raises:
            InvalidParameter: one is malformed.
            NotFound: there is no such key.
            Conflict: it is the configured one, revoked, or expired and to be given a new life.
        """
        now = self._clock()
        columns = _columns(settings, now)
        async with self._database.session() as session:
            row = await self._find(session, name_or_id)
            state = _api_key(row).state_at(now)
            if state is KeyState.REVOKED:
                raise _revoked(row)
            if state is KeyState.EXPIRED and "expires_at" in columns:
                raise Conflict(
                    f"The key {row.name} has expired, and its text stays worthless: "
                    f"`metalscribe keys rotate {row.name} --expires …` gives it a new one."
                )
            for column, value in columns.items():
                setattr(row, column, value)
        return _api_key(row)

    async def revoke(self, name_or_id: str) -> ApiKey:
        """Stop a key at once and for good; revoking it again changes nothing.

        Raises:
            NotFound: there is no such key.
            Conflict: it is the configured one.
        """
        async with self._database.session() as session:
            row = await self._find(session, name_or_id)
            if row.revoked_at is None:
                row.revoked_at = self._clock()
                await session.execute(delete(ApiKeySecretRow).where(ApiKeySecretRow.key_id == row.id))
        return _api_key(row)

    async def rotate(
        self, name_or_id: str, *, grace: timedelta = timedelta(0), expires_in: timedelta | None = None
    ) -> NewKey:
        """Give a key a new secret; id, name, settings and everything it owns stay.

        The secrets before it stop at once, or after ``grace`` (or at the end of an earlier grace period, where that is
        sooner). The key still expires when it would have, unless ``expires_in`` gives it a new life from now.

        Raises:
            InvalidParameter: a time is out of range.
            NotFound: there is no such key.
            Conflict: it is the configured one, revoked, or expired and not given a new life.
        """
        now = self._clock()
        stop_at = now + identity.checked_grace(grace)
        new_expiry = identity.expiry(now, expires_in)
        async with self._database.session() as session:
            row = await self._find(session, name_or_id)
            state = _api_key(row).state_at(now)
            if state is KeyState.REVOKED:
                raise _revoked(row)
            if state is KeyState.EXPIRED and new_expiry is None:
                raise Conflict(f"The key {row.name} has expired; give it a new life with --expires, or create another.")
            row.expires_at = new_expiry or row.expires_at
            # An expired key's old secrets must not come back to life with it.
            last_moment = stop_at if state is KeyState.ACTIVE else now
            await _retire_secrets(session, row.id, now, last_moment)
            key_text = self._add_secret(session, row)
        return NewKey(key_text, _api_key(row))

    def _add_secret(self, session: AsyncSession, row: ApiKeyRow) -> str:
        key_text = identity.new_key_text(row.id)
        session.add(ApiKeySecretRow(key_id=row.id, digest=identity.digest_of(key_text), created_at=self._clock()))
        return key_text

    async def _verify_stored(self, key_id: str, digest: bytes) -> ApiKey | None:
        query = select(ApiKeyRow, ApiKeySecretRow).join(ApiKeySecretRow, ApiKeySecretRow.key_id == ApiKeyRow.id)
        async with self._database.session(read_only=True) as session:
            found = (await session.execute(query.where(ApiKeyRow.id == key_id))).all()
        now = self._clock()
        key: ApiKey | None = None
        for row, secret in found:  # never left early: the time must not tell which one matched
            live = secret.expires_at is None or secret.expires_at > now
            if hmac.compare_digest(secret.digest, digest) and live:
                key = _api_key(row)
        if key is None or key.state_at(now) is not KeyState.ACTIVE:
            return None
        self._touch(key)
        return key

    def _touch(self, key: ApiKey) -> None:
        now = self._clock()
        before = max(self._touched.get(key.id, 0.0), key.last_used_at.timestamp() if key.last_used_at else 0.0)
        if now.timestamp() - before < _TOUCH_EVERY.total_seconds():
            return
        self._touched[key.id] = now.timestamp()
        task = asyncio.create_task(self._write_touch(key), name=f"last use of key {key.id}")
        self._touches.add(task)
        task.add_done_callback(self._touches.discard)

    async def _write_touch(self, key: ApiKey) -> None:
        now = self._clock()
        stale = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at <= now - _TOUCH_EVERY)
        try:
            async with self._database.session() as session:
                await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.id, stale).values(last_used_at=now))
        except (MetalscribeError, SQLAlchemyError, OSError) as error:
            _log.warning("api_key_last_use_not_written", key=key.name, reason=str(error))

    async def _name_is_taken(self, name: str) -> bool:
        async with self._database.session(read_only=True) as session:
            return (await session.execute(select(ApiKeyRow.id).where(ApiKeyRow.name == name))).first() is not None

    async def _find(self, session: AsyncSession, name_or_id: str) -> ApiKeyRow:
        """Find and lock a key; a name wins over an id that reads the same."""
        if name_or_id == identity.CONFIGURED:
            raise Conflict("That key is set by METALSCRIBE_API_KEY; change or remove it there and restart the service.")
        for column in (ApiKeyRow.name, ApiKeyRow.id) if identity.could_name(name_or_id) else ():
            row = await session.scalar(select(ApiKeyRow).where(column == name_or_id).with_for_update())
            if row is not None:
                return row
        raise NotFound(f"There is no key named {name_or_id[:64]!r}; `metalscribe keys list` shows them.")


async def _retire_secrets(session: AsyncSession, key_id: str, now: datetime, last_moment: datetime) -> None:
    """Let the key's secrets live until the last moment, or until the end of their grace period where that is sooner."""
    of_key = ApiKeySecretRow.key_id == key_id
    await session.execute(delete(ApiKeySecretRow).where(of_key, ApiKeySecretRow.expires_at <= now))
    if last_moment <= now:
        await session.execute(delete(ApiKeySecretRow).where(of_key))
        return
    lives_longer = or_(ApiKeySecretRow.expires_at.is_(None), ApiKeySecretRow.expires_at > last_moment)
    await session.execute(update(ApiKeySecretRow).where(of_key, lives_longer).values(expires_at=last_moment))


def _columns(settings: KeySettings, now: datetime) -> dict[str, Any]:
    """The settings as they are stored.

    Raises:
        InvalidParameter: one is malformed.
    """
    given: Mapping[str, Any] = settings
    columns = {name: checked(given[name]) for name, checked in _CHECKS.items() if name in given}
    if "scopes" in settings:
        columns["scopes"] = " ".join(sorted(identity.checked_scopes(settings["scopes"])))
    if "expires_in" in settings:
        columns["expires_at"] = identity.expiry(now, settings["expires_in"])
    return columns


def _revoked(row: ApiKeyRow) -> Conflict:
    return Conflict(f"The key {row.name} is revoked for good; create another.")


def _api_key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes.split()),
        rate_limit=row.rate_limit,
        weight=row.weight,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        concurrency=row.concurrency,
        daily_audio_seconds=row.daily_audio_seconds,
    )


def _configured_key(clock: Clock) -> ApiKey:
    return ApiKey(
        id=identity.CONFIGURED,
        name=identity.CONFIGURED,
        scopes=frozenset(Scope),
        rate_limit=None,
        weight=1.0,
        created_at=clock(),
        expires_at=None,
        last_used_at=None,
        revoked_at=None,
    )


def _configured_digest(text: str) -> bytes:
    if not (0 < len(text) <= identity.LONGEST_KEY and text.isascii() and text.isprintable() and " " not in text):
        raise ConfigurationError(
            f"METALSCRIBE_API_KEY must have 1 to {identity.LONGEST_KEY} printable ASCII characters and no blanks, "
            "or no client can send it; `openssl rand -hex 32` makes a good one."
        )
    if len(text) < _GUESSABLE:
        _log.warning("configured_api_key_is_short", hint="it could be guessed; `openssl rand -hex 32` makes a good one")
    return identity.digest_of(text)
