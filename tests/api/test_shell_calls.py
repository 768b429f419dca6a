"""What people have in their scripts: curl and jq, as the services say it that metalscribe takes the place of.

The calls are written as there, address and all; a ``.curlrc`` has the key and says where localhost:8080 is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import KEY, SAMPLE, Service, Start, running, says, wait_for
from .receiver import Receiver, receiver

pytestmark = [
    pytest.mark.model,
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed: apt install {tool}")
        for tool in ("curl", "jq")
    ),
]

FACTS = {
    "id",
    "status",
    "language",
    "task",
    "duration_secs",
    "progress",
    "segments",
    "error",
    "created_at",
    "completed_at",
}

Shell = Callable[[str], str]


def shell_at(service: Service, home: Path) -> Shell:
    """A shell whose curl has the key and finds the service at localhost:8080."""
    (home / "speech.flac").write_bytes(SAMPLE.read_bytes())
    (home / ".curlrc").write_text(
        f'header = "X-API-Key: {KEY}"\nconnect-to = "localhost:8080:127.0.0.1:{service.port}"\nsilent\nshow-error\nnoproxy = "*"\n'
    )

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def hooked(demo_model: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("shell") / "state", ALLOW_NETWORKS="127.0.0.0/8", IDLE_TIMEOUT_SECS=0) as made:
        yield made


@pytest.fixture
def shell(hooked: Service, tmp_path: Path) -> Shell:
    return shell_at(hooked, tmp_path)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def submitted(shell: Shell, options: str = "") -> str:
    """A job by the seed's call; its id."""
    answer = json.loads(
        shell(f'curl -X POST http://localhost:8080/jobs \\\n  -F "audio=@speech.flac" {options} | jq .')
    )
    assert set(answer) == {"job_id"}
    return str(answer["job_id"])


def polled(shell: Shell, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = json.loads(shell(f"curl http://localhost:8080/jobs/{job_id} | jq ."))
        return job if job["status"] not in {"queued", "running"} else None

    found: dict[str, Any] = wait_for(look, f"job {job_id}")
    return found


def test_submit_and_poll(shell: Shell, sample_text: str) -> None:
    job = polled(shell, submitted(shell))
    assert set(job) >= FACTS
    assert (job["status"], job["progress"], job["error"], job["task"]) == ("done", 100, None, "transcribe")
    assert set(job["segments"][0]) >= {"index", "start", "end", "text", "words"}
    assert says("".join(segment["text"] for segment in job["segments"]), sample_text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job["created_at"])


def test_submit_with_every_field(shell: Shell, hooks: Receiver) -> None:
    job_id = submitted(shell, f'-F language=en -F task=transcribe -F "webhook_url={hooks.url}/done"')
    job = polled(shell, job_id)
    assert (job["status"], job["language"], job["task"]) == ("done", "en", "transcribe")
    (told,) = wait_for(lambda: [hook for hook in hooks.at("/done") if hook.event == "job_done"], "the webhook")
    assert told.document == job


def test_stream(shell: Shell) -> None:
    job_id = submitted(shell)
    text = shell(f"curl -N http://localhost:8080/jobs/{job_id}/stream")
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    assert [block["event"] for block in blocks][-1] == "done"
    for block in blocks:
        data = json.loads(block["data"])
        assert data["type"] == block["event"]
        if block["event"] == "progress":
            assert 0 <= data["percent"] <= 100
    assert json.loads(blocks[-1]["data"])["job"]["id"] == job_id
    lines = shell(f"curl -N http://localhost:8080/jobs/{job_id}/stream | sed -n 's/^data: //p' | jq -r .type").split()
    assert lines[-1] == "done"


def test_delete(shell: Shell) -> None:
    job_id = submitted(shell)
    status = f"curl -o /dev/null -w '%{{http_code}}' -X DELETE http://localhost:8080/jobs/{job_id}"
    assert shell(status) == "204"
    assert polled_or_gone(shell, job_id) in {"cancelled", "404"}


def polled_or_gone(shell: Shell, job_id: str) -> str:
    answer = json.loads(shell(f"curl http://localhost:8080/jobs/{job_id}"))
    return str(answer["status"])


def test_health_docs_and_the_specification(shell: Shell) -> None:
    health = json.loads(shell("curl http://localhost:8080/health"))
    assert health["status"] == "healthy"
    assert health["model_state"] in {"unloaded", "loading", "ready"}
    assert set(health["jobs"]) == {"queued", "running"}
    assert "swagger" in shell("curl http://localhost:8080/docs").lower()
    paths = json.loads(shell("curl http://localhost:8080/openapi.json"))["paths"]
    assert {"/jobs", "/jobs/{job_id}", "/jobs/{job_id}/stream", "/model/load", "/model/events"} <= set(paths)


def test_the_models_life(shell: Shell, hooks: Receiver) -> None:
    polled(shell, submitted(shell, f'-F "webhook_url={hooks.url}/life"'))
    wait_for(lambda: hooks.at("/life"), "the job's webhook")
    assert json.loads(shell("curl http://localhost:8080/model/status"))["state"] == "ready"
    shell("curl -X POST http://localhost:8080/model/unload")
    assert json.loads(shell("curl http://localhost:8080/model/status"))["state"] == "unloaded"
    code = "curl -o /dev/null -w '%{http_code}' -X POST http://localhost:8080/model/load"
    assert (shell(code), shell(code)) == ("202", "202")
    wait_for(lambda: json.loads(shell("curl http://localhost:8080/model/status"))["state"] == "ready", "the model")
    heard = shell("timeout 2 curl -N http://localhost:8080/model/events || test $? = 124")
    assert "model_ready" in heard
    wait_for(
        lambda: [hook.event for hook in hooks.at("/life")][-2:] == ["model_unloaded", "model_ready"],
        "the models' webhooks",
    )


def test_a_job_while_the_model_is_unloaded(start: Start, tmp_path: Path, sample_text: str) -> None:
    """503 with Retry-After has it loaded; the caller comes again."""
    service = start(WHEN_UNLOADED="reject")
    shell = shell_at(service, tmp_path)
    first = shell('curl -D - -o /dev/null -X POST http://localhost:8080/jobs -F "audio=@speech.flac"')
    assert " 503 " in first.splitlines()[0]
    assert int(re.search(r"(?im)^retry-after: (\d+)", first)[1]) > 0  # type: ignore[index]
    wait_for(lambda: json.loads(shell("curl http://localhost:8080/model/status"))["state"] == "ready", "the model")
    assert says("".join(one["text"] for one in polled(shell, submitted(shell))["segments"]), sample_text)
