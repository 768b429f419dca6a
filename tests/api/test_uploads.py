"""Forms as they come from hostile, hasty and broken clients; nothing of any of them may stay on the disk."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from .harness import KEY, Service, Start, problem, send, silence, wait_for

pytestmark = pytest.mark.model

QUIET = silence()
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + QUIET + b"\r\n"
END = b"--x--\r\n"


@pytest.fixture(autouse=True)
def _nothing_left(service: Service) -> Iterator[None]:
    yield
    wait_for(service.uploads_are_gone, "the uploads' directory to be empty")


def post(service: Service, body: bytes, content_type: str | None = "multipart/form-data; boundary=x") -> httpx.Response:
    headers = {"Content-Type": content_type} if content_type else {}
    return service.client().post("/transcribe", content=body, headers=headers)


def field(name: str, value: bytes = b"v") -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


@pytest.mark.parametrize(
    "body",
    [
        FILE + END,
        FILE + field("format", b"json") + END,
        field("format", b"json") + FILE + END,
        FILE + END + b"an epilogue\r\n" * 100,
        FILE.replace(b'; filename="a.wav"', b"") + END,
        FILE.replace(b'"a.wav"', b"a.wav").replace(b'"file"', b"file") + END,
        FILE.replace(b"\r\n\r\nRIFF", b"\r\nContent-Type: text/html\r\n\r\nRIFF") + END,
        FILE.replace(b"Content-Disposition", b"content-disposition") + END,
    ],
)
def test_forms_that_are_fine(service: Service, body: bytes) -> None:
    answer = post(service, body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["duration"] == 0.5


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/octet-stream",
        "audio/wav",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=y",
        "application/x-www-form-urlencoded",
        ";;;",
        'multipart/form-data; boundary="' + "x" * 3000 + '"',
    ],
)
def test_not_this_form(service: Service, content_type: str | None) -> None:
    document = problem(post(service, FILE + END, content_type), 400, "invalid_parameter")
    assert document["parameter"] == "file"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--x\r\n",
        FILE,
        FILE[:-30],
        FILE + b"--x",
        FILE + b"--x\r\nContent-Disposition: form-data; name=",
        b"garbage\r\n" + FILE + END,
        b"--x\r\n\r\nno header\r\n" + END,
        b"--x\r\n: empty\r\n\r\nvalue\r\n" + END,
        b"--x\r\n\0\0\0: \0\r\n\r\nvalue\r\n" + END,
        END,
        field("format") + END,
        FILE.replace(b'name="file"', b'name="audio"') + END,
        FILE + FILE + END,
        FILE + field("prompt", b"p" * 70_000) + END,
        b"".join(field(f"f{number}") for number in range(1000)) + FILE + END,
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + b"n" * 2**20 + b'"\r\n\r\nx\r\n' + END,
        b"--x\r\n" + b"".join(b"A-%d: b\r\n" % number for number in range(5000)) + b"\r\nx\r\n" + END,
        FILE.replace(b'name="file"', b'name="file\xff"') + END,
        FILE + field("vad", b"\xff\xfe") + END,
        FILE + field("language", b"\0") + END,
        FILE + field("", b"x") + END,
    ],
)  # fmt: skip
def test_forms_that_are_not_fine(service: Service, body: bytes) -> None:
    problem(post(service, body), 400, "invalid_parameter")


@pytest.mark.parametrize(
    "name",
    [
        b"../../../etc/cron.d/evil",
        b"..\\\\..\\\\evil.wav",
        b"/etc/passwd",
        b"a\0b.wav",
        b"n" * 2000,
        b"\xff\xfe\xfd",
        b"%0d%0aX-Evil: 1",
        b"",
        b".",
        b"-rf",
        b"\xe2\x80\xaegpj.wav",
        b'a;b=\\"c\\".wav',
    ],
)
def test_file_names_are_only_names(service: Service, name: bytes) -> None:
    before = sorted(path.name for path in service.state_dir.rglob("*"))
    answer = post(service, FILE.replace(b"a.wav", name) + END)
    assert answer.status_code == 200, answer.text
    wait_for(service.uploads_are_gone, "the uploads' directory to be empty")
    assert sorted(path.name for path in service.state_dir.rglob("*")) == before


def test_an_empty_file(client: httpx.Client) -> None:
    problem(send(client, b""), 422, "undecodable_media")


@pytest.mark.parametrize(
    "content",
    [b"\x00" * 5000, b"plain text, nothing else\n" * 50, b"<html><body>404</body></html>", b"\x7fELF" + b"\1" * 999],
)
def test_bytes_that_are_no_recording_are_415_whatever_they_are_called(client: httpx.Client, content: bytes) -> None:
    problem(client.post("/transcribe", files={"file": ("a.wav", content, "audio/wav")}), 415, "unsupported_media")


def test_a_damaged_recording_is_422(client: httpx.Client) -> None:
    problem(send(client, QUIET[:44], "a.wav"), 422, "undecodable_media")
    problem(send(client, QUIET[:30], "a.wav"), 422)


class TestTooLarge:
    """413, by what is announced and by what comes."""

    LIMIT = 1024 * 1024

    @pytest.fixture
    def small(self, start: Start) -> Service:
        return start(MAX_UPLOAD_MB=1)

    def test_announced_or_not(self, small: Service) -> None:
        body = FILE[: -len(QUIET) - 2] + b"\0" * (self.LIMIT + 1) + b"\r\n" + END
        problem(post(small, body), 413, "too_large")
        problem(post(small, FILE[: -len(QUIET) - 2] + b"\0" * (9 * self.LIMIT) + END), 413, "too_large")
        assert post(small, FILE[: -len(QUIET) - 2] + b"\0" * self.LIMIT + b"\r\n" + END).status_code == 415
        fits = silence(32.7)
        assert self.LIMIT - 4096 < len(fits) <= self.LIMIT
        assert send(small.client(), fits).status_code == 200
        wait_for(small.uploads_are_gone, "the uploads' directory to be empty")

    def test_without_an_end_it_is_refused_soon(self, small: Service) -> None:
        """An endless upload of unannounced length; what the sockets' buffers hold is all that is taken beyond the limit."""
        head = (
            f"POST /transcribe HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"
        ).encode()
        sent = 0
        with socket.create_connection(("127.0.0.1", small.port), timeout=20) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            opening = FILE[: -len(QUIET) - 2]
            connection.sendall(head + b"%x\r\n%b\r\n" % (len(opening), opening))
            chunk = b"4000\r\n" + b"\0" * 0x4000 + b"\r\n"
            try:
                while sent < 64 * self.LIMIT:
                    connection.sendall(chunk)
                    sent += 0x4000
            except ConnectionError:
                pass
            try:
                received = connection.recv(100)
            except ConnectionError:
                received = b""
        assert sent < 16 * self.LIMIT
        assert not received or received.startswith(b"HTTP/1.1 413 ")
        statuses = [line["status"] for line in small.log() if line.get("event") == "request"]
        assert statuses == [413]
        wait_for(small.uploads_are_gone, "the uploads' directory to be empty")

    def test_the_answer_reaches_a_client_that_is_still_sending(self, small: Service) -> None:
        """Closing on unread bytes resets a connection, and the answer with it."""
        for _ in range(5):
            answer = send(small.client(), b"\0" * (8 * self.LIMIT))
            problem(answer, 413, "too_large")


def test_a_client_that_leaves_in_the_middle_leaves_nothing(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(
            (
                f"POST /transcribe HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nX-Request-ID: left-early\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000000\r\n\r\n"
            ).encode()
            + FILE
        )
        wait_for(lambda: not service.uploads_are_gone(), "the upload to begin")
    wait_for(service.uploads_are_gone, "the upload to be removed")
    (line,) = service.requests_logged("left-early")
    assert line["status"] == 499


def test_uploads_are_private(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(
            (
                f"POST /transcribe HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000000\r\n\r\n"
            ).encode()
            + FILE
        )
        (path,) = wait_for(service.recordings, "the upload to begin")
        assert path.stat().st_mode & 0o077 == 0
    assert service.uploads.stat().st_mode & 0o077 == 0
    assert service.state_dir.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in service.state_dir.glob("metalscribe.db*"))
