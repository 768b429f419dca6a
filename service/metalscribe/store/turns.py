"""Whose turn it is: stride scheduling (Waldspurger 1995), by the weights of API keys. Pure."""

from __future__ import annotations


class Turns:
    """Keys take turns in proportion to their weights, however many jobs each has.

    A key's pass grows by one over its weight with every turn, and the lowest pass is next. Whoever comes anew begins where the
    others are: time without jobs is not saved up.
    """

    def __init__(self) -> None:
        self._passes: dict[str, float] = {}
        self._now = 0.0

    def pass_of(self, key_id: str) -> float:
        """How far a key is; the lowest is next."""
        return max(self._now, self._passes.get(key_id, self._now))

    def taken(self, key_id: str, weight: float) -> None:
        """A key has had its turn."""
        self._now = self.pass_of(key_id)
        self._passes[key_id] = self._now + 1 / weight
        self._passes = {key: at for key, at in self._passes.items() if at > self._now}
