"""The models that one engine serves: each with a dispatcher and a process of its own, all within one memory budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from metalscribe.engine.budget import PATIENCE_SECONDS, MemoryBudget
from metalscribe.engine.context import AdaptiveContext
from metalscribe.engine.dispatch import Dispatcher
from metalscribe.engine.events import LifecycleEvents
from metalscribe.engine.interface import ModelStatus
from metalscribe.engine.lifecycle import ModelProcessOptions, Surroundings
from metalscribe.engine.memory import MIB, MemoryGauge, estimate
from metalscribe.engine.metrics import EngineMetrics
from metalscribe.errors import ConfigurationError, InvalidParameter
from metalscribe.transcript import ModelCard


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is to be served.

    Attributes:
        adaptive: how little its encoder needs to see, None for the whole window (:mod:`metalscribe.engine.margins`).
    """

    card: ModelCard
    process: ModelProcessOptions
    adaptive: AdaptiveContext | None = None


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How models are served; see the settings of the same names.

    Attributes:
        memory_budget: bytes for all of them together, 0 without a bound.
        patience_secs: how long a model that waits for memory hopes for a busy one to become idle.
    """

    batch_size: int = 0
    load_timeout_secs: float = 600.0
    memory_budget: int = 0
    patience_secs: float = PATIENCE_SECONDS
    gauge: MemoryGauge = field(default_factory=MemoryGauge)
    metrics: EngineMetrics = field(default_factory=EngineMetrics)
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class FleetModel:
    """A model that is served, loaded or not."""

    card: ModelCard
    options: ModelProcessOptions
    dispatcher: Dispatcher
    adaptive: AdaptiveContext | None

    @property
    def status(self) -> ModelStatus:
        """The model at this moment."""
        model = self.dispatcher.model
        wanted = self.options.device
        return ModelStatus(
            model=self.card.name,
            state=model.state,
            device=model.loaded.device if model.loaded else (None if wanted == "auto" else wanted),
            compute_type=model.loaded.compute_type if model.loaded else None,
            detail=model.detail,
            last_error=model.last_error,
            memory_bytes=model.memory,
            memory_estimate_bytes=model.memory_estimate,
            idle_seconds_left=model.idle_seconds_left,
            requests=model.requests,
            chunks_waiting=self.dispatcher.rows_waiting,
            chunks_running=self.dispatcher.rows_running,
            counters=model.counters,
        )


class Fleet:
    """The models by name, in the order of configuration; the first is the default.

    Raises:
        ConfigurationError: a model is there twice, or exceeds the memory budget even alone.
    """

    def __init__(self, served: Sequence[ServedModel], options: FleetOptions) -> None:
        self.events = LifecycleEvents()
        self.budget = MemoryBudget(options.memory_budget, clock=options.clock, patience=options.patience_secs)
        surroundings = Surroundings(options.gauge, self.budget, self.events.publish, options.clock)
        self._models: dict[str, FleetModel] = {}
        for one in served:
            name = one.card.name
            if name in self._models:
                raise ConfigurationError(f"METALSCRIBE_MODELS: two models are called {name}")
            _check_size(one, options.memory_budget)
            dispatcher = Dispatcher(
                one.process,
                batch_size=options.batch_size,
                load_timeout_secs=options.load_timeout_secs,
                surroundings=surroundings,
                metrics=options.metrics,
            )
            self._models[name] = FleetModel(one.card, one.process, dispatcher, one.adaptive)
        self.default = next(iter(self._models.values()))

    def __iter__(self) -> Iterator[FleetModel]:
        """The models, the default one first."""
        return iter(self._models.values())

    def __getitem__(self, name: str | None) -> FleetModel:
        """The model of that name, the default one for None.

        Raises:
            InvalidParameter: there is no such model; names those there are.
        """
        if name is None:
            return self.default
        found = self._models.get(name)
        if found is None:
            raise InvalidParameter(f"model={name} is not served here; {', '.join(self._models)} are", "model")
        return found

    def __len__(self) -> int:
        return len(self._models)

    def start(self) -> None:
        """Begin dispatching."""
        for model in self:
            model.dispatcher.start()

    def preload(self) -> None:
        """Load every model that fits into the budget beside those before it."""
        taken = 0
        for model in self:
            taken += model.dispatcher.model.memory_estimate
            if self.budget.limit and taken > self.budget.limit:
                return
            model.dispatcher.model.want()

    async def measure(self) -> None:
        """Measure how much memory each model takes."""
        await asyncio.gather(*(model.dispatcher.model.measure() for model in self))

    async def close(self) -> None:
        """End every process, and tell listeners that no more events will come."""
        await asyncio.gather(*(model.dispatcher.close() for model in self))
        self.events.close()


def _check_size(model: ServedModel, budget: int) -> None:
    needed = estimate(model.process.path, model.process.compute_type)
    if budget and needed > budget:
        raise ConfigurationError(
            f"the model {model.card.name} takes about {needed / MIB:.0f} MiB, more than "
            f"METALSCRIBE_MEMORY_BUDGET_MB={budget / MIB:g} allows to all models together"
        )
