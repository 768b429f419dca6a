"""``metalscribe bench tune``: which margin of silence a model needs behind its speech, measured on recordings with references."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from metalscribe.errors import EngineFailed, InvalidParameter, MetalscribeError
from metalscribe.settings import Settings, load_settings
from metalscribe.transcript import Done, TranscriptionRequest

app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)

TOLERANCE: Final = 0.2
"""Points of word error rate that a margin may cost against the whole window, to be recommended: within the noise of most sets."""

_CLIENTS: Final = 8
_PIPE_WIDTH: Final = 120


class TuningUnavailable(MetalscribeError):
    """What counts word errors is not installed."""

    code = "tuning_unavailable"
    title = "Tuning is not installed"


@dataclass(frozen=True, slots=True)
class Trial:
    """All recordings with one margin.

    Attributes:
        margin: seconds; 0 is the whole window.
        word_error_rate: in percent, over all words.
        speed: seconds of audio per second.
        again: share of the chunks, in percent, that the quality gate sent back.
    """

    margin: float
    word_error_rate: float
    substitutions: int
    deletions: int
    insertions: int
    speed: float
    again: float


@app.command()
def tune(
    folder: Annotated[
        Path, typer.Argument(help="Recordings with ref.tsv beside them: file name (or its stem), tab, what is said.")
    ],
    *,
    model: Annotated[str | None, typer.Option(help="The model, in place of METALSCRIBE_MODEL.")] = None,
    margins: Annotated[
        str, typer.Option(help="Seconds to try, separated by commas; 0 is the whole window.")
    ] = "0,8,6,5,4,3,2",
    language: Annotated[str | None, typer.Option(help="Spoken language; detected where it is left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Try several margins of encoder context, and say which is the smallest that costs no accuracy."""
    settings = load_settings()
    if model is not None:
        settings = settings.model_copy(update={"model": model})
    wanted = _margins(margins)
    recordings = read_references(folder)
    count_errors = _error_counter(language)
    trials = []
    for margin in wanted:
        begun = settings.model_copy(
            update={"context_margin": f"{margin:g}", "idle_timeout_secs": 0.0, "max_queue": 1000}
        )
        trials.append(asyncio.run(_try(begun, margin, recordings, language, count_errors)))
    best = recommended(trials)
    if as_json:
        typer.echo(json.dumps({"trials": [asdict(trial) for trial in trials], "recommended": best.margin}, indent=2))
        return
    _print(trials)
    typer.echo(f"METALSCRIBE_CONTEXT_MARGIN={settings.model}={best.margin:g}")


def recommended(trials: list[Trial]) -> Trial:
    """The fastest of those that make no more errors than the whole window does, give or take :data:`TOLERANCE`."""
    whole = next(trial for trial in trials if trial.margin == 0)
    good = [trial for trial in trials if trial.word_error_rate <= whole.word_error_rate + TOLERANCE]
    return max(good, key=lambda trial: trial.speed)


def read_references(folder: Path) -> dict[Path, str]:
    """Recordings and what is said in them.

    Raises:
        InvalidParameter: no ref.tsv, a line of it that is none, or a recording that is not there; says which.
    """
    listing = folder / "ref.tsv"
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
        files = {path.name: path for path in folder.iterdir() if path.is_file() and path != listing}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{listing} cannot be read: {error}", "folder") from None
    files |= {path.stem: path for path in files.values() if path.suffix != ".txt"}
    found: dict[Path, str] = {}
    for number, line in enumerate(lines, 1):
        name, separator, text = line.partition("\t")
        if not line.strip():
            continue
        if not separator or not text.strip():
            raise InvalidParameter(f"{listing}, line {number}: expected a file name, a tab and what is said", "folder")
        if name not in files:
            raise InvalidParameter(f"{listing}, line {number}: there is no recording {name}", "folder")
        found[files[name]] = text.rpartition("\t")[2]
    if not found:
        raise InvalidParameter(f"{listing} lists no recordings", "folder")
    return found


def _margins(text: str) -> list[float]:
    try:
        wanted = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        wanted = []
    if not wanted or not all(0 <= margin <= 30 for margin in wanted):
        raise InvalidParameter(f"--margins {text}: expected seconds from 0 to 30, such as 0,6,4", "margins")
    return wanted if wanted[0] == 0 else [0.0, *wanted]  # what the others are measured against


def _error_counter(language: str | None) -> Any:
    """A function of references and texts that counts word errors as papers do."""
    try:
        import jiwer  # noqa: PLC0415  (an extra)
        from whisper_normalizer.basic import BasicTextNormalizer  # noqa: PLC0415
        from whisper_normalizer.english import EnglishTextNormalizer  # noqa: PLC0415
    except ImportError as error:
        raise TuningUnavailable(f"{error.name} is missing; install the extra `tune` of metalscribe") from None
    normalize = EnglishTextNormalizer() if language in {None, "en"} else BasicTextNormalizer()

    def count(references: list[str], texts: list[str]) -> Any:
        return jiwer.process_words([normalize(one) for one in references], [normalize(one) for one in texts])

    return count


async def _try(
    settings: Settings, margin: float, recordings: dict[Path, str], language: str | None, count_errors: Any
) -> Trial:
    from metalscribe.app import build_engine  # noqa: PLC0415  (loads what --help does not need)

    engine = build_engine(settings)
    await engine.start()
    try:

        async def transcribe(path: Path) -> Done:
            async with aclosing(
                engine.transcribe(TranscriptionRequest(path, language=language, segments=False, name=path.name))
            ) as events:
                async for event in events:
                    if isinstance(event, Done):
                        return event
            raise EngineFailed("the engine ended without a result")

        await transcribe(next(iter(recordings)))  # loads the model
        left = iter(recordings)
        done: dict[Path, Done] = {}

        async def client() -> None:
            for path in left:
                done[path] = await transcribe(path)

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(_CLIENTS)))
        seconds = time.perf_counter() - begin
    finally:
        await engine.close()
    errors = count_errors(list(recordings.values()), [done[path].transcript.text for path in recordings])
    verdicts = Counter(decision.verdict for one in done.values() for decision in one.decisions)
    chunks = sum(one.statistics.chunks for one in done.values())
    return Trial(
        margin=margin,
        word_error_rate=round(100 * errors.wer, 3),
        substitutions=errors.substitutions,
        deletions=errors.deletions,
        insertions=errors.insertions,
        speed=round(sum(one.transcript.duration for one in done.values()) / seconds, 2),
        again=round(100 * (verdicts.total() - chunks) / max(1, chunks), 2),
    )


def _print(trials: list[Trial]) -> None:
    from rich.console import Console  # noqa: PLC0415  (tables are for people)
    from rich.table import Table  # noqa: PLC0415

    table = Table("Margin s", "WER %", "S/D/I", "Audio s/s", "Again %", box=None, header_style="bold")
    for trial in trials:
        errors = f"{trial.substitutions}/{trial.deletions}/{trial.insertions}"
        margin = f"{trial.margin:g}" if trial.margin else "whole window"
        table.add_row(margin, f"{trial.word_error_rate:.2f}", errors, f"{trial.speed:.1f}", f"{trial.again:.1f}")
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, stderr=True).print(table)
