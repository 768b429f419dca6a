"""What the ways are asked to do."""

from __future__ import annotations

from typing import Final

from bench.workloads.clients import Clients
from bench.workloads.long import Long
from bench.workloads.mix import Jobs, Mix
from bench.workloads.poisson import Poisson
from bench.workloads.workload import Groups, Workload

__all__ = ["Clients", "Groups", "Jobs", "Long", "Mix", "Poisson", "Workload", "workloads"]

_CLIENTS: Final = (1, 8, 32)


def workloads(*, quick: bool = False) -> dict[str, Workload]:
    """All of them, by name, in the order of the report."""
    every: list[Workload] = [
        *(Clients(count) for count in _CLIENTS),
        Long(),
        Mix(),
        Jobs(),
        Poisson(seconds=10.0 if quick else 30.0),
    ]
    return {workload.name: workload for workload in every}
