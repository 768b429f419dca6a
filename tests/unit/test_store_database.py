from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from metalscribe.errors import ConfigurationError, MetalscribeError, ShuttingDown, StorageFull, TryLater
from metalscribe.store.database import Database
from metalscribe.store.keys import KeyStore, Scope
from metalscribe.store.migrate import MIGRATIONS
from metalscribe.store.models import ApiKeyRow, ApiKeySecretRow, Base

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PATIENCE = 60.0

OPEN = """
import asyncio, sys
from metalscribe.store.database import Database
from metalscribe.errors import MetalscribeError

async def main() -> None:
    database = Database(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        await database.open()
    except MetalscribeError as error:
        print(type(error).__name__, error)
        return
    async with database.session() as session:
        from metalscribe.store.models import ApiKeyRow
        from metalscribe.store.identity import new_id, utc_now
        key = new_id()
        session.add(ApiKeyRow(id=key, name=key, scopes="admin", weight=1.0, created_at=utc_now()))
    if "--die" in sys.argv:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    await database.close()
    print("done")

asyncio.run(main())
"""


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def row(key_id: str = "aaaaaaaa", name: str = "one") -> ApiKeyRow:
    return ApiKeyRow(id=key_id, name=name, scopes="transcribe", weight=0.0, created_at=NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "metalscribe.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = Database(url_of(path))
    await database.open()
    yield database
    await database.close()


def start(url: str, *arguments: str, user: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, url, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        user=user,
        cwd="/",
    )


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
async def test_directories_and_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "metalscribe.db"
    database = Database(url_of(path))
    await database.open()
    try:
        async with database.session() as session:
            session.add(row())
            await session.flush()
            files = sorted(path.parent.iterdir())
            assert [file.name.removeprefix("metalscribe.db") for file in files] == ["", "-shm", "-wal", ".lock"]
            assert {mode_of(file) for file in files} == {0o600}
        assert mode_of(path.parent) == mode_of(path.parent.parent) == 0o700
    finally:
        await database.close()


async def test_what_exists_keeps_its_modes(tmp_path: Path) -> None:
    path = tmp_path / "metalscribe.db"
    tmp_path.chmod(0o750)
    path.touch()
    path.chmod(0o640)
    database = Database(url_of(path))
    await database.open()
    await database.close()
    assert (mode_of(tmp_path), mode_of(path)) == (0o750, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for somebody else")
async def test_what_root_creates_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65533)
    path = tmp_path / "state" / "metalscribe.db"
    database = Database(url_of(path))
    await database.open()
    try:
        async with database.session() as session:
            session.add(row())
            await session.flush()
            made = [path.parent, *path.parent.iterdir()]
            assert len(made) == 5
            assert {(file.stat().st_uid, file.stat().st_gid) for file in made} == {(65534, 65533)}
    finally:
        await database.close()


async def test_a_relative_path_and_a_bare_scheme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database("sqlite:///here.db")
    await database.open()
    await database.close()
    assert mode_of(tmp_path / "here.db") == 0o600


# --- connections and transactions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
async def test_every_connection_is_durable_and_patient(database: Database, read_only: bool) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 20_000, "foreign_keys": 1}
    async with database.session(read_only=read_only) as first, database.session(read_only=True) as second:
        for session in (first, second):
            for pragma, value in wanted.items():
                assert (await session.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value


async def test_a_session_commits_at_its_end_and_rolls_back_when_it_raises(database: Database) -> None:
    async with database.session() as session:
        session.add(row("aaaaaaaa", "kept"))
    with pytest.raises(RuntimeError, match="mine"):
        async with database.session() as session:
            session.add(row("bbbbbbbb", "lost"))
            await session.flush()
            raise RuntimeError("mine")
    async with database.session(read_only=True) as session:
        assert (await session.scalars(select(ApiKeyRow.name))).all() == ["kept"]


async def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.session() as session:
            session.add(ApiKeySecretRow(key_id="nobody00", digest=b"\0" * 32, created_at=NOW))


async def test_concurrent_read_then_write_loses_no_update(database: Database) -> None:
    async with database.session() as session:
        session.add(row())

    async def add_one() -> None:
        async with database.session() as session:
            weight = await session.scalar(select(ApiKeyRow.weight))
            assert weight is not None
            await session.execute(update(ApiKeyRow).values(weight=weight + 1))

    await asyncio.gather(*(add_one() for _ in range(25)))
    async with database.session(read_only=True) as session:
        assert await session.scalar(select(ApiKeyRow.weight)) == 25


async def test_a_reader_waits_for_no_writer(path: Path) -> None:
    database = Database(url_of(path), lock_timeout=0)
    await database.open()
    try:
        async with database.session() as writer:
            writer.add(row())
            await writer.flush()
            async with database.session(read_only=True) as reader:
                assert (await reader.scalars(select(ApiKeyRow.id))).all() == []
            with pytest.raises(TryLater, match="locked"):
                async with database.session():
                    pytest.fail("two writers at once")
        async with database.session(read_only=True) as reader:
            assert (await reader.scalars(select(ApiKeyRow.id))).all() == ["aaaaaaaa"]
    finally:
        await database.close()


async def test_times_come_back_in_utc_to_the_microsecond(database: Database) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7, minutes=-30)))
    async with database.session() as session:
        session.add(ApiKeyRow(id="aaaaaaaa", name="one", scopes="admin", weight=1.0, created_at=elsewhere))
    async with database.session(read_only=True) as session:
        created = await session.scalar(select(ApiKeyRow.created_at))
    assert created == NOW
    assert created.tzinfo is UTC


async def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="without a time zone"):
        async with database.session() as session:
            session.add(ApiKeyRow(id="a", name="a", scopes="admin", weight=1.0, created_at=datetime(2030, 1, 1)))  # noqa: DTZ001


async def test_errors_do_not_repeat_what_was_stored(database: Database) -> None:
    async with database.session() as session:
        session.add(row("aaaaaaaa", "confidential"))
    with pytest.raises(IntegrityError) as caught:
        async with database.session() as session:
            session.add(row("bbbbbbbb", "confidential"))
    assert "confidential" not in str(caught.value)


async def test_a_closed_database_says_so_and_opens_again(path: Path) -> None:
    database = Database(url_of(path))
    with pytest.raises(ShuttingDown):
        async with database.session():
            pytest.fail("not open")
    await database.open()
    await database.open()
    async with database.session() as session:
        session.add(row())
    await database.close()
    await database.close()
    with pytest.raises(ShuttingDown):
        async with database.session(read_only=True):
            pytest.fail("closed")
    await database.open()
    async with database.session(read_only=True) as session:
        assert (await session.scalars(select(ApiKeyRow.id))).all() == ["aaaaaaaa"]
    await database.close()


async def test_what_was_committed_survives_sigkill(path: Path) -> None:
    process = start(url_of(path), "--die")
    _, problems = await asyncio.to_thread(process.communicate, "go\n", PATIENCE)
    assert process.returncode == -signal.SIGKILL, problems
    database = Database(url_of(path))
    await database.open()
    async with database.session(read_only=True) as session:
        assert len((await session.scalars(select(ApiKeyRow.id))).all()) == 1
    await database.close()


# --- migrations -------------------------------------------------------------------------------------------------------


def differences(connection: Connection, metadata: MetaData) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_server_default": True, "target_metadata": metadata})
    return list(compare_metadata(context, metadata))


async def test_models_and_migrations_agree(database: Database) -> None:
    async with database.session() as session:
        connection = await session.connection()
        assert await connection.run_sync(differences, Base.metadata) == []
        assert len(await connection.run_sync(differences, MetaData())) >= 3  # the comparison does see a difference


async def test_migrations_can_be_taken_back(path: Path, database: Database) -> None:
    def downgrade(connection: Connection) -> list[str]:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        return inspect(connection).get_table_names()

    async with database.session() as session:
        assert await (await session.connection()).run_sync(downgrade) == ["alembic_version"]
    await database.close()
    await database.open()
    with sqlite3.connect(path) as raw:
        names = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {*Base.metadata.tables, "alembic_version"}


async def test_keys_from_before_there_were_limits_have_none(path: Path) -> None:
    def as_it_was(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")

    database = Database(url_of(path))
    await database.open()
    key = await KeyStore(database).create("app", [Scope.TRANSCRIBE], rate_limit="5/minute", weight=2.0)
    async with database.session() as session:
        await (await session.connection()).run_sync(as_it_was)
    await database.close()
    with sqlite3.connect(path) as raw:
        assert "concurrency" not in [name for _, name, *_ in raw.execute("PRAGMA table_info(api_keys)")]
    await database.open()
    assert await KeyStore(database).list() == (key.api_key,)
    assert (key.api_key.concurrency, key.api_key.daily_audio_seconds) == (None, None)
    await database.close()


async def test_a_database_newer_than_the_code_is_refused_and_left_alone(path: Path, database: Database) -> None:
    await database.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match=r"schema 9999.*newer metalscribe.*backup"):
        await Database(url_of(path)).open()
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


async def test_another_programs_tables_are_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE api_keys (theirs TEXT)")
    with pytest.raises(ConfigurationError, match="api_keys"):
        await Database(url_of(path)).open()


async def test_a_migration_that_fails_leaves_nothing_behind(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE other (x TEXT)")
        raw.execute(
            "CREATE INDEX ix_idempotency_created_at ON other (x)"
        )  # the migration's last statement trips over it
    with pytest.raises(OperationalError, match="already exists"):
        await Database(url_of(path)).open()
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("other",)]


async def test_processes_may_open_a_fresh_database_at_the_same_time(path: Path) -> None:
    processes = [start(url_of(path)) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    answers = await asyncio.gather(*(asyncio.to_thread(process.communicate, "go\n", PATIENCE) for process in processes))
    assert [out for out, _ in answers] == ["done\n"] * 4, answers
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM api_keys").fetchone() == (4,)
        assert raw.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


async def test_databases_of_one_process_may_open_at_the_same_time(tmp_path: Path) -> None:
    databases = [Database(url_of(tmp_path / f"{index % 3}.db")) for index in range(9)]
    await asyncio.gather(*(database.open() for database in databases))
    for database in databases:
        async with database.session(read_only=True) as session:
            assert (await session.scalars(select(ApiKeyRow))).all() == []
        await database.close()


async def test_opening_waits_for_the_process_that_migrates(path: Path) -> None:
    path.parent.mkdir()
    with path.with_name("metalscribe.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TryLater, match="migration"):
            await Database(url_of(path), migration_timeout=0).open()
        database = Database(url_of(path))
        opening = asyncio.create_task(database.open())
        await asyncio.wait([opening], timeout=0)
        assert not opening.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
        await asyncio.wait_for(opening, PATIENCE)
    await database.close()


async def test_a_cancelled_open_lets_go_of_its_locks(path: Path) -> None:
    path.parent.mkdir()
    with path.with_name("metalscribe.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opening = asyncio.create_task(Database(url_of(path)).open())
        await asyncio.wait([opening], timeout=0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    database = Database(url_of(path), migration_timeout=0)
    await database.open()
    await database.close()


# --- failures ---------------------------------------------------------------------------------------------------------


async def refused(path: Path, kind: type[MetalscribeError] = ConfigurationError) -> str:
    with pytest.raises(kind) as caught:
        await Database(url_of(path), lock_timeout=0).open()
    assert type(caught.value) is kind
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


async def test_a_file_that_is_no_database_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"these are the minutes of a meeting\n" * 100)
    assert "not an SQLite database" in await refused(path)
    assert path.read_bytes() == b"these are the minutes of a meeting\n" * 100


async def test_a_directory_in_the_files_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    assert "not a file" in await refused(path)


async def test_a_file_in_the_directorys_place_is_refused(path: Path) -> None:
    path.parent.touch()
    assert "METALSCRIBE_STATE_DIR" in await refused(path)


async def test_a_locked_database_is_named_as_such(path: Path, database: Database) -> None:
    await database.close()
    raw = sqlite3.connect(path, isolation_level=None)
    try:
        raw.execute("BEGIN EXCLUSIVE")
        assert "locked" in await refused(path, TryLater)
    finally:
        raw.close()


@pytest.fixture
def foreign_directory() -> Iterator[Path]:
    """Make a directory that the user ``nobody`` can reach, unlike pytest's own, but not write."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another user")
@pytest.mark.parametrize("exists", [False, True], ids=["directory", "file"])
async def test_another_users_directory_or_database_is_refused_without_a_traceback(
    foreign_directory: Path, exists: bool
) -> None:
    path = foreign_directory / "metalscribe.db"
    if exists:
        database = Database(url_of(path))
        await database.open()
        await database.close()
        for file in foreign_directory.iterdir():
            file.chmod(0o644)
        path.with_name("metalscribe.db.lock").chmod(0o666)
    try:
        process = start(url_of(path), user=pwd.getpwnam("nobody").pw_name)
    except PermissionError:
        pytest.skip("the user nobody cannot run this Python")
    answer, problems = await asyncio.to_thread(process.communicate, "go\n", PATIENCE)
    if "No module named" in problems or "Permission denied" in problems:
        pytest.skip("the user nobody cannot read this checkout")
    *_, last = answer.splitlines()
    assert last.startswith("ConfigurationError The database cannot be created or written here."), (answer, problems)
    assert "Traceback" not in problems


async def test_a_full_disk_is_named_as_such(database: Database) -> None:
    # A limit on the pages of the file gives the very error that a full disk gives.
    with pytest.raises(StorageFull, match="full"):
        async with database.session() as session:
            pages = (await session.execute(text("PRAGMA page_count"))).scalar_one()
            await session.execute(text(f"PRAGMA max_page_count = {pages}"))
            for index in range(1000):
                session.add(row(f"{index:08}", f"{index:064}"))
            await session.flush()


async def test_a_damaged_database_is_named_as_such(path: Path, database: Database) -> None:
    async with database.session() as session:
        session.add_all(row(f"{index:08}", f"{index:064}") for index in range(500))
    await database.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)  # all pages but the first two, where the schema is
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        await database.open()
        async with database.session(read_only=True) as session:
            (await session.scalars(select(ApiKeyRow))).all()
    await database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "cannot be read"),
        ("not a url", "cannot be read"),
        ("postgresql://user:hunter2@host:port/name", "cannot be read"),
        ("mysql://user:hunter2@host/name", "mysql database is not supported"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("sqlite+aiosqlite:///file:name?mode=memory&uri=true", "must be a file"),
        ("postgresql+nonsense://user:hunter2@host/name", "unknown or not asynchronous"),
    ],
)
async def test_a_url_that_cannot_work_is_refused_without_repeating_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        await Database(url).open()
    assert "hunter2" not in str(caught.value)
    assert "METALSCRIBE_DATABASE_URL must look like" in str(caught.value)


async def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigurationError, match="driver asyncpg is not installed"):
        await Database("postgresql+asyncpg://user:hunter2@host/name").open()
