"""``metalscribe transcribe --url``: what goes over the wire, and what becomes of the answers.

The server is a stand-in: a real HTTP server that records each request and answers by a script. The service itself, and
the two together, are tested with the API.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEY = "msk_test_key"
Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass
class Answer:
    body: str
    status: int = 200
    kind: str = "text/plain; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    read_body: bool = True


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    fields: dict[str, str]
    file_name: str | None
    file: bytes


def problem(status: int, code: str, detail: str, **headers: str) -> Answer:
    document = {"type": f"urn:metalscribe:problem:{code}", "detail": detail, "status": status, "request_id": "r-17"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(json.dumps(document), status, "application/problem+json", names)


class Service:
    """Answers with ``script``, one after another and the last one again and again; by file name where one is given."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.script: list[Answer] = [Answer("hello\n")]
        self.by_name: dict[str, Answer] = {}
        self.received: list[Received] = []
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service.serve(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if answer.read_body:
            body = handler.rfile.read(int(handler.headers["Content-Length"]))
            received = parse(handler.path, dict(handler.headers.items()), body)
            answer = self.by_name.get(received.file_name or "", answer)
        else:
            received = Received(handler.path, dict(handler.headers.items()), {}, None, b"")
            handler.close_connection = True
        with self._lock:
            self.received.append(received)
        data = answer.body.encode()
        handler.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, "Content-Length": str(len(data)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


def parse(path: str, headers: dict[str, str], body: bytes) -> Received:
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    fields: dict[str, str] = {}
    file_name, file = None, b""
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        name = part.get_param("name", header="Content-Disposition")
        if part.get_filename() is None:
            fields[str(name)] = payload.decode()
        else:
            assert name == "file"
            file_name, file = part.get_filename(), payload
    return Received(path, headers, fields, file_name, file)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def transcribe(service: Service, tmp_path: Path) -> Run:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METALSCRIBE_")}

    def run(*arguments: str | Path, url: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "metalscribe", "transcribe", "--url", url or service.url, *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**inherited, "METALSCRIBE_API_KEY": KEY, **variables},
            check=False,
            timeout=60,
            cwd=tmp_path,
        )

    return run


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "talk.ogg"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_the_recording_and_the_key_go_to_transcribe(service: Service, transcribe: Run, recording: Path) -> None:
    done = transcribe(recording)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    (received,) = service.received
    headers = {name.lower(): value for name, value in received.headers.items()}
    assert received.path == "/transcribe"
    assert headers["x-api-key"] == KEY
    assert int(headers["content-length"]) > 256_000
    assert (received.file_name, received.file) == ("talk.ogg", recording.read_bytes())
    assert received.fields == {"format": "text"}
    assert KEY not in done.stdout + done.stderr


def test_every_option_is_a_form_field(service: Service, transcribe: Run, recording: Path) -> None:
    service.script = [Answer(json.dumps({"text": "bonjour"}), kind="application/json")]
    done = transcribe(
        *(recording, "--format", "json", "--language", "French", "--task", "translate", "--mode", "accurate"),
        *("--prompt", "Où ça?", "--hotwords", "Zürich", "--word-timestamps", "--no-vad", "--audio-track", "2"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(recording), "text": "bonjour"}
    assert service.received[0].fields == {
        "format": "json",
        "include_segments": "true",
        "word_timestamps": "true",
        "language": "fr",
        "task": "translate",
        "mode": "accurate",
        "prompt": "Où ça?",
        "hotwords": "Zürich",
        "vad": "false",
        "audio_track": "2",
    }


def test_a_path_in_the_address_is_kept(service: Service, transcribe: Run, recording: Path) -> None:
    assert transcribe(recording, url=f"{service.url}/speech/").returncode == 0
    assert service.received[0].path == "/speech/transcribe"


def test_no_key_sends_none_and_the_service_says_what_to_do(service: Service, transcribe: Run, recording: Path) -> None:
    service.script = [problem(401, "unauthenticated", "send an API key", WWW_Authenticate="Bearer")]
    done = transcribe(recording, METALSCRIBE_API_KEY="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: send an API key; put a key into METALSCRIBE_API_KEY\n"
    assert "x-api-key" not in {name.lower() for name in service.received[0].headers}


def test_several_are_sent_and_one_bad_one_does_not_stop_the_others(
    service: Service, transcribe: Run, tmp_path: Path
) -> None:
    names = [f"{number}.ogg" for number in range(9)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
        service.by_name[name] = Answer(f"text of {name} – é\n")
    service.by_name["4.ogg"] = problem(422, "undecodable_media", "the file is damaged")
    done = transcribe(*names)
    assert done.returncode == 1
    assert done.stderr == "Error: 4.ogg: the file is damaged\n"
    good = [name for name in names if name != "4.ogg"]
    assert done.stdout == "\n".join(f"==> {name} <==\ntext of {name} – é\n" for name in good)


def test_a_parameter_that_the_service_refuses_is_misuse(service: Service, transcribe: Run, recording: Path) -> None:
    service.script = [problem(400, "invalid_parameter", "language=de: the model demo knows English only")]
    done = transcribe(recording, "--language", "de")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {service.url}: language=de: the model demo knows English only\n"


def test_a_busy_service_is_asked_again_when_it_says(service: Service, transcribe: Run, recording: Path) -> None:
    service.script = [
        problem(429, "rate_limited", "too many requests", Retry_After="0"),
        problem(503, "queue_full", "the queue is full", Retry_After="Thu, 01 Jan 2026 00:00:00 GMT"),
        Answer("at last\n"),
    ]
    done = transcribe(recording)
    assert (done.returncode, done.stdout, done.stderr) == (0, "at last\n", "")
    assert [received.file for received in service.received] == [recording.read_bytes()] * 3


def test_requests_of_the_same_key_are_waited_for_however_often(
    service: Service, transcribe: Run, recording: Path
) -> None:
    busy = problem(429, "concurrency_limited", "1 of this key's requests are under way", Retry_After="0")
    service.script = [*[busy] * 25, Answer("at last\n")]
    assert transcribe(recording).stdout == "at last\n"
    service.script = [problem(429, "rate_limited", "too many requests", Retry_After="0")]
    assert transcribe(recording).returncode == 1, "others end at some time"


def test_a_wait_that_is_too_long_is_left_to_the_caller(service: Service, transcribe: Run, recording: Path) -> None:
    service.script = [problem(429, "rate_limited", "no audio left for today", Retry_After="3600")]
    done = transcribe(recording)
    assert done.returncode == 1
    assert done.stderr == f"Error: {recording}: no audio left for today; try again in 3600 s\n"
    assert len(service.received) == 1


def test_a_failure_inside_the_service_names_the_request_for_its_log(
    service: Service, transcribe: Run, recording: Path
) -> None:
    service.script = [problem(500, "engine_failed", "the model failed")]
    assert "the model failed (request r-17)" in transcribe(recording).stderr


def test_answers_of_something_else_are_told_from_those_of_the_service(
    service: Service, transcribe: Run, recording: Path
) -> None:
    service.script = [Answer("<html>Bad Gateway</html>", 502, "text/html")]
    assert f"{service.url} answered 502 Bad Gateway" in transcribe(recording).stderr
    service.script = [Answer("", 301, headers={"Location": "https://elsewhere/transcribe"})]
    assert "redirects to https://elsewhere/transcribe; give the right address" in transcribe(recording).stderr
    service.script = [Answer("<html>hello</html>")]
    assert "did not answer with a transcript" in transcribe(recording, "--format", "json").stderr
    assert all(received.path == "/transcribe" for received in service.received)


def test_a_refusal_before_the_upload_is_read_is_heard(service: Service, transcribe: Run, tmp_path: Path) -> None:
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(300 * 1024 * 1024)
    refusal = problem(413, "too_large", "the recording has more than 1 MiB", Connection="close")
    refusal.read_body = False
    service.script = [refusal]
    done = transcribe(large)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {large}: ")
    assert "Traceback" not in done.stderr
    assert len(service.received) == 1


def test_nobody_there_is_said_with_the_address_but_without_a_password(transcribe: Run, recording: Path) -> None:
    done = transcribe(recording, url="http://user:hunter2@127.0.0.1:1")
    assert done.returncode == 1
    assert "Cannot connect to http://127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_password_in_the_address_is_sent_as_basic_authentication(
    service: Service, transcribe: Run, recording: Path
) -> None:
    assert transcribe(recording, url=service.url.replace("://", "://user:hunter2@")).returncode == 0
    assert service.received[0].headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("arguments", "url", "expected"),
    [
        ((), "ftp://host", "--url must be"),
        ((), "host:8000", "--url must be"),
        ((), "https://", "--url must be"),
        ((), "https://host?key=x", "--url must be"),
        (("--ca-file", "absent.pem"), "https://127.0.0.1:1", "--ca-file absent.pem: No such file or directory"),
        (("--ca-file", "ca.pem"), "http://127.0.0.1:1", "https"),
        (("--api-key", "schlüssel"), "https://127.0.0.1:1", "copied whole"),
        (("--api-key", "two\nlines"), "https://127.0.0.1:1", "copied whole"),
    ],
)
def test_what_cannot_work_is_misuse(
    transcribe: Run, recording: Path, arguments: tuple[str, ...], url: str, expected: str
) -> None:
    done = transcribe(recording, *arguments, url=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_certificate_file_without_a_certificate_is_misuse(transcribe: Run, recording: Path) -> None:
    done = transcribe(recording, "--ca-file", recording, url="https://127.0.0.1:1")
    assert done.returncode == 2
    assert "it holds no certificate" in done.stderr


def test_a_key_in_clear_over_a_network_is_warned_about(transcribe: Run, tmp_path: Path) -> None:
    # Nothing is sent: there is no recording.
    done = transcribe(tmp_path / "absent.ogg", url="http://192.0.2.1")
    assert "Warning: the API key and the recordings travel to 192.0.2.1 unencrypted" in done.stderr
    assert "Warning" not in transcribe(tmp_path / "absent.ogg", url="https://192.0.2.1").stderr


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, and its key beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    certificate = tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(certificate), "-days", "2", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate


@pytest.fixture
def tls_service(authority: Path) -> Iterator[Service]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_name("key.pem"))
    service = Service(context)
    yield service
    service.close()


def test_certificates_are_verified_by_the_given_authority(
    tls_service: Service, transcribe: Run, recording: Path, authority: Path
) -> None:
    done = transcribe(recording, url=tls_service.url)
    assert done.returncode == 1
    assert "cannot be trusted" in done.stderr
    assert "--ca-file" in done.stderr
    assert tls_service.received == []
    done = transcribe(recording, "--ca-file", authority, url=tls_service.url)
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_the_environments_proxies_get_neither_key_nor_recording(
    service: Service, transcribe: Run, recording: Path
) -> None:
    proxy = Service()
    try:
        done = transcribe(recording, http_proxy=proxy.url, HTTP_PROXY=proxy.url, ALL_PROXY=proxy.url)
        assert (done.returncode, proxy.received) == (0, [])
    finally:
        proxy.close()
    assert len(service.received) == 1


def test_subtitles_go_into_files(service: Service, transcribe: Run, recording: Path, tmp_path: Path) -> None:
    service.script = [Answer("WEBVTT\n", kind="text/vtt; charset=utf-8")]
    done = transcribe(recording, "-f", "vtt", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "out" / "talk.vtt").read_text() == "WEBVTT\n"
    assert service.received[0].fields == {"format": "vtt"}
