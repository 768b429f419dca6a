"""The command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import ctranslate2
import typer

from bench import profile as profiles
from bench import result as results
from bench.figures import Run
from bench.machine import describe_machine
from bench.measure import measure
from bench.models import base_model, demo_model
from bench.page import profile_table, refresh
from bench.preparing import Places, prepare
from bench.recordings import Recordings
from bench.report import NAMES, markdown
from bench.result import Material, Result
from bench.ways import WAYS, Setup
from bench.workloads import workloads as all_workloads
from metalscribe.engine.weights import resolve
from metalscribe.settings import default_state_dir

_ROOT: Final = Path(__file__).resolve().parents[1]
_DATA: Final = _ROOT.parent / "shared" / "data" / "english"
_CLIPS: Final = _DATA / "libri_test_other_dev"
_LONG: Final = _DATA / "longform" / "longform_dev.flac"
_PAGE: Final = _ROOT / "docs" / "performance.md"
_RESULTS: Final = _ROOT / "bench" / "results"
_QUICK_RESULTS: Final = _ROOT / ".cache" / "bench"
_COMPUTE_TYPES: Final = {"cpu": ("int8",), "cuda": ("int8_float16", "float16", "float32")}

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, help="Benchmarks of metalscribe against bare faster-whisper."
)

_Model = Annotated[str, typer.Option(help="demo (tiny.en), base, a directory, or a downloaded model's name")]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
_ComputeType = Annotated[str, typer.Option(help="CTranslate2's; auto: int8 on CPUs, int8_float16 on GPUs")]
_Language = Annotated[str, typer.Option(help="code given to every way; default: each detects it")]
_Clips = Annotated[Path, typer.Option(help="folder with ref.tsv and NAME.flac")]
_Long = Annotated[Path, typer.Option(help="recording with NAME.txt")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    *,
    model: _Model = "demo",
    device: _Device = "auto",
    compute_type: _ComputeType = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="medians are taken over so many")] = 3,
    workloads: Annotated[str, typer.Option(help="names, separated by commas; default: all")] = "",
    ways: Annotated[str, typer.Option(help="names, separated by commas; default: all")] = "",
    language: _Language = "",
    segments: Annotated[bool, typer.Option("--segments", help="ask metalscribe for segments with times")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="one round of less material, kept out of the results")] = False,
    clips: _Clips = _CLIPS,
    long: _Long = _LONG,
    output: Annotated[Path | None, typer.Option(help="for the JSON document; default: bench/results")] = None,
) -> None:
    """Measure, print the tables, write the JSON document and docs/performance.md."""
    if context.invoked_subcommand is not None:
        return
    known = all_workloads(quick=quick)
    chosen = {name: known[name] for name in _chosen(workloads, list(known), "workload")}
    chosen_ways = _chosen(ways, list(WAYS), "way")
    rounds = 1 if quick else rounds
    with _scratch() as scratch:
        setup = _setup(model, device, compute_type, language, scratch, segments=segments)
        recordings = _recordings(clips, long, scratch, quick=quick)
        runs = measure(chosen_ways, chosen, rounds, setup, recordings, _report_run)
    result = Result(
        measured=_today(),
        model=Path(model).name,
        device=setup.device,
        compute_type=setup.compute_type,
        language=setup.language,
        segments=segments,
        quick=quick,
        rounds=rounds,
        material=_material(recordings),
        machine=describe_machine(setup.device),
        runs=runs,
    )
    folder = output or (_QUICK_RESULTS if quick else _RESULTS)
    results.write(result, folder / f"{result.key}.json")
    typer.echo(markdown(result))
    _say(f"\nwritten: {folder / result.key}.json")
    if folder == _RESULTS:
        docs()


@app.command()
def profile(
    *,
    model: _Model = "demo",
    device: _Device = "auto",
    compute_type: _ComputeType = "auto",
    language: _Language = "",
    seconds: Annotated[int, typer.Option(min=1, help="how long to look")] = 30,
    clips: _Clips = _CLIPS,
    long: _Long = _LONG,
    output: Annotated[Path, typer.Option(help="for the JSON document")] = _RESULTS,
) -> None:
    """Say what share of the time is CTranslate2's at saturation, by py-spy, and what is metalscribe's."""
    with _scratch() as scratch:
        setup = _setup(model, device, compute_type, language, scratch, segments=False)
        observed = profiles.observe(setup, _recordings(clips, long, scratch, quick=False), seconds)
    measured = profiles.Profile(
        measured=_today(),
        model=Path(model).name,
        device=setup.device,
        machine=describe_machine(setup.device),
        samples=observed.samples,
        cpu_seconds=observed.cpu_seconds,
        audio_seconds=observed.audio_seconds,
    )
    profiles.write(measured, output / f"{measured.key}.json")
    typer.echo(profile_table(measured))
    if output == _RESULTS:
        docs()


@app.command()
def docs() -> None:
    """Write the tables and pictures of docs/performance.md again, from bench/results."""
    for path in refresh(_PAGE, _RESULTS):
        _say(f"written: {path}")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="metalscribe-bench-") as folder:
        yield Path(folder)


def _setup(model: str, device: str, compute_type: str, language: str, scratch: Path, *, segments: bool) -> Setup:
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    if compute_type == "auto":
        supported = ctranslate2.get_supported_compute_types(device)
        compute_type = next(kind for kind in _COMPUTE_TYPES[device] if kind in supported)
    return Setup(
        model=_model_directory(model),
        device=device,
        compute_type=compute_type,
        language=language or None,
        segments=segments,
        scratch=scratch,
    )


def _recordings(clips: Path, long: Path, scratch: Path, *, quick: bool) -> Recordings:
    places = Places(clips, long)
    for path in places.missing:
        _say(f"{path} is not there: a recording that the project ships stands in, which says little about accuracy")
    recordings = prepare(places, scratch, quick=quick)
    _say(f"recordings: {recordings.source}")
    return recordings


def _model_directory(name: str) -> Path:
    if name == "demo":
        return demo_model()
    if name == "base":
        return base_model()
    return resolve(name, default_state_dir() / "models", offline=True).path


def _chosen(names: str, known: list[str], kind: str) -> list[str]:
    wanted = [name.strip() for name in names.split(",") if name.strip()] or known
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"no {kind} {unknown[0]}; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


def _material(recordings: Recordings) -> Material:
    return Material(
        source=recordings.source,
        clips=len(recordings.clips),
        clips_seconds=sum(clip.seconds for clip in recordings.clips),
        long_seconds=recordings.long.seconds,
        short_seconds=recordings.short.seconds,
    )


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _report_run(run: Run) -> None:
    told = {
        "throughput": "audio s/s",
        "latency_p50_seconds": "s p50",
        "latency_p95_seconds": "s p95",
        "wer_percent": "% WER",
    }
    figures = ", ".join(f"{run.figures[name]:.2f} {unit}" for name, unit in told.items() if name in run.figures)
    _say(f"round {run.round + 1}, {run.workload}, {NAMES[run.way]}: {figures}")


def _say(text: str) -> None:
    typer.echo(text, err=True)
