"""Jobs while the disk is full, the database is locked, or a thousand clients look on: what was accepted is done all the same."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from .harness import KEY, Service, fill, problem, running, wait_for
from .jobs import ended, job, recordings, submit

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

LONG = 44 + 2 * 16_000 * 240
FOLLOWERS = int(os.environ.get("FOLLOWERS", "1000"))
MEMORY = 100 * 2**20


def logged(service: Service, event: str) -> list[dict[str, object]]:
    return [line for line in service.log() if line.get("event") == event]


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_uploads_and_leaves_nothing(small_disk: Path, long_wav: bytes, sample: bytes) -> None:
    with running(small_disk / "state", MIN_FREE_DISK_MB=0) as service:
        client = service.client()
        accepted = submit(client, long_wav[:LONG], "long.wav")
        # Its length is known beforehand, and said to be too much; then it is not, and the disk fills up on the way.
        problem(client.post("/jobs", files={"audio": ("big.wav", bytes(80 * 2**20))}), 507, "storage_full")
        filler = fill(small_disk)
        with filler.open("r+b") as file:
            file.truncate(max(0, filler.stat().st_size - 2**20))

        def pieces() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'
            for _ in range(64):
                yield bytes(2**16)
            yield b"\r\n--b--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        problem(client.post("/jobs", content=pieces(), headers=headers), 507, "storage_full")
        filler.unlink()
        assert len(recordings(service)) == 1
        assert ended(client, accepted)["status"] == "done"
        assert ended(client, submit(client, sample))["status"] == "done"


def test_what_is_done_waits_for_room_on_a_full_disk(small_disk: Path, long_wav: bytes, service: Service) -> None:
    expected = ended(service.client(), submit(service.client(), long_wav[:LONG], "long.wav"))
    with running(small_disk / "state", MIN_FREE_DISK_MB=0) as cramped:
        client = cramped.client()
        job_id = submit(client, long_wav[:LONG], "long.wav")
        wait_for(lambda: job(client, job_id)["segments"], "the first segments")
        filler = fill(small_disk)
        wait_for(lambda: logged(cramped, "job not written down yet"), "a checkpoint that finds no room")
        filler.unlink()
        done = ended(client, job_id)
        assert (done["status"], done["text"]) == ("done", expected["text"])
        assert done["segments"] == expected["segments"]


# --- a locked database ------------------------------------------------------------------------------------------------


def test_a_database_that_another_process_locks_for_twenty_seconds(service: Service, long_wav: bytes) -> None:
    client = service.client()
    job_id = submit(client, long_wav[:LONG], "long.wav")
    wait_for(lambda: job(client, job_id)["segments"], "the first segments")
    locked, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(service.state_dir / "metalscribe.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            locked.set()
            let_go.wait(30)
            connection.execute("ROLLBACK")

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(30)
    begin = time.monotonic()
    assert job(client, job_id)["status"] == "running", "reading goes on"
    time.sleep(max(0.0, begin + 20 - time.monotonic()))
    let_go.set()
    holder.join()
    done = ended(client, job_id)
    assert done["status"] == "done"
    assert [segment["index"] for segment in done["segments"]] == list(range(len(done["segments"])))


# --- many followers ---------------------------------------------------------------------------------------------------


def test_a_thousand_idle_followers_cost_little_and_all_hear_of_the_end(tmp_path: Path, long_wav: bytes) -> None:
    with running(tmp_path / "state", JOBS_RUNNING=0) as service:
        client = service.client()
        waiting = submit(client, long_wav[: 44 + 2 * 16_000 * 5], "short.wav")

        async def follow_all() -> tuple[int, int]:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            headers = {"X-API-Key": KEY}
            connected = 0
            heard = 0

            async def follow(follower: httpx.AsyncClient) -> None:
                nonlocal connected, heard
                async with follower.stream("GET", f"/jobs/{waiting}/stream") as answer:
                    assert answer.status_code == 200
                    async for line in answer.aiter_lines():
                        if line == "event: progress":
                            connected += 1
                        heard += line == "event: cancelled"

            async with httpx.AsyncClient(
                base_url=service.url, headers=headers, timeout=120, limits=limits, trust_env=False
            ) as follower:
                process = psutil.Process(service.process.pid)
                first = asyncio.create_task(follow(follower))
                while connected < 1:
                    await asyncio.sleep(0.05)
                before = process.memory_info().rss
                tasks = [first]
                for _ in range(FOLLOWERS - 1):
                    tasks.append(asyncio.create_task(follow(follower)))
                    await asyncio.sleep(0.002)
                while connected < FOLLOWERS:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(2)
                more = process.memory_info().rss - before
                threads = process.num_threads()
                assert threads < 100, threads
                (await follower.delete(f"/jobs/{waiting}")).raise_for_status()
                await asyncio.gather(*tasks)
                return more, heard

        more, heard = asyncio.run(follow_all())
        assert heard == FOLLOWERS
        assert more < MEMORY, f"{more / 2**20:.0f} MiB for {FOLLOWERS} followers"
