"""``stream=true`` and ``debug=true`` of the native dialect, and what ``/metrics`` tells of it."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from .harness import Service, problem, says, send, wait_for

pytestmark = pytest.mark.model


def events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """The events of an answer, comments left out."""
    found = []
    for block in answer.text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_a_stream_builds_up_to_the_transcript(client: httpx.Client, long_wav: bytes) -> None:
    minute = long_wav[: 44 + 2 * 16_000 * 60]
    answer = send(client, minute, "minute.wav", data={"stream": "true", "include_segments": "true"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    told = events(answer)
    kinds = [kind for kind, _ in told]
    assert all(data["type"] == kind for kind, data in told)
    assert kinds.count("language") == 1
    assert kinds[-1] == "done"
    assert kinds.index("segment") < len(kinds) - 4, "segments come before the end"
    percents = [data["percent"] for kind, data in told if kind == "progress"]
    assert percents == sorted(percents)
    transcript = told[-1][1]["transcript"]
    segments = [
        {name: value for name, value in data.items() if name != "type"} for kind, data in told if kind == "segment"
    ]
    assert segments == transcript["segments"]
    assert "".join(segment["text"] for segment in segments).strip() == transcript["text"]


def test_what_is_wrong_at_once_is_an_ordinary_error(client: httpx.Client) -> None:
    problem(send(client, b"neither audio nor video", data={"stream": "true"}), 415)
    problem(send(client, b"", data={"stream": "true", "format": "srt"}), 400)
    problem(send(client, b"x", data={"stream": "true"}, headers={"Idempotency-Key": "k"}), 400)


def test_who_leaves_a_stream_cancels_the_work(service: Service, client: httpx.Client, long_wav: bytes) -> None:
    files = {"file": ("long.wav", long_wav)}
    with client.stream("POST", "/transcribe", files=files, data={"stream": "true"}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("event: segment"):
                break
    wait_for(service.idle, "the queue to empty")
    wait_for(service.uploads_are_gone, "the recording to be removed")


def test_debug_tells_what_was_decided(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    document = send(client, sample, data={"debug": "true"}).json()
    assert says(document["text"], sample_text)
    decisions = document["debug"]["decisions"]
    assert document["debug"]["statistics"]["chunks"] >= 1
    assert decisions[-1]["verdict"] == "plausible"
    assert 0 < decisions[0]["context"] <= 30
    assert decisions[0]["voiced"] > 5
    assert "debug" not in send(client, sample).json()


def test_metrics_count_what_was_done(service: Service, client: httpx.Client, sample: bytes) -> None:
    def seconds() -> float:
        return sum(
            one.value
            for family in prometheus(client.get("/metrics").text)
            for one in family.samples
            if one.name == "metalscribe_audio_seconds_total"
        )

    before = seconds()
    send(client, sample)
    assert seconds() == pytest.approx(before + 14.684, abs=0.1)
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert {"metalscribe_queue_wait_seconds", "metalscribe_gate_verdicts", "metalscribe_model_state"} <= set(families)
    ready = [
        one for one in families["metalscribe_model_state"].samples if one.labels["metalscribe_model_state"] == "ready"
    ]
    assert [one.value for one in ready] == [1.0]
    problem(service.client(None).get("/metrics"), 401)
    problem(service.client(service.new_key("reader", "--scope", "transcribe")).get("/metrics"), 403)


def test_streams_do_not_hold_up_others(client: httpx.Client, service: Service, long_wav: bytes, sample: bytes) -> None:
    begun, done = threading.Event(), threading.Event()

    def listen() -> None:
        files = {"file": ("long.wav", long_wav)}
        with service.client().stream("POST", "/transcribe", files=files, data={"stream": "true"}) as answer:
            for _ in answer.iter_lines():
                begun.set()
                if done.is_set():
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(60)
    assert send(client, sample).status_code == 200
    assert listener.is_alive(), "twenty minutes are not done yet"
    done.set()
    listener.join(60)
    assert not listener.is_alive()
    wait_for(service.idle, "the queue to empty")
