"""The detector's network in large matrix products, against ONNX Runtime working out the whole file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metalscribe.engine import silero
from metalscribe.media.recording import Recording

SAMPLE = Path(silero.__file__).parents[1] / "samples"


def state() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.zeros((1, 1, silero.UNITS), np.float32), np.zeros((1, 1, silero.UNITS), np.float32)


def windows_of(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    count = samples.size // silero.WINDOW
    behind = np.concatenate([np.zeros(silero.CONTEXT, np.float32), samples])
    return np.stack([behind[at * silero.WINDOW :][: silero.CONTEXT + silero.WINDOW] for at in range(count)])


@pytest.fixture(scope="module")
def reference() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(silero._file()), providers=["CPUExecutionProvider"])


def test_speech_gets_the_probabilities_of_the_whole_network(reference: onnxruntime.InferenceSession) -> None:
    with next(SAMPLE.glob("*.flac")).open("rb") as file:
        windows = windows_of(np.concatenate(list(Recording(file).blocks())))
    hidden, cell = state()
    expected, expected_hidden, expected_cell = reference.run(None, {"input": windows, "h": hidden, "c": cell})
    speech, hidden, cell = silero.load()(windows, hidden, cell)
    assert speech.shape == (len(windows),)
    assert float(speech.max()) > 0.9, "the sample has speech"
    assert float(speech.min()) < 0.1, "the sample has pauses"
    np.testing.assert_allclose(speech, expected.reshape(-1), atol=1e-4)
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-3)
    np.testing.assert_allclose(cell, expected_cell, atol=1e-2, rtol=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 80), st.integers(0, 2**32 - 1), st.sampled_from([1e-5, 1e-3, 0.1, 1.0]))
def test_any_sound_from_any_state(
    reference: onnxruntime.InferenceSession, count: int, seed: int, loudness: float
) -> None:
    random = np.random.default_rng(seed)
    windows = (loudness * random.standard_normal((count, silero.CONTEXT + silero.WINDOW))).astype(np.float32)
    hidden, cell = (random.standard_normal((1, 1, silero.UNITS)).astype(np.float32) for _ in range(2))
    expected = reference.run(None, {"input": windows, "h": hidden, "c": cell})
    for ours, theirs in zip(silero.load()(windows, hidden, cell), expected, strict=True):
        np.testing.assert_allclose(ours.reshape(-1), theirs.reshape(-1), atol=1e-3, rtol=1e-3)


def refusal(file: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a detector with this content."""
    file.write_bytes(content)
    monkeypatch.setattr(silero, "_file", lambda: file)
    with pytest.raises(ValueError, match=r"^/") as refused:
        silero.load.__wrapped__()
    return str(refused.value).removeprefix(f"{file} ")


def test_another_network_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = silero._file().read_bytes()
    file = tmp_path / "other.onnx"

    narrower = silero._onnx().FromString(whole)
    next(one for one in narrower.graph.initializer if one.name == "encoder.conv_layers.2.weight").dims[0] = 32
    assert refusal(file, narrower.SerializeToString(), monkeypatch) == (
        "is not Silero VAD v6: encoder.conv_layers.2.weight is missing, or not float32[64, 64, 3]"
    )
    forgetful = silero._onnx().FromString(whole)
    next(one for one in forgetful.graph.node if one.op_type == "LSTM").op_type = "GRU"
    assert refusal(file, forgetful.SerializeToString(), monkeypatch).startswith(
        "is not Silero VAD v6: it has the nodes Pad, "
    )
    assert refusal(file, whole[:1000], monkeypatch).startswith("is damaged (")
    assert refusal(file, b"", monkeypatch).startswith("is not Silero VAD v6: ")
