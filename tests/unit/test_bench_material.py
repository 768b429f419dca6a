"""What the benchmark measures with: recordings, models, accuracy, memory, its HTTP client."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.footprint import Footprint, parse_rollup, tree
from bench.preparing import Places, RecordingsBroken, prepare
from bench.recordings import Recording
from bench.ways.client import Head, events, form, parse_head, read_body
from bench.ways.metrics import batches, parse_series
from bench.wer import word_errors
from bench.workloads.workload import repeated
from common import MakeWav
from models import ModelNotInstalled, base_model


def test_recordings_are_made_where_there_are_none(tmp_path: Path) -> None:
    made = prepare(Places(tmp_path / "none", tmp_path / "none.flac"), tmp_path, quick=True)
    assert "synthesised" in made.source
    assert made.short.seconds == pytest.approx(5)
    assert made.chunk.seconds == pytest.approx(30)
    assert made.long.seconds > 180
    assert made.long.reference is not None
    assert made.long.reference.count("train leaves at") == round(made.long.seconds / 14.68)
    assert all(clip.path.is_file() for clip in made.clips)
    # A cut says only a part of the text.
    assert {clip.reference is None for clip in made.clips if clip.seconds < 14} == {True}


def test_real_recordings(tmp_path: Path, make_wav: MakeWav) -> None:
    import numpy as np

    places = Places(tmp_path / "clips", make_wav(np.zeros(40 * 16_000), name="long.wav"))
    places.clips.mkdir()
    for name, seconds in (("a", 3), ("b", 6)):
        make_wav(np.zeros(seconds * 16_000), name=f"clips/{name}.flac")
    (places.clips / "ref.tsv").write_text("a\tone two\nb\tthree\n")
    (tmp_path / "long.txt").write_text("all of it")
    (tmp_path / "long.ref.tsv").write_text("0.5\t10.0\tS\tu1\tall of\n11.0\t190.0\tS\tu2\tit\n")
    found = prepare(places, tmp_path)
    assert [(clip.seconds, clip.reference) for clip in found.clips] == [(3.0, "one two"), (6.0, "three")]
    assert found.short == found.clips[1]
    assert found.long == Recording(places.long, 40.0, "all of it")
    # Cut after the last utterance that is wholly within, with the words until there.
    quick = prepare(places, tmp_path / "clips", quick=True)
    assert (quick.long.seconds, quick.long.reference) == (10.0, "all of")


def test_broken_recordings_are_named(tmp_path: Path, make_wav: MakeWav) -> None:
    import numpy as np

    places = Places(tmp_path, make_wav(np.zeros(16_000), name="long.wav"))
    with pytest.raises(RecordingsBroken, match=r"ref\.tsv"):
        prepare(places, tmp_path)
    (tmp_path / "ref.tsv").write_text("a\tone\ttwo\n")
    with pytest.raises(RecordingsBroken, match="2 columns"):
        prepare(places, tmp_path)
    (tmp_path / "ref.tsv").write_text("a\tone\n")
    with pytest.raises(RecordingsBroken, match=r"a\.flac"):
        prepare(places, tmp_path)


def test_clips_are_repeated_in_whole_turns() -> None:
    clips = [Recording(Path(name), 1.0) for name in "abc"]
    assert repeated(clips, 1) == clips
    assert repeated(clips, 4) == clips * 2


def test_word_errors_after_normalisation() -> None:
    errors = word_errors(["Mister Smith's colour", "two words", ""], ["mr smith's color", "two", "noise"])
    assert (errors.words, errors.substitutions, errors.deletions, errors.insertions) == (6, 0, 1, 0)
    assert errors.percent == pytest.approx(100 / 6)
    with pytest.raises(ValueError, match="no words"):
        word_errors([""], ["something"])


def test_base_is_joined_and_verified() -> None:
    try:
        folder = base_model()
    except ModelNotInstalled as error:
        pytest.skip(str(error))
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "vocabulary.txt", "model.bin"}
    digest = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    assert digest.startswith("d01c3014")
    assert digest.endswith("a6a9")
    assert base_model() == folder


def test_rollup() -> None:
    text = "00400000-7ffe [rollup]\nRss:    1000 kB\nPss:     600 kB\nPss_Dirty:  5 kB\n"
    assert parse_rollup(text) == (1000 * 1024, 600 * 1024)
    assert parse_rollup("") == (0, 0)


def test_a_footprint_has_the_children_too() -> None:
    work = "import subprocess, sys; x = bytearray(200 << 20); subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE) as process:
        while len(list(tree(process.pid))) < 2:
            assert process.poll() is None
            os.sched_yield()
        with Footprint(process.pid) as footprint:
            process.communicate(b"\n")
    assert footprint.figures["peak_rss_bytes"] >= footprint.figures["peak_pss_bytes"] > 200 << 20


def test_a_form_and_a_head() -> None:
    made = form("a.wav", b"\x00\x01", {"stream": "true"})
    boundary, _, rest = made.partition(b"\r\n")
    assert rest.startswith(b'Content-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n' + boundary)
    assert made.endswith(b"\r\n\r\n\x00\x01\r\n" + boundary + b"--\r\n")
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Request-ID: a:b\r\n\r\n") == Head(
        200, {"content-length": "3", "x-request-id": "a:b"}
    )


async def test_bodies_by_length_and_by_chunks() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"abc" + b"4\r\nwxyz\r\n1;x=y\r\n!\r\n0\r\n\r\n" + b"next")
    assert [piece async for piece in read_body(reader, Head(200, {"content-length": "3"}))] == [b"abc"]
    chunked = read_body(reader, Head(200, {"transfer-encoding": "chunked"}))
    assert [piece async for piece in chunked] == [b"wxyz", b"!"]
    assert await reader.read(4) == b"next"


async def test_events_across_pieces() -> None:
    async def pieces() -> object:
        for piece in (b": hello\r\n\r\nevent: segm", b'ent\r\ndata: {"a":\r\ndata: 1}\r\n\r', b'\ndata: "x"\n\n'):
            yield piece

    found = [(event.name, event.data) async for event in events(pieces())]  # type: ignore[arg-type]
    assert found == [("segment", {"a": 1}), ("message", "x")]


def test_series_of_the_service() -> None:
    text = """# HELP metalscribe_batch_rows Chunks decoded in one batch
# TYPE metalscribe_batch_rows histogram
metalscribe_batch_rows_bucket{le="1.0",model="a } b"} 1.0
metalscribe_batch_rows_count{model="a"} 4.0
metalscribe_batch_rows_sum{model="a"} 20.0
metalscribe_batch_rows_count{model="b"} 1.0
metalscribe_batch_rows_sum{model="b"} 5.0
metalscribe_batch_seconds_sum{model="a"} 10.0
metalscribe_model_seconds_total{model="a"} 9.5 1700000000
up 1
"""
    after = parse_series(text)
    assert after == {
        "batch_rows_count": 5.0,
        "batch_rows_sum": 25.0,
        "batch_seconds_sum": 10.0,
        "model_seconds_total": 9.5,
    }
    assert batches({}, after) == {"batch_rows": 5.0, "model_percent": pytest.approx(95.0)}
    assert batches(after, after) == batches({}, {}) == {}
