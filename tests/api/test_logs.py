"""What the log tells, and what neither it nor any process gives away."""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import KEY, Start, problem, send, silence, wait_for, words

pytestmark = pytest.mark.model


def test_one_line_a_request_with_what_matters(start: Start, sample: bytes) -> None:
    service = start()
    named = service.new_key("newsroom")
    answer = send(service.client(named), sample, headers={"X-Request-ID": "the-first"})
    (line,) = service.requests_logged("the-first")
    assert line["key"] == "newsroom"
    assert line["method"] == "POST"
    assert line["path"] == "/transcribe"
    assert line["status"] == 200
    assert line["client"] == "127.0.0.1"
    assert line["audio_seconds"] == pytest.approx(14.684, abs=0.05)
    assert 0 <= line["queue_seconds"] < line["seconds"]
    assert 0 < line["engine_seconds"] < line["seconds"] * 4
    assert line["real_time_factor"] > 0
    assert line["timestamp"].endswith("Z")
    assert answer.headers["x-request-id"] == "the-first"

    problem(send(service.client(named), b"no sound", headers={"X-Request-ID": "the-second"}), 415)
    (line,) = service.requests_logged("the-second")
    assert (line["status"], line["key"], line["problem"]) == (415, "newsroom", "unsupported_media")
    problem(send(service.client("wrong-key-of-somebody"), sample, headers={"X-Request-ID": "the-third"}), 401)
    (line,) = service.requests_logged("the-third")
    assert line["status"] == 401
    assert "key" not in line


def test_background_work_does_not_carry_a_request_id(start: Start) -> None:
    """The model outlives the request that loaded it."""
    service = start(IDLE_TIMEOUT_SECS=1)
    send(service.client(), silence(), headers={"X-Request-ID": "the-loader"})
    line = wait_for(lambda: [line for line in service.log() if line["event"] == "model unloaded"], "the unloading")[0]
    assert "request_id" not in line


def test_every_line_is_json(start: Start, sample: bytes) -> None:
    service = start()
    send(service.client(), sample)
    service.client().get("/nowhere")
    service.process.terminate()
    service.process.wait(30)
    lines = service.log_path.read_text().splitlines()
    assert len(service.log()) == len(lines) > 3
    assert all({"event", "level", "timestamp"} <= set(line) for line in service.log())


@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_secret_and_no_speech_in_the_log(start: Start, sample: bytes, level: str) -> None:
    service = start(LOG_LEVEL=level)
    secret = service.new_key("secretive")
    for key in (KEY, secret, "a-wrong-key-in-the-header"):
        client = service.client(key)
        send(client, sample, "private-name.flac", data={"prompt": "confidential-prompt"})
        send(client, sample, params={"format": "srt", "hotwords": "confidential-hotword"})
        client.post("/transcribe/url", json={"url": "http://127.0.0.1/x?signature=confidential-signature"})
        client.get(f"/health?key={key}")
        client.get("/health", headers={"Authorization": f"Bearer {key}"})
    logged = service.log_path.read_text()
    for hidden in (KEY, secret, "a-wrong-key-in-the-header", "confidential", "private-name"):
        assert hidden not in logged
    if level == "info":
        assert not {"computer", "weather", "o'clock"} & set(words(logged))


def test_no_secret_in_the_processes(start: Start, sample: bytes) -> None:
    service = start(DATABASE_URL=None)
    assert send(service.client(), sample).status_code == 200
    children = service.children()
    assert len(children) >= 2
    for child in children:
        seen = Path(f"/proc/{child.pid}/environ").read_bytes() + Path(f"/proc/{child.pid}/cmdline").read_bytes()
        assert KEY.encode() not in seen
        assert b"METALSCRIBE_" not in seen
        descriptors = [str(path.readlink()) for path in Path(f"/proc/{child.pid}/fd").iterdir()]
        assert not [target for target in descriptors if "metalscribe.db" in target]
    assert KEY not in " ".join(Path(f"/proc/{service.process.pid}/cmdline").read_text().split("\0"))


def test_no_secret_on_the_disk(start: Start) -> None:
    service = start()
    secret = service.new_key("secretive")
    send(service.client(secret), silence(), headers={"Idempotency-Key": "once"})
    for path in service.state_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret.encode() not in content
            assert KEY.encode() not in content
