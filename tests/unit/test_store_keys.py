from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from metalscribe.errors import ConfigurationError, Conflict, InvalidParameter, NotFound
from metalscribe.store import identity, keys
from metalscribe.store.database import Database
from metalscribe.store.keys import KeySettings, KeyState, KeyStore, Scope

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
CONFIGURED = "an-operator's-own:key/of=any+shape"


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metalscribe.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{path}")
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def store(database: Database, clock: Clock) -> AsyncIterator[KeyStore]:
    store = KeyStore(database, clock=clock)
    yield store
    await store.close()


# --- making -----------------------------------------------------------------------------------------------------------


async def test_a_new_key_opens_what_it_was_made_for(store: KeyStore, clock: Clock) -> None:
    new = await store.create("ci.runner_1-a", [Scope.TRANSCRIBE, "metrics"], 90 * DAY, " 100/minute ", weight=2.5)
    assert re.fullmatch(r"msk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", new.key_text)
    key = await store.verify(new.key_text)
    assert key == new.api_key
    assert new.key_text.split("_")[1] == key.id
    assert (key.name, key.scopes) == ("ci.runner_1-a", frozenset({Scope.TRANSCRIBE, Scope.METRICS}))
    assert (key.rate_limit, key.weight) == ("100/minute", 2.5)
    assert (key.created_at, key.expires_at) == (clock.now, clock.now + 90 * DAY)
    assert (key.last_used_at, key.revoked_at) == (None, None)
    assert key.state_at(clock.now) is KeyState.ACTIVE


async def test_keys_differ_and_their_text_is_not_in_their_repr(store: KeyStore) -> None:
    made = [await store.create(f"k{index}", [Scope.ADMIN]) for index in range(20)]
    assert len({new.key_text for new in made}) == len({new.api_key.id for new in made}) == 20
    assert all(new.key_text not in repr(new) for new in made)


async def test_neither_the_text_nor_its_secret_is_in_the_files(store: KeyStore, database: Database, path: Path) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    rotated = await store.rotate("app", grace=HOUR)
    assert await store.verify(rotated.key_text)
    await store.close()

    def everything() -> bytes:
        return b"".join(file.read_bytes() for file in path.parent.iterdir())

    while_open = everything()
    await database.close()
    for content in (while_open, everything()):
        assert b"app" in content
        for text in (new.key_text, rotated.key_text):
            assert text.encode() not in content
            assert text[13:].encode() not in content
            assert hashlib.sha256(text.encode()).digest() in content


async def test_the_digest_is_sha256_of_the_whole_text(store: KeyStore) -> None:
    text = (await store.create("app", [Scope.TRANSCRIBE])).key_text
    assert identity.digest_of(text) == hashlib.sha256(text.encode()).digest() != text.encode()


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a" * 65, "a\n", "../x", "configured"])
async def test_a_bad_name_is_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        await store.create(name, [Scope.TRANSCRIBE])
    assert caught.value.parameter == "name"
    assert await store.list() == ()


@pytest.mark.parametrize("scopes", [[], ["root"], ["transcribe", "Admin"], "admin"])
async def test_bad_scopes_are_refused_naming_the_good_ones(store: KeyStore, scopes: list[str]) -> None:
    with pytest.raises(InvalidParameter, match="transcribe, admin, metrics"):
        await store.create("app", scopes)


@pytest.mark.parametrize(
    "rate", ["", "fast", "0/minute", "5/minute;0/hour", "10", "5/fortnight", "1/minute;" * 50 + "1/minute"]
)
async def test_a_bad_rate_is_refused(store: KeyStore, rate: str) -> None:
    with pytest.raises(InvalidParameter, match="100/minute"):
        await store.create("app", [Scope.TRANSCRIBE], rate_limit=rate)


@pytest.mark.parametrize("rate", ["1/second", "10/second;500/hour", "20 per 5 minutes"])
async def test_a_good_rate_is_kept(store: KeyStore, rate: str) -> None:
    assert (await store.create("app", [Scope.TRANSCRIBE], rate_limit=rate)).api_key.rate_limit == rate


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e9])
async def test_a_bad_weight_is_refused(store: KeyStore, weight: float) -> None:
    with pytest.raises(InvalidParameter, match="weight"):
        await store.create("app", [Scope.TRANSCRIBE], weight=weight)


@pytest.mark.parametrize("concurrency", [0, -1, 10**9])
async def test_a_bad_concurrency_is_refused(store: KeyStore, concurrency: int) -> None:
    with pytest.raises(InvalidParameter, match="between 1 and 10000"):
        await store.create("app", [Scope.TRANSCRIBE], concurrency=concurrency)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
async def test_a_bad_days_audio_is_refused(store: KeyStore, seconds: float) -> None:
    with pytest.raises(InvalidParameter, match="100000 hours"):
        await store.create("app", [Scope.TRANSCRIBE], daily_audio_seconds=seconds)


@pytest.mark.parametrize("life", [timedelta(0), -DAY, timedelta.max])
async def test_a_bad_life_is_refused(store: KeyStore, life: timedelta) -> None:
    with pytest.raises(InvalidParameter, match="life"):
        await store.create("app", [Scope.TRANSCRIBE], life)


async def test_a_name_is_never_used_twice(store: KeyStore) -> None:
    await store.create("app", [Scope.TRANSCRIBE])
    with pytest.raises(Conflict, match="choose another"):
        await store.create("app", [Scope.ADMIN])
    await store.revoke("app")
    with pytest.raises(Conflict, match="unambiguous"):
        await store.create("app", [Scope.ADMIN])
    assert len(await store.list()) == 1


async def test_an_id_that_is_taken_is_not_used_again(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["aaaaaaaa", "aaaaaaaa", "bbbbbbbb"])
    monkeypatch.setattr(identity, "new_id", lambda: next(ids))
    first = await store.create("first", [Scope.TRANSCRIBE])
    second = await store.create("second", [Scope.TRANSCRIBE])
    assert (first.api_key.id, second.api_key.id) == ("aaaaaaaa", "bbbbbbbb")
    assert await store.verify(first.key_text) == first.api_key


async def test_the_list_has_all_keys_oldest_first(store: KeyStore, clock: Clock) -> None:
    names = ["zulu", "alpha", "mike"]
    for name in names:
        await store.create(name, [Scope.TRANSCRIBE], HOUR if name == "alpha" else None)
        clock.advance(timedelta(seconds=1))
    await store.revoke("mike")
    clock.advance(HOUR)
    listed = await store.list()
    assert [key.name for key in listed] == names
    assert [key.state_at(clock.now) for key in listed] == [KeyState.ACTIVE, KeyState.EXPIRED, KeyState.REVOKED]


# --- verifying --------------------------------------------------------------------------------------------------------


async def test_a_revoked_key_stops_at_once_and_for_good(store: KeyStore, clock: Clock) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    assert await store.verify(new.key_text)
    revoked = await store.revoke("app")
    assert revoked.revoked_at == clock.now
    assert await store.verify(new.key_text) is None
    clock.advance(DAY)
    assert (await store.revoke(new.api_key.id)).revoked_at == revoked.revoked_at


async def test_revocation_by_another_process_counts_at_once(store: KeyStore, database: Database, clock: Clock) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    assert await store.verify(new.key_text)
    await store.close()
    await KeyStore(database, clock=clock).revoke("app")
    assert await store.verify(new.key_text) is None


async def test_a_key_expires_to_the_moment(store: KeyStore, clock: Clock) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE], HOUR)
    clock.advance(HOUR - timedelta(microseconds=1))
    assert await store.verify(new.key_text)
    clock.advance(timedelta(microseconds=1))
    assert await store.verify(new.key_text) is None


async def test_every_character_of_the_text_counts(store: KeyStore) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    for index, character in enumerate(new.key_text):
        other = "A" if character != "A" else "B"
        wrong = new.key_text[:index] + other + new.key_text[index + 1 :]
        assert await store.verify(wrong) is None, index


async def test_the_secret_of_one_key_does_not_open_another(store: KeyStore) -> None:
    one = await store.create("one", [Scope.TRANSCRIBE])
    two = await store.create("two", [Scope.ADMIN])
    assert await store.verify(one.key_text[:13] + two.key_text[13:]) is None


@pytest.mark.parametrize(
    "presented",
    [
        "",
        " ",
        "msk_",
        "msk_aaaaaaaa_",
        "msk_aaaaaaaa_" + "a" * 42,
        "msk_aaaaaaaa_" + "a" * 44,
        "msk_aaaaaaaa_" + "a" * 43 + "\n",
        "msk_aaaaaaaa_" + "é" * 43,
        "msk_' OR '1_" + "a" * 43,
        "msk_AAAAAAAA_" + "a" * 43,
        "\x00" * 60,
        "\ud800",
        "💥",
        "a" * 513,
        "a" * 10_000_000,
    ],
)
async def test_garbage_is_refused_without_asking_the_database(database: Database, presented: str) -> None:
    store = KeyStore(database, configured=CONFIGURED)
    await database.close()  # asking it would raise
    assert await store.verify(presented) is None


@given(presented=st.text(max_size=80))
def test_no_text_is_too_strange(presented: str) -> None:
    assert identity.id_in(presented) is None or presented.startswith("msk_")
    store = KeyStore(Database("sqlite:////never/opened.db"), configured=CONFIGURED)
    if identity.id_in(presented) is None and presented != CONFIGURED:
        assert asyncio.run(store.verify(presented)) is None


async def test_fifty_at_once(store: KeyStore) -> None:
    made = [await store.create(f"k{index}", [Scope.TRANSCRIBE]) for index in range(5)]
    wrong = made[0].key_text[:-4] + "0000"
    texts = [new.key_text for new in made] * 8 + [wrong] * 10
    found = await asyncio.gather(*(store.verify(text) for text in texts))
    assert [key and key.name for key in found] == [f"k{index}" for index in range(5)] * 8 + [None] * 10


# --- the configured key -----------------------------------------------------------------------------------------------


async def test_the_configured_key_opens_everything_and_is_not_stored(database: Database, path: Path) -> None:
    store = KeyStore(database, configured=CONFIGURED)
    key = await store.verify(CONFIGURED)
    assert key is not None
    assert key == store.configured
    assert (key.id, key.name, key.scopes) == ("configured", "configured", frozenset(Scope))
    assert await store.verify(CONFIGURED + "x") is None
    assert await store.verify(CONFIGURED[:-1]) is None
    assert await store.list() == ()
    digest = hashlib.sha256(CONFIGURED.encode()).digest()
    await database.close()
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert CONFIGURED.encode() not in content
    assert digest not in content


async def test_a_configured_key_may_have_the_shape_of_a_stored_one(database: Database) -> None:
    text = identity.new_key_text("zzzzzzzz")
    store = KeyStore(database, configured=text)
    assert await store.verify(text) == store.configured


async def test_without_a_configured_key_no_text_opens_it(store: KeyStore) -> None:
    assert store.configured is None
    for text in ("", "None", "configured"):
        assert await store.verify(text) is None


@pytest.mark.parametrize("configured", [None, CONFIGURED])
async def test_digests_are_compared_in_constant_time_whatever_is_presented(
    database: Database, clock: Clock, configured: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(database, configured=configured, clock=clock)
    new = await store.create("app", [Scope.TRANSCRIBE])
    compared: list[int] = []

    def counting(first: bytes, second: bytes) -> bool:
        assert len(first) == len(second) == 32
        compared.append(1)
        return hmac.compare_digest(first, second)

    monkeypatch.setattr(keys, "hmac", SimpleNamespace(compare_digest=counting))
    steps = {}
    for label, text in {
        "right": new.key_text,
        "wrong secret": new.key_text[:-4] + "0000",
        "unknown id": identity.new_key_text("zzzzzzzz"),
        "configured": CONFIGURED,
        "other": "other",
    }.items():
        compared.clear()
        await store.verify(text)
        steps[label] = len(compared)
    await store.close()
    assert steps == {"right": 2, "wrong secret": 2, "unknown id": 1, "configured": 1, "other": 1}


@pytest.mark.parametrize("text", ["", "two words", "naïve", "a" * 513, "tab\t"])
async def test_a_configured_key_that_no_client_could_send_is_refused(database: Database, text: str) -> None:
    with pytest.raises(ConfigurationError, match="METALSCRIBE_API_KEY"):
        KeyStore(database, configured=text)


async def test_a_configured_key_that_is_short_is_remarked_upon_without_repeating_it(database: Database) -> None:
    with structlog.testing.capture_logs() as logs:
        KeyStore(database, configured="secret7")
        KeyStore(database, configured="a" * 16)
    assert [entry["event"] for entry in logs] == ["configured_api_key_is_short"]
    assert "secret7" not in str(logs)


async def test_the_configured_key_is_changed_in_the_settings_only(database: Database) -> None:
    store = KeyStore(database, configured=CONFIGURED)
    for change in (
        store.revoke("configured"),
        store.rotate("configured"),
        store.change("configured", {"concurrency": 1}),
    ):
        with pytest.raises(Conflict, match="METALSCRIBE_API_KEY"):
            await change


async def test_any_exists_counts_only_what_opens(database: Database, store: KeyStore, clock: Clock) -> None:
    assert not await store.any_exists()
    await store.create("short", [Scope.TRANSCRIBE], HOUR)
    assert await store.any_exists()
    clock.advance(HOUR)
    assert not await store.any_exists()
    await store.create("long", [Scope.METRICS])
    assert await store.any_exists()
    await store.revoke("long")
    assert not await store.any_exists()
    assert await KeyStore(database, configured=CONFIGURED).any_exists()


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_what_is_changed_holds_for_the_next_request_and_what_is_not_given_stays(
    store: KeyStore, database: Database, clock: Clock
) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE], DAY, "5/minute", weight=2.0, concurrency=3)
    assert (new.api_key.concurrency, new.api_key.daily_audio_seconds) == (3, None)
    elsewhere = KeyStore(database, clock=clock)
    expected = replace(new.api_key, last_used_at=clock.now)
    assert await store.verify(new.key_text)
    await store.close()
    for settings, changed in (
        ({"daily_audio_seconds": 3600}, {"daily_audio_seconds": 3600.0}),
        ({"concurrency": 1}, {"concurrency": 1}),
        ({"rate_limit": " 7/hour "}, {"rate_limit": "7/hour"}),
        ({"weight": 0.5}, {"weight": 0.5}),
        ({"scopes": ["metrics", Scope.ADMIN]}, {"scopes": frozenset({Scope.METRICS, Scope.ADMIN})}),
        ({"expires_in": HOUR}, {"expires_at": clock.now + HOUR}),
        (
            {"rate_limit": None, "concurrency": None, "daily_audio_seconds": None, "expires_in": None},
            {"rate_limit": None, "concurrency": None, "daily_audio_seconds": None, "expires_at": None},
        ),
    ):
        expected = replace(expected, **changed)
        assert await elsewhere.change("app", settings) == expected  # type: ignore[arg-type]
        assert await store.verify(new.key_text) == expected


async def test_a_change_that_is_malformed_changes_nothing(store: KeyStore) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    bad: list[KeySettings] = [
        {"scopes": []},
        {"rate_limit": "often"},
        {"weight": 0.0},
        {"concurrency": 0},
        {"expires_in": -DAY},
    ]
    for settings in bad:
        with pytest.raises(InvalidParameter):
            await store.change("app", {"daily_audio_seconds": 60.0, **settings})
    with pytest.raises(NotFound, match="keys list"):
        await store.change("nobody", {"concurrency": 1})
    assert await store.list() == (new.api_key,)


async def test_a_key_that_is_revoked_or_has_expired_is_not_brought_back(store: KeyStore, clock: Clock) -> None:
    new = await store.create("old", [Scope.TRANSCRIBE], HOUR)
    await store.create("gone", [Scope.TRANSCRIBE])
    await store.revoke("gone")
    clock.advance(HOUR)
    with pytest.raises(Conflict, match="keys rotate old --expires"):
        await store.change("old", {"expires_in": None})
    with pytest.raises(Conflict, match="for good"):
        await store.change("gone", {"concurrency": 1})
    assert (await store.change("old", {"concurrency": 1})).concurrency == 1
    assert await store.verify(new.key_text) is None


# --- rotating ---------------------------------------------------------------------------------------------------------


async def test_rotation_replaces_the_secret_at_once_and_keeps_the_rest(store: KeyStore, clock: Clock) -> None:
    old = await store.create("app", [Scope.TRANSCRIBE, Scope.ADMIN], 90 * DAY, "5/minute", weight=3.0)
    clock.advance(DAY)
    new = await store.rotate("app")
    assert await store.verify(old.key_text) is None
    assert await store.verify(new.key_text) == new.api_key == old.api_key
    assert len(await store.list()) == 1


async def test_both_secrets_open_the_key_during_the_grace_period(store: KeyStore, clock: Clock) -> None:
    old = await store.create("app", [Scope.TRANSCRIBE])
    new = await store.rotate(old.api_key.id, grace=HOUR)
    clock.advance(HOUR - timedelta(seconds=1))
    for text in (old.key_text, new.key_text):
        key = await store.verify(text)
        assert key is not None
        assert key.id == old.api_key.id
    clock.advance(timedelta(seconds=1))
    assert await store.verify(old.key_text) is None
    assert await store.verify(new.key_text) is not None


async def test_a_second_rotation_keeps_the_promise_of_the_first_but_extends_nothing(
    store: KeyStore, clock: Clock
) -> None:
    first = await store.create("app", [Scope.TRANSCRIBE])
    second = await store.rotate("app", grace=2 * HOUR)
    clock.advance(HOUR)
    third = await store.rotate("app", grace=3 * HOUR)

    async def opening() -> list[bool]:
        return [await store.verify(new.key_text) is not None for new in (first, second, third)]

    assert await opening() == [True, True, True]
    clock.advance(HOUR)
    assert await opening() == [False, True, True]
    clock.advance(2 * HOUR)
    assert await opening() == [False, False, True]


async def test_rotation_without_grace_ends_a_grace_period_under_way(store: KeyStore, path: Path) -> None:
    first = await store.create("app", [Scope.TRANSCRIBE])
    second = await store.rotate("app", grace=DAY)
    third = await store.rotate("app")
    assert [await store.verify(new.key_text) is not None for new in (first, second, third)] == [False, False, True]
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM api_key_secrets").fetchone() == (1,)


async def test_revoking_ends_every_secret(store: KeyStore, clock: Clock) -> None:
    old = await store.create("app", [Scope.TRANSCRIBE])
    new = await store.rotate("app", grace=DAY)
    await store.revoke("app")
    assert [await store.verify(text) for text in (old.key_text, new.key_text)] == [None, None]
    with pytest.raises(Conflict, match="revoked"):
        await store.rotate("app", expires_in=DAY)
    assert (await store.list())[0].state_at(clock.now) is KeyState.REVOKED


async def test_rotation_does_not_prolong_a_key_unless_asked(store: KeyStore, clock: Clock) -> None:
    old = await store.create("app", [Scope.TRANSCRIBE], 2 * HOUR)
    clock.advance(HOUR)
    assert (await store.rotate("app", grace=DAY)).api_key.expires_at == old.api_key.expires_at
    clock.advance(HOUR)
    with pytest.raises(Conflict, match="expired"):
        await store.rotate("app")
    new = await store.rotate("app", grace=DAY, expires_in=DAY)
    assert new.api_key.expires_at == clock.now + DAY
    assert await store.verify(new.key_text) is not None
    assert await store.verify(old.key_text) is None  # the grace period does not revive what had expired


async def test_rotations_at_the_same_time_leave_the_last_secret_only(store: KeyStore) -> None:
    await store.create("app", [Scope.TRANSCRIBE])
    made = await asyncio.gather(*(store.rotate("app") for _ in range(8)))
    found = [await store.verify(new.key_text) for new in made]
    assert sum(key is not None for key in found) == 1


async def test_unknown_keys_and_bad_grace_are_refused(store: KeyStore) -> None:
    for name in ("nobody", "", "\0", "é", "a" * 10_000):
        for change in (store.revoke(name), store.rotate(name)):
            with pytest.raises(NotFound, match="keys list"):
                await change
    await store.create("app", [Scope.TRANSCRIBE])
    for grace in (-HOUR, timedelta.max):
        with pytest.raises(InvalidParameter, match="grace"):
            await store.rotate("app", grace=grace)


async def test_a_name_wins_over_the_id_of_another_key(store: KeyStore) -> None:
    one = await store.create("one", [Scope.TRANSCRIBE])
    two = await store.create(one.api_key.id, [Scope.TRANSCRIBE])
    assert (await store.revoke(one.api_key.id)).id == two.api_key.id
    assert await store.verify(one.key_text) is not None


# --- last use ---------------------------------------------------------------------------------------------------------


async def test_last_use_is_noted_at_most_once_a_minute(store: KeyStore, database: Database, clock: Clock) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    begun: list[str] = []
    engine = database._engine
    assert engine is not None

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("UPDATE"):
            begun.append(statement)

    async def use(times: int) -> datetime | None:
        for _ in range(times):
            await asyncio.gather(*(store.verify(new.key_text) for _ in range(5)))
        await store.close()
        return (await store.list())[0].last_used_at

    first = clock.now
    assert await use(4) == first
    clock.advance(timedelta(seconds=59))
    assert await use(4) == first
    assert len(begun) == 1
    clock.advance(timedelta(seconds=1))
    assert await use(4) == clock.now
    assert len(begun) == 2


async def test_front_ends_that_share_a_database_do_not_repeat_the_note(
    store: KeyStore, database: Database, clock: Clock
) -> None:
    new = await store.create("app", [Scope.TRANSCRIBE])
    await store.verify(new.key_text)
    await store.close()
    first = clock.now
    clock.advance(timedelta(seconds=30))
    other = KeyStore(database, clock=clock)
    await other.verify(new.key_text)
    await other.close()
    assert (await other.list())[0].last_used_at == first


async def test_a_failed_note_of_last_use_neither_blocks_nor_fails_the_request(path: Path, clock: Clock) -> None:
    database = Database(f"sqlite+aiosqlite:///{path}", lock_timeout=0)
    await database.open()
    store = KeyStore(database, clock=clock)
    new = await store.create("app", [Scope.TRANSCRIBE])
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with structlog.testing.capture_logs() as logs:
            assert await store.verify(new.key_text) == new.api_key
            await store.close()
    finally:
        other.close()
    (failure,) = (entry for entry in logs if entry["event"] == "api_key_last_use_not_written")
    assert failure["key"] == "app"
    assert "locked" in failure["reason"]
    assert new.key_text not in str(logs)
    clock.advance(timedelta(minutes=1))
    await store.verify(new.key_text)
    await store.close()
    assert (await store.list())[0].last_used_at == clock.now
    await database.close()
