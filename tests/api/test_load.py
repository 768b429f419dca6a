"""More at once than the service takes: everybody gets an answer, and the service goes on answering."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .harness import Start, problem, send, wait_for

pytestmark = pytest.mark.model

MANY = 50


def test_fifty_at_once_and_a_queue_of_two(start: Start, sample: bytes) -> None:
    service = start(MAX_QUEUE=2, PRELOAD="true")
    wait_for(lambda: service.client().get("/readyz").status_code == 200, "the model")
    over = threading.Event()
    latencies: list[float] = []

    def probe() -> None:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
            while not over.wait(0.02):
                begin = time.perf_counter()
                assert client.get("/healthz").status_code == 200
                latencies.append(time.perf_counter() - begin)

    with ThreadPoolExecutor(MANY + 1) as pool:
        probing = pool.submit(probe)
        clients = [service.client() for _ in range(MANY)]
        answers = list(pool.map(lambda client: send(client, sample), clients))
        over.set()
        probing.result()
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 2
    assert statuses[503] >= 1
    for answer in answers:
        if answer.status_code == 503:
            problem(answer, 503, "queue_full")
            assert 1 <= int(answer.headers["retry-after"]) <= 600
    assert max(latencies) < 10  # far beyond what is good: a bound for a hang, not for speed
    assert service.idle()
    wait_for(service.uploads_are_gone, "the uploads to be removed")
    assert send(service.client(), sample).status_code == 200


def test_a_burst_within_the_queue_is_all_transcribed(start: Start, sample: bytes) -> None:
    service = start(MAX_QUEUE=16)
    with ThreadPoolExecutor(16) as pool:
        clients = [service.client() for _ in range(16)]
        answers = list(pool.map(lambda client: send(client, sample), clients))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert len({answer.json()["text"] for answer in answers}) == 1
