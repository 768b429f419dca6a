"""What callers of the compatible dialects may call a model, and which models they are shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from metalscribe.api.options import served_names
from metalscribe.engine.catalog import KNOWN_MODELS, find
from metalscribe.errors import ModelNotFound

ALIASES: Final = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
)
"""OpenAI's names; whoever sends one gets the default model."""

_PREFIXES: Final = ("openai/", "whisper-")


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A name that a client may find in a list of models.

    Attributes:
        model: the own name of the model that serves it; None for a model of Whisper's that this service does not serve.
        created: Unix time at which this service began to serve.
    """

    name: str
    model: str | None
    created: int


class ModelNames:
    """Names for the models that are served.

    Args:
        served: what callers of the native dialect may call a model, and each one's own name, the default one first.
    """

    def __init__(self, served: Mapping[str, str]) -> None:
        self._served = served
        self._default = next(iter(served.values()))
        self._created = int(time.time())

    @property
    def default(self) -> str:
        """The default model's own name."""
        return self._default

    def own(self, name: str | None) -> str | None:
        """A model's own name for what a client calls it; None, for the default one, stays None.

        Clients may send the name as the operator wrote it, another name of Whisper's for the same model, either with
        ``whisper-`` before it, or one of OpenAI's.

        Raises:
            ModelNotFound: no model is called so here; says what to send.
        """
        if name is None:
            return None
        found = self._find(name)
        if found is None:
            raise ModelNotFound(
                f"the model {name[:100]!r} is not served here; leave it out, or {served_names(self._served)}"
            )
        return found

    def listed(self) -> tuple[ListedModel, ...]:
        """Every name worth showing: the models that are served, OpenAI's names for the default one, then Whisper's others."""
        names = dict.fromkeys([*self._served.values(), *ALIASES, *(model.name for model in KNOWN_MODELS)])
        listed = [ListedModel(name, self._find(name), self._created) for name in names]
        return tuple(sorted(listed, key=lambda entry: entry.model is None))

    def one(self, name: str) -> ListedModel:
        """One of those, by any of its names.

        Raises:
            ModelNotFound: it is not served and not one of Whisper's.
        """
        found = self._find(name)
        known = find(_plain(name))
        if found is None and known is None:
            raise ModelNotFound(f"there is no model {name[:100]!r}; GET /v1/models lists them")
        return ListedModel(name, found, self._created)

    def _find(self, name: str) -> str | None:
        if name in ALIASES:
            return self._default
        return next((self._served[spelt] for spelt in self._spellings(name) if spelt in self._served), None)

    @staticmethod
    def _spellings(name: str) -> Iterator[str]:
        yield name
        plain = _plain(name)
        yield plain
        known = find(plain)
        if known is not None:
            yield from (known.name, known.repository, *known.aliases)


def _plain(name: str) -> str:
    """``large-v3`` for ``openai/whisper-large-v3`` and ``whisper-large-v3``."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
