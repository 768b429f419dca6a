"""What a client meets: the rendered site in a real nginx. Skipped, visibly, where nginx is not installed."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from edge_nginx import NAME, SITE, Edge, running
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from metalscribe_provision.edge.site import configuration_id, render_site

_PROBLEM = {"type", "title", "status", "detail", "instance", "request_id"}
_MIB = 1024 * 1024


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    webroot = tmp_path_factory.mktemp("webroot")
    with running(acme_webroot=str(webroot), metrics_allow=("127.0.0.1",)) as live:
        yield live


@pytest.fixture
def client(edge: Edge) -> Iterator[httpx.Client]:
    with edge.client() as client:
        yield client


def test_the_client_address_is_passed_on_once_whatever_the_client_claims(edge: Edge) -> None:
    forged = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7", "X-Forwarded-Proto": "http"}
    with edge.client("127.0.0.5") as client:
        told = client.get("/echo", headers=forged).json()
    assert (told["client"], told["scheme"]) == ("127.0.0.5", "https")
    names = [name for name, _ in told["headers"]]
    headers = dict(told["headers"])
    assert names.count("x-forwarded-for") == 1
    assert headers["x-forwarded-for"] == "127.0.0.5"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["host"] == f"{NAME}:{edge.site.https_port}"
    assert "forwarded" not in headers


@pytest.mark.parametrize(
    ("claimed", "kept"), [("job-1.of:3_a", True), ("a b", False), ('x"y', False), ("a" * 129, False), (None, False)]
)
def test_a_harmless_request_id_reaches_service_and_log(edge: Edge, claimed: str | None, kept: bool) -> None:
    with edge.client() as client:
        told = client.get("/echo", headers={"X-Request-ID": claimed} if claimed else {}).json()
    passed = dict(told["headers"])["x-request-id"]
    assert passed == claimed if kept else re.fullmatch("[0-9a-f]{32}", passed)
    assert edge.log_lines(passed)["status"] == 200


def test_the_log_has_neither_query_nor_key(edge: Edge) -> None:
    with edge.client() as client:
        client.get(
            "/transcribe/x?prompt=confidential",
            headers={"X-Request-ID": "logged", "Authorization": "Bearer sesame", "User-Agent": 'a "b" \\c'},
        )
    line = edge.log_lines("logged")
    assert line["path"] == "/transcribe/x"
    assert (line["client"], line["method"], line["host"], line["tls"]) == ("127.0.0.1", "GET", NAME, "TLSv1.3")
    assert line["agent"] == 'a "b" \\c'
    assert "confidential" not in json.dumps(line)
    assert "sesame" not in json.dumps(line)


def test_an_upload_reaches_the_service_while_it_arrives(edge: Edge) -> None:
    edge.service.arrived.clear()
    with edge.tls() as connection:
        connection.sendall(_head("POST", "/transcribe", "Content-Length: 2000") + b"x" * 1000)
        assert edge.service.arrived.wait(20), "the first half was held back"
        connection.sendall(b"x" * 1000)
        assert _response(connection)[1].endswith(b"2000")


def test_the_service_refuses_what_is_too_large_for_it(client: httpx.Client) -> None:
    response = client.post("/too-large", content=b"x" * (8 * _MIB))
    assert (response.status_code, response.json()["title"]) == (413, "the service says so")


def test_nginx_refuses_what_is_far_too_large(edge: Edge, client: httpx.Client) -> None:
    with edge.tls() as connection:
        connection.sendall(_head("POST", "/transcribe", f"Content-Length: {18 * _MIB}"))
        head, body = _response(connection)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["detail"] == "an upload may have at most 1 MiB"

    def pieces() -> Iterator[bytes]:
        for _ in range(18):
            yield b"x" * _MIB

    with contextlib.suppress(httpx.WriteError):  # the connection is closed in the middle of the body, after the answer
        response = client.post("/transcribe", content=pieces())
        _expect_problem(response, 413, "too_large")


def test_a_jobs_recording_may_be_of_any_size(edge: Edge, client: httpx.Client) -> None:
    edge.service.arrived.clear()
    with edge.tls() as connection:
        connection.sendall(_head("POST", "/jobs", f"Content-Length: {2**40}") + b"x" * 1000)
        assert edge.service.arrived.wait(20), "the first piece was held back"
    assert client.post("/jobs", content=b"x" * (18 * _MIB)).text == str(18 * _MIB)
    with edge.tls() as connection:
        connection.sendall(_head("POST", "/jobs/1", f"Content-Length: {18 * _MIB}"))
        assert _response(connection)[0].startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["/jobs/1/stream", "/model/events"])
def test_events_pass_as_they_come(edge: Edge, client: httpx.Client, path: str) -> None:
    edge.service.proceed.clear()
    with client.stream("GET", path) as response:
        received = response.iter_bytes()
        assert next(received) == b"event: progress\n\n"
        edge.service.proceed.set()
        assert next(received) == b"event: done\n\n"


def test_live_captions_may_upgrade(edge: Edge) -> None:
    with (
        socket.create_connection(("127.0.0.1", edge.site.https_port)) as plain,
        connect(f"wss://{NAME}:{edge.site.https_port}/live", sock=plain, ssl=edge.context(), proxy=None) as websocket,
    ):
        websocket.send(b"\x01\x02")
        assert websocket.recv() == b"\x01\x02"
        with pytest.raises(ConnectionClosedOK):
            websocket.recv()


@pytest.mark.parametrize(("path", "protocol"), [("/echo", "websocket"), ("/live", "h2c"), ("/live/x", "websocket")])
def test_nothing_else_upgrades(client: httpx.Client, path: str, protocol: str) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    told = dict(client.get(path, headers=headers).json()["headers"])
    assert told["connection"] == "close"
    assert "upgrade" not in told


@pytest.mark.parametrize("path", ["/metrics", "/queue-metrics", "//metrics", "/%6Detrics", "/echo/../metrics"])
def test_metrics_are_for_their_networks(edge: Edge, path: str) -> None:
    _allowed_and_refused(edge, path)


def test_the_models_states_are_for_everybody_with_a_key(edge: Edge) -> None:
    with edge.client("127.0.0.5") as client:
        assert client.get("/model/status").json()["path"] == "/model/status"
        assert client.get("/model/statuses").status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/model/load",
        "/model/unload",
        "/model/load/../unload",
        "/docs",
        "/docs/oauth2-redirect",
        "/openapi.json",
        "/static-offline-docs/swagger-ui.css",
    ],
)
def test_administration_is_for_its_networks(edge: Edge, path: str) -> None:
    _allowed_and_refused(edge, path)


def test_an_exporter_sees_no_key(edge: Edge) -> None:
    with running(exporters=(("node", edge.service.port),)) as other:
        with other.client() as client:
            told = client.get("/metrics/node", headers={"X-API-Key": "sesame", "Authorization": "Bearer sesame"}).json()
        with other.client("127.0.0.2") as client:
            _expect_problem(client.get("/metrics/node"), 403, "address_not_allowed")
    assert told["path"] == "/metrics"
    assert "sesame" not in json.dumps(told)


def test_a_flood_from_one_address_is_turned_away(edge: Edge) -> None:
    with edge.client("127.0.0.9") as flood:
        refused = next(response for _ in range(1000) if (response := flood.get("/echo")).status_code != 200)
        _expect_problem(refused, 429, "rate_limited")
        assert refused.headers["Retry-After"] == "1"
        speaks_openai = next(r for _ in range(1000) if (r := flood.get("/v1/models")).status_code != 200)
    with edge.client("127.0.0.10") as somebody_else:
        assert somebody_else.get("/echo").status_code == 200
    assert speaks_openai.headers["Content-Type"] == "application/json"
    assert speaks_openai.json() == {
        "error": {
            "message": "too many requests from this address at once; wait and send the request again",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limited",
        }
    }


def test_a_service_that_is_down_is_said_to_be(edge: Edge) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        with running(service_port=closed.getsockname()[1]) as other, other.client() as client:
            response = client.get("/transcribe")
            _expect_problem(response, 502, "service_unreachable")
            assert response.headers["Retry-After"] == "5"
            assert response.headers["Connection"] == "close", "the next request would find it closed"
            assert client.get("/v1/models").json()["error"]["type"] == "server_error"


def test_every_answer_has_security_headers(client: httpx.Client) -> None:
    for response in (client.get("/echo"), client.get("/metrics"), client.get("/model/x/../../.problem")):
        assert response.headers.get_list("X-Content-Type-Options") == ["nosniff"]
        assert response.headers["Strict-Transport-Security"] == "max-age=63072000"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert response.headers["Server"] == "nginx"
    assert "script-src 'self' 'unsafe-inline'" in client.get("/docs").headers["Content-Security-Policy"]
    assert "script-src" not in client.get("/docsx").headers["Content-Security-Policy"]


def test_malformed_requests_get_problems_too(edge: Edge) -> None:
    with edge.tls() as connection:
        connection.sendall(_head("GET", "/x", f"Cookie: {'x' * 40000}"))
        head, body = _response(connection)
    assert (head[:12], json.loads(body)["type"]) == (b"HTTP/1.1 431", "urn:metalscribe:problem:header_too_large")
    with edge.tls() as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        head, body = _response(connection)
    assert (head[:12], json.loads(body)["status"]) == (b"HTTP/1.1 400", 400)
    with edge.tls() as connection:  # a path that would break out of the JSON text
        connection.sendall(_head("GET", '/metrics/../edge-configuration/","x":"', "Connection: close"))
        assert _response(connection)[0].startswith(b"HTTP/1.1 ")
    with edge.tls() as connection:
        connection.sendall(_head("TRACE", '/a","b":"', "Connection: close"))
        assert json.loads(_response(connection)[1])["instance"] == "/"
    with socket.create_connection(("127.0.0.1", edge.site.https_port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n")
        head, body = _response(plain)
    assert (head[:12], json.loads(body)["title"]) == (b"HTTP/1.1 400", "Bad request")


def test_nginx_tells_which_configuration_runs(edge: Edge, client: httpx.Client) -> None:
    assert client.get("/edge-configuration").text == configuration_id(render_site(edge.site)) + "\n"


def test_the_certificate_is_what_a_careful_client_expects(edge: Edge) -> None:
    with edge.tls() as connection:
        assert connection.version() == "TLSv1.3"
    modern = edge.context()
    modern.maximum_version = ssl.TLSVersion.TLSv1_2
    with edge.tls(context=modern) as connection:
        cipher = connection.cipher()
        assert cipher is not None
        assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]


def test_another_name_gets_no_certificate(edge: Edge) -> None:
    if edge.site.nginx < (1, 19, 4):
        pytest.skip("this nginx cannot refuse a handshake")
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"), edge.tls("other.test"):
        pass
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"), edge.tls(None):
        pass


def test_another_name_gets_no_service(client: httpx.Client) -> None:
    _expect_problem(client.get("/echo", headers={"Host": "other.test"}), 421, "misdirected_request")


def test_tls_is_what_mozilla_calls_intermediate(edge: Edge) -> None:
    sslyze = Path(sys.executable).parent / "sslyze"
    authority = edge.folder / "ca" / "ca.crt"
    options = ["--mozilla_config", "intermediate", "--certinfo_ca_file", str(authority), "--sni", NAME]
    command = [str(sslyze), *options, f"127.0.0.1:{edge.site.https_port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "OK - Compliant" in done.stdout, done.stdout + done.stderr


def test_an_address_among_the_names_is_served_without_a_name_in_the_handshake() -> None:
    with running(names=(NAME, "127.0.0.1")) as edge:
        with edge.tls(None) as connection:
            connection.sendall(_head("GET", "/echo", "Connection: close", name="127.0.0.1"))
            assert _response(connection)[0].startswith(b"HTTP/1.1 200 ")
        with edge.client() as client:
            assert client.get("/echo").status_code == 200
        stranger = edge.context()
        stranger.check_hostname = False
        with edge.tls("other.test", stranger) as connection:
            connection.sendall(_head("GET", "/echo", "Connection: close", name="other.test"))
            assert _response(connection)[0].startswith(b"HTTP/1.1 421 ")


def test_port_80_answers_the_acme_server_and_sends_people_to_https(edge: Edge) -> None:
    assert edge.site.acme_webroot is not None
    challenge = Path(edge.site.acme_webroot) / ".well-known" / "acme-challenge"
    challenge.mkdir(parents=True)
    (challenge / "token").write_text("token.thumbprint", encoding="utf-8")
    with httpx.Client(base_url=f"http://127.0.0.1:{edge.site.http_port}", headers={"Host": NAME}) as client:
        response = client.get("/.well-known/acme-challenge/token")
        assert (response.status_code, response.text) == (200, "token.thumbprint")
        _expect_problem(client.get("/.well-known/acme-challenge/other"), 404, "not_found")
        response = client.get("/docs?x=1")
        assert response.status_code == 308
        assert response.headers["Location"] == f"https://{NAME}:{edge.site.https_port}/docs?x=1"
        assert "Strict-Transport-Security" not in response.headers
        for header in ("X-API-Key", "Authorization"):
            _expect_problem(client.get("/docs", headers={header: "Bearer sesame"}), 403, "address_not_allowed")
        _expect_problem(client.get("/", headers={"Host": "other.test"}), 421, "misdirected_request")


def test_the_site_is_good_for_every_way_to_a_certificate() -> None:
    for changes in ({"hsts_seconds": 0}, {"names": ("192.0.2.1", "2001:db8::1")}, {"exporters": (("gpu", 9400),)}):
        with running(SITE, **changes):
            pass  # nginx -t has passed without a warning


def _allowed_and_refused(edge: Edge, path: str) -> None:
    with edge.tls() as connection:
        connection.sendall(_head("GET", path, "Connection: close"))
        assert _response(connection)[0].startswith(b"HTTP/1.1 200 ")
    address, source = ("127.0.0.1", edge.site.https_port), ("127.0.0.2", 0)
    with (
        socket.create_connection(address, source_address=source) as plain,
        edge.context().wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        connection.sendall(_head("GET", path, "Connection: close"))
        head, body = _response(connection)
    assert head.startswith(b"HTTP/1.1 403 ")
    assert json.loads(body)["title"] == "Not from this address"


def _expect_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    document = response.json()
    assert set(document) == _PROBLEM
    assert (document["status"], document["type"]) == (status, f"urn:metalscribe:problem:{code}")
    assert response.headers["X-Request-ID"] == document["request_id"]


def _head(method: str, path: str, *headers: str, name: str = NAME) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {name}", *headers, "", ""]).encode()


def _response(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body, the latter by its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        assert data, f"closed after {received!r}"
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None, head
    while len(body) < int(length[1]):
        body += connection.recv(65536)
    return head, body
