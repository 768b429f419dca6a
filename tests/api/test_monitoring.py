"""``docs/monitoring``: what it says of the series, and whether its scrape configuration, alert rules and dashboard go with them.

A real Prometheus scrapes the real service, as ``prometheus.yml`` has it. The GPUs' figures are those of a simulated library
(``tests/nvml.py``); all others come of a short load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from metalscribe_provision.hostdata import parse_host_data
from metalscribe_provision.monitoring.scrape import target_groups
from prometheus import Prometheus, installed, prometheus, promtool

from .harness import SAMPLE, Service, problem, send, silence, wait_for
from .jobs import ended, submit
from .receiver import receiver
from .scraped import as_text, loaded, scrape

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
README = (FOLDER / "README.md").read_text()
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]

NAME = re.compile(r"\b(?:metalscribe|process|whisperx)_[a-z0-9_]+")
ELSEWHERE = {"up", "node_filesystem_avail_bytes", "node_filesystem_size_bytes"}
"""What Prometheus itself has, and the node exporter."""


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for, without what a histogram adds; labels look like some of them."""
    found = set(NAME.findall(re.sub(r'metalscribe_model_state(?==|"|\})', "", expression)))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


@pytest.fixture(scope="session")
def monitored(
    observed: Service, reader: httpx.Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has seen the service under some load."""
    installed("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(folder, configuration(folder, observed, reader.headers["X-API-Key"])) as server:
        up = 'up{job="metalscribe",instance="gpu1"} == 1'
        wait_for(lambda: server.query(up), "the service to be scraped")
        load(observed)
        # Until the end of that was scraped too; a job's is the last.
        done = 'metalscribe_jobs_ended_total{status="done"} >= 1'
        wait_for(lambda: server.query(done), "the load to be scraped")
        yield server


def configuration(folder: Path, service: Service, key: str) -> dict[str, Any]:
    """That of ``prometheus.yml``, in a hurry, with this machine's files, and without TLS: nginx is not here."""
    made: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    made["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    made["rule_files"] = [str(FOLDER / "alerts.yml")]
    variables = {"ansible_host": "127.0.0.1", "https_port": service.port, "driver": "none"}
    targets = list(target_groups("gpu1", variables, parse_host_data("gpu1", variables, {})))
    (folder / "metalscribe.json").write_text(json.dumps(targets))
    (folder / "metalscribe.key").write_text(key)
    for job in made["scrape_configs"]:
        job["scheme"] = "http"
        del job["tls_config"]
        job["file_sd_configs"] = [{"files": [str(folder / "metalscribe.json")]}]
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(folder / "metalscribe.key")
    return made


def load(service: Service) -> None:
    """A little of everything."""
    client = service.client()
    with receiver() as hooks:
        job = submit(client, silence(1), "a.wav", webhook_url=f"{hooks.url}/done")
        problem(send(client, b"no sound"), 415)
        problem(service.client("a-wrong-key-of-somebody").get("/jobs"), 401)
        send(client, SAMPLE.read_bytes())
        assert ended(client, job)["status"] == "done"
        wait_for(lambda: hooks.at("/done"), "the webhook")


# --- what is written about the series ---


def documented() -> set[str]:
    """The metrics in the tables' first columns, and those of the process."""
    tables = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    process = README[README.index("### The process") : README.index("## Coming from")]
    return {name for text in (*tables, process) for name in NAME.findall(text)}


def test_every_series_is_documented_and_every_documented_one_is_there(observed: Service) -> None:
    loaded(observed.client())
    there = scrape(observed.client())
    written = {
        name.replace("metalscribe_info", "metalscribe").replace("whisperx_service_info", "whisperx_service")
        for name in documented()
    }
    assert written == there.names()


def documented_labels() -> Iterator[tuple[str, set[str]]]:
    """Each metric of the tables, with its labels."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| `")]
    for first, second, *_ in (row for row in rows if len(row) == 3):
        labels = set(re.findall(r"`([a-z_]+)`", second))
        of_a_card = first.startswith("`metalscribe_gpu") and "alone" not in second and "none" not in second
        for name in NAME.findall(first):
            yield name, labels | ({"gpu", "uuid"} if of_a_card else set())


def test_the_labels_are_documented(observed: Service) -> None:
    loaded(observed.client())  # for the series that come with a model in memory
    there: dict[str, set[str]] = {}
    for name, pairs in scrape(observed.client()).samples:
        there.setdefault(re.sub(r"_(bucket|sum|count|created)$", "", name), set()).update(
            label for label, _ in pairs if label != "le"
        )
    written = dict(documented_labels())
    assert written == {name: there[name] for name in written}


def test_promtool_has_no_complaint_about_the_series(observed: Service) -> None:
    done = promtool("check", "metrics", stdin=as_text(observed.client()))
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line]
    # whisperx-asr-service has chosen that name.
    assert [line for line in complaints if not line.startswith("whisperx_audio_size_megabytes")] == []


# --- alert rules ---


def test_promtool_has_no_complaint_about_the_configuration(observed: Service, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration(tmp_path, observed, "a key")))
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_each_alert_is_set_off_by_what_it_is_for_and_by_nothing_else() -> None:
    done = promtool("test", "rules", FOLDER / "alerts-test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = (FOLDER / "alerts-test.yml").read_text()
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r'alertname="(\w+)"', tests))


def test_each_alert_says_what_to_do() -> None:
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert "$labels.instance" in rule["annotations"]["summary"], "one of many hosts"


def test_alerts_and_dashboard_ask_for_series_that_exist(observed: Service) -> None:
    there = scrape(observed.client()).names() | {"metalscribe_info"}
    for title, expression in [*((rule["alert"], rule["expr"]) for rule in ALERTS), *QUERIES]:
        asked = names(expression)
        assert asked - there == set(), title
        assert asked or any(name in expression for name in ELSEWHERE), title


def test_prometheus_evaluates_every_rule(monitored: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        found = [rule for group in monitored.get("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    evaluated = wait_for(rules, "every rule to be evaluated")
    assert len(evaluated) == len(ALERTS)
    assert [(rule["name"], rule.get("lastError")) for rule in evaluated if rule["health"] != "ok"] == []
    # The simulated card has memory errors, is slowed down by its heat and has had an Xid; everything else is well.
    expected = {"MetalscribeGpuEccErrors", "MetalscribeGpuXid", "MetalscribeGpuHot"}
    wait_for(
        lambda: {rule["name"] for rule in rules() if rule["state"] != "inactive"} == expected,
        "the card's alerts, and no others",
    )


# --- the dashboard ---


def test_the_key_of_the_configuration_reaches_the_service_alone(monitored: Prometheus) -> None:
    targets = monitored.get("targets", state="active")["activeTargets"]
    assert [(target["labels"]["job"], target["labels"]["exporter"]) for target in targets] == [
        ("metalscribe", "service")
    ]
    assert not monitored.query('{__name__=~".+_created"}')


def test_every_panel_has_data(monitored: Prometheus) -> None:
    """A figure for each query; what is a quantile of nothing is not one."""

    def figures(expression: str) -> list[float]:
        query = expression.replace("$__rate_interval", "2m").replace("$instance", "gpu.*")
        assert "$" not in query
        return [value for one in monitored.query(query) if not math.isnan(value := float(one["value"][1]))]

    for title, expression in QUERIES:
        wait_for(lambda: figures(expression), f"data in the panel {title!r}: {expression}", 20)  # noqa: B023


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert DASHBOARD["id"] is None
    assert [variable["type"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "query"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"]), panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
