"""Scripts for the model's process of scripted/scripted_model.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metalscribe.engine.lifecycle import ModelProcessOptions

FOLDER = Path(__file__).parent / "scripted"
"""To be in PYTHONPATH, which the service hands on to its processes."""


@dataclass
class Script:
    """What a scripted model does.

    Attributes:
        directory: the model's.
        loads, batches: what each attempt to load, each batch does, over all of its processes: ``ok``; ``oom`` reports that
            memory is out, ``fail`` another failure; ``die`` is SIGKILL, ``hang`` goes on for ever, ``mute`` does so without
            a heartbeat, ``hold`` waits for :meth:`release`. After the last one ``chances`` decide, else ``ok``.
        chances: per occasion, what happens how often, from 0 to 1.
        heartbeat: seconds between two.
    """

    directory: Path
    loads: Sequence[str] = ()
    batches: Sequence[str] = ()
    chances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seed: int = 0
    heartbeat: float = 0.02

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        content = {
            "loads": list(self.loads),
            "batches": list(self.batches),
            "chances": self.chances,
            "seed": self.seed,
            "heartbeat": self.heartbeat,
        }
        new = self.directory / "script.new"
        new.write_text(json.dumps(content))
        new.rename(self.directory / "script.json")

    def count(self, occasion: str) -> int:
        """How often it tried to load (``loads``) or got a batch (``batches``)."""
        path = self.directory / occasion
        return path.stat().st_size if path.exists() else 0

    def release(self) -> None:
        """End every ``hold``."""
        (self.directory / "released").touch()

    def options(self, **changes: object) -> ModelProcessOptions:
        given: dict[str, object] = {
            "path": self.directory,
            "name": self.directory.name,
            "device": "cpu",
            "idle_timeout_secs": 0.0,
            "worker": "scripted_model",
            **changes,
        }
        return ModelProcessOptions(**given)  # type: ignore[arg-type]
