"""Two services on one PostgreSQL: they share the jobs, and one takes over what the other leaves behind when it is killed.

``JOBS=200`` makes it the longer one.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgresql import Server, postgresql

from .harness import Service, running, silence, wait_for
from .jobs import recordings, submit
from .receiver import receiver

pytestmark = [pytest.mark.model, pytest.mark.timeout(1500)]

JOBS = int(os.environ.get("JOBS", "24"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as made:
        yield made


def statuses(service: Service, ids: list[str]) -> Counter[str]:
    client = service.client()
    return Counter(client.get(f"/jobs/{job_id}").json()["status"] for job_id in ids)


def started(*services: Service) -> Counter[str]:
    """How often each job was begun."""
    return Counter(line["job"] for service in services for line in service.log() if line["event"] == "job started")


def test_one_is_killed_midway(server: Server, demo_model: Path, tmp_path: Path, sample: bytes, long_wav: bytes) -> None:
    del demo_model
    shared = {
        "DATABASE_URL": server.url("postgres"),
        "JOBS_DIR": tmp_path / "shared",
        "JOBS_RUNNING": 2,
        "ALLOW_NETWORKS": "127.0.0.0/8",
        "JOBS_QUEUED_PER_KEY": 0,
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        receiver() as hooks,
        running(tmp_path / "one" / "state", **shared) as one,
        running(tmp_path / "two" / "state", **shared) as two,
    ):
        contents = [silence(1 + number % 3) if number % 4 else sample for number in range(JOBS - 2)]
        ids = [
            submit(two.client(), long_wav[: 44 + 2 * 16_000 * 120], webhook_url=f"{hooks.url}/long") for _ in range(2)
        ]
        ids += [
            submit((one, two)[number % 2].client(), content, webhook_url=f"{hooks.url}/{number}")
            for number, content in enumerate(contents)
        ]
        wait_for(lambda: statuses(two, ids)["done"] >= JOBS // 4, "a quarter of the jobs", 600)
        assert max(started(one, two).values()) == 1, "none was begun twice"
        assert started(one), "both work"
        assert started(two), "both work"
        one.process.send_signal(signal.SIGKILL)
        one.process.wait()
        wait_for(lambda: statuses(two, ids)["done"] == JOBS, "all jobs", 900)
        again = [job_id for job_id, count in started(one, two).items() if count > 1]
        assert len(again) <= 2, "only what the killed one had under way was begun again"
        wait_for(lambda: len({hook.path for hook in hooks.received}) == JOBS - 1, "every webhook", 120)
        ended = Counter(line["job"] for service in (one, two) for line in service.log() if line["event"] == "job ended")
        assert len(set(ids) - set(ended)) <= 2, "but for what was written down in the moment of the kill"
        assert max(ended.values()) == 1, "none ended twice"
        wait_for(
            lambda: not [path for path in (tmp_path / "shared").rglob("*") if path.is_file() and path.name != ".lock"],
            "the recordings to go",
        )
        assert not recordings(two), "the state directory has none of them"
