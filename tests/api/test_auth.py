"""Who may: API keys in every header, scopes, rates, and what takes effect without a restart."""

from __future__ import annotations

import base64

import httpx
import pytest

from .harness import KEY, Service, Start, problem, send, silence, wait_for

pytestmark = pytest.mark.model

QUIET = silence()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def cheap(service: Service, key: str) -> httpx.Response:
    """A request that is refused for its parameters; it counts like any other."""
    return service.client(key).post("/transcribe?format=none")


def post(service: Service, headers: dict[str, str], query: str = "") -> httpx.Response:
    return service.client(None).post(f"/transcribe{query}", files={"file": ("a.wav", QUIET)}, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"Authorization": basic("anyone", KEY)},
        {"Authorization": basic("", KEY)},
        {"Authorization": basic(KEY, "")},
    ],
)
def test_a_key_is_taken_from(service: Service, headers: dict[str, str]) -> None:
    assert post(service, headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": "x" * 7000},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Token {KEY}"},
        {"Authorization": KEY},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic /////w=="},
        {"Authorization": basic(KEY, "wrong")},
        {"Authorization": f"Bearer {KEY}", "X-API-Key": "wrong"},
    ],
)
def test_no_key_or_a_wrong_one_is_401(service: Service, headers: dict[str, str]) -> None:
    answer = post(service, headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("name", ["key", "api_key", "X-API-Key", "token", "access_token"])
def test_a_key_in_the_query_opens_nothing(service: Service, name: str) -> None:
    problem(post(service, {}, f"?{name}={KEY}"), 401)


def test_keys_change_without_a_restart(start: Start) -> None:
    service = start()
    first = service.new_key("first")
    second = service.new_key("second")
    brief = service.new_key("brief", "--expires", "3s")
    for key in (first, second, brief, KEY):
        assert post(service, {"X-API-Key": key}).status_code == 200
    service.keys("revoke", "first")
    problem(post(service, {"X-API-Key": first}), 401)
    assert post(service, {"X-API-Key": second}).status_code == 200
    rotated = service.keys("rotate", "second").split()[0]
    problem(post(service, {"X-API-Key": second}), 401)
    assert post(service, {"X-API-Key": rotated}).status_code == 200
    wait_for(lambda: post(service, {"X-API-Key": brief}).status_code == 401, "the brief key to expire", 10)


def test_a_key_without_the_scope_is_403(start: Start) -> None:
    service = start()
    metrics = service.new_key("metrics-only", "--scope", "metrics")
    document = problem(post(service, {"X-API-Key": metrics}), 403, "forbidden")
    assert "transcribe" in document["detail"]
    answer = service.client(metrics).post("/transcribe/url", json={"url": "http://127.0.0.1/"})
    problem(answer, 403, "forbidden")


def test_the_thirty_first_request_of_a_minute_is_429(start: Start) -> None:
    service = start(RATE_LIMIT="30/minute")
    generous = service.new_key("generous", "--rate-limit", "33/minute")
    answers = [post(service, {"X-API-Key": KEY}), *(cheap(service, KEY) for _ in range(30))]
    assert [answer.status_code for answer in answers] == [200] + [400] * 29 + [429]
    assert answers[0].headers["x-ratelimit-limit"] == "30"
    assert [int(answer.headers["x-ratelimit-remaining"]) for answer in answers] == [*range(29, -1, -1), 0]
    assert "retry-after" not in answers[0].headers
    refused = answers[-1]
    problem(refused, 429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert all(answer.headers["x-ratelimit-reset"].isdigit() for answer in answers)
    problem(service.client().post("/transcribe/url", json={"url": "http://127.0.0.1/"}), 429)
    assert [cheap(service, generous).status_code for _ in range(34)] == [400] * 33 + [429]
    assert service.client().get("/health").status_code == 200


def test_failures_count_too(start: Start) -> None:
    service = start(RATE_LIMIT="3/minute")
    answers = [send(service.client(), b"no sound") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [415, 415, 415, 429]
    assert answers[0].headers["x-ratelimit-remaining"] == "2"


def test_guessing_is_limited_by_address_and_harms_nobody_else(start: Start) -> None:
    service = start(RATE_LIMIT="5/minute")
    for _ in range(5):
        problem(post(service, {"X-API-Key": "guess"}), 401)
    refused = post(service, {"X-API-Key": "guess"})
    problem(refused, 429, "rate_limited")
    assert int(refused.headers["retry-after"]) >= 1
    problem(post(service, {}), 429)
    problem(service.client("guess").get("/health"), 429)
    assert post(service, {"X-API-Key": KEY}).status_code == 200
    # Behind a proxy that is trusted (loopback is by default) it is the address behind it that counts.
    problem(post(service, {"X-API-Key": "guess", "X-Forwarded-For": "192.0.2.1"}), 401)


def test_forwarded_addresses_are_believed_from_trusted_proxies_only(start: Start) -> None:
    service = start(RATE_LIMIT="5/minute", TRUSTED_PROXIES="192.0.2.7")
    for number in range(5):
        problem(post(service, {"X-API-Key": "guess", "X-Forwarded-For": f"198.51.100.{number}"}), 401)
    problem(post(service, {"X-API-Key": "guess", "X-Forwarded-For": "198.51.100.99"}), 429)
    assert {line["client"] for line in service.log() if line.get("event") == "request"} == {"127.0.0.1"}


def test_the_proxy_names_the_last_stranger(start: Start) -> None:
    """What the caller himself wrote into X-Forwarded-For, before the proxy added his address, changes nothing."""
    service = start(RATE_LIMIT="5/minute")
    for number in range(5):
        problem(post(service, {"X-API-Key": "guess", "X-Forwarded-For": f"10.1.1.{number}, 203.0.113.5"}), 401)
    problem(post(service, {"X-API-Key": "guess", "X-Forwarded-For": "10.9.9.9, 203.0.113.5"}), 429)
