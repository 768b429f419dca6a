"""Who calls: API keys from ``X-API-Key``, ``Authorization: Bearer`` or HTTP Basic's password. Never from a URL's query."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from metalscribe.api.limits import RateLimits
from metalscribe.api.requests import note
from metalscribe.errors import Forbidden, Unauthenticated
from metalscribe.store.identity import ApiKey, Scope
from metalscribe.store.keys import KeyStore


class Authenticator:
    """Checks keys against the store."""

    def __init__(self, keys: KeyStore, limits: RateLimits) -> None:
        self._keys = keys
        self._limits = limits

    def require(self, scope: Scope | None) -> Callable[[Request], Awaitable[ApiKey]]:
        """A FastAPI dependency that yields the caller's key.

        Args:
            scope: what the key must be good for; None takes any valid key.

        Raises (on a request):
            Unauthenticated: no key, or not a valid one.
            Forbidden: the key lacks ``scope``.
            RateLimited: too many attempts without a valid key.
        """

        async def authenticated(request: Request) -> ApiKey:
            key = await self.identify(request)
            if key is None:
                self._limits.failed_attempt(request)
                raise Unauthenticated(await self._missing_key())
            if scope is not None and scope not in key.scopes:
                raise Forbidden(f"the key {key.name!r} lacks the scope {scope.value!r}; use another key")
            return key

        return authenticated

    async def identify(self, request: Request) -> ApiKey | None:
        """The caller's key, or None where no key came along.

        Raises:
            Unauthenticated: a key came along that is not valid.
            RateLimited: too many attempts without a valid key.
        """
        presented = presented_key(request)
        key = await self._keys.verify(presented) if presented is not None else None
        if key is None:
            if presented is not None:
                self._limits.failed_attempt(request)
                raise Unauthenticated("this API key does not exist, is revoked or has expired")
            return None
        request.state.api_key = key
        self._limits.introduce(key)
        note(key=key.name)
        return key

    async def _missing_key(self) -> str:
        if await self._keys.any_exists():
            return "send an API key: X-API-Key: KEY, or Authorization: Bearer KEY"
        return "no API key exists yet; make one with `metalscribe keys create NAME`"


def presented_key(request: Request) -> str | None:
    """The key as the caller sent it, None where there is none; a malformed header counts as a wrong key."""
    direct = request.headers.get("X-API-Key")
    if direct is not None:
        return direct.strip()
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return ""
        user, _, password = decoded.partition(":")
        # Clients that can only put a user into a URL send https://KEY@host.
        return password or user
    return None
