"""``metalscribe submit`` and ``metalscribe jobs``, as an operator uses them beside a running service."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from .harness import COMMAND, KEY, Service, Start, environment, running, says, silence, wait_for
from .jobs import ended, job, recordings, submit

pytestmark = pytest.mark.model


def run(service: Service, *arguments: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    settings = {**service.settings, "API_KEY": key}
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(service.state_dir, settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def files(tmp_path: Path, sample: bytes) -> list[str]:
    """Two recordings and something else."""
    contents = {"first.flac": sample, "second.wav": silence(), "notes.txt": b"neither audio nor video"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [str(tmp_path / name) for name in contents]


def test_submitted_and_waited_for(service: Service, files: list[str], sample_text: str) -> None:
    done = run(service, "submit", *files[:2], "--url", service.url, "--wait")
    assert done.returncode == 0, done.stderr
    assert says(done.stdout.splitlines()[0], sample_text)
    srt = run(service, "submit", files[0], "--url", service.url, "--wait", "--format", "srt")
    assert srt.stdout.startswith("1\n00:00:")
    failed = run(service, "submit", *files, "--url", service.url, "--wait", "--format", "json")
    assert failed.returncode == 1
    assert "notes.txt: the content is not audio or video" in failed.stderr
    assert [json.loads(line)["name"] for line in failed.stdout.splitlines()] == ["first.flac", "second.wav"]


def test_submitted_and_left(service: Service, client: httpx.Client, files: list[str]) -> None:
    done = run(service, "submit", files[0], "--url", service.url, "--language", "en", "--word-timestamps")
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    found = ended(client, job_id)
    assert found["name"] == "first.flac"
    assert found["segments"][0]["words"]


def test_what_is_wrong_is_said(service: Service, files: list[str]) -> None:
    wrong = run(service, "submit", files[0], "--url", service.url, key="not-a-key")
    assert wrong.returncode == 1
    assert "METALSCRIBE_API_KEY" in wrong.stderr
    away = run(service, "submit", files[0], "--url", "http://127.0.0.1:9")
    assert away.returncode == 1
    assert "Cannot connect to" in away.stderr
    for done in (wrong, away):
        assert "Traceback" not in done.stderr
    assert run(service, "submit", "no-such-file", "--url", service.url).returncode == 2


def test_who_waits_waits_through_a_restart(start: Start, tmp_path: Path, long_wav: bytes) -> None:
    service = start(PORT=0)
    recording = tmp_path / "long.wav"
    recording.write_bytes(long_wav[: 44 + 2 * 16_000 * 240])
    outcome: list[subprocess.CompletedProcess[str]] = []
    waiting = threading.Thread(
        target=lambda: outcome.append(run(service, "submit", str(recording), "--url", service.url, "--wait"))
    )
    waiting.start()
    client = service.client()
    listed = wait_for(lambda: client.get("/jobs").json()["jobs"], "the job")
    wait_for(lambda: job(client, listed[0]["id"])["segments"], "the first segments")
    assert service.terminate() == 0
    with running(service.state_dir, PORT=service.port) as again:
        waiting.join(120)
        assert outcome[0].returncode == 0, outcome[0].stderr
        assert outcome[0].stdout.strip() == job(again.client(), listed[0]["id"])["text"]


def test_jobs_of_all_keys_are_seen_and_called_off(service: Service, sample: bytes, long_wav: bytes) -> None:
    client = service.client(service.new_key("of-the-cli"))
    done = submit(client, sample)
    ended(client, done)
    shown = json.loads(run(service, "jobs", "show", done).stdout)
    assert (shown["id"], shown["key"], shown["status"], shown["webhooks"]) == (done, "of-the-cli", "done", [])
    assert run(service, "jobs", "export", done).stdout.strip() == shown["text"]
    assert run(service, "jobs", "export", done, "--format", "vtt").stdout.startswith("WEBVTT")
    table = run(service, "jobs", "list", "--status", "done").stdout
    assert done in table
    assert "of-the-cli" in table
    assert done in [one["id"] for one in json.loads(run(service, "jobs", "list", "--json").stdout)]

    going = submit(client, long_wav, "long.wav")
    wait_for(lambda: job(client, going)["segments"], "the first segments")
    assert "no transcript yet" in run(service, "jobs", "export", going).stderr
    assert run(service, "jobs", "cancel", going).returncode == 0
    wait_for(service.idle, "the running service to hear of it", 20)
    assert job(client, going)["status"] == "cancelled"
    wait_for(lambda: not recordings(service), "the recording to be removed")
    unknown = run(service, "jobs", "show", going.replace(going[:8], "00000000"))
    assert unknown.returncode == 1
    assert "there is no job" in unknown.stderr


def test_a_backup_of_a_running_service_goes_on_elsewhere(
    start: Start, tmp_path: Path, long_wav: bytes, service: Service
) -> None:
    expected = ended(service.client(), submit(service.client(), long_wav[: 44 + 2 * 16_000 * 120], "long.wav"))
    origin = start(JOBS_RUNNING=1)
    client = origin.client()
    first = submit(client, long_wav[: 44 + 2 * 16_000 * 120], "long.wav")
    second = submit(client, silence(), "silence.wav")
    wait_for(lambda: job(client, first)["segments"], "the first segments")
    file = tmp_path / "backup.tar"
    made = run(origin, "backup", str(file))
    assert made.returncode == 0, made.stderr
    assert "2 recordings" in made.stderr
    refused = run(origin, "restore", str(file))
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    assert origin.terminate() == 0

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = Service(origin.process, elsewhere / "state", elsewhere / "log", {})
    done = run(moved, "restore", str(file))
    assert done.returncode == 0, done.stderr
    with running(elsewhere / "state") as again:
        there = again.client()
        assert ended(there, first)["text"] == expected["text"]
        assert ended(there, second)["status"] == "done"
