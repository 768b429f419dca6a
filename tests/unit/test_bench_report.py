"""What the benchmark writes: documents, tables, the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import profile, result
from bench.figures import Figures, Run
from bench.machine import Machine
from bench.page import MarkersBroken, profile_table, refresh, refreshed
from bench.profile import Profile, python_threads, shares
from bench.report import markdown, number, table
from bench.result import Material, Result

MIB = 1024 * 1024
MACHINE = Machine(
    cpu="A Processor",
    cores=2,
    memory_bytes=24 * 1024**3,
    gpu=None,
    system="Linux 6",
    python="3.11.2",
    versions={"ctranslate2": "4.8.5"},
    commit="0123456789ab",
    settings={},
)


def made(*runs: tuple[str, str, Figures]) -> Result:
    return Result(
        measured="2026-01-02",
        model="demo",
        device="cpu",
        compute_type="int8",
        language=None,
        segments=False,
        quick=False,
        rounds=3,
        material=Material("clips, long.flac", 50, 381.5, 650.5, 5.06),
        machine=MACHINE,
        runs=[Run(workload, way, 0, figures) for workload, way, figures in runs],
    )


CLIPS = made(
    ("clients-8", "sequential", {"throughput": 10.0, "audio_seconds": 100.0, "cpu_seconds": 16.0, "wer_percent": 13.8}),
    ("clients-8", "http", {"throughput": 45.0, "peak_pss_bytes": 512.0 * MIB, "latency_p50_seconds": 1.234}),
    ("clients-32", "http", {"throughput": 46.0}),
)


def row(text: str, *beginning: str) -> list[str]:
    (found,) = (line for line in text.splitlines() if line.startswith("| " + " | ".join(beginning) + " |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_table() -> None:
    assert table(["way", "s"], [["one", "1.0"]]) == "| way | s |\n| --- | ---: |\n| one | 1.0 |"


def test_numbers_and_their_absence() -> None:
    assert number({"bytes": 2048.0 * MIB}, "bytes", 0, 1 / MIB) == "2,048"
    assert number({}, "bytes", 0) == "–"


def test_clips_with_ratios_where_there_is_a_base() -> None:
    text = markdown(CLIPS)
    assert row(text, "8", "faster-whisper, sequential")[2:5] == ["10.0", "1.00 ×", "–"]
    assert row(text, "8", "metalscribe, HTTP")[2:6] == ["45.0", "4.50 ×", "–", "1.23"]
    assert row(text, "8", "metalscribe, HTTP")[-1] == "512"
    assert row(text, "8", "faster-whisper, sequential")[-2] == "160.0"
    assert row(text, "32", "metalscribe, HTTP")[2:4] == ["46.0", "–"]
    assert row(text, "short clips, 8 clients: HTTP ÷ sequential")[1:] == ["4.50", "≥ 3.5", "yes"]


def test_only_what_was_measured_has_a_table() -> None:
    text = markdown(CLIPS)
    assert "Short clips" in text
    assert "One long recording" not in text
    assert "arrive at random" not in text


def test_the_mix_and_the_arrivals() -> None:
    mix = {"idle_seconds": 0.2, "allowed_ratio": 1.5, "long_ratio": 1.1}
    arrived = {"capacity": 60.0, "load50_offered": 30.0, "load80_offered": 48.0, "load80_latency_p99_seconds": 2.5}
    text = markdown(made(("mix", "http", mix), ("poisson", "http", arrived)))
    assert row(text, "metalscribe, HTTP", "0.200")[5:9] == ["1.50", "–", "–", "1.10"]
    assert row(text, "metalscribe, HTTP", "60.0", "50 %")[3] == "30.0"
    assert row(text, "metalscribe, HTTP", "60.0", "80 %")[3:7] == ["48.0", "–", "–", "2.50"]
    assert row(text, "mix: clips' p95 ÷ (idle + 1.5 × chunk), http")[-1] == "**no**"


def test_the_preamble_says_under_what_conditions() -> None:
    text = markdown(CLIPS)
    assert "language detected by each way" in text
    assert "A Processor, 2 cores, 24 GiB; Python 3.11.2, ctranslate2 4.8.5; metalscribe 0123456789ab." in text
    tried = replace(CLIPS, quick=True, machine=replace(MACHINE, settings={"METALSCRIBE_BATCH_SIZE": "4"}, gpu="A Card"))
    assert "With `METALSCRIBE_BATCH_SIZE=4`." in markdown(tried)
    assert "A quick look" in markdown(tried)
    assert "A Card, A Processor" in markdown(tried)


def test_a_document_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo-cpu.json"
    result.write(CLIPS, path)
    assert result.read(path) == CLIPS


PROFILE = Profile(
    measured="2026-01-02",
    model="demo",
    device="cpu",
    machine=MACHINE,
    samples={"CTranslate2": 90, "waiting for a batch": 5, "the rest": 5},
    cpu_seconds={"the model": 30.0, "the service": 6.0, "the decoders": 4.0},
    audio_seconds=1000.0,
)


def test_a_profile_comes_back_and_leaves_waiting_out(tmp_path: Path) -> None:
    profile.write(PROFILE, tmp_path / "p.json")
    assert profile.read(tmp_path / "p.json") == PROFILE
    assert PROFILE.model_percent == pytest.approx(100 * 90 / 95)
    text = profile_table(PROFILE)
    assert "**94.7 %**" in text
    assert row(text, "the service") == ["the service", "6.0", "15.0 %", "6.0"]


def test_stacks_are_told_apart() -> None:
    worker = "Worker.run (metalscribe/engine/worker.py:75)"
    decode = f"{worker};Worker._decode (metalscribe/engine/worker.py:101)"
    encode = f"{decode};SpeechModel._encode (metalscribe/engine/model.py:144)"
    lines = [
        f"thread (7): MainThread;main;{encode};pybind11::call<ctranslate2::StorageView>(int);wait (libc.so.6) 80",
        f"thread (7): MainThread;main;{encode};FeatureExtractor.__call__ (faster_whisper/feature_extractor.py:215);fft 10",
        f"thread (7): MainThread;main;{worker};_queue_SimpleQueue_get_impl;PyThread_acquire_lock_timed 4",
        f"thread (7): MainThread;main;{worker};_queue_SimpleQueue_get_impl 1",
        f"thread (7): MainThread;main;{decode};Worker._samples (metalscribe/engine/worker.py:122) 2",
        "thread (8): heartbeat;Worker._beat (metalscribe/engine/worker.py:147);time_sleep 97",
    ]
    assert shares(lines) == {
        "CTranslate2": 80,
        "features (log-mel, NumPy)": 10,
        "waiting for a batch": 5,
        "the rest": 2,
    }
    assert python_threads(lines) == {7, 8}


def test_the_page_is_written_between_its_markers() -> None:
    page = "# P\n\n<!-- bench a-cpu -->\nold\n<!-- /bench a-cpu -->\n\nprose\n"
    once = refreshed(page, "a-cpu", "new")
    assert once == "# P\n\n<!-- bench a-cpu -->\nnew\n<!-- /bench a-cpu -->\n\nprose\n"
    assert refreshed(once, "a-cpu", "new") == once
    more = refreshed(once, "b-cuda", "other")
    assert more.startswith(once)
    assert more.endswith("## b-cuda\n\n<!-- bench b-cuda -->\nother\n<!-- /bench b-cuda -->\n")


@pytest.mark.parametrize("page", ["<!-- bench a -->\n", "<!-- /bench a -->\n"])
def test_half_a_pair_of_markers_is_an_error(page: str) -> None:
    with pytest.raises(MarkersBroken):
        refreshed(page, "a", "new")


def test_the_page_from_a_folder_of_results(tmp_path: Path) -> None:
    results, page = tmp_path / "results", tmp_path / "performance.md"
    page.write_text("# Performance\n")
    result.write(CLIPS, results / "demo-cpu.json")
    profile.write(PROFILE, results / "demo-cpu-profile.json")
    written = refresh(page, results)
    first = page.read_text()
    assert [path.name for path in written] == ["performance.md", "performance-demo-cpu.svg"]
    assert "](performance-demo-cpu.svg)" in first
    assert "**94.7 %**" in first
    picture = (tmp_path / "performance-demo-cpu.svg").read_bytes()
    refresh(page, results)
    assert page.read_text() == first
    assert (tmp_path / "performance-demo-cpu.svg").read_bytes() == picture
