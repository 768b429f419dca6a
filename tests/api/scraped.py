"""A scrape of ``/metrics``, for the tests that look into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from .harness import wait_for

Series = tuple[str, frozenset[tuple[str, str]]]

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@dataclass(frozen=True)
class Scrape:
    """What was there at one moment.

    Attributes:
        kinds: type of each metric, by its name as the text format has it.
        samples: value of each series.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    samples: dict[Series, float] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series with this name that have all of these labels."""
        wanted = set(labels.items())
        return sum(value for (found, pairs), value in self.samples.items() if found == name and wanted <= pairs)

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label has in the series with this name."""
        return {dict(pairs)[label] for found, pairs in self.samples if found == name and label in dict(pairs)}

    def names(self) -> set[str]:
        """The metrics, counters with their ``_total``."""
        return {name + "_total" * (kind == "counter") for name, kind in self.kinds.items()}


def scrape(client: httpx.Client) -> Scrape:
    """All of ``/metrics``, read as OpenMetrics."""
    answer = client.get("/metrics", headers=OPENMETRICS)
    assert answer.status_code == 200, answer.text
    return parsed(openmetrics(answer.text))  # type: ignore[no-untyped-call]


def parsed(families: Any) -> Scrape:
    """A scrape from a parser's families."""
    made = Scrape()
    for family in families:
        made.kinds[family.name] = family.type
        for one in family.samples:
            series = one.name, frozenset(one.labels.items())
            assert series not in made.samples, f"{series} is there twice"
            made.samples[series] = one.value
    return made


def as_text(client: httpx.Client) -> str:
    """All of ``/metrics`` in the older text format."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert list(prometheus(answer.text)), "it can be read"
    return answer.text


def grown(client: httpx.Client, before: Scrape, by: float, name: str, **labels: str) -> Scrape:
    """Wait until series have grown by just so much: a request is counted when its answer is over, just behind its last byte."""
    seen: list[Scrape] = []

    def look() -> bool:
        seen.append(scrape(client))
        return seen[-1].value(name, **labels) - before.value(name, **labels) >= by

    wait_for(look, f"{name}{labels} to grow by {by:g}", 20)
    assert seen[-1].value(name, **labels) - before.value(name, **labels) == by
    return seen[-1]


Condition = Callable[[Scrape], bool]


def when(client: httpx.Client, condition: Condition, what: str) -> Scrape:
    """The first scrape of which something is true."""
    found: Scrape = wait_for(lambda: next((one for one in [scrape(client)] if condition(one)), None), what)
    return found


def loaded(client: httpx.Client) -> None:
    """Have the model loaded, whatever the test before has left."""
    client.post("/model/load")
    wait_for(lambda: client.get("/model/status").json()["state"] == "ready", "the model to load")
