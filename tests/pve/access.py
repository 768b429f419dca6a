"""Who asks, and what they may."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from .errors import PveError, forbidden
from .state import Cluster

_AUTHORIZATION = re.compile(r"PVEAPIToken=([^!\s]+)!([^=\s]+)=(\S+)")


@dataclass(frozen=True)
class Caller:
    """A user by way of a token."""

    cluster: Cluster
    user: str
    token: str

    @property
    def name(self) -> str:
        """As tasks and logs name it."""
        return f"{self.user}!{self.token}"

    def has(self, path: str, *privileges: str) -> bool:
        """Whether the caller has one of the privileges at a path."""
        mine = self._privileges(self.user, path)
        if self.cluster.users[self.user].tokens[self.token].privsep:
            mine &= self._privileges(self.name, path)
        return bool(mine & set(privileges))

    def _privileges(self, who: str, path: str) -> set[str]:
        # The grants nearest to a path replace those above it.
        parts = [part for part in path.split("/") if part]
        found: set[str] = set()
        for depth in range(len(parts) + 1):
            here = "/" + "/".join(parts[:depth])
            roles = [
                grant.role
                for grant in self.cluster.grants
                if grant.user == who and grant.path == here and (grant.propagate or here == path)
            ]
            if roles:
                found = set().union(*(self.cluster.roles.get(role, set()) for role in roles))
        return found

    def need(self, path: str, *privileges: str) -> None:
        """Raise unless the caller has one of them.

        Raises:
            PveError: 403, as Proxmox words it.
        """
        if not self.has(path, *privileges):
            raise forbidden(path, *privileges)


def caller(cluster: Cluster, authorization: str | None) -> Caller:
    """Who sent this header.

    Raises:
        PveError: 401, nobody that is known.
    """
    if not authorization:
        raise PveError(401, "No ticket")
    found = _AUTHORIZATION.fullmatch(authorization)
    if found is None:
        raise PveError(401, "no tokenid specified")
    user, token, secret = found.groups()
    if user not in cluster.users:
        raise PveError(401, f"no such user ('{user}')")
    known = cluster.users[user].tokens.get(token)
    if known is None:
        raise PveError(401, f"no such token '{token}' for user '{user}'")
    if not hmac.compare_digest(known.secret.encode(), secret.encode()):
        raise PveError(401, "invalid token value!")
    return Caller(cluster, user, token)
