"""What the tests of the deploy share: a host that was deployed to, and something to transcribe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.controller import Outcome
from lab.lab import Snapshot


@dataclass(frozen=True, slots=True)
class Deployed:
    """A host as its first deploy has left it.

    Attributes:
        snapshot: to start it from.
        outcome: of that deploy.
        begun: when each of its operations began, in seconds since its own beginning.
        seconds: how long it took.
        authority: the certificate of the internal CA.
        key: the host's own API key.
    """

    snapshot: Snapshot
    outcome: Outcome
    begun: Mapping[str, float]
    seconds: float
    authority: Path
    key: str


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of speech.

    Attributes:
        path: where it is.
        words: some of what is said, as it is transcribed, in lower case.
    """

    path: Path
    words: str
