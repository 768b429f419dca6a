from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from metalscribe.cli import app
from metalscribe.errors import InvalidParameter, MetalscribeError, NotFound
from metalscribe.store.database import Database
from metalscribe.store.keys import KeyStore, Scope
from metalscribe.store.usage import Usage, UsageStore

TODAY = datetime.now(UTC).date()
HOUR = Usage(requests=2, jobs=1, failed=1, audio_seconds=3600.4, engine_seconds=61.5)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("METALSCRIBE_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("METALSCRIBE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["usage", *arguments])


def shown(*arguments: str) -> list[list[str]]:
    """The cells of the table."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 100
    return [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]


def fail(kind: type[MetalscribeError], *arguments: str) -> str:
    result = run(*arguments)
    assert type(result.exception) is kind, result.output
    assert result.stdout == ""
    return str(result.exception)


def days_ago(count: int) -> date:
    return TODAY - timedelta(days=count)


def fill(state: Path, entries: Mapping[tuple[date, str], Usage]) -> dict[str, str]:
    """Keys alice and bob, who is revoked, and entries by their names; returns the keys' ids by name."""

    async def work() -> dict[str, str]:
        database = Database(f"sqlite:///{state / 'metalscribe.db'}")
        await database.open()
        keys = KeyStore(database)
        ids = {name: (await keys.create(name, [Scope.TRANSCRIBE])).api_key.id for name in ("alice", "bob")}
        await keys.revoke("bob")
        await UsageStore(database).add({(day, ids.get(name, name)): usage for (day, name), usage in entries.items()})
        await database.close()
        return ids

    return asyncio.run(work())


def test_a_row_for_each_day_and_key_with_sums(state: Path) -> None:
    fill(
        state,
        {
            (days_ago(1), "bob"): HOUR,
            (TODAY, "bob"): HOUR,
            (TODAY, "configured"): Usage(requests=1, audio_seconds=59.6),
        },
    )
    rows = shown()
    assert rows[0] == ["Day", "Key", "Requests", "Jobs", "Failed", "Audio", "Engine"]
    assert rows[1:] == [
        [str(days_ago(1)), "bob", "2", "1", "1", "1:00:00", "0:01:02"],
        [str(TODAY), "bob", "2", "1", "1", "1:00:00", "0:01:02"],
        [str(TODAY), "configured", "1", "0", "0", "0:01:00", "0:00:00"],
        ["all days", "bob", "4", "2", "2", "2:00:01", "0:02:03"],
        ["all days", "configured", "1", "0", "0", "0:01:00", "0:00:00"],
        ["all days", "all keys", "5", "2", "2", "2:01:00", "0:02:03"],
    ]


def test_one_key_by_name_or_id(state: Path) -> None:
    ids = fill(state, {(days_ago(1), "bob"): HOUR, (TODAY, "bob"): HOUR, (TODAY, "configured"): HOUR})
    for name in ("bob", ids["bob"]):
        assert [row[:3] for row in shown("--key", name)[1:]] == [
            [str(days_ago(1)), "bob", "2"],
            [str(TODAY), "bob", "2"],
            ["all days", "4", "2"],
        ]
    assert [row[1] for row in shown("--key", "configured")[1:]] == ["configured"], "one row needs no sum"
    assert "nobody" in fail(NotFound, "--key", "nobody")
    result = run("--key", "alice")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "with the key alice" in result.stderr


def test_the_days_asked_for(state: Path) -> None:
    fill(state, {(days_ago(count), "bob"): Usage(requests=count + 1) for count in (0, 6, 7, 29, 30, 90)})

    def first_days(*arguments: str) -> list[str]:
        return [row[0] for row in shown(*arguments)[1:-1]]

    assert first_days() == [str(days_ago(count)) for count in (29, 7, 6, 0)]
    assert first_days("--days", "7") == [str(days_ago(count)) for count in (6, 0)]
    assert first_days("--since", str(days_ago(90)))[0] == str(days_ago(90))
    assert "--since or --days" in fail(InvalidParameter, "--days", "7", "--since", "2026-11-01")
    assert run("--since", "yesterday").exit_code == 2
    assert run("--days", "0").exit_code == 2
    assert run("--days", "99999").exit_code == 0, "from long before there were days to count"


def test_json_has_numbers_and_sums(state: Path) -> None:
    ids = fill(state, {(days_ago(1), "bob"): HOUR, (TODAY, "bob"): HOUR})
    document = json.loads(run("--json", "--days", "2").stdout)
    numbers = {"requests": 2, "jobs": 1, "failed": 1, "audio_seconds": 3600.4, "engine_seconds": 61.5}
    bob = {"key": "bob", "key_id": ids["bob"]}
    twice = {name: pytest.approx(2 * number) for name, number in numbers.items()}
    assert document == {
        "first": str(days_ago(1)),
        "last": str(TODAY),
        "days": [{"day": str(day), **bob, **numbers} for day in (days_ago(1), TODAY)],
        "keys": [{**bob, **twice}],
        "total": twice,
    }
    empty = json.loads(run("--json", "--key", "alice").stdout)
    assert (empty["days"], empty["keys"], empty["total"]["audio_seconds"]) == ([], [], 0)
