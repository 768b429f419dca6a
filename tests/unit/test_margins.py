from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalscribe.engine.context import AdaptiveContext
from metalscribe.engine.margins import adaptive_context
from metalscribe.errors import ConfigurationError


def model(directory: Path, last_layer: int | None, size: int) -> Path:
    config = {} if last_layer is None else {"alignment_heads": [[0, 1], [last_layer, 3]]}
    (directory / "config.json").write_text(json.dumps(config))
    with (directory / "model.bin").open("wb") as weights:
        weights.truncate(size)
    return directory


def margin_of(adaptive: AdaptiveContext | None) -> float | None:
    return adaptive.margin if adaptive else None


@pytest.mark.parametrize(
    ("last_layer", "size", "margin"),
    [
        (3, 75_537_502, 4.0),  # tiny.en, float16
        (5, 145_217_532, 4.0),  # base, float16
        (3, 40_000_000, 4.0),  # tiny, int8
        (11, 483_546_902, None),  # small: nobody has measured
        (3, 333_000_000, None),  # distil-small.en has four layers too
        (3, 1_617_824_864, None),  # large-v3-turbo
        (None, 75_537_502, None),
    ],
)
def test_what_was_measured_is_known_by_the_model_itself(
    tmp_path: Path, last_layer: int | None, size: int, margin: float | None
) -> None:
    assert margin_of(adaptive_context("auto", "whatever", model(tmp_path, last_layer, size))) == margin


def test_the_demo_model_is_known(demo_model: Path) -> None:
    assert adaptive_context("auto", "demo", demo_model) == AdaptiveContext(margin=4.0, longest=20.0)


def test_a_chunk_is_as_long_as_suits_the_model(tmp_path: Path) -> None:
    base, unknown = tmp_path / "base", tmp_path / "unknown"
    for directory, last_layer, size in ((base, 5, 145_217_532), (unknown, 11, 483_546_902)):
        directory.mkdir()
        model(directory, last_layer, size)
    assert adaptive_context("auto", "base", base) == AdaptiveContext(margin=4.0, longest=24.0)
    assert adaptive_context("6", "base", base) == AdaptiveContext(margin=6.0, longest=24.0)
    assert adaptive_context("4", "unknown", unknown) == AdaptiveContext(margin=4.0, longest=24.0)


@pytest.mark.parametrize(
    ("setting", "margin"),
    [
        ("7", 7.0),
        ("0", None),
        ("small=6.5", 6.5),
        ("small=0", None),
        ("other=3", 4.0),
        ("other=3,auto", 4.0),
        ("other=3, 4", 4.0),
        ("4,small=6", 6.0),
        ("small=auto,2", 4.0),
    ],
)
def test_the_operator_has_the_last_word(tmp_path: Path, setting: str, margin: float | None) -> None:
    assert margin_of(adaptive_context(setting, "small", model(tmp_path, 3, 75_537_502))) == margin


@pytest.mark.parametrize("setting", ["much", "-1", "31", "small=", "small=x", "nan", "inf"])
def test_nonsense_is_named(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigurationError, match="METALSCRIBE_CONTEXT_MARGIN"):
        adaptive_context(setting, "small", model(tmp_path, 3, 75_537_502))
