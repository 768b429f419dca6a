"""The command line as an operator meets it: a process of its own, its exit status and its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "ctranslate2",
    "faster_whisper",
    "av",
    "numpy",
    "onnxruntime",
    "sqlalchemy",
    "fastapi",
    "httpx",
    "structlog",
)


def metalscribe(state: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METALSCRIBE_")}
    return subprocess.run(
        [sys.executable, "-m", "metalscribe", *arguments],
        capture_output=True,
        text=True,
        env={**inherited, "METALSCRIBE_STATE_DIR": str(state), "COLUMNS": "120", **variables},
        check=False,
        timeout=60,
    )


def test_help_names_every_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    done = metalscribe(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    commands = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"serve", "transcribe", "keys", "model", "config", "doctor"} <= set(commands)

    program = (
        "import sys, contextlib\n"
        "sys.argv = ['metalscribe', '--help']\n"
        "from metalscribe.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()\n"
        f"print('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.splitlines()[-1] == "LOADED"


def test_no_command_shows_help_and_is_misuse(tmp_path: Path) -> None:
    done = metalscribe(tmp_path)
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_version(tmp_path: Path) -> None:
    done = metalscribe(tmp_path, "--version")
    assert done.returncode == 0
    name, number = done.stdout.split()
    assert name == "metalscribe"
    assert number[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "expected"),
    [
        (
            ("config",),
            {"METALSCRIBE_PROT": "1"},
            2,
            "METALSCRIBE_PROT is not a setting of this version; did you mean METALSCRIBE_PORT?",
        ),
        (("config",), {"METALSCRIBE_PORT": "many"}, 2, "METALSCRIBE_PORT: "),
        (("keys", "create", "app", "--expires", "soon"), {}, 2, "--expires: 'soon' is not a duration"),
        (("keys", "revoke", "nobody"), {}, 1, "'nobody'"),
        (("transcribe", __file__, "--language", "klingon"), {}, 2, "'klingon' is not a language"),
        (("transcribe", __file__, "--model", "small"), {}, 1, "`metalscribe model download small`"),
        (("serve", "--host", " "), {}, 2, "METALSCRIBE_HOST: must not be empty"),
    ],
)
def test_an_expected_failure_is_one_line_on_stderr(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], status: int, expected: str
) -> None:
    done = metalscribe(tmp_path, *arguments, **variables)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.mark.parametrize(
    "arguments", [("nosuch",), ("transcribe",), ("transcribe", "x", "--task", "sing"), ("serve", "--port", "70000")]
)
def test_misuse_of_the_command_line_is_two(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = metalscribe(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_printed_goes_nowhere_when_the_reader_has_left(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "metalscribe", "model", "list"],
            stdout=closed,
            stderr=subprocess.PIPE,
            env={**os.environ, "METALSCRIBE_STATE_DIR": str(tmp_path)},
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_a_path_in_a_message_cannot_steer_the_terminal(tmp_path: Path) -> None:
    done = metalscribe(tmp_path, "transcribe", "no\x1b[2Jsuch\nfile", "--model", "demo")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert (
        done.stderr
        == "Error: no\N{REPLACEMENT CHARACTER}[2Jsuch\N{REPLACEMENT CHARACTER}file: No such file or directory\n"
    )
