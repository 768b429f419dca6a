"""What each model is shown at a time: measured for some models, its margin of silence set by the operator for others.

How it was measured, and how to measure it for another model, is in docs/performance.md (``metalscribe bench tune``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metalscribe.engine.context import AdaptiveContext
from metalscribe.errors import ConfigurationError

AUTO: Final = "auto"

_WINDOW_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Tuned:
    """A family of models and what suits it.

    Attributes:
        last_layer: index of the last decoder layer among the alignment heads.
        max_bytes: of the weights, in float32; what tells it from distilled models, which are wide and shallow.
        adaptive: measured.
    """

    last_layer: int
    max_bytes: int
    adaptive: AdaptiveContext


_TUNED: Final = (
    _Tuned(last_layer=3, max_bytes=165_000_000, adaptive=AdaptiveContext(margin=4.0, longest=20.0)),  # tiny, tiny.en
    _Tuned(last_layer=5, max_bytes=310_000_000, adaptive=AdaptiveContext(margin=4.0, longest=24.0)),  # base, base.en
)

_LONGEST_ELSEWHERE: Final = 24.0


def adaptive_context(setting: str, name: str, path: Path) -> AdaptiveContext | None:
    """What a model is shown at a time, None where its encoder shall always see the whole window.

    Args:
        setting: the margin: ``auto``, seconds for all models, or a list such as ``small=6,large-v3=0,auto``, in which what has no name
            holds for all others; 0 turns it off.
        name: of the model.
        path: its directory.

    Raises:
        ConfigurationError: the setting is none of these.
    """
    chosen = AUTO
    for part in filter(None, (part.strip() for part in setting.split(","))):
        label, separator, value = part.rpartition("=")
        if not separator:
            chosen = _checked(value, setting)
        elif _checked(value, setting) and label.strip() == name:
            chosen = value.strip()
            break
    measured = _measured(path)
    if chosen == AUTO:
        return measured
    margin = float(chosen)
    return AdaptiveContext(margin, measured.longest if measured else _LONGEST_ELSEWHERE) if margin else None


def _checked(value: str, setting: str) -> str:
    value = value.strip()
    try:
        good = value == AUTO or 0 <= float(value) <= _WINDOW_SECONDS
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(
            f"METALSCRIBE_CONTEXT_MARGIN={setting}: {value!r} is neither auto nor a number of seconds from 0 to 30; "
            "send for example auto, 5, or small=6,large-v3=0"
        )
    return value


def _measured(path: Path) -> AdaptiveContext | None:
    """What was measured for models of this kind; None for kinds that nobody has measured."""
    try:
        heads = json.loads((path / "config.json").read_text(encoding="utf-8"))["alignment_heads"]
        last_layer = max(layer for layer, _ in heads)
        size = (path / "model.bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no alignment heads, so nobody knows what it is
    for tuned in _TUNED:
        if last_layer == tuned.last_layer and size <= tuned.max_bytes:
            return tuned.adaptive
    return None
