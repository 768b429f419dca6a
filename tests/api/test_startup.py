"""A start that cannot succeed says why in one line, and exits."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import COMMAND, environment

pytestmark = pytest.mark.model

Refused = Callable[..., str]


@pytest.fixture
def refused(demo_model: Path, tmp_path: Path) -> Refused:
    """Start with settings that cannot work; returns what was said about it."""

    def attempt(status: int, **settings: object) -> str:
        done = subprocess.run(
            [*COMMAND, "serve"],
            env=environment(tmp_path / "state", settings),
            capture_output=True,
            timeout=30,
            check=False,
            cwd=tmp_path,
        )
        said = done.stderr.decode()
        assert done.returncode == status, said
        assert "Traceback" not in said
        assert not done.stdout
        lines = [line for line in said.splitlines() if not line.startswith("{")]
        assert len(lines) == 1, said
        return lines[0]

    return attempt


def test_an_unknown_setting(refused: Refused) -> None:
    said = refused(2, MAX_UPLOAD_MEGABYTES=5)
    assert "METALSCRIBE_MAX_UPLOAD_MEGABYTES" in said
    assert "METALSCRIBE_MAX_UPLOAD_MB" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", 65536),
        ("RATE_LIMIT", "often"),
        ("RATE_LIMIT", "0/minute"),
        ("MAX_QUEUE", 0),
        ("DEVICE", "tpu"),
        ("ALLOW_NETWORKS", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("LOG_LEVEL", "loud"),
        ("PRELOAD", "perhaps"),
        ("SHUTDOWN_GRACE_SECS", -1),
        ("SHUTDOWN_GRACE_SECS", "inf"),
        ("MAX_UPLOAD_MB", "inf"),
        ("MAX_AUDIO_HOURS", "nan"),
        ("IDLE_TIMEOUT_SECS", "nan"),
        ("API_KEY", "two words"),
        ("DATABASE_URL", "nonsense"),
        ("RATE_LIMIT_STORAGE", "nonsense"),
        ("COMPUTE_TYPE", "float99"),
    ],
)
def test_a_wrong_value_is_named(refused: Refused, name: str, value: object) -> None:
    assert f"METALSCRIBE_{name}" in refused(2, **{name: value})


def test_a_model_that_is_not_here(refused: Refused) -> None:
    said = refused(1, MODEL="large-v3-turbo")
    assert "large-v3-turbo" in said
    assert "metalscribe model download" in said


def test_a_directory_that_is_no_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "model" in refused(1, MODEL=tmp_path / "empty")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_no_open_door_without_a_key(refused: Refused, host: str) -> None:
    said = refused(2, HOST=host, API_KEY=None)
    assert "metalscribe keys create" in said


def test_a_port_that_is_taken(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(2, PORT=port)


def test_an_address_that_is_not_ours(refused: Refused) -> None:
    assert "192.0.2.1" in refused(2, HOST="192.0.2.1")


def test_a_state_directory_that_cannot_be(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/below"):
        said = refused(2, STATE_DIR=tmp_path / place)
        assert "METALSCRIBE_STATE_DIR" in said or str(tmp_path / "file") in said


def test_a_further_model_that_is_not_here(refused: Refused) -> None:
    assert "'gibberish'" in refused(1, MODELS="gibberish")


def test_a_model_that_is_there_twice(refused: Refused, demo_model: Path) -> None:
    assert "two models are called demo" in refused(2, MODELS="demo")


def test_a_model_that_exceeds_the_memory_budget(refused: Refused) -> None:
    said = refused(2, MEMORY_BUDGET_MB=150)
    assert "the model demo takes about" in said
    assert "METALSCRIBE_MEMORY_BUDGET_MB=150" in said
