"""``metalscribe transcribe``: recordings to transcripts, with an engine of its own or by a service elsewhere."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from metalscribe.cli.arguments import Authority, Hotwords, Language, ModeOfWork, Prompt, ServiceKey, TaskToDo
from metalscribe.cli.documents import Documents
from metalscribe.cli.recordings import Recording, find
from metalscribe.errors import InvalidParameter
from metalscribe.languages import parse_language
from metalscribe.render import Format
from metalscribe.transcript import Mode, Task, TranscriptionRequest

if TYPE_CHECKING:
    from metalscribe.cli.progress import Bars
    from metalscribe.cli.work import Transcribe

_LOCAL_AT_ONCE: Final = 16
"""As many recordings as fill a batch on a GPU; each takes up to 60 MB while it is under way."""
_REMOTE_AT_ONCE: Final = 4

_Connect = Callable[["Bars"], AbstractAsyncContextManager["Transcribe"]]
"""Makes what transcribes, for as long as it is needed."""


def transcribe(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Recordings, audio or video; - reads one from stdin.")
    ],
    *,
    document: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.TEXT,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Write NAME.EXT into this directory, not to stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files in the output directory.")] = False,
    language: Language = None,
    task: TaskToDo = Task.TRANSCRIBE,
    mode: ModeOfWork = Mode.FAST,
    prompt: Prompt = None,
    hotwords: Hotwords = None,
    word_timestamps: Annotated[bool, typer.Option("--word-timestamps", help="Time every word (json).")] = False,
    no_vad: Annotated[bool, typer.Option("--no-vad", help="Do not leave silence out.")] = False,
    audio_track: Annotated[int, typer.Option(min=0, max=1000, help="Which audio track of a file, from 0.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="Model in place of METALSCRIBE_MODEL; not with --url.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Let the service at this address do it, such as https://host.")
    ] = None,
    api_key: ServiceKey = None,
    ca_file: Authority = None,
) -> None:
    """Transcribe recordings.

    One recording's text is printed as it is; several get a headline each, or one line of JSON each with --format json.
    A recording that fails is reported on stderr and does not stop the others; the exit status is then 1.
    """
    wanted = TranscriptionRequest(
        path=Path(),
        language=None if language is None or language.lower() == "auto" else parse_language(language),
        task=task,
        mode=mode,
        prompt=prompt,
        hotwords=hotwords,
        vad=not no_vad,
        word_timestamps=word_timestamps,
        audio_track=audio_track,
    )
    documents = Documents(document, several=len(files) > 1, directory=output_dir, overwrite=force)
    documents.check(files)
    if url is None:
        connect, at_once = _locally(document, model, ca_file)
    else:
        connect, at_once = _remotely(document, url, api_key, ca_file, model)
    with tempfile.TemporaryDirectory(prefix="metalscribe-") as spool:
        recordings = list(find(files, Path(spool), documents))
        if recordings:
            asyncio.run(_run(wanted, recordings, connect, at_once, documents))
    if documents.failures:
        raise typer.Exit(1)


def _locally(document: Format, model: str | None, ca_file: Path | None) -> tuple[_Connect, int]:
    from metalscribe.cli.local import local_engine  # noqa: PLC0415
    from metalscribe.settings import WhenUnloaded, load_settings  # noqa: PLC0415

    if ca_file is not None:
        raise InvalidParameter("--ca-file only makes sense with --url.", "ca_file")
    # Whatever the service does with an idle model, a command wants it now and until it ends.
    overrides: dict[str, Any] = {"preload": True, "when_unloaded": WhenUnloaded.QUEUE, "idle_timeout_secs": 0.0}
    settings = load_settings(**overrides, **({} if model is None else {"model": model}))
    return lambda bars: local_engine(settings, document, bars), min(_LOCAL_AT_ONCE, settings.max_queue)


def _remotely(
    document: Format, url: str, api_key: str | None, ca_file: Path | None, model: str | None
) -> tuple[_Connect, int]:
    from metalscribe.cli.remote import Service, remote_service  # noqa: PLC0415

    if model is not None:
        raise InvalidParameter("--model chooses a local model; the service at --url has its own.", "model")
    service = Service.at(url, api_key, ca_file)
    return lambda _: remote_service(service, document), _REMOTE_AT_ONCE


async def _run(
    wanted: TranscriptionRequest,
    recordings: Sequence[Recording],
    connect: _Connect,
    at_once: int,
    documents: Documents,
) -> None:
    from metalscribe.cli.progress import Bars  # noqa: PLC0415
    from metalscribe.cli.work import Failure, in_order  # noqa: PLC0415

    requests = [replace(wanted, path=recording.path, name=recording.name) for recording in recordings]
    with Bars() as bars:
        async with (
            connect(bars) as transcribe_one,
            aclosing(in_order(requests, transcribe_one, at_once=at_once, bars=bars)) as outcomes,
        ):
            remaining = iter(recordings)
            async for outcome in outcomes:
                recording = next(remaining)
                with bars.aside():
                    if isinstance(outcome, Failure):
                        documents.fail(recording.shown, outcome.reason)
                    else:
                        documents.put(recording, outcome)
