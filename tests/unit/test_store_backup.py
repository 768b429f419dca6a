from __future__ import annotations

import asyncio
import os
import stat
import tarfile
from pathlib import Path

import pytest

from metalscribe.errors import Conflict
from metalscribe.store.backup import BackupFailed, back_up, restore
from metalscribe.store.database import Database
from metalscribe.store.job import NewJob, Quota
from metalscribe.store.jobs import JobStore
from metalscribe.store.recordings import Recordings
from metalscribe.store.spool import spool


class Place:
    """A service's state: a database, and jobs with recordings."""

    def __init__(self, root: Path) -> None:
        self.database_file = root / "state" / "metalscribe.db"
        self.jobs = root / "jobs"
        self.database = Database(f"sqlite:///{self.database_file}")
        self.store = JobStore(self.database)
        self.recordings = Recordings(self.jobs)

    async def accept(self, name: str) -> None:
        upload = self.jobs / f"upload-{name}"
        upload.write_bytes(name.encode())
        await asyncio.to_thread(self.recordings.keep, name, upload)
        await self.store.accept(NewJob(name, "key", 1.0, f"{name}.mp3", {"task": "transcribe"}, None, 1), Quota())
        upload.unlink()

    async def end(self, name: str) -> None:
        await self.store.cancel(name)
        self.recordings.remove(name)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_what_was_backed_up_comes_back(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    for name in ("a", "b", "c"):
        await place.accept(name)
    await place.end("a")
    file = tmp_path / "backup.tar"
    assert back_up(place.database_file, place.jobs, file) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await place.end("b")
    await place.accept("d")
    await place.database.close()

    assert restore(file, place.database_file, place.jobs) == 2
    await place.database.open()
    assert {job.id: job.status.value for job in await place.store.page(None, limit=9)} == {
        "a": "cancelled",
        "b": "queued",
        "c": "queued",
    }
    assert {path.name: path.read_text() for path in (place.jobs / "recordings").iterdir()} == {"b": "b", "c": "c"}
    assert [path.name for path in (place.jobs / "backups").iterdir()] == [".lock"]
    await place.database.close()


async def test_a_backup_under_way_is_one_moment(place: Place, tmp_path: Path) -> None:
    """Jobs come and go while backups are made; each has the recordings of exactly the jobs that wait in it."""
    await place.database.open()
    stop = False

    async def traffic() -> None:
        number = 0
        while not stop:
            await place.accept(f"job-{number}")
            if number >= 5:
                await place.end(f"job-{number - 5}")
            number += 1

    busy = asyncio.create_task(traffic())
    for number in range(8):
        file = tmp_path / f"{number}.tar"
        count = await asyncio.to_thread(back_up, place.database_file, place.jobs, file)
        elsewhere = Place(tmp_path / str(number))
        assert restore(file, elsewhere.database_file, elsewhere.jobs) == count
        await elsewhere.database.open()
        assert await elsewhere.store.with_recordings() == {
            path.name for path in (elsewhere.jobs / "recordings").iterdir()
        }
        await elsewhere.database.close()
    stop = True
    await busy
    await place.database.close()


async def test_a_backup_goes_through_a_pipe(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    await place.accept("a")
    await place.database.close()
    with (tmp_path / "backup.tar").open("wb") as out:
        assert back_up(place.database_file, place.jobs, out) == 1
    elsewhere = Place(tmp_path / "elsewhere")
    with (tmp_path / "backup.tar").open("rb") as into:
        assert restore(into, elsewhere.database_file, elsewhere.jobs) == 1
    assert (elsewhere.jobs / "recordings" / "a").read_text() == "a"


async def test_what_a_killed_backup_left_is_swept(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    await place.accept("a")
    left = place.jobs / "backups" / "left-by-a-killed-one"
    left.mkdir(parents=True)
    (left / "a").hardlink_to(place.jobs / "recordings" / "a")
    assert not place.recordings.candidates(), "it has two names"
    back_up(place.database_file, place.jobs, tmp_path / "backup.tar")
    assert not left.exists()
    await place.database.close()


async def test_a_place_that_cannot_be_written_is_said(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    await place.database.close()
    with pytest.raises(BackupFailed, match=r"cannot be made: No such file or directory: .*nowhere"):
        back_up(place.database_file, place.jobs, tmp_path / "nowhere" / "backup.tar")
    back_up(place.database_file, place.jobs, tmp_path / "backup.tar")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackupFailed, match="cannot be put back"):
        restore(tmp_path / "backup.tar", tmp_path / "file" / "metalscribe.db", tmp_path / "jobs2")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_root_leaves_all_to_the_services_user(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    await place.accept("a")
    await place.database.close()
    back_up(place.database_file, place.jobs, tmp_path / "backup.tar")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    restore(tmp_path / "backup.tar", home / "state" / "metalscribe.db", home / "state" / "jobs")
    assert {path.stat().st_uid for path in home.rglob("*")} == {65534}


async def test_nothing_is_restored_under_a_running_service(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    file = tmp_path / "backup.tar"
    back_up(place.database_file, place.jobs, file)
    with spool(place.jobs / "incoming"), pytest.raises(Conflict, match="stop it first"):
        restore(file, place.database_file, place.jobs)
    await place.database.close()


async def test_what_is_no_backup_changes_nothing(place: Place, tmp_path: Path) -> None:
    await place.database.open()
    await place.accept("a")
    await place.database.close()
    before = place.database_file.read_bytes()
    text = tmp_path / "text"
    text.write_text("not a tar file")
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w"):
        pass
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as archive:
        archive.add(text, "metalscribe.db")
    for file in (text, empty, other):
        with pytest.raises(BackupFailed, match=file.name):
            restore(file, place.database_file, place.jobs)
    for number, name in enumerate(("../../escaped", "/escaped", "recordings/../escaped", "recordings/a/b", "other.db")):
        climbing = tmp_path / f"climbing-{number}.tar"
        with tarfile.open(climbing, "w") as archive:
            archive.add(text, name)
        with pytest.raises(BackupFailed, match="it has"):
            restore(climbing, place.database_file, place.jobs)
    linking = tmp_path / "linking.tar"
    with tarfile.open(linking, "w") as archive:
        link = tarfile.TarInfo("metalscribe.db")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(BackupFailed, match="it has"):
        restore(linking, place.database_file, place.jobs)
    assert not list(tmp_path.rglob("escaped"))
    assert place.database_file.read_bytes() == before
    assert [path.name for path in (place.jobs / "recordings").iterdir()] == ["a"]
    with pytest.raises(BackupFailed, match="no database"):
        back_up(tmp_path / "nowhere.db", place.jobs, tmp_path / "b.tar")
