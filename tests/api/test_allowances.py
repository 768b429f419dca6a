"""How much of the service a key may have: requests at one time, audio a day; and what ``metalscribe usage`` tells of it."""

from __future__ import annotations

import json
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from postgresql import postgresql

from .harness import Caller, Service, Start, problem, running, send, silence, wait_for
from .jobs import ended, job, submit

pytestmark = pytest.mark.model

SECONDS = 14.7
"""Of the sample, about."""


def usage(service: Service, key: str) -> dict[str, Any]:
    """All that has been counted for a key."""
    if "DATABASE_URL" in service.settings:
        total: dict[str, Any] = json.loads(service.command("usage", "--json", "--key", key))["total"]
        return total
    columns = ("requests", "jobs", "failed", "audio_seconds", "engine_seconds")
    sums = ", ".join(f"coalesce(sum({column}), 0)" for column in columns)
    of_key = "key_id = coalesce((SELECT id FROM api_keys WHERE name = ?1), ?1)"
    with closing(sqlite3.connect(service.state_dir / "metalscribe.db")) as database:
        (row,) = database.execute(f"SELECT {sums} FROM usage WHERE {of_key}", (key,)).fetchall()
    return dict(zip(columns, row, strict=True))


def usage_is(service: Service, key: str, *, audio: float, **counts: int) -> bool:
    """Wait until the usage has been written down, and compare all of it."""
    expected = {"requests": 0, "jobs": 0, "failed": 0, **counts}

    def as_expected() -> bool:
        found = usage(service, key)
        return {name: found[name] for name in expected} == expected and abs(found["audio_seconds"] - audio) < 0.1

    return bool(wait_for(as_expected, f"{key}'s usage to be {expected} and {audio} s", 30))


def passes(client: httpx.Client) -> bool:
    """Whether a request gets its place; one that does not must say why not."""
    answer = send(client, silence())
    if answer.status_code != 200:
        problem(answer, 429, "concurrency_limited")
    return answer.status_code == 200


@pytest.fixture(scope="module")
def shared(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service for keys of each test's own."""
    with running(tmp_path_factory.mktemp("allowances") / "state", IDLE_TIMEOUT_SECS=0, JOBS_RUNNING=1) as made:
        yield made


# --- at one time ------------------------------------------------------------------------------------------------------


def test_one_at_a_time(shared: Service, long_wav: bytes) -> None:
    key = shared.new_key("one", "--concurrency", "1")
    client = shared.client(key)
    assert passes(client)
    first = Caller(shared, long_wav, {"X-API-Key": key})
    wait_for(lambda: shared.queue()["requests"] == 1, "the first to run")
    refused = send(client, silence())
    document = problem(refused, 429, "concurrency_limited")
    assert "1 of this key's requests are under way, and 1 may be at one time" in document["detail"]
    assert refused.headers["retry-after"] == "5"
    assert refused.headers["x-ratelimit-limit"], "it counts as a request all the same"
    problem(client.post("/transcribe/url", json={"url": "http://192.0.2.1/a.wav"}), 429, "concurrency_limited")
    assert send(shared.client(), silence()).status_code == 200, "other keys are not concerned"
    assert ended(client, submit(client, silence()))["status"] == "done", "and jobs have a queue of their own"
    first.leave()
    wait_for(lambda: passes(client), "the place to come back")
    assert passes(client)


def test_it_is_refused_before_its_upload_is_read(shared: Service, long_wav: bytes) -> None:
    key = shared.new_key("early", "--concurrency", "1")
    first = Caller(shared, long_wav, {"X-API-Key": key})
    wait_for(lambda: shared.queue()["requests"] == 1, "the first to run")
    with closing(socket.create_connection(("127.0.0.1", shared.port), timeout=30)) as connection:
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: 100000000\r\n"
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 429 ")
    first.leave()
    wait_for(shared.idle, "the work to stop")


def test_a_place_is_taken_while_an_upload_arrives(shared: Service) -> None:
    key = shared.new_key("slow", "--concurrency", "1")
    client = shared.client(key)
    with closing(socket.create_connection(("127.0.0.1", shared.port), timeout=30)) as connection:
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: 1000\r\n"
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
        wait_for(shared.recordings, "the upload to begin")
        assert not passes(client)
    wait_for(lambda: passes(client), "the place to come back")


def test_whatever_is_wrong_gives_the_place_back(shared: Service) -> None:
    client = shared.client(shared.new_key("clumsy", "--concurrency", "1"))
    for _ in range(2):
        problem(send(client, b"no sound"), 415)
        problem(send(client, b"no sound", data={"stream": "true"}), 415)
        problem(send(client, silence(), params={"format": "none"}), 400)
        problem(client.post("/transcribe", content=b"no form"), 400)
        problem(client.post("/transcribe/url", json={"url": "http://127.0.0.1/"}), 400, "address_refused")
    assert passes(client)


def test_a_stream_keeps_its_place_to_its_end_or_until_it_is_left(shared: Service, long_wav: bytes) -> None:
    client, other = (shared.client(key) for key in [shared.new_key("stream", "--concurrency", "1")] * 2)
    piece = long_wav[: 44 + 2 * 16_000 * 60]
    options: dict[str, Any] = {"files": {"file": ("a.wav", piece)}, "data": {"stream": "true"}}
    with client.stream("POST", "/transcribe", **options) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("event: segment"))
        assert not passes(other)
        assert [line for line in lines if line.startswith("event: ")][-1] == "event: done"
    wait_for(lambda: passes(other), "the place to come back at the end")
    options["files"] = {"file": ("a.wav", long_wav)}
    with client.stream("POST", "/transcribe", **options) as answer:
        lines = answer.iter_lines()  # kept: the connection ends with it
        assert next(line for line in lines if line.startswith("event: segment"))
        assert not passes(other)
    wait_for(lambda: passes(other), "the place to come back from who left")


def test_a_repetition_is_not_refused_for_its_first_request(shared: Service, sample: bytes, long_wav: bytes) -> None:
    key = shared.new_key("again", "--concurrency", "1")
    headers = {"Idempotency-Key": "the-same"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(shared.client(key), sample, headers=headers), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1
    assert usage_is(shared, "again", requests=1, audio=SECONDS), "and was transcribed once"
    other = Caller(shared, long_wav, {"X-API-Key": key})
    wait_for(lambda: shared.queue()["requests"] == 1, "another to run")
    assert send(shared.client(key), sample, headers=headers).headers["idempotent-replayed"] == "true"
    problem(send(shared.client(key), sample, headers={"Idempotency-Key": "new"}), 429, "concurrency_limited")
    other.leave()
    wait_for(shared.idle, "the work to stop")


def test_a_limit_is_changed_while_requests_run(shared: Service, long_wav: bytes) -> None:
    key = shared.new_key("changing")
    client = shared.client(key)
    callers = [Caller(shared, long_wav, {"X-API-Key": key}) for _ in range(2)]
    wait_for(lambda: shared.queue()["requests"] == 2, "both to run")
    assert passes(client)
    shared.keys("set", "changing", "--concurrency", "2")
    assert not passes(client)
    callers.pop().leave()
    wait_for(lambda: passes(client), "one to stop")
    shared.keys("set", "changing", "--concurrency", "1")
    assert not passes(client)
    shared.keys("set", "changing", "--concurrency", "none")
    assert passes(client)
    callers.pop().leave()
    wait_for(shared.idle, "the work to stop")


# --- a day ------------------------------------------------------------------------------------------------------------


def test_a_days_audio_is_spent(shared: Service, sample: bytes) -> None:
    client = shared.client(shared.new_key("daily", "--daily-audio", "20s"))
    first = send(client, sample, headers={"Idempotency-Key": "first"})
    assert first.status_code == send(client, sample, data={"stream": "true"}).status_code == 200
    files = {"audio": ("a.flac", sample)}
    for refused in (
        send(client, sample),
        send(client, sample, data={"stream": "true"}),
        send(client, sample, headers={"Idempotency-Key": "second"}),
        client.post("/transcribe/url", json={"url": "http://192.0.2.1/a.wav"}),
        client.post("/jobs", files=files),
    ):
        document = problem(refused, 429, "daily_audio_spent")
        assert "29 seconds of audio transcribed today, and may have 20 a day" in document["detail"]
        assert 1 <= int(refused.headers["retry-after"]) <= 86_400
        assert refused.headers["x-ratelimit-limit"]
    again = send(client, sample, headers={"Idempotency-Key": "first"})
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
    shared.keys("set", "daily", "--daily-audio", "1h")
    assert send(client, sample).status_code == 200
    shared.keys("set", "daily", "--daily-audio", "44s")
    problem(send(client, sample), 429, "daily_audio_spent")
    assert usage_is(shared, "daily", requests=3, audio=3 * SECONDS)
    assert "0:00:44" in shared.command("usage", "--key", "daily")


def test_a_repeated_job_is_not_refused_for_its_first(shared: Service, sample: bytes) -> None:
    client = shared.client(shared.new_key("jobs", "--daily-audio", "10s"))
    files = {"audio": ("a.flac", sample)}
    first = client.post("/jobs", files=files, headers={"Idempotency-Key": "job"})
    assert ended(client, first.json()["job_id"])["status"] == "done"
    problem(client.post("/jobs", files=files), 429, "daily_audio_spent")
    problem(send(client, sample), 429, "daily_audio_spent")
    again = client.post("/jobs", files=files, headers={"Idempotency-Key": "job"})
    assert (again.status_code, again.json()) == (202, first.json())
    assert usage_is(shared, "jobs", jobs=1, audio=SECONDS)
    assert usage(shared, "jobs")["engine_seconds"] > 0


def test_what_counts(shared: Service, sample: bytes, long_wav: bytes) -> None:
    client = shared.client(shared.new_key("counted"))
    assert send(client, sample).status_code == 200
    problem(send(client, b"no sound"), 415)
    problem(send(client, sample, params={"language": "de"}), 400)
    assert ended(client, submit(client, b"no sound"))["status"] == "failed"
    assert usage_is(shared, "counted", requests=2, jobs=1, failed=2, audio=SECONDS)
    files = {"file": ("long.wav", long_wav)}
    with client.stream("POST", "/transcribe", files=files, data={"stream": "true"}) as answer:
        told = 0
        for line in answer.iter_lines():
            told += line.startswith("event: segment")
            if told == 5:
                break
    wait_for(shared.idle, "the work to stop")
    wait_for(lambda: usage(shared, "counted")["requests"] == 3, "who left to be counted", 20)
    left = usage(shared, "counted")
    assert left["failed"] == 2
    assert 5 < left["audio_seconds"] - SECONDS < 1200, "as far as it was told"
    running_job, queued = submit(client, long_wav), submit(client, long_wav)
    wait_for(lambda: job(client, running_job)["segments"], "the first words of a job")
    for one in (queued, running_job):
        client.delete(f"/jobs/{one}")
    wait_for(lambda: usage(shared, "counted")["jobs"] == 2, "the one that had begun to be counted", 20)
    assert 0 < usage(shared, "counted")["audio_seconds"] - left["audio_seconds"] < 1200


def test_usage_outlives_kills_and_restarts_and_counts_a_job_once(start: Start, sample: bytes, long_wav: bytes) -> None:
    service = start()
    key = service.new_key("daily", "--daily-audio", "10s")
    assert send(service.client(key), sample).status_code == 200
    assert usage_is(service, "daily", requests=1, audio=SECONDS)
    client = service.client()
    job_id = submit(client, long_wav[: 44 + 2 * 16_000 * 60])
    wait_for(lambda: job(client, job_id)["segments"], "the first words of a job")
    service.process.kill()
    service.process.wait()
    again = start()
    problem(send(again.client(key), sample), 429, "daily_audio_spent")
    assert ended(again.client(), job_id, 300)["status"] == "done"
    assert usage_is(again, "configured", jobs=1, audio=60)
    assert send(again.client(again.new_key("last")), silence(3)).status_code == 200
    assert again.terminate() == 0
    assert usage_is(again, "last", requests=1, audio=3)


def test_services_on_one_database_share_a_day(demo_model: Path, tmp_path: Path, sample: bytes) -> None:
    with postgresql() as server:
        shared = {"DATABASE_URL": server.url("postgres"), "JOBS_DIR": tmp_path / "jobs"}
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        with (
            running(tmp_path / "one" / "state", **shared) as one,
            running(tmp_path / "two" / "state", **shared) as two,
        ):
            key = one.new_key("daily", "--daily-audio", "20s")
            assert send(one.client(key), sample).status_code == send(two.client(key), sample).status_code == 200
            for service in (one, two):
                client = service.client(key)
                wait_for(lambda: client.post("/transcribe").status_code == 429, "the day's end in both", 20)  # noqa: B023
            assert usage_is(two, "daily", requests=2, audio=2 * SECONDS)
