"""Errors of HTTP itself: shapes, ids, and bytes that are no request."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from .harness import KEY, Service, Start, problem, send, silence, wait_for

pytestmark = pytest.mark.model


@contextmanager
def connected(service: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_unknown_path(client: httpx.Client) -> None:
    assert problem(client.get("/nowhere"), 404, "not_found")["instance"] == "/nowhere"


def test_wrong_method(client: httpx.Client) -> None:
    answer = client.get("/transcribe")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_a_slash_too_many_leads_nowhere_else(client: httpx.Client) -> None:
    """A redirect would repeat the upload, and its target would be whatever Host header came along."""
    answer = client.post("/transcribe/", headers={"Host": "elsewhere.example"}, follow_redirects=False)
    assert "location" not in answer.headers
    problem(answer, 404)


@pytest.mark.parametrize("sent", ["abc-1", "A.b:c_d-9", "x" * 128])
def test_a_harmless_request_id_is_echoed(client: httpx.Client, sent: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": sent}).headers["x-request-id"] == sent
    assert problem(client.get("/nowhere", headers={"X-Request-ID": sent}), 404)["request_id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, '"><script>', "a\tb", "é".encode().decode("latin-1")])
def test_any_other_request_id_is_replaced(client: httpx.Client, sent: str) -> None:
    made = client.get("/healthz", headers={b"X-Request-ID": sent.encode("latin-1")}).headers["x-request-id"]
    assert made != sent
    assert len(made) == 32


def test_every_request_has_an_id_of_its_own(client: httpx.Client) -> None:
    assert len({client.get("/healthz").headers["x-request-id"] for _ in range(20)}) == 20


def test_harmless_headers_on_every_answer(client: httpx.Client) -> None:
    for answer in (client.get("/healthz"), client.get("/nowhere"), send(client, silence())):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_an_unexpected_error_is_a_problem_with_its_id_and_gives_nothing_away(start: Start) -> None:
    """Provoked by putting a file in the place of the directory for uploads, which nothing sane does."""
    service = start()
    uploads = service.uploads
    shutil.rmtree(uploads)
    uploads.write_text("")
    answer = send(service.client(), silence(), headers={"X-Request-ID": "the-broken-one"})
    assert answer.status_code in {500, 507}
    assert answer.headers["x-request-id"] == "the-broken-one"
    problem(answer, answer.status_code)
    assert str(service.state_dir) not in answer.text
    (line,) = service.requests_logged("the-broken-one")
    assert line["status"] == answer.status_code
    logged = service.log_path.read_text()
    assert KEY not in logged
    assert len(logged) < 100_000  # the trace is there, the values of variables are not
    uploads.unlink()
    assert send(service.client(), silence()).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\n",
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_refused_and_hung_up_on(service: Service, sent: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(sent)
        received = read_to_end(connection)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    assert service.client().get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["[", "a b", "", "x" * 3000, "a:99999"])
def test_a_strange_host_header_does_no_harm(service: Service, host: str) -> None:
    with connected(service) as connection:
        connection.sendall(f"GET /nowhere HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert read_to_end(connection).startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("part", ["many headers", "one long header", "a long target"])
def test_a_request_head_has_a_bound(start: Start, part: str) -> None:
    """Before any key is looked at, nobody may make the service keep (or scan, again and again) megabytes."""
    service = start()
    piece = {
        "many headers": b"".join(b"X-%d: %b\r\n" % (number, b"a" * 1000) for number in range(60)),
        "one long header": b"a" * 65536,
        "a long target": b"a" * 65536,
    }[part]
    opening = {
        "many headers": b"GET /healthz HTTP/1.1\r\nHost: a\r\n",
        "one long header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: ",
        "a long target": b"GET /",
    }[part]
    sent = 0
    with connected(service) as connection:
        try:
            connection.sendall(opening)
            while sent < 64 * 2**20:
                connection.sendall(piece)
                sent += len(piece)
        except (ConnectionError, TimeoutError):
            pass
    # What the kernels' socket buffers hold comes on top of what the service reads.
    assert sent < 16 * 2**20
    assert service.client().get("/healthz").status_code == 200


def test_expect_100_continue_is_answered_before_the_upload(service: Service) -> None:
    head = (
        "POST /transcribe HTTP/1.1\r\nHost: a\r\n{}Content-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: {}\r\nExpect: 100-continue\r\n\r\n"
    )
    with connected(service) as connection:
        connection.sendall(head.format(f"X-API-Key: {KEY}\r\n", 1000).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    for key, length, status in (("", 1000, 401), (f"X-API-Key: {KEY}\r\n", 10**13, 413)):
        with connected(service) as connection:
            connection.sendall(head.format(key, length).encode())
            assert connection.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())
    wait_for(service.uploads_are_gone, "the uploads' directory to be empty")


@pytest.mark.parametrize(
    ("method", "target", "status"), [("POST", "/transcribe", 401), ("POST", "/nowhere", 404), ("GET", "/healthz", 200)]
)
def test_a_body_nobody_wants_is_not_swallowed_without_end(
    service: Service, method: str, target: str, status: int
) -> None:
    with connected(service) as connection:
        connection.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 256 * 2**20:
                connection.sendall(chunk)
                sent += 65536
        except ConnectionError:
            pass
        try:
            received = connection.recv(1000)
        except ConnectionError:
            received = b""
    assert not received or received.startswith(f"HTTP/1.1 {status} ".encode())
    assert sent < 32 * 2**20
