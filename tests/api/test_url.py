"""POST /transcribe/url: what it fetches, and above all what it does not."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import httpx
import pytest

from .harness import Service, problem, running, says, wait_for

pytestmark = pytest.mark.model


class _Handler(http.server.BaseHTTPRequestHandler):
    recording: ClassVar[bytes] = b""
    hits: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.hits.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        bodies = {"/sample.flac": self.recording, "/page": b"<html></html>", "/empty": b""}
        body = bodies.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def elsewhere(sample: bytes) -> Iterator[str]:
    """A web server on loopback."""
    _Handler.recording = sample
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def permitted(demo_model: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that may reach loopback over IPv4."""
    with running(tmp_path_factory.mktemp("url") / "state", ALLOW_NETWORKS="127.0.0.0/8", MAX_UPLOAD_MB=1) as made:
        yield made


def ask(service: Service, url: object, **options: object) -> httpx.Response:
    return service.client().post("/transcribe/url", json={"url": url, **options})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/sample.flac",
        "http://localhost:{port}/sample.flac",
        "http://127.1:{port}/sample.flac",
        "http://0x7f000001:{port}/sample.flac",
        "http://2130706433:{port}/sample.flac",
        "http://0177.0.0.1:{port}/sample.flac",
        "http://0:{port}/sample.flac",
        "http://0.0.0.0:{port}/sample.flac",
        "http://[::1]:{port}/",
        "http://[::]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/sample.flac",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://100.64.0.1/",
        "http://user:password@127.0.0.1:{port}/sample.flac",
        "http://127.0.0.1.:{port}/sample.flac",
        "http://①②⑦.0.0.1:{port}/sample.flac",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/",
        "concat:/etc/passwd",
        "//127.0.0.1/",
        "not a url",
        "http://",
        "http:///a",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "http://a\r\nX-Evil: 1/",
    ],
)
def test_the_inside_is_not_reached(service: Service, elsewhere: str, url: str) -> None:
    _Handler.hits.clear()
    answer = ask(service, url.format(port=elsewhere.rsplit(":", 1)[1]))
    assert answer.status_code in {400, 422}, answer.text
    problem(answer, answer.status_code)
    assert not _Handler.hits


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://169.254.169.254/", "http://[::ffff:10.0.0.1]/",
                                 "http://0x7f000001/"])  # fmt: skip
def test_and_the_refusal_says_what_to_do(service: Service, elsewhere: str, url: str) -> None:
    document = problem(ask(service, url.format(port=elsewhere.rsplit(":", 1)[1])), 400, "address_refused")
    assert "METALSCRIBE_ALLOW_NETWORKS" in document["detail"] or "http" in document["detail"]


def test_what_is_permitted_is_fetched_and_transcribed(permitted: Service, elsewhere: str, sample_text: str) -> None:
    answer = ask(permitted, f"{elsewhere}/sample.flac", include_segments=True)
    assert answer.status_code == 200, answer.text
    assert says(answer.json()["text"], sample_text)
    assert answer.json()["segments"]
    assert ask(permitted, f"{elsewhere}/sample.flac", format="srt").text.startswith("1\n00:00:0")
    assert ask(permitted, f"{elsewhere}/to/sample.flac").status_code in {200, 422}
    assert ask(permitted, f"{elsewhere}/to/{elsewhere}/sample.flac").status_code == 200
    wait_for(permitted.uploads_are_gone, "the download to be removed")


@pytest.mark.parametrize(
    "target", ["http://[::1]:1/", "http://10.0.0.1/", "http://169.254.169.254/", "file:///etc/passwd"]
)
def test_redirects_are_judged_like_the_first_address(permitted: Service, elsewhere: str, target: str) -> None:
    problem(ask(permitted, f"{elsewhere}/to/{target}"), 400, "address_refused")


def test_what_goes_wrong_there_is_422(permitted: Service, elsewhere: str) -> None:
    problem(ask(permitted, f"{elsewhere}/nowhere"), 422, "fetch_failed")
    problem(ask(permitted, f"{elsewhere}/empty"), 422, "fetch_failed")
    problem(ask(permitted, "http://127.0.0.1:1025/"), 422, "fetch_failed")
    problem(ask(permitted, f"{elsewhere}/page"), 415, "unsupported_media")
    loop = f"{elsewhere}/to/" * 7
    problem(ask(permitted, loop + f"{elsewhere}/sample.flac"), 422, "fetch_failed")
    wait_for(permitted.uploads_are_gone, "the downloads to be removed")


def test_too_large_there(permitted: Service, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "recording", b"\0" * (2 * 2**20))
    problem(ask(permitted, f"{elsewhere}/sample.flac"), 413, "too_large")
    wait_for(permitted.uploads_are_gone, "the download to be removed")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"{}", b'{"url": null}', b'{"url": 7}', b'{"url": ""}', b"\xff", b"[" * 30_000,
     b'{"url": "http://a/", "url2": 1}', b'{"url": "http://a/", "format": "docx"}', b'{"url": "' + b"a" * 5000 + b'"}',
     b'{"url": "http://a/", "audio_track": 1e400}', b'{"url": "http://a/", "vad": NaN}', b'{"url": "\\ud800"}',
     b'{"url": "http://\\ud800/"}', b'{"url": "http://a/", "prompt": "\\ud800"}', b'{"url": "http://a/\\u0000"}',
     b'{"url": "http://a/", "audio_track": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_bodies_that_are_not_fine(service: Service, body: bytes) -> None:
    answer = service.client().post("/transcribe/url", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text
    problem(answer, answer.status_code)


def test_what_is_missing_and_unknown_is_named(service: Service) -> None:
    assert problem(service.client().post("/transcribe/url", json={}), 400)["parameter"] == "url"
    assert problem(ask(service, "http://a/", speed=2), 400)["parameter"] == "speed"
    query = service.client().post("/transcribe/url?format=srt", json={"url": "http://a/"})
    assert problem(query, 400)["parameter"] == "format"
    for name, value in {"language": "de", "task": "translate", "diarize": True, "model": "x"}.items():
        assert problem(ask(service, "http://a/", **{name: value}), 400)["parameter"] == name


def test_a_body_without_measure(service: Service) -> None:
    answer = ask(service, "http://a/", prompt="x" * 2**20)
    assert answer.status_code in {400, 413}
    problem(answer, answer.status_code)
