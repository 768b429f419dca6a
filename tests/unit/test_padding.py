from __future__ import annotations

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray

from metalscribe.engine.model import padded

extract = FeatureExtractor()


def features(samples: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(extract(samples.astype(np.float32))[..., :-1], np.float32)


@pytest.mark.parametrize("loudness", [1.0, 0.1, 0.001, 0.0])
def test_padding_is_what_silence_looks_like(loudness: float) -> None:
    sound = loudness * np.random.default_rng(7).standard_normal(16_000)
    silent = features(np.concatenate([sound, np.zeros(16_000)]))

    made = padded([features(sound)], 200)[0]

    assert made.shape == silent.shape
    # Two frames at the joint see some of both.
    np.testing.assert_allclose(made[:, 102:], silent[:, 102:], atol=1e-3)
    np.testing.assert_array_equal(made[:, :98], features(sound)[:, :98])


def test_each_row_is_padded_with_its_own_silence() -> None:
    loud, quiet = (features(gain * np.random.default_rng(7).standard_normal(8_000)) for gain in (1.0, 0.01))

    together = padded([loud, quiet], 100)

    for place, row in zip(together, (loud, quiet), strict=True):
        np.testing.assert_array_equal(place, padded([row], 100)[0])
    assert together[0, 0, -1] > together[1, 0, -1]


def test_what_is_longer_is_cut() -> None:
    row = features(np.random.default_rng(7).standard_normal(16_000))

    np.testing.assert_array_equal(padded([row], 30)[0], row[:, :30])
