from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from metalscribe.store.spool import spool

HOLD = """
import sys
from pathlib import Path
from metalscribe.store.spool import spool
with spool(Path(sys.argv[1])) as mine:
    (mine / "recording").write_text("x")
    print(mine, flush=True)
    sys.stdin.readline()
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a spool of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with spool(tmp_path / "uploads") as mine:
        assert mine.stat().st_mode & 0o777 == 0o700
        (mine / "recording").write_text("x")
    assert not mine.exists()


def test_what_a_living_process_keeps_is_left_alone_and_what_a_dead_one_left_is_swept(tmp_path: Path) -> None:
    with holder(tmp_path)[0] as process:
        (theirs,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
        (tmp_path / "stray").write_text("of an older version")
        with spool(tmp_path) as mine:
            assert (theirs / "recording").exists()
            assert not (tmp_path / "stray").exists()
        process.kill()
        process.wait()
    assert (theirs / "recording").exists()
    with spool(tmp_path) as mine:
        assert [entry for entry in tmp_path.iterdir() if entry.is_dir()] == [mine]


def test_a_link_in_the_place_of_a_directory_is_removed_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    parent = tmp_path / "uploads"
    parent.mkdir()
    (parent / "link").symlink_to(elsewhere)
    with spool(parent):
        assert not (parent / "link").is_symlink()
    assert (elsewhere / "precious").exists()
