"""Webhooks: signed, repeated until they arrive, and never sent where they must not go."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from .harness import Service, problem, running, wait_for
from .jobs import ended, submit
from .receiver import Received, Receiver, receiver

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def permitted(demo_model: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that may reach loopback over IPv4."""
    with running(
        tmp_path_factory.mktemp("webhooks") / "state", ALLOW_NETWORKS="127.0.0.0/8", IDLE_TIMEOUT_SECS=0
    ) as made:
        yield made


@pytest.fixture(scope="module")
def caller(permitted: Service) -> httpx.Client:
    return permitted.client()


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def jobs_told(hooks: Receiver, path: str) -> list[Received]:
    return [one for one in hooks.at(path) if one.event.startswith("job_")]


def test_the_finished_job_is_posted_and_signed(
    permitted: Service, caller: httpx.Client, hooks: Receiver, sample: bytes
) -> None:
    job_id = submit(caller, sample, webhook_url=f"{hooks.url}/done?token=1")
    done = ended(caller, job_id)
    (told,) = wait_for(lambda: jobs_told(hooks, "/done?token=1"), "the webhook")
    assert told.event == "job_done"
    assert told.headers["Content-Type"] == "application/json"
    assert told.document == done
    assert told.signed_with(permitted.keys("webhook-secret", "configured"))
    assert not told.signed_with("another secret")


def test_each_key_signs_with_its_own_secret(permitted: Service, hooks: Receiver, sample: bytes) -> None:
    client = permitted.client(permitted.new_key("hooked"))
    submit(client, sample, webhook_url=f"{hooks.url}/own")
    (told,) = wait_for(lambda: jobs_told(hooks, "/own"), "the webhook")
    assert told.signed_with(permitted.keys("webhook-secret", "hooked"))
    assert permitted.keys("webhook-secret", "hooked") != permitted.keys("webhook-secret", "configured")


def test_a_failed_job_is_posted_too(caller: httpx.Client, hooks: Receiver) -> None:
    submit(caller, b"neither audio nor video", webhook_url=f"{hooks.url}/failed")
    (told,) = wait_for(lambda: jobs_told(hooks, "/failed"), "the webhook")
    assert (told.event, told.document["error_code"]) == ("job_failed", "unsupported_media")


def test_a_receiver_that_comes_back_gets_it_with_the_seeds_pauses(
    caller: httpx.Client, hooks: Receiver, sample: bytes
) -> None:
    def three_times(_: Received, before: int) -> tuple[int, Mapping[str, str]]:
        return (500, {}) if before < 3 else (200, {})

    hooks.behaviour = three_times
    submit(caller, sample, webhook_url=f"{hooks.url}/back")
    told = wait_for(lambda: len(found := jobs_told(hooks, "/back")) == 4 and found, "four attempts")
    assert len({one.headers["X-Metalscribe-Delivery"] for one in told}) == 1
    assert len({one.body for one in told}) == 1
    pauses = [after.at - before.at for before, after in itertools.pairwise(told)]
    for pause, least in zip(pauses, (1, 2, 4), strict=True):
        assert pause >= least


def test_a_receiver_that_is_gone_for_three_attempts_and_then_back(
    permitted: Service, caller: httpx.Client, sample: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job_id = submit(caller, sample, webhook_url=f"http://127.0.0.1:{port}/gone")

    def failures() -> list[dict[str, Any]]:
        return [
            line
            for line in permitted.log()
            if (line["event"], line.get("job")) == ("webhook failed, tried again", job_id)
        ]

    told_of = wait_for(lambda: len(found := failures()) == 3 and found, "three attempts")
    assert all(line["error"].startswith("ConnectError") for line in told_of)
    with receiver(port) as back:
        (told,) = wait_for(lambda: jobs_told(back, "/gone"), "the webhook")
        assert told.document["id"] == job_id
        until_shown(permitted, job_id, "delivered")


def test_a_slow_receiver_holds_up_nobody_else(caller: httpx.Client, hooks: Receiver, sample: bytes) -> None:
    def slowly(one: Received, _: int) -> tuple[int, Mapping[str, str]]:
        time.sleep(3 if one.path == "/slow" else 0)
        return 200, {}

    hooks.behaviour = slowly
    with receiver() as prompt:  # on another port, so another receiver
        for _ in range(4):
            submit(caller, sample, webhook_url=f"{hooks.url}/slow")
        last = submit(caller, sample, webhook_url=f"{prompt.url}/prompt")
        ended(caller, last)
        begin = time.monotonic()
        wait_for(lambda: jobs_told(prompt, "/prompt"), "the other's webhook")
        assert time.monotonic() - begin < 3
        told = wait_for(lambda: len(found := jobs_told(hooks, "/slow")) == 4 and found, "the slow one's webhooks")
    assert max(one.at for one in told) - min(one.at for one in told) > 2.5, "two at a time"


def test_one_that_redirects_or_refuses_is_given_up_and_sent_again_by_order(
    permitted: Service, caller: httpx.Client, hooks: Receiver, sample: bytes
) -> None:
    elsewhere = f"{hooks.url}/elsewhere"
    hooks.behaviour = lambda _, __: (307, {"Location": elsewhere})
    job_id = submit(caller, sample, webhook_url=f"{hooks.url}/moved")
    wait_for(lambda: len(hooks.at("/moved")) == 6, "the last attempt", 120)
    shown = until_shown(permitted, job_id, "failed")
    assert (shown["webhooks"][0]["attempts"], shown["webhooks"][0]["error"]) == (6, "answered with status 307")
    assert len(hooks.at("/moved")) == 6
    assert not hooks.at("/elsewhere"), "redirects are not followed"
    hooks.behaviour = lambda _, __: (204, {})
    command(permitted, "redeliver", job_id)
    wait_for(lambda: len(hooks.at("/moved")) == 7, "the seventh attempt")
    until_shown(permitted, job_id, "delivered")


def test_no_webhook_goes_into_the_services_own_network(service: Service, client: httpx.Client, sample: bytes) -> None:
    with receiver() as hooks:
        job_id = submit(client, sample, webhook_url=f"{hooks.url}/private")
        ended(client, job_id)
        failed = wait_for(lambda: any(one["error"] for one in show(service, job_id)["webhooks"]), "the attempt")
        assert failed
        assert "loopback" in show(service, job_id)["webhooks"][0]["error"]
        assert not hooks.received
    problem(
        client.post("/jobs", files={"audio": ("a.flac", sample)}, data={"webhook_url": "http://u:p@a.example/"}), 400
    )


def test_models_are_told_of_to_whoever_got_a_webhook(
    permitted: Service, caller: httpx.Client, hooks: Receiver, sample: bytes
) -> None:
    submit(caller, sample, webhook_url=f"{hooks.url}/models")
    wait_for(lambda: jobs_told(hooks, "/models"), "the job's webhook")
    assert caller.post("/model/unload").status_code == 200
    assert caller.post("/model/load").status_code == 202
    wait_for(
        lambda: [one.event for one in hooks.at("/models")][-2:] == ["model_unloaded", "model_ready"], "both events"
    )
    (unloaded,) = [one for one in hooks.at("/models") if one.event == "model_unloaded"]
    assert unloaded.document["model"] == "demo"
    assert unloaded.signed_with(permitted.keys("webhook-secret", "configured"))


def command(service: Service, *arguments: str) -> str:
    return service.command("jobs", *arguments)


def show(service: Service, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(command(service, "show", job_id))
    return document


def until_shown(service: Service, job_id: str, status: str) -> dict[str, Any]:
    """What ``metalscribe jobs show`` says of a job, once its webhook has come so far."""

    def look() -> dict[str, Any] | None:
        found = show(service, job_id)
        return found if found["webhooks"][0]["status"] == status else None

    document: dict[str, Any] = wait_for(look, f"the webhook to be {status}")
    return document
