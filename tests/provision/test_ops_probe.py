"""How the playbooks ask a host over HTTPS: real TLS, certificates by the internal CA."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ops_host import OPS, https, load

probe = load("files/probe.py")


def echo(path: str, key: str | None) -> tuple[int, str]:
    return (200 if path == "/readyz" else 401), f"{path} {key}"


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, dict[str, object], str]:
    monkeypatch.setattr(sys, "argv", ["probe.py", *arguments])
    code = probe.main()
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


def test_an_answer_and_the_certificate_it_came_with(tmp_path: Path) -> None:
    with https(tmp_path / "ca", echo) as port:
        answer = probe.ask("127.0.0.1", port, "127.0.0.1", authority=str(tmp_path / "ca/ca.crt"), key="secret")
    assert (answer.verified, answer.problem, answer.status, answer.body) == (True, None, 200, "/readyz secret")
    assert 363 <= answer.days_left <= 365
    openssl = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-in", tmp_path / "ca/pair-127.0.0.1.pem"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert openssl.stdout.strip() == f"serial={answer.serial}"


@pytest.mark.parametrize(("serial", "text"), [(0x0ABC, "0ABC"), (0, "00"), (0xFF, "FF")])
def test_serial_numbers_are_whole_bytes(serial: int, text: str) -> None:
    assert probe._hexadecimal(serial) == text


def test_a_host_is_asked_by_its_name_at_its_address(tmp_path: Path) -> None:
    with https(tmp_path / "ca", echo, name="gpu1.example") as port:
        trusted = str(tmp_path / "ca/ca.crt")
        assert probe.ask("127.0.0.1", port, "gpu1.example", authority=trusted).status == 200
        other = probe.ask("127.0.0.1", port, "gpu2.example", authority=trusted)
    assert (other.verified, other.status) == (False, None)
    assert "gpu2.example" in other.problem


def test_a_certificate_that_is_not_accepted_is_read_and_nothing_is_sent(tmp_path: Path) -> None:
    asked = []

    def answer(path: str, key: str | None) -> tuple[int, str]:
        asked.append(key)
        return 200, ""

    with https(tmp_path / "old", answer, now=datetime.now(UTC) - timedelta(days=400)) as port:
        expired = probe.ask("127.0.0.1", port, "127.0.0.1", authority=str(tmp_path / "old/ca.crt"), key="secret")
    assert "expired" in expired.problem
    assert (expired.verified, expired.days_left, expired.status) == (False, -36, None)
    with https(tmp_path / "ca", answer) as port:
        unknown = probe.ask("127.0.0.1", port, "127.0.0.1", key="secret")
    assert not unknown.verified
    assert unknown.serial
    assert asked == []


def test_no_answer_and_no_authority_are_said(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = probe.ask("127.0.0.1", closed.getsockname()[1], "127.0.0.1")
    assert refused.problem.startswith("no answer: ")
    missing = probe.ask("127.0.0.1", 443, "127.0.0.1", authority=str(tmp_path / "nothing"))
    assert "nothing cannot be read" in missing.problem


def test_it_waits_for_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([503, 503, 200])
    monkeypatch.setattr(probe, "_POLL_SECONDS", 0.0)
    with https(tmp_path / "ca", lambda path, key: (next(answers), "")) as port:
        where = (
            "--address",
            "127.0.0.1",
            "--port",
            str(port),
            "--name",
            "127.0.0.1",
            "--ca",
            str(tmp_path / "ca/ca.crt"),
        )
        code, printed, said = run(capsys, monkeypatch, *where, "--wait", "60")
    assert (code, printed["status"], said) == (0, 200, "")


def test_what_came_instead_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    with https(tmp_path / "ca", echo) as port:
        where = (
            "--address",
            "127.0.0.1",
            "--port",
            str(port),
            "--name",
            "127.0.0.1",
            "--ca",
            str(tmp_path / "ca/ca.crt"),
        )
        code, printed, said = run(capsys, monkeypatch, *where, "--path", "/health", "--with-key")
        assert (code, printed["body"]) == (1, "/health secret")
        assert said == f"https://127.0.0.1:{port}/health: answers 401 instead of 200\n"
        code, printed, said = run(capsys, monkeypatch, *where, "--serial", "0A")
        assert (code, said) == (
            1,
            f"https://127.0.0.1:{port}/readyz: shows the certificate {printed['serial']}, not 0A\n",
        )
        code, printed, said = run(capsys, monkeypatch, *where, "--serial", str(printed["serial"]))
        assert (code, said) == (0, "")


def test_it_runs_by_itself() -> None:
    usage = subprocess.run(
        [sys.executable, OPS / "files/probe.py", "--help"], check=True, capture_output=True, text=True
    )
    assert "--with-key" in usage.stdout
