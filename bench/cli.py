"""The command line."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import ctranslate2
import typer

from bench.figures import Run
from bench.machine import describe_machine
from bench.measure import measure
from bench.models import base_model, demo_model
from bench.preparing import Places, prepare
from bench.recordings import Recordings
from bench.report import NAMES, markdown
from bench.result import Material, Result, write
from bench.ways import WAYS, Setup
from bench.workloads import workloads as all_workloads
from metalscribe.engine.weights import resolve
from metalscribe.settings import default_state_dir

_ROOT: Final = Path(__file__).resolve().parents[1]
_DATA: Final = _ROOT.parent / "shared" / "data" / "english"
_RESULTS: Final = _ROOT / "bench" / "results"
_QUICK_RESULTS: Final = _ROOT / ".cache" / "bench"
_COMPUTE_TYPES: Final = {"cpu": ("int8",), "cuda": ("int8_float16", "float16")}

app = typer.Typer(add_completion=False, help="Benchmarks of metalscribe against bare faster-whisper.")


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="demo (tiny.en), base, a directory, or a downloaded model's name")
    ] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    compute_type: Annotated[str, typer.Option(help="CTranslate2's; auto: int8 on CPUs, int8_float16 on GPUs")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="medians are taken over so many")] = 3,
    workloads: Annotated[str, typer.Option(help="names, separated by commas; default: all")] = "",
    ways: Annotated[str, typer.Option(help="names, separated by commas")] = ",".join(WAYS),
    language: Annotated[str, typer.Option(help="code given to every way; default: each detects it")] = "",
    segments: Annotated[bool, typer.Option("--segments", help="ask metalscribe for segments with times")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="one round with less material, kept out of the results")
    ] = False,
    clips: Annotated[Path, typer.Option(help="folder with ref.tsv and NAME.flac")] = _DATA / "libri_test_other_dev",
    long: Annotated[Path, typer.Option(help="recording with NAME.txt")] = _DATA / "longform" / "longform_dev.flac",
    output: Annotated[
        Path | None, typer.Option(help="the JSON document; default: bench/results/MODEL-DEVICE.json")
    ] = None,
) -> None:
    """Measure, print the tables, write the JSON document."""
    if context.invoked_subcommand is not None:
        return
    chosen_device = ("cuda" if ctranslate2.get_cuda_device_count() else "cpu") if device == "auto" else device
    supported = ctranslate2.get_supported_compute_types(chosen_device)
    if compute_type == "auto":
        compute_type = next(kind for kind in _COMPUTE_TYPES[chosen_device] if kind in supported)
    known = all_workloads(quick=quick)
    with tempfile.TemporaryDirectory(prefix="metalscribe-bench-") as folder:
        scratch = Path(folder)
        recordings = prepare(Places(clips, long), scratch, quick=quick)
        _say(f"recordings: {recordings.source}")
        setup = Setup(
            model=_model_directory(model),
            device=chosen_device,
            compute_type=compute_type,
            language=language or None,
            segments=segments,
            scratch=scratch,
        )
        runs = measure(
            _chosen(ways, list(WAYS), "way"),
            {name: known[name] for name in _chosen(workloads, list(known), "workload")},
            1 if quick else rounds,
            setup,
            recordings,
            _report_run,
        )
    result = Result(
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        model=Path(model).name,
        device=chosen_device,
        compute_type=compute_type,
        language=setup.language,
        segments=segments,
        quick=quick,
        rounds=1 if quick else rounds,
        material=_material(recordings),
        machine=describe_machine(chosen_device),
        runs=runs,
    )
    path = output or (_QUICK_RESULTS if quick else _RESULTS) / f"{result.key}.json"
    write(result, path)
    typer.echo(markdown(result))
    _say(f"\nwritten: {path}")


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
