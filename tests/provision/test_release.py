"""What a host keeps of its releases: generations, going back, pruning. The switch itself needs systemd: see tests/lab."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest

from metalscribe_provision.release import database
from metalscribe_provision.release.gate import alike
from metalscribe_provision.release.generations import Generation, Generations, Refused, fingerprint, settings
from metalscribe_provision.release.layout import Layout, write
from metalscribe_provision.service.tool import release_tool

_SAMPLE = Path(__file__).parents[2] / "service" / "metalscribe" / "samples"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "opt", etc=tmp_path / "etc", units=tmp_path / "units", state=tmp_path / "state")


def _release(layout: Layout, name: str) -> str:
    write(layout.releases / name / "release.json", json.dumps({"version": name}).encode())
    return name


def _generation(release: str, port: int = 8000) -> Generation:
    env = f"# settings\nMETALSCRIBE_PORT={port}\nMETALSCRIBE_MODEL='a b'\n".encode()
    return Generation(0, release, {"metalscribe.env": env, "metalscribe.service": b"[Service]\n"})


def _serve(generations: Generations, generation: Generation) -> Generation:
    generations.put_in_place(generation)
    return generations.keep(generation, backup=None)


def test_nothing_has_served_yet(layout: Layout) -> None:
    generations = Generations(layout)
    assert (generations.current(), generations.live(), generations.releases(), generations.numbers()) == (
        None,
        None,
        [],
        [],
    )


def test_what_serves_is_what_was_put_in_place(layout: Layout) -> None:
    generations = Generations(layout)
    kept = _serve(generations, _generation(_release(layout, "1.0-a")))
    current, live = generations.current(), generations.live()
    assert current is not None
    assert live is not None
    assert current == kept
    assert current.number == 1
    assert live.fingerprint == current.fingerprint == fingerprint("1.0-a", current.files)
    assert layout.current.readlink() == Path("releases/1.0-a")
    assert settings(current) == {"METALSCRIBE_PORT": "8000", "METALSCRIBE_MODEL": "a b"}


def test_a_change_by_hand_shows(layout: Layout) -> None:
    generations = Generations(layout)
    kept = _serve(generations, _generation(_release(layout, "1.0-a")))
    (layout.etc / "metalscribe.env").write_text("METALSCRIBE_PORT=1\n")
    live = generations.live()
    assert live is not None
    assert live.fingerprint != kept.fingerprint


def test_the_fingerprint_tells_releases_settings_and_units_apart() -> None:
    prints = {
        _generation("1.0-a").fingerprint,
        _generation("1.0-b").fingerprint,
        _generation("1.0-a", port=8002).fingerprint,
        Generation(0, "1.0-a", {**_generation("1.0-a").files, "metalscribe.service": b""}).fingerprint,
    }
    assert len(prints) == 4


def test_a_rollback_goes_to_the_generation_before(layout: Layout) -> None:
    generations = Generations(layout)
    for name in ("1.0-a", "1.1-b", "1.2-c"):
        last = _serve(generations, _generation(_release(layout, name)))
    assert generations.before(last, None).release == "1.1-b"
    assert generations.before(last, "1.0-a").release == "1.0-a"
    assert generations.before(last, None).number == 2


def test_a_rollback_after_a_change_of_settings_goes_to_the_old_settings(layout: Layout) -> None:
    generations = Generations(layout)
    _serve(generations, _generation(_release(layout, "1.0-a")))
    last = _serve(generations, _generation("1.0-a", port=8002))
    assert settings(generations.before(last, None))["METALSCRIBE_PORT"] == "8000"


def test_a_release_that_never_served_is_tried_with_the_present_settings(layout: Layout) -> None:
    generations = Generations(layout)
    last = _serve(generations, _generation(_release(layout, "1.0-a"), port=8002))
    _release(layout, "0.9-z")
    assert generations.before(last, "0.9-z") == Generation(0, "0.9-z", last.files)


@pytest.mark.parametrize("name", ["../../etc", "", "9.9-z", ".hidden", "a/b"])
def test_what_is_no_release_is_refused(layout: Layout, name: str) -> None:
    generations = Generations(layout)
    _release(layout, "1.0-a")
    with pytest.raises(Refused):
        generations.require_complete(name)


def test_an_incomplete_release_is_refused(layout: Layout) -> None:
    (layout.releases / "1.0-a" / "venv").mkdir(parents=True)
    with pytest.raises(Refused, match="not complete"):
        Generations(layout).staged("1.0-a")


def test_nothing_laid_ready_is_refused(layout: Layout) -> None:
    with pytest.raises(Refused, match="run the deploy"):
        Generations(layout).staged(_release(layout, "1.0-a"))


def test_there_is_nothing_before_the_first(layout: Layout) -> None:
    generations = Generations(layout)
    only = _serve(generations, _generation(_release(layout, "1.0-a")))
    with pytest.raises(Refused, match="no earlier generation"):
        generations.before(only, None)


def test_pruning_keeps_what_served_last(layout: Layout) -> None:
    generations = Generations(layout)
    names = [_release(layout, f"1.{index}-a") for index in range(5)]
    _release(layout, "never-served")
    for name in names:
        _serve(generations, _generation(name))
    assert sorted(generations.prune(2)) == ["1.0-a", "1.1-a", "1.2-a", "never-served"]
    assert {item["id"] for item in generations.releases()} == {"1.3-a", "1.4-a"}
    assert generations.numbers() == [4, 5]
    assert generations.prune(2) == []


def test_pruning_after_many_changes_of_settings(layout: Layout) -> None:
    generations = Generations(layout)
    _serve(generations, _generation(_release(layout, "1.0-a")))
    for port in range(8001, 8031):
        last = _serve(generations, _generation(_release(layout, "1.1-a"), port))
    assert generations.prune(2) == []
    assert last.number == generations.numbers()[-1]
    assert len(generations.numbers()) == 20


def test_a_generation_that_was_cut_off_does_not_count(layout: Layout) -> None:
    generations = Generations(layout)
    first = _serve(generations, _generation(_release(layout, "1.0-a")))
    (layout.generations / "2").mkdir()
    (layout.generations / "2" / "metalscribe.env").write_text("half")
    assert generations.current() == first
    assert _serve(generations, _generation(_release(layout, "1.1-b"))).number == 2


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("{whole}", True),
        ("{shouted}", True),
        ("", False),
        ("wrong", False),
        ("the the the the the the the the the the the the the the", False),
        ("{whole} {whole} {whole}", False),
    ],
)
def test_an_answer_is_judged_by_its_words(text: str, fit: bool) -> None:
    whole = (_SAMPLE / "sample.txt").read_text()
    likeness = alike(whole, text.format(whole=whole, shouted=whole.upper().replace(".", "!")))
    assert (likeness >= 0.7) is fit
    assert 0 <= likeness <= 1


def test_the_schema_of_a_copy(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('0001')")
        connection.commit()
    assert database.schema(tmp_path / "a.db") == "0001"
    assert database.schema(tmp_path / "none.db") is None


def test_old_backups_go_and_the_newest_stays(tmp_path: Path) -> None:
    for name, age in (("a.db", 30), ("b.db", 20), ("c.db", 16)):
        (tmp_path / name).touch()
        moment = (tmp_path / name).stat().st_mtime - age * 86_400
        os.utime(tmp_path / name, (moment, moment))
    assert database.forget_older_than(tmp_path, 14) == ["a.db", "b.db"]
    assert [path.name for path in tmp_path.iterdir()] == ["c.db"]


def test_the_tool_is_one_file_that_runs_by_itself(tmp_path: Path) -> None:
    content = release_tool()
    assert content == release_tool()
    assert zipfile.ZipFile(BytesIO(content)).testzip() is None
    tool = tmp_path / "metalscribe-release"
    tool.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-I", tool, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    for command in ("activate", "rollback", "restart", "status", "backup"):
        assert command in done.stdout
