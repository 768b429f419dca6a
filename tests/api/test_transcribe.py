"""POST /transcribe: every format and option of the native dialect."""

from __future__ import annotations

import csv
import io
import itertools
import socket
import uuid
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import srt
import webvtt

from .harness import problem, says, send, wav

pytestmark = pytest.mark.model


def test_json_has_all_that_is_promised(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    answer = send(client, sample)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {
        "id",
        "text",
        "language",
        "language_probability",
        "duration",
        "processing_time",
        "segments",
        "model",
    }
    assert uuid.UUID(document["id"]).version == 4
    assert says(document["text"], sample_text)
    assert document["language"] == "en"
    assert document["duration"] == pytest.approx(14.684, abs=0.05)
    assert document["processing_time"] > 0
    assert document["segments"] is None
    assert document["model"] == "demo"


@pytest.mark.speech
@pytest.mark.parametrize("name", ["jfk.flac", "jfk.wav", "jfk.mp3"])
def test_real_speech(client: httpx.Client, data: Path, name: str) -> None:
    answer = send(client, (data / "english" / "jfk" / name).read_bytes(), name)
    assert answer.status_code == 200
    assert says(answer.json()["text"], "ask not what your country can do for you ask what you can do for your country")
    assert answer.json()["duration"] == pytest.approx(11.0, abs=0.2)


def test_text(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    answer = send(client, sample, params={"format": "text"})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert says(answer.text, sample_text)


def test_srt(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    answer = send(client, sample, params={"format": "srt"})
    cues = list(srt.parse(answer.text))
    assert says(" ".join(cue.content for cue in cues), sample_text)
    _check_cues([(cue.start.total_seconds(), cue.end.total_seconds(), cue.content) for cue in cues])


def test_vtt(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    answer = send(client, sample, params={"format": "vtt"})
    assert answer.headers["content-type"].startswith("text/vtt")
    cues = webvtt.from_string(answer.text).captions
    assert says(" ".join(cue.text for cue in cues), sample_text)
    _check_cues([(cue.start_in_seconds, cue.end_in_seconds + 1, cue.text) for cue in cues], slack=1.0)


def test_tsv(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    answer = send(client, sample, params={"format": "tsv"})
    rows = list(csv.DictReader(io.StringIO(answer.text), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert says(" ".join(row["text"] for row in rows), sample_text)
    _check_cues([(int(row["start"]) / 1000, int(row["end"]) / 1000, row["text"]) for row in rows], limit=None)


def _check_cues(cues: list[tuple[float, float, str]], limit: int | None = 42, slack: float = 0.0) -> None:
    assert len(cues) >= 3
    for (start, end, text), following in zip(cues, [*cues[1:], (99.0, 99.0, "")], strict=True):
        assert 0 <= start < end <= following[0] + slack
        assert end <= 14.7 + slack
        if limit is not None:
            lines = text.splitlines()
            assert len(lines) <= 2
            assert max(map(len, lines)) <= limit


def test_segments(client: httpx.Client, sample: bytes) -> None:
    document = send(client, sample, params={"include_segments": "true"}).json()
    assert [segment["index"] for segment in document["segments"]] == list(range(len(document["segments"])))
    for segment in document["segments"]:
        assert {"start", "end", "text", "avg_logprob", "no_speech_prob", "compression_ratio"} <= set(segment)
        assert not segment.get("words")
    assert " ".join(segment["text"].strip() for segment in document["segments"]).split() == document["text"].split()


def test_words(client: httpx.Client, sample: bytes) -> None:
    document = send(client, sample, data={"word_timestamps": "true"}).json()
    flat = [word for segment in document["segments"] for word in segment["words"]]
    assert "".join(word["word"] for word in flat).split() == document["text"].split()
    for word, following in itertools.pairwise(flat):
        assert word["start"] <= word["end"]
        assert word["start"] <= following["start"]


def test_accurate_reads_the_same(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    assert says(send(client, sample, params={"mode": "accurate"}).json()["text"], sample_text)


def test_without_voice_activity_detection(client: httpx.Client, sample: bytes, sample_text: str) -> None:
    assert says(send(client, sample, params={"vad": "false"}).json()["text"], sample_text)


@pytest.mark.parametrize("options", [{"prompt": "A weather report."}, {"hotwords": "Metalscribe"}])
def test_prompt_and_hotwords(client: httpx.Client, sample: bytes, sample_text: str, options: dict[str, str]) -> None:
    assert says(send(client, sample, data=options).json()["text"], sample_text)


@pytest.mark.parametrize("language", ["en", "EN", "English", "english", "auto", "", " en "])
def test_language_by_code_and_name(client: httpx.Client, sample: bytes, language: str) -> None:
    answer = send(client, sample, data={"language": language})
    assert answer.status_code == 200, answer.text
    assert answer.json()["language"] == "en"


@pytest.mark.parametrize("model", ["demo", ""])
def test_model_by_name(client: httpx.Client, sample: bytes, model: str) -> None:
    assert send(client, sample, params={"model": model}).json()["model"] == "demo"


def test_silence_has_no_words(client: httpx.Client) -> None:
    quiet = wav(np.zeros(48_000, np.int16))
    assert send(client, quiet).json()["text"] == ""
    assert send(client, quiet, params={"format": "vtt"}).text == "WEBVTT\n"
    assert send(client, quiet, params={"format": "srt"}).text == ""


def test_audio_track(client: httpx.Client, sample: bytes, sample_text: str, tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    _two_tracks(path, sample)
    document = path.read_bytes()
    assert send(client, document).json()["text"] == ""
    assert says(send(client, document, params={"audio_track": 1}).json()["text"], sample_text)
    problem(send(client, document, params={"audio_track": 2}), 422, "no_audio_track")


def _two_tracks(path: Path, sample: bytes) -> None:
    """Silence first, the sample second."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(io.BytesIO(sample), "r") as source, av.open(str(path), "w", format="matroska") as target:
        quiet, spoken = (target.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2))
        position = 0
        for frame in source.decode(audio=0):
            for piece in resampler.resample(frame):
                empty = av.AudioFrame.from_ndarray(np.zeros((1, piece.samples), np.int16), "s16", "mono")
                for stream, made in ((quiet, empty), (spoken, piece)):
                    made.sample_rate = 16_000
                    made.pts = position
                    for packet in stream.encode(made):
                        target.mux(packet)
                position += piece.samples
        for stream in (quiet, spoken):
            for packet in stream.encode(None):
                target.mux(packet)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("language", "de"),
        ("language", "klingon"),
        ("task", "translate"),
        ("task", "summarise"),
        ("diarize", "true"),
        ("mode", "turbo"),
        ("format", "docx"),
        ("vad", "perhaps"),
        ("include_segments", "2"),
        ("word_timestamps", "x"),
        ("audio_track", "-1"),
        ("audio_track", "1001"),
        ("audio_track", "1.5"),
        ("model", "large-v3"),
        ("temperature", "0"),
        ("prompt", "x" * 4001),
    ],
)
@pytest.mark.parametrize("place", ["params", "data"])
def test_wrong_parameters_are_named(client: httpx.Client, sample: bytes, name: str, value: str, place: Any) -> None:
    given: dict[str, Any] = {place: {name: value}}
    document = problem(
        client.request("POST", "/transcribe", files={"file": ("sample.flac", sample)}, **given),
        400,
        "invalid_parameter",
    )
    assert document["parameter"] == name
    assert name in document["detail"]


def test_a_parameter_in_query_and_form_must_agree(client: httpx.Client, sample: bytes) -> None:
    assert send(client, sample, params={"format": "text"}, data={"format": "text"}).status_code == 200
    refused = problem(send(client, sample, params={"format": "text"}, data={"format": "srt"}), 400)
    assert refused["parameter"] == "format"
    twice = client.post("/transcribe?vad=true&vad=false", files={"file": ("sample.flac", sample)})
    assert problem(twice, 400)["parameter"] == "vad"


def test_a_wrong_query_is_refused_before_the_upload(client: httpx.Client) -> None:
    """Whatever can be judged without the recording is."""

    for query in ("format=docx", "language=de", "diarize=true", "task=translate", "model=other"):
        answer = _headers_only(client, f"/transcribe?{query}")
        assert answer.startswith(b"HTTP/1.1 400 "), (query, answer)


def _headers_only(client: httpx.Client, target: str) -> bytes:
    """Announce a body, send none of it, and see whether there is an answer all the same."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as connection:
        connection.sendall(
            (
                f"POST {target} HTTP/1.1\r\nHost: here\r\nX-API-Key: {client.headers['X-API-Key']}\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
            ).encode()
        )
        try:
            return connection.recv(65536)
        except TimeoutError:
            return b""
