"""Durable jobs on a deployed host: handed in through nginx, followed through it, killed, backed up, put back."""

from __future__ import annotations

import json
import time
import wave
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import av
import pytest

from lab.container import Container
from lab.deployed import Recording
from lab.https import PATIENCE, Client

MINUTES: Final = 4

RESTARTED_WITHIN: Final = 20.0
"""Seconds; less than the grace of METALSCRIBE_SHUTDOWN_GRACE_SECS, which is for those who wait."""


@pytest.fixture(scope="module")
def minutes(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's sample over and over, for some minutes."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(BytesIO(recording.path.read_bytes()), "r") as container:
        once = b"".join(
            bytes(piece.planes[0])[: 2 * piece.samples]
            for frame in container.decode(audio=0)
            for piece in resampler.resample(frame)
        )
    made = tmp_path_factory.mktemp("recordings") / "minutes.wav"
    with wave.open(str(made), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(once * (MINUTES * 60 * 16_000 * 2 // len(once)))
    return made


def key_of(api: Client) -> tuple[str, str]:
    return ("--header", f"X-API-Key: {api.key}")


def submitted(api: Client, path: Path, *options: str) -> str:
    return str(json.loads(api.curl("/jobs", *key_of(api), "--form", f"audio=@{path}", *options))["job_id"])


def job(api: Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.ask(f"/jobs/{job_id}").json
    return found


def ended(api: Client, job_id: str) -> dict[str, Any]:
    return until(api, job_id, lambda found: found["status"] not in {"queued", "running"})


def until(api: Client, job_id: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Look at a job every half a second, since nginx counts requests, until it is as it should be."""
    end = time.monotonic() + PATIENCE
    while not condition(found := job(api, job_id)):
        assert time.monotonic() < end, found
        time.sleep(0.5)
    return found


def events(api: Client, job_id: str, last_seen: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of a job's events as they come through nginx; ends where the stream does."""
    connection = api.connection()
    headers = {"X-API-Key": api.key, **({"Last-Event-ID": last_seen} if last_seen else {})}
    connection.request("GET", f"/jobs/{job_id}/stream", headers=headers)
    response = connection.getresponse()
    assert (response.status, response.getheader("content-type")) == (200, "text/event-stream; charset=utf-8")
    fields: dict[str, str] = {}
    try:
        while line := response.readline().decode():
            name, _, value = line.rstrip("\r\n").partition(": ")
            if name and not line.startswith(":"):
                fields[name] = value
            elif fields:
                yield fields["id"], fields["event"], json.loads(fields["data"])
                fields = {}
    finally:
        connection.close()


def test_events_come_through_nginx_while_the_job_runs(api: Client, minutes: Path) -> None:
    job_id = submitted(api, minutes)
    seen = events(api, job_id)
    first = next(one for one in seen if one[1] == "segment")
    assert job(api, job_id)["status"] == "running"
    rest = list(seen)
    assert rest[-1][1] == "done"
    document = rest[-1][2]["job"]
    assert document == job(api, job_id)
    assert document["segments"][0]["text"] == first[2]["text"]


def test_a_killed_service_goes_on_with_its_job(host: Container, api: Client, minutes: Path) -> None:
    expected = ended(api, submitted(api, minutes))
    job_id = submitted(api, minutes, "--form", "language=en")
    position = ""
    for mark, kind, _ in events(api, job_id):
        position = mark
        if kind == "segment":
            break
    host.run("systemctl kill --signal=KILL metalscribe.service")
    rest = list(events(api, job_id, position))
    assert [kind for _, kind, _ in rest][-1] == "done"
    assert rest[-1][2]["job"]["text"] == expected["text"]
    assert len([kind for _, kind, _ in rest if kind == "segment"]) == len(expected["segments"]) - int(position)
    assert host.run("find /var/lib/metalscribe/jobs -type f ! -name .lock").stdout == ""


def test_an_operator_sees_jobs_and_keeps_them(host: Container, api: Client, minutes: Path) -> None:
    job_id = submitted(api, minutes)
    until(api, job_id, lambda found: found["segments"])
    assert job_id in host.run("metalscribe jobs list --status running").stdout
    made = host.run("umask 077; metalscribe backup - > /root/metalscribe.tar")
    assert "1 recording " in made.stderr
    refused = host.run("metalscribe restore - < /root/metalscribe.tar", check=False)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    done = ended(api, job_id)
    assert api.ask(f"/jobs/{job_id}", method="DELETE").status == 204
    assert api.ask(f"/jobs/{job_id}").status == 404

    put_back = host.run(
        "systemctl stop metalscribe.service; metalscribe restore - < /root/metalscribe.tar; systemctl start metalscribe.service"
    )
    assert "1 recording " in put_back.stderr
    assert ended(api, job_id)["text"] == done["text"]
    assert host.run(f"metalscribe jobs export {job_id}").stdout.strip() == done["text"]
    host.run("metalscribe doctor")


def test_jobs_outlive_an_upgrades_restart(host: Container, api: Client, minutes: Path) -> None:
    """A restart does not wait for jobs, and loses none: who follows one just comes again."""
    job_id = submitted(api, minutes)
    until(api, job_id, lambda found: found["segments"])
    began = time.monotonic()
    host.run("systemctl restart metalscribe.service")
    assert time.monotonic() - began < RESTARTED_WITHIN, "the restart waits for the job"
    assert ended(api, job_id)["status"] == "done"
