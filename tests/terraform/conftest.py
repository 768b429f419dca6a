from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pve.api import Simulator
from pve.serving import Served, served

from .cluster import cluster


@pytest.fixture
def simulator(tmp_path: Path) -> Simulator:
    """A cluster that nobody serves yet."""
    file = tmp_path / "cluster.json"
    cluster().save(file)
    return Simulator(file)


@pytest.fixture
def pve(simulator: Simulator, tmp_path: Path) -> Iterator[Served]:
    """The cluster behind TLS."""
    with served(simulator, tmp_path) as running:
        yield running
