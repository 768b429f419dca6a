"""Uploads: divided into small transfers, verified where they arrive, continued wherever they were cut off."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell_host import CommandFailed, ShellHost, shell_host

from metalscribe_provision.runtime import upload
from metalscribe_provision.runtime.facts import FilesIn, parse_listing
from metalscribe_provision.runtime.upload import Slice, Together, Upload, shipments, uploaded

__all__ = ["shell_host"]

PIECE = 1000


def an_upload(name: str, size: int) -> Upload:
    return Upload.content(name, random.Random(name).randbytes(size))


sizes = st.lists(st.integers(0, 5 * PIECE), max_size=12)


@given(sizes, st.sets(st.integers(0, 11)), st.dictionaries(st.integers(0, 11), st.integers(0, 6 * PIECE)))
def test_shipments_bring_every_missing_byte_once_in_small_transfers(
    sizes: list[int], complete: set[int], begun: dict[int, int]
) -> None:
    uploads = [an_upload(f"file{index:02}", size) for index, size in enumerate(sizes)]
    there = {item.name: (item.size, item.sha256) for index, item in enumerate(uploads) if index in complete}
    there |= {uploads[index].unfinished: (size, "0" * 64) for index, size in begun.items() if index < len(uploads)}

    found = list(shipments(uploads, there, PIECE))

    brought: dict[str, int] = {}
    for shipment in found:
        if isinstance(shipment, Together):
            assert sum(item.size for item in shipment.uploads) <= PIECE
            for item in shipment.uploads:
                assert item.name not in brought
                brought[item.name] = 0
        else:
            assert shipment.length <= PIECE
            # What is on the host of a file is a beginning without gaps, so the next piece begins at or before its end.
            arrived = there.get(shipment.upload.unfinished, (0, ""))[0]
            assert shipment.offset == brought.get(shipment.upload.name, shipment.offset)
            if shipment.upload.name not in brought:
                assert shipment.offset <= arrived
                assert shipment.offset % PIECE == 0
            brought[shipment.upload.name] = shipment.offset + shipment.length
            assert shipment.last == (brought[shipment.upload.name] == shipment.upload.size)
    assert set(brought) == {item.name for index, item in enumerate(uploads) if index not in complete}
    assert all(brought[item.name] in {0, item.size} for item in uploads if item.name in brought)
    large = [item.name for item in uploads if item.size > PIECE and item.name in brought]
    assert {shipment.upload.name for shipment in found if isinstance(shipment, Slice)} == set(large)


def test_listing() -> None:
    digest = "a" * 64
    lines = [f"12 {digest}  ./wheels/a.whl", f"0 {digest}  ./b c", "sha256sum: ./x: Permission denied", ""]
    assert parse_listing(lines) == {"wheels/a.whl": (12, digest), "b c": (0, digest)}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell_host: ShellHost) -> Path:
    """A folder for uploads; the host is this machine's shell."""
    incoming = tmp_path / "incoming"
    monkeypatch.setattr(upload, "INCOMING", incoming)
    monkeypatch.setattr(upload, "_PIECE_PATH", incoming / "piece")
    monkeypatch.setattr(upload, "host", shell_host)
    return tmp_path / "there"


UPLOADS = [
    an_upload("large", 4 * PIECE + 7),
    an_upload("wheels/exact", 2 * PIECE),
    an_upload("wheels/small", 300),
    an_upload("empty", 0),
    Upload.text("text", "a line\n"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {item.name: item.source for item in UPLOADS}


@pytest.mark.parametrize("user", [None, "metalscribe"])
def test_files_arrive_whole(here: Path, shell_host: ShellHost, user: str | None) -> None:
    shell_host.run(uploaded(UPLOADS, here, user, PIECE))
    arrived = contents(here)
    sums = arrived.pop("SHA256SUMS").decode()
    assert arrived == EXPECTED
    assert all(f"{item.sha256}  {item.name}\n" in sums for item in UPLOADS)
    assert not (here.parent / "incoming" / "piece").exists()
    assert all(user is None or "runuser -u metalscribe --" in line for line in shell_host.commands if str(here) in line)


def test_nothing_is_sent_twice(here: Path, shell_host: ShellHost) -> None:
    shell_host.run(uploaded(UPLOADS, here, piece=PIECE))
    sent = shell_host.sent
    shell_host.run(uploaded(UPLOADS, here, piece=PIECE))
    assert shell_host.sent == sent


def test_an_interrupted_upload_is_continued_wherever_it_was_cut_off(here: Path, shell_host: ShellHost) -> None:
    whole = shell_host.run(uploaded(UPLOADS, here, piece=PIECE))
    once = shell_host.sent
    for cut in range(1, whole):
        shell_host.sent = 0
        shutil.rmtree(here)
        shell_host.run(uploaded(UPLOADS, here, piece=PIECE), stop_after=cut)
        shell_host.run(uploaded(UPLOADS, here, piece=PIECE))
        assert {name: content for name, content in contents(here).items() if name != "SHA256SUMS"} == EXPECTED, cut
        # At most what was under way when it was cut off is sent again, as an archive of one file would be.
        assert shell_host.sent <= once + 11 * 1024


def test_a_piece_that_was_cut_off_midway_is_sent_again(here: Path, shell_host: ShellHost) -> None:
    large = UPLOADS[0]
    here.mkdir()
    assert isinstance(large.source, bytes)
    (here / large.unfinished).write_bytes(large.source[: 2 * PIECE] + b"half of it")
    shell_host.run(uploaded([large], here, piece=PIECE))
    assert (here / "large").read_bytes() == large.source
    assert shell_host.sent < large.size - 2 * PIECE + 11 * 1024


def test_what_arrives_damaged_is_removed_and_ends_the_deploy(here: Path, shell_host: ShellHost) -> None:
    here.mkdir()
    large = UPLOADS[0]
    assert isinstance(large.source, bytes)
    (here / large.unfinished).write_bytes(b"\0" * PIECE + large.source[PIECE : 2 * PIECE])
    with pytest.raises(CommandFailed, match="arrived damaged and were removed; run the deploy again"):
        shell_host.run(uploaded([large], here, piece=PIECE))
    assert not here.exists()
    shell_host.run(uploaded([large], here, piece=PIECE))
    assert (here / "large").read_bytes() == large.source


def test_a_file_that_was_replaced_is_sent_again(here: Path, shell_host: ShellHost) -> None:
    shell_host.run(uploaded(UPLOADS, here, piece=PIECE))
    (here / "text").write_bytes(b"A LINE\n")
    (here / "text").chmod(0o400)
    shell_host.run(uploaded(UPLOADS, here, piece=PIECE))
    assert (here / "text").read_bytes() == b"a line\n"


def test_files_are_read_from_paths(here: Path, shell_host: ShellHost, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(3 * PIECE)
    (tmp_path / "source").write_bytes(content)
    item = Upload("it", tmp_path / "source", len(content), hashlib.sha256(content).hexdigest())
    shell_host.run(uploaded([item], here, piece=PIECE))
    assert (here / "it").read_bytes() == content
    assert shell_host.get_fact(FilesIn, path=str(here))["it"] == (len(content), item.sha256)


def test_no_folder_is_an_empty_listing(shell_host: ShellHost, tmp_path: Path) -> None:
    assert shell_host.get_fact(FilesIn, path=str(tmp_path / "nothing here")) == {}


def test_a_transfer_is_in_memory_only_while_it_is_sent() -> None:
    content = random.Random(4).randbytes(3 * PIECE)
    transfer = upload._Transfer(Slice(Upload.content("it", content), PIECE, PIECE))
    assert transfer._buffer is None
    for _ in range(2):  # pyinfra tries an upload that failed again
        transfer.seek(0)
        assert transfer.read(10) == content[PIECE : PIECE + 10]
        assert transfer.tell() == 10
        assert transfer.read() == content[PIECE + 10 : 2 * PIECE]
        assert transfer._buffer is None
