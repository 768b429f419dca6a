"""Who calls: API keys as the other floors see them, and the text of a key. Pure; knows no database."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from metalscribe.errors import InvalidParameter

CONFIGURED = "configured"
"""Id and name of the key that METALSCRIBE_API_KEY holds; no stored key may take it."""

LONGEST_KEY = 512
"""Characters of the longest text that is looked at as a key at all."""

Clock = Callable[[], datetime]
"""Returns the time now, with its time zone."""

_ID_LENGTH = 8
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_SECRET_BYTES = 32
_KEY_TEXT = re.compile(rf"msk_([a-z0-9]{{{_ID_LENGTH}}})_[A-Za-z0-9_-]{{43}}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_RATE = 128
_LONGEST_LIFE = timedelta(days=36_500)
_WEIGHTS = (0.01, 100.0)
_MOST_AT_ONCE = 10_000
_MOST_AUDIO = timedelta(hours=100_000)


class Scope(StrEnum):
    """What a key may do; none includes another."""

    TRANSCRIBE = "transcribe"
    ADMIN = "admin"
    METRICS = "metrics"


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key without its secret. All times carry UTC.

    Attributes:
        id: the public part of the key's text; stays the same when the secret is rotated, so it may own things.
        name: the operator's name for it, unique among all keys that ever were; what logs show.
        rate_limit: requests in place of the service's own limit, in the words of ``limits`` ("100/minute").
        weight: share of the machine against other keys.
        concurrency: requests that may be under way at one time, None for any number.
        daily_audio_seconds: of audio that may be transcribed on a day of UTC, None for any amount.
        expires_at: None for a key that lasts until it is revoked.
        last_used_at: to the minute.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    rate_limit: str | None
    weight: float
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    concurrency: int | None = None
    daily_audio_seconds: float | None = None

    def state_at(self, moment: datetime) -> KeyState:
        """Whether the key opens anything at that moment."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= moment:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key with its text, which exists nowhere else: show it once and forget it."""

    key_text: str = field(repr=False)
    api_key: ApiKey


def utc_now() -> datetime:
    """Return the time now, with its time zone."""
    return datetime.now(UTC)


def new_id() -> str:
    """Make the public part of a key's text."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def new_key_text(key_id: str) -> str:
    """Make the text of a key: ``msk_<id>_<256 random bits>``; the prefix lets secret scanners find leaked ones."""
    return f"msk_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def id_in(text: str) -> str | None:
    """Return the public part of a key's text, or None where the text has not the shape of a key."""
    match = _KEY_TEXT.fullmatch(text)
    return match[1] if match else None


def digest_of(text: str) -> bytes:
    """SHA-256 of a key's whole text, 32 bytes; ``text`` is ASCII.

    A slow, salted hash defends secrets that people choose. Nobody can guess 256 random bits, so a slow hash would add
    nothing but a cost to every request, and a way to exhaust the processor with wrong keys.
    """
    return hashlib.sha256(text.encode("ascii")).digest()


def could_name(text: str) -> bool:
    """Tell whether a key's name, or its id, could read like this."""
    return _NAME.fullmatch(text) is not None


def checked_name(name: str) -> str:
    """Return the name if a key may have it.

    Raises:
        InvalidParameter: it is malformed or reserved.
    """
    if not could_name(name):
        raise InvalidParameter(
            "A key's name has 1 to 64 characters out of A-Z, a-z, 0-9, dot, underscore and hyphen.", "name"
        )
    if name == CONFIGURED:
        raise InvalidParameter(
            f"The name {CONFIGURED} belongs to the key in METALSCRIBE_API_KEY; choose another.", "name"
        )
    return name


def checked_scopes(scopes: Iterable[Scope | str]) -> frozenset[Scope]:
    """Return the scopes as a set.

    Raises:
        InvalidParameter: one is unknown, or there is none.
    """
    known = ", ".join(Scope)
    try:
        result = frozenset(Scope(scope) for scope in scopes)
    except ValueError as error:
        raise InvalidParameter(f"{error}; the scopes are {known}.", "scopes") from None
    if not result:
        raise InvalidParameter(f"A key without a scope opens nothing; give at least one of {known}.", "scopes")
    return result


def checked_rate_limit(rate_limit: str | None) -> str | None:
    """Return the rate limit without surrounding blanks.

    Raises:
        InvalidParameter: it is not in the words of ``limits``, or allows nothing.
    """
    if rate_limit is None:
        return None
    from limits import parse_many  # noqa: PLC0415  (slow to load, and few callers set a rate)

    text = rate_limit.strip()
    try:
        allowed = [item.amount for item in parse_many(text)] if len(text) <= _LONGEST_RATE else []
    except ValueError:
        allowed = []
    if not allowed or min(allowed) < 1:
        raise InvalidParameter("The rate limit must be a rate such as 100/minute or 10/second;500/hour.", "rate_limit")
    return text


def checked_weight(weight: float) -> float:
    """Return the weight as a float.

    Raises:
        InvalidParameter: it is out of range, or not a number.
    """
    low, high = _WEIGHTS
    if not (math.isfinite(weight) and low <= weight <= high):
        raise InvalidParameter(f"The weight must lie between {low:g} and {high:g}; 1 is an equal share.", "weight")
    return float(weight)


def checked_concurrency(concurrency: int | None) -> int | None:
    """Return the number of requests that may be under way at one time.

    Raises:
        InvalidParameter: it allows nothing, or is beyond reason.
    """
    if concurrency is not None and not 1 <= concurrency <= _MOST_AT_ONCE:
        raise InvalidParameter(f"The concurrency must lie between 1 and {_MOST_AT_ONCE} requests.", "concurrency")
    return concurrency


def checked_daily_audio(seconds: float | None) -> float | None:
    """Return the seconds of audio that a day allows.

    Raises:
        InvalidParameter: they allow nothing, are beyond reason, or are not a number.
    """
    if seconds is None:
        return None
    most = _MOST_AUDIO.total_seconds()
    if not (math.isfinite(seconds) and 0 < seconds <= most):
        raise InvalidParameter(
            f"A day's audio must be more than nothing and at most {most / 3600:.0f} hours; to stop a key, revoke it.",
            "daily_audio",
        )
    return float(seconds)


def expiry(now: datetime, expires_in: timedelta | None) -> datetime | None:
    """Return when a key that is given so much time from ``now`` ends.

    Raises:
        InvalidParameter: the time is not positive, or longer than a hundred years.
    """
    if expires_in is None:
        return None
    if not timedelta(0) < expires_in <= _LONGEST_LIFE:
        raise InvalidParameter("A key's life must be longer than nothing and at most a hundred years.", "expires_in")
    return now + expires_in


def checked_grace(grace: timedelta) -> timedelta:
    """Return the grace period.

    Raises:
        InvalidParameter: it is negative, or longer than a hundred years.
    """
    if not timedelta(0) <= grace <= _LONGEST_LIFE:
        raise InvalidParameter("The grace period must not be negative, and at most a hundred years.", "grace")
    return grace
