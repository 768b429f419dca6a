from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from metalscribe.cli.durations import duration_text, parse_duration
from metalscribe.cli.keys import app
from metalscribe.errors import ConfigurationError, Conflict, InvalidParameter, MetalscribeError, NotFound
from metalscribe.store.database import Database
from metalscribe.store.keys import ApiKey, KeyStore, Scope

KEY = re.compile(r"msk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}\n")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("METALSCRIBE_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("METALSCRIBE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def succeed(*arguments: str) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(kind: type[MetalscribeError], *arguments: str) -> str:
    result = run(*arguments)
    assert type(result.exception) is kind, result.output
    assert result.stdout == ""
    return str(result.exception)


def verify(state: Path, text: str) -> ApiKey | None:
    async def ask() -> ApiKey | None:
        database = Database(f"sqlite:///{state / 'metalscribe.db'}")
        await database.open()
        store = KeyStore(database)
        try:
            return await store.verify(text)
        finally:
            await store.close()
            await database.close()

    return asyncio.run(ask())


def test_create_prints_the_key_alone_and_its_notes_aside(state: Path) -> None:
    result = succeed("create", "laptop")
    assert KEY.fullmatch(result.stdout)
    key = verify(state, result.stdout.strip())
    assert key is not None
    assert (key.name, key.scopes, key.expires_at, key.rate_limit, key.weight) == (
        "laptop",
        frozenset({Scope.TRANSCRIBE}),
        None,
        None,
        1.0,
    )
    assert "may transcribe until it is revoked" in result.stderr
    assert str(state) in result.stderr
    assert result.stdout.strip() not in result.stderr


def test_create_in_a_real_process_can_be_captured_by_a_shell(state: Path) -> None:
    program = "import sys; from metalscribe.cli.keys import app; app(sys.argv[1:])"
    script = 'KEY=$("$1" -c "$2" create shell --scope admin); printf "<%s>" "$KEY"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, program], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"<msk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}>", done.stdout)
    assert verify(state, done.stdout.strip("<>")) is not None


def test_create_takes_every_option_and_prints_json(state: Path) -> None:
    before = datetime.now(UTC)
    result = succeed(
        *("create", "ci", "--scope", "metrics", "--scope", "admin", "--expires", "90d"),
        *("--rate-limit", "100/minute", "--weight", "2", "--concurrency", "3", "--daily-audio", "10h", "--json"),
    )
    made = json.loads(result.stdout)
    key = verify(state, made.pop("key"))
    assert key is not None
    assert made["scopes"] == ["admin", "metrics"] == sorted(key.scopes)
    assert (made["name"], made["id"], made["state"]) == ("ci", key.id, "active")
    assert (made["rate_limit"], made["weight"]) == ("100/minute", 2.0) == (key.rate_limit, key.weight)
    assert (made["concurrency"], made["daily_audio_seconds"]) == (3, 36_000.0)
    assert (key.concurrency, key.daily_audio_seconds) == (3, 36_000.0)
    assert key.expires_at is not None
    assert timedelta(days=90) <= key.expires_at - before <= timedelta(days=90, minutes=5)
    assert made["expires_at"] == key.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_list_shows_every_key_but_no_secret() -> None:
    texts = [succeed("create", name).stdout.strip() for name in ("one", "two")]
    succeed("revoke", "two")
    table = succeed("list").stdout
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["Name", "Id", "State", "Scopes"]
    assert [line.split()[0] for line in lines[1:]] == ["one", "two"]
    assert [line.split()[2] for line in lines[1:]] == ["active", "revoked"]
    listed = json.loads(succeed("list", "--json").stdout)
    assert [(key["name"], key["state"], key["revoked_at"] is None) for key in listed] == [
        ("one", "active", True),
        ("two", "revoked", False),
    ]
    assert not any(text[13:] in table + json.dumps(listed) for text in texts)


def test_list_cuts_nothing_off_where_there_is_no_terminal() -> None:
    name, rate = "n" * 64, "10/second;500/hour;1000/day"
    succeed("create", name, "--rate-limit", rate, "--scope", "transcribe", "--scope", "admin", "--scope", "metrics")
    assert re.search(rf"^{name} .* admin metrics transcribe +{rate} ", succeed("list").stdout, re.MULTILINE)


def test_list_shows_limits() -> None:
    succeed("create", "free")
    succeed(
        "create", "bound", "--concurrency", "3", "--daily-audio", "90m", "--rate-limit", "7/hour", "--weight", "0.5"
    )
    lines = [re.split(r"  +", line.strip()) for line in succeed("list").stdout.splitlines()]
    shown = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    names = ("Name", "Rate", "Weight", "Concurrency", "Audio/day")
    assert [tuple(key[name] for name in names) for key in shown] == [
        ("free", "default", "1", "none", "none"),
        ("bound", "7/hour", "0.5", "3", "90m"),
    ]


def test_list_says_so_when_there_is_none_and_when_a_key_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    result = succeed("list")
    assert (result.stdout, "no keys yet" in result.stderr) == ("", True)
    assert json.loads(succeed("list", "--json").stdout) == []
    monkeypatch.setenv("METALSCRIBE_API_KEY", "from-the-environment")
    result = succeed("list")
    assert "METALSCRIBE_API_KEY is set" in result.stderr
    assert "from-the-environment" not in result.output


def test_set_changes_what_is_given_and_nothing_else(state: Path) -> None:
    text = succeed("create", "app", "--expires", "1h", "--rate-limit", "5/minute").stdout.strip()
    before = verify(state, text)
    assert before is not None
    result = succeed("set", "app", "--concurrency", "2", "--daily-audio", "90m")
    assert result.stdout == ""
    assert "rate 5/minute, weight 1, concurrency 2, daily audio 90m" in result.stderr
    changed = verify(state, text)
    assert changed is not None
    assert changed == replace(before, concurrency=2, daily_audio_seconds=5400.0, last_used_at=changed.last_used_at)
    options = (
        "--scope",
        "admin",
        "--scope",
        "metrics",
        "--weight",
        "0.5",
        "--rate-limit",
        "7/hour",
        "--expires",
        "30d",
    )
    printed = json.loads(succeed("set", changed.id, *options, "--json").stdout)
    assert (printed["scopes"], printed["weight"], printed["rate_limit"]) == (["admin", "metrics"], 0.5, "7/hour")
    assert (printed["concurrency"], printed["daily_audio_seconds"]) == (2, 5400.0)
    assert printed["expires_at"] > (datetime.now(UTC) + timedelta(days=29)).isoformat()


def test_set_takes_limits_off(state: Path) -> None:
    options = ("--concurrency", "2", "--daily-audio", "90m", "--expires", "1h", "--rate-limit", "5/minute")
    text = succeed("create", "app", *options).stdout.strip()
    result = succeed(
        *(
            "set",
            "app",
            "--concurrency",
            "none",
            "--daily-audio",
            "none",
            "--expires",
            "never",
            "--rate-limit",
            "default",
        )
    )
    assert "until it is revoked; rate default, weight 1, concurrency none, daily audio none" in result.stderr
    key = verify(state, text)
    assert key is not None
    assert (key.concurrency, key.daily_audio_seconds, key.expires_at, key.rate_limit) == (None, None, None, None)


def test_set_refuses_what_changes_nothing_or_makes_no_sense(state: Path) -> None:
    succeed("create", "app", "--concurrency", "2")
    assert "Nothing to change" in fail(InvalidParameter, "set", "app")
    assert "'none'" in fail(InvalidParameter, "set", "app", "--concurrency", "many")
    assert "between 1 and" in fail(InvalidParameter, "set", "app", "--concurrency", "0")
    assert "between 1 and" in fail(InvalidParameter, "set", "app", "--concurrency", "9" * 5000)
    assert "10h" not in fail(InvalidParameter, "set", "app", "--daily-audio", "lots")
    assert "more than nothing" in fail(InvalidParameter, "set", "app", "--daily-audio", "0s")
    assert "100/minute" in fail(InvalidParameter, "set", "app", "--rate-limit", "none")
    assert "90d" in fail(InvalidParameter, "set", "app", "--expires", "none")
    assert "weight" in fail(InvalidParameter, "set", "app", "--weight", "0")
    assert "METALSCRIBE_API_KEY" in fail(Conflict, "set", "configured", "--weight", "1")
    assert "'nobody'" in fail(NotFound, "set", "nobody", "--weight", "1")
    (key,) = json.loads(succeed("list", "--json").stdout)
    assert (key["concurrency"], key["daily_audio_seconds"], key["rate_limit"], key["weight"]) == (2, None, None, 1.0)


def test_revoke_stops_the_key(state: Path) -> None:
    text = succeed("create", "app").stdout.strip()
    result = succeed("revoke", "app")
    assert (result.stdout, "app" in result.stderr) == ("", True)
    assert verify(state, text) is None


def test_rotate_replaces_the_secret(state: Path) -> None:
    old = succeed("create", "app").stdout.strip()
    result = succeed("rotate", "app")
    assert KEY.fullmatch(result.stdout)
    assert "has stopped" in result.stderr
    assert verify(state, old) is None
    assert verify(state, result.stdout.strip()) is not None


def test_rotate_with_grace_and_a_new_life_keeps_the_old_secret_for_a_while(state: Path) -> None:
    old = succeed("create", "app", "--expires", "1h").stdout.strip()
    result = succeed("rotate", "app", "--grace", "1h", "--expires", "30d", "--json")
    assert "another 1h" in result.stderr
    new = verify(state, json.loads(result.stdout)["key"])
    same = verify(state, old)
    assert new is not None
    assert same is not None
    assert new.id == same.id
    assert new.expires_at is not None
    assert new.expires_at > datetime.now(UTC) + timedelta(days=29)


def test_errors_leave_the_commands_as_they_are(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bad name" not in fail(InvalidParameter, "create", "bad name")
    assert "90d" in fail(InvalidParameter, "create", "app", "--expires", "soon")
    assert "100/minute" in fail(InvalidParameter, "create", "app", "--rate-limit", "often")
    assert "'nobody'" in fail(NotFound, "revoke", "nobody")
    assert "'nobody'" in fail(NotFound, "rotate", "nobody")
    succeed("create", "app")
    assert "choose another" in fail(Conflict, "create", "app")
    with sqlite3.connect(state / "metalscribe.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "newer" in fail(ConfigurationError, "list")
    monkeypatch.setenv("METALSCRIBE_STATE_DIRR", "typo")
    assert "METALSCRIBE_STATE_DIR?" in fail(ConfigurationError, "list")


def test_an_unknown_scope_is_a_usage_error() -> None:
    result = run("create", "app", "--scope", "root")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "transcribe" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0s", timedelta(0)),
        ("45s", timedelta(seconds=45)),
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        (" 90d ", timedelta(days=90)),
        ("2w", timedelta(weeks=2)),
        ("999999w", timedelta(weeks=999_999)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert parse_duration(text, "expires") == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(36_000, "10h"), (5400, "90m"), (86_400, "24h"), (45, "45s"), (3601, "3601s"), (0.5, "0.5s")]
)
def test_durations_are_shown_as_they_are_written(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize("text", ["", "d", "1", "-1d", "1.5h", "1 d", "1y", "1d12h", "٣d", "1000000s", "1d\n2d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="90d, 12h or 30m") as caught:
        parse_duration(text, "grace")
    assert caught.value.parameter == "grace"
