"""Accepted means done: the service is killed again and again, and every job comes to its end as if nothing had happened.

``JOBS=30 KILLS=25 LONG_SECONDS=660`` make it a longer one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from .harness import KEY, Service, running, wait_for
from .jobs import recordings, submit
from .receiver import receiver

pytestmark = [pytest.mark.model, pytest.mark.timeout(3000)]

JOBS = int(os.environ.get("JOBS", "6"))
KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("SEED", "1"))
LONG_EVERY = 4
LONG_SECONDS = int(os.environ.get("LONG_SECONDS", "90"))


def documents(service: Service, ids: list[str]) -> dict[str, dict[str, Any]]:
    client = service.client()
    return {job_id: client.get(f"/jobs/{job_id}").json() for job_id in ids}


def all_done(service: Service, ids: list[str]) -> bool:
    with httpx.Client(base_url=service.url, headers={"X-API-Key": KEY}, timeout=60, trust_env=False) as client:
        counts = Counter(client.get(f"/jobs/{job_id}").json()["status"] for job_id in ids)
    assert set(counts) <= {"queued", "running", "done"}, counts
    return counts["done"] == len(ids)


def test_killed_again_and_again(demo_model: Path, tmp_path: Path, long_wav: bytes, sample: bytes) -> None:
    del demo_model
    chance = random.Random(SEED)
    contents = [
        long_wav[: 44 + 2 * 16_000 * (LONG_SECONDS + 7 * number)] if number % LONG_EVERY == 0 else sample
        for number in range(JOBS)
    ]
    settings = {"ALLOW_NETWORKS": "127.0.0.0/8", "JOBS_RUNNING": 3, "LOG_LEVEL": "debug"}

    (tmp_path / "calm").mkdir()
    with running(tmp_path / "calm" / "state", **settings) as calm:
        ids = [submit(calm.client(), content) for content in contents]
        wait_for(lambda: all_done(calm, ids), "all jobs without a kill", 1200)
        expected = [document["text"] for document in documents(calm, ids).values()]

    with receiver() as hooks:
        state = tmp_path / "state"
        ids = []
        for kill in range(KILLS + 1):
            with running(state, **settings) as service:
                for content in contents[len(ids) : JOBS if kill == KILLS else len(ids) + 1 + JOBS // KILLS]:
                    ids.append(submit(service.client(), content, webhook_url=f"{hooks.url}/{len(ids)}"))
                if kill < KILLS:
                    time.sleep(chance.uniform(0.05, 4.0))
                    service.process.send_signal(signal.SIGKILL)
                    service.process.wait()
                    continue
                assert len(ids) == JOBS
                wait_for(lambda: all_done(service, ids), "all jobs", 1200)
                found = documents(service, ids)
                wait_for(
                    lambda: len({hook.path for hook in hooks.received if hook.event == "job_done"}) == JOBS,
                    "webhooks",
                    120,
                )
                assert [document["text"] for document in found.values()] == expected
                secret = service.keys("webhook-secret", "configured")
                wait_for(lambda: not recordings(service), "the recordings to be gone")
                chunks = Counter(
                    (line["job"], line["chunk"]) for line in service.log() if line["event"] == "chunk done"
                )
    assert max(chunks.values()) <= 2
    for number, job_id in enumerate(ids):
        told = hooks.at(f"/{number}")
        assert all(hook.signed_with(secret) for hook in told)
        ends = [hook for hook in told if hook.event == "job_done"]
        assert ends
        for hook in ends:
            assert hook.document["id"] == job_id
            assert hook.document["status"] == "done"
            assert hook.document["text"] == expected[number]
