"""Rate limits through slowapi: per API key, and per address for those who have none."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from limits import RateLimitItem, parse_many
from limits.errors import ConfigurationError as StorageConfigurationError
from limits.errors import StorageError
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from starlette.requests import Request
from starlette.responses import Response

from metalscribe.errors import ConfigurationError, RateLimited
from metalscribe.store.identity import ApiKey

_ATTEMPTS: Final = "unauthenticated"
_SCOPE: Final = "transcription"

_log = structlog.get_logger(__name__)

Route = Callable[..., Awaitable[Response]]


class RateLimits:
    """The service's rate limits.

    Args:
        default: such as ``30/minute``; also what one address may try without a valid key.
        storage: where counts are kept, a URL of the ``limits`` package.

    Raises:
        ConfigurationError: no such storage.
    """

    def __init__(self, default: str, storage: str = "memory://") -> None:
        self._default = default
        self._overrides: dict[str, str] = {}
        try:
            self.limiter = self._new_limiter(storage)
        except (StorageConfigurationError, ImportError) as error:
            raise ConfigurationError(f"METALSCRIBE_RATE_LIMIT_STORAGE: {error}") from None

    @staticmethod
    def _new_limiter(storage: str) -> Limiter:
        with warnings.catch_warnings():
            # slowapi would read a .env file of whatever directory this is started in; told of an empty one, it warns.
            warnings.simplefilter("ignore", UserWarning)
            return Limiter(
                key_func=_key_id,
                headers_enabled=True,
                # A window that slides: with fixed ones, twice the rate passes around the turn of the minute.
                strategy="moving-window",
                storage_uri=storage,
                storage_options={"wrap_exceptions": True},  # type: ignore[dict-item]  # typed for strings, passed on as it is
                # While a shared storage is away, each front end counts by itself.
                in_memory_fallback_enabled=not storage.startswith("memory:"),
                config_filename=os.devnull,
            )

    def transcription(self, route: Route) -> Route:
        """Decorate a route that costs one transcription; all such routes share one count per key."""
        limited: Route = self.limiter.shared_limit(self._rate_of, scope=_SCOPE)(route)
        return limited

    def introduce(self, key: ApiKey) -> None:
        """Remember the key's own rate, if it has one."""
        if key.rate_limit is not None:
            self._overrides[key.id] = key.rate_limit
        else:
            self._overrides.pop(key.id, None)

    def failed_attempt(self, request: Request) -> None:
        """Count a request without a valid key against its address.

        Raises:
            RateLimited: too many of them.
        """
        address = request.client.host if request.client else "unknown"
        for limit in parse_many(self._default):
            if not self._spend(limit, address):
                request.state.view_rate_limit = (limit, [_ATTEMPTS, address])  # for the answer's headers
                raise RateLimited(
                    f"too many requests without a valid API key from this address; at most {limit}",
                    self._seconds_left(limit, _ATTEMPTS, address),
                )

    def _spend(self, limit: RateLimitItem, address: str) -> bool:
        try:
            return self.limiter.limiter.hit(limit, _ATTEMPTS, address)
        except StorageError as error:
            _log.warning("attempt not counted, the storage of rate limits is away", reason=str(error))
            return True

    def refusal(self, request: Request, error: RateLimitExceeded) -> RateLimited:
        """What slowapi raised, in this service's words."""
        item, identifiers = request.state.view_rate_limit
        return RateLimited(
            f"this API key may send {error.detail}; wait and send the request again",
            self._seconds_left(item, *identifiers),
        )

    def _seconds_left(self, limit: RateLimitItem, *identifiers: str) -> float:
        reset, _ = self.limiter.limiter.get_window_stats(limit, *identifiers)
        return max(1.0, reset - time.time())

    def _rate_of(self, key: str) -> str:
        return self._overrides.get(key, self._default)


def _key_id(request: Request) -> str:
    key: ApiKey = request.state.api_key
    return key.id
