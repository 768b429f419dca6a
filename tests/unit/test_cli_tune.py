from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metalscribe.cli import app
from metalscribe.cli.tune import Trial, read_references, recommended
from metalscribe.errors import InvalidParameter

SAMPLES = files("metalscribe") / "samples"


def trial(margin: float, wer: float, speed: float) -> Trial:
    return Trial(margin, wer, 0, 0, 0, speed, 0.0)


def test_the_fastest_that_costs_no_accuracy_is_recommended() -> None:
    trials = [trial(0, 10.0, 20), trial(3, 11.0, 50), trial(5, 10.2, 45), trial(8, 9.8, 40)]
    assert recommended(trials).margin == 5
    assert recommended(trials[:2]).margin == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(str(SAMPLES / "sample.flac"), tmp_path / "one.flac")
    text = " ".join((SAMPLES / "sample.txt").read_text().split())
    (tmp_path / "ref.tsv").write_text(f"one\t{text}\n")
    return tmp_path


def test_recordings_are_found_by_name_or_stem(folder: Path) -> None:
    assert list(read_references(folder)) == [folder / "one.flac"]
    (folder / "ref.tsv").write_text("one.flac\ten\thello\n\n")
    assert read_references(folder) == {folder / "one.flac": "hello"}


@pytest.mark.parametrize(
    ("listing", "complaint"), [("", "lists no"), ("one\n", "line 1"), ("one\thello\ntwo\thello\n", "line 2.*two")]
)
def test_what_is_wrong_with_a_listing_is_named(folder: Path, listing: str, complaint: str) -> None:
    (folder / "ref.tsv").write_text(listing)
    with pytest.raises(InvalidParameter, match=complaint):
        read_references(folder)


@pytest.mark.model
def test_a_model_is_tuned(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> None:
    monkeypatch.setenv("METALSCRIBE_STATE_DIR", str(tmp_path / "state"))
    answer = CliRunner().invoke(app, ["bench", "tune", str(folder), "--model", "demo", "--margins", "5", "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout[answer.stdout.index("{") :])
    assert [one["margin"] for one in told["trials"]] == [0.0, 5.0]
    assert all(one["word_error_rate"] < 20 for one in told["trials"])
    assert told["recommended"] in {0.0, 5.0}


def test_margins_must_be_seconds(folder: Path) -> None:
    answer = CliRunner().invoke(app, ["bench", "tune", str(folder), "--margins", "much"])
    assert isinstance(answer.exception, InvalidParameter)
