from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from metalscribe.cli.config import MASK, Entry, Source, effective
from metalscribe.settings import Settings, load_settings

SECRET = "sesame-open-sesame-open"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("METALSCRIBE_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("METALSCRIBE_STATE_DIR", str(tmp_path))


def config(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "metalscribe", "config", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in effective(load_settings())}


def test_json_holds_every_setting_with_its_documentation() -> None:
    listed: list[dict[str, Any]] = json.loads(config("--json"))
    assert [entry["name"] for entry in listed] == [f"METALSCRIBE_{name.upper()}" for name in Settings.model_fields]
    assert all(entry["description"] for entry in listed)
    assert {frozenset(entry) for entry in listed} == {frozenset({"name", "value", "source", "description"})}


def test_values_keep_their_kind_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_PORT", "9000")
    monkeypatch.setenv("METALSCRIBE_PRELOAD", "yes")
    monkeypatch.setenv("METALSCRIBE_DEVICE", "cpu")
    monkeypatch.setenv("METALSCRIBE_ALLOW_NETWORKS", "10.0.0.0/8, 192.168.0.0/16")
    found = entries()
    assert found["METALSCRIBE_PORT"].value == 9000
    assert found["METALSCRIBE_PRELOAD"].value is True
    assert found["METALSCRIBE_DEVICE"].value == "cpu"
    assert found["METALSCRIBE_ALLOW_NETWORKS"].value == ["10.0.0.0/8", "192.168.0.0/16"]
    assert found["METALSCRIBE_DATABASE_URL"].value is None


def test_secrets_are_masked_and_their_sources_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "metalscribe_database_url").write_text(f"postgresql://me:{SECRET}@db/metalscribe\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("METALSCRIBE_API_KEY", SECRET)
    found = entries()
    assert (found["METALSCRIBE_API_KEY"].value, found["METALSCRIBE_API_KEY"].source) == (MASK, Source.ENVIRONMENT)
    database = found["METALSCRIBE_DATABASE_URL"]
    assert (database.value, database.source) == (MASK, Source.CREDENTIAL_FILE)
    assert found["METALSCRIBE_HOST"].source is Source.DEFAULT
    for output in (config(), config("--json")):
        assert SECRET not in output
        assert MASK in output


def test_the_environment_wins_over_a_credential_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "metalscribe_api_key").write_text("in-the-file")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert entries()["METALSCRIBE_API_KEY"].source is Source.CREDENTIAL_FILE
    monkeypatch.setenv("METALSCRIBE_API_KEY", "")
    assert entries()["METALSCRIBE_API_KEY"].source is Source.CREDENTIAL_FILE
    monkeypatch.setenv("METALSCRIBE_API_KEY", "in-the-environment")
    assert entries()["METALSCRIBE_API_KEY"].source is Source.ENVIRONMENT


def test_a_default_that_could_be_secret_is_shown_and_a_given_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entries()["METALSCRIBE_RATE_LIMIT_STORAGE"].value == "memory://"
    monkeypatch.setenv("METALSCRIBE_RATE_LIMIT_STORAGE", f"redis://:{SECRET}@cache")
    assert entries()["METALSCRIBE_RATE_LIMIT_STORAGE"].value == MASK


def test_a_pipe_gets_lines_that_can_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSCRIBE_MODEL", "/models/my own")
    monkeypatch.setenv("METALSCRIBE_IDLE_TIMEOUT_SECS", "90")
    monkeypatch.setenv("METALSCRIBE_OFFLINE", "1")
    lines = config().splitlines()
    assert all(not line or line.startswith(("# ", "METALSCRIBE_")) for line in lines)
    given = dict(shlex.split(line)[0].split("=", 1) for line in lines if line.startswith("METALSCRIBE_"))
    assert given["METALSCRIBE_MODEL"] == "/models/my own"
    assert (given["METALSCRIBE_IDLE_TIMEOUT_SECS"], given["METALSCRIBE_OFFLINE"]) == ("90", "true")
    assert given["METALSCRIBE_TRUSTED_PROXIES"] == "127.0.0.1,::1"
    before = load_settings()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == before
    assert "# TCP port to listen on; 0 picks a free one. (default)" in lines


def test_a_terminal_gets_a_table() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "metalscribe", "config"],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "160"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:
            pass  # how Linux tells the end of a terminal
        assert process.wait(60) == 0
    os.close(ours)
    lines = shown.decode().splitlines()
    assert any("Setting" in line and "Source" in line for line in lines)
    row = next(line for line in lines if "METALSCRIBE_PORT" in line)
    assert "8000" in row
    assert "TCP port to listen on" in row
