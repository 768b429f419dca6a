"""Idempotency-Key: one transcription and one answer, however often and from however many it is asked for."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .harness import Caller, Service, Start, problem, send, silence, wait_for

pytestmark = pytest.mark.model


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def test_the_second_time_it_is_the_first_answer(client: httpx.Client, sample: bytes) -> None:
    headers = key()
    first = send(client, sample, headers=headers)
    second = send(client, sample, headers=headers)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert second.headers["content-length"] == str(len(second.content))


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "tsv"])
def test_other_formats_too(client: httpx.Client, sample: bytes, form: str) -> None:
    headers = key()
    first, second = (send(client, sample, headers=headers, params={"format": form}) for _ in range(2))
    assert (first.content, first.headers["content-type"]) == (second.content, second.headers["content-type"])
    assert second.headers["idempotent-replayed"] == "true"


def test_it_outlives_a_restart(start: Start, sample: bytes) -> None:
    headers = key()
    service = start()
    first = send(service.client(), sample, headers=headers)
    assert service.terminate() == 0
    again = send(start().client(), sample, headers=headers)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"


def test_another_recording_or_option_is_422(client: httpx.Client) -> None:
    headers = key()
    assert send(client, silence(), headers=headers).status_code == 200
    problem(send(client, silence(0.7), headers=headers), 422, "idempotency_mismatch")
    problem(send(client, silence(), headers=headers, params={"format": "srt"}), 422, "idempotency_mismatch")
    assert send(client, silence(), "other-name.wav", headers=headers).headers["idempotent-replayed"] == "true"


def test_another_caller_has_keys_of_his_own(start: Start) -> None:
    service = start()
    other = service.client(service.new_key("other"))
    headers = key()
    first = send(service.client(), silence(), headers=headers)
    theirs = send(other, silence(), headers=headers)
    assert "idempotent-replayed" not in theirs.headers
    assert theirs.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("value", ["", "x" * 256])
def test_a_malformed_key_is_refused(client: httpx.Client, value: str) -> None:
    document = problem(send(client, silence(), headers={"Idempotency-Key": value}), 400, "invalid_parameter")
    assert document["parameter"] == "Idempotency-Key"


def test_refusals_are_repeated_with_the_request_id_of_the_repetition(client: httpx.Client) -> None:
    headers = key()
    first = problem(send(client, b"no sound at all", headers=headers), 415)
    second = send(client, b"no sound at all", headers=headers)
    assert "idempotent-replayed" not in second.headers  # it is judged again, at no cost
    assert problem(second, 415)["detail"] == first["detail"]


def test_asked_for_at_the_same_time_it_is_done_once(service: Service, sample: bytes) -> None:
    headers = key()
    clients = [service.client() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda client: send(client, sample, headers=headers), clients))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 6


def test_another_recording_while_the_first_runs_is_422(service: Service, long_wav: bytes) -> None:
    headers = key()
    first = Caller(service, long_wav, headers)
    wait_for(lambda: service.queue()["requests"] == 1, "the first to run")
    problem(send(service.client(), silence(), headers=headers), 422, "idempotency_mismatch")
    first.leave()
    wait_for(service.idle, "the work to stop")


def test_the_first_caller_may_leave_while_another_waits(start: Start, sample: bytes, long_wav: bytes) -> None:
    """Even though what is transcribed is the upload of the one who left, and has perhaps not been opened yet."""
    service = start(BATCH_SIZE=1)
    headers = key()
    piece = long_wav[: 44 + 32_000 * 60]
    first = Caller(service, piece, headers)
    wait_for(lambda: service.queue()["requests"] == 1, "the first to run")
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(send, service.client(), piece, "a.wav", headers=headers)
        wait_for(lambda: len(service.recordings()) == 2, "the second upload")
        first.leave()
        answer = second.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["duration"] == pytest.approx(60, abs=0.1)
    assert service.idle()


def test_coming_back_while_the_abandoned_work_is_being_stopped(service: Service, long_wav: bytes) -> None:
    """The retry of a client that lost its connection must never be told of a cancellation that was not its own."""
    for _ in range(3):
        headers = key()
        piece = long_wav[: 44 + 32_000 * 30]
        first = Caller(service, piece, headers)
        wait_for(lambda: service.queue()["requests"] >= 1, "the first to run")
        first.leave()
        answer = send(service.client(), piece, "a.wav", headers=headers)
        assert answer.status_code == 200, answer.text


def test_what_may_pass_next_time_is_not_kept(start: Start) -> None:
    service = start(WHEN_UNLOADED="reject")
    headers = key()
    refused = send(service.client(), silence(), headers=headers)
    problem(refused, 503, "model_unavailable")
    wait_for(lambda: service.health()["model_state"] == "ready", "the model to load")
    answer = send(service.client(), silence(), headers=headers)
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers
