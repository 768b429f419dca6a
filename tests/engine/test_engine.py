from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from common import Eventually, MakeWav
from metalscribe.engine import lifecycle
from metalscribe.engine.interface import ModelState
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.weights import describe
from metalscribe.errors import (
    InvalidParameter,
    MetalscribeError,
    ModelUnavailable,
    QueueFull,
    TryLater,
    UnsupportedMedia,
)
from metalscribe.transcript import (
    Done,
    Event,
    LanguageDetected,
    Mode,
    Progress,
    SegmentsReady,
    Task,
    Transcript,
    TranscriptionRequest,
)
from transcripts import check

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

JFK = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


def build(demo_model: Path, **changes: object) -> LocalEngine:
    """An engine on the demo model; ``changes`` go to the options of the engine or of the process."""
    process = ModelProcessOptions(path=demo_model, name="demo", device="cpu", idle_timeout_secs=0)
    for name in list(changes):
        if hasattr(process, name):
            process = replace(process, **{name: changes.pop(name)})  # type: ignore[arg-type]
    return LocalEngine(describe(demo_model, name="demo"), replace(EngineOptions(model=process), **changes))  # type: ignore[arg-type]


@asynccontextmanager
async def running(engine: LocalEngine) -> AsyncIterator[LocalEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(demo_model: Path) -> AsyncIterator[LocalEngine]:
    """One engine for the tests that leave it as they found it."""
    async with running(build(demo_model)) as one:
        yield one


@pytest.fixture
def jfk(data: Path) -> Path:
    return data / "english/jfk/jfk.flac"


@pytest.fixture
def long(data: Path) -> Path:
    """73 seconds of a speech in a large room, with the noise of the crowd."""
    return data / "hostile/ourmind/moon/jfk_rice_univ_1962-09-12_moon_conv.ogg"


async def events_of(engine: LocalEngine, request: TranscriptionRequest) -> list[Event]:
    return [event async for event in engine.transcribe(request)]


async def transcribe(engine: LocalEngine, path: Path, **options: object) -> Transcript:
    last = (await events_of(engine, TranscriptionRequest(path, **options)))[-1]  # type: ignore[arg-type]
    assert isinstance(last, Done)
    return last.transcript


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def worker_of(engine: LocalEngine) -> psutil.Process | None:
    process = engine._dispatcher.model._process
    return psutil.Process(process.pid) if process is not None else None


def words_in(text: str) -> list[str]:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()


# --- what is transcribed ----------------------------------------------------------------------------------------------


@pytest.mark.speech
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("vad", [True, False])
async def test_words_and_their_times(engine: LocalEngine, jfk: Path, mode: Mode, vad: bool) -> None:
    transcript = await transcribe(engine, jfk, mode=mode, vad=vad, word_timestamps=True)
    assert words_in(transcript.text) == words_in(JFK)
    assert transcript.duration == pytest.approx(11.0, abs=0.01)
    assert (transcript.language, transcript.language_probability, transcript.model) == ("en", 1.0, "demo")
    check(transcript, words=True)
    first, last = transcript.segments[0].words[0], transcript.segments[-1].words[-1]
    assert first.start == pytest.approx(0.3, abs=0.4)
    assert last.end == pytest.approx(10.4, abs=0.5)
    spoken = {word.text.strip(" ,.").lower(): word for segment in transcript.segments for word in segment.words}
    assert spoken["americans"].start == pytest.approx(1.6, abs=0.5)


@pytest.mark.speech
async def test_text_alone(engine: LocalEngine, jfk: Path) -> None:
    transcript = await transcribe(engine, jfk, segments=False)
    assert words_in(transcript.text) == words_in(JFK)
    check(transcript, words=False)


@pytest.mark.speech
async def test_segments_without_words(engine: LocalEngine, jfk: Path) -> None:
    transcript = await transcribe(engine, jfk)
    assert words_in(transcript.text) == words_in(JFK)
    check(transcript, words=False)


@pytest.mark.speech
@pytest.mark.parametrize("mode", list(Mode))
async def test_events_build_up_to_the_transcript(engine: LocalEngine, long: Path, mode: Mode) -> None:
    events = await events_of(engine, TranscriptionRequest(long, mode=mode, word_timestamps=True))
    done = events[-1]
    assert isinstance(done, Done)
    check(done.transcript, words=True)
    assert done.transcript.duration == pytest.approx(79.43, abs=0.05)
    ready = [segment for event in events if isinstance(event, SegmentsReady) for segment in event.segments]
    assert tuple(ready) == done.transcript.segments
    assert sum(isinstance(event, LanguageDetected) for event in events) == 1
    assert next(n for n, event in enumerate(events) if isinstance(event, LanguageDetected)) < next(
        n for n, event in enumerate(events) if isinstance(event, SegmentsReady)
    )
    progress = [event.seconds_done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress)
    assert all(event.percent < 100 for event in events if isinstance(event, Progress))
    statistics = done.statistics
    assert statistics.audio_seconds == pytest.approx(79.43, abs=0.05)
    assert 30 < statistics.speech_seconds <= statistics.audio_seconds
    assert statistics.chunks >= 3
    assert len(words_in(done.transcript.text)) > 120


@pytest.mark.parametrize("mode", list(Mode))
async def test_silence_is_an_empty_transcript(engine: LocalEngine, make_wav: MakeWav, mode: Mode) -> None:
    transcript = await transcribe(engine, make_wav(np.zeros(5 * 16_000)), mode=mode)
    assert (transcript.text, transcript.segments, transcript.duration) == ("", (), 5.0)


@pytest.mark.speech
async def test_what_is_no_recording_is_refused_and_the_engine_goes_on(
    engine: LocalEngine, tmp_path: Path, jfk: Path
) -> None:
    path = tmp_path / "page.wav"
    path.write_text("<!doctype html>")
    with pytest.raises(UnsupportedMedia):
        await transcribe(engine, path)
    assert engine.status.requests == 0
    assert words_in((await transcribe(engine, jfk)).text) == words_in(JFK)


async def test_what_the_model_cannot_do_is_refused(engine: LocalEngine, make_wav: MakeWav) -> None:
    path = make_wav(np.zeros(16_000))
    with pytest.raises(InvalidParameter, match="English only") as refused:
        await transcribe(engine, path, language="de")
    assert refused.value.parameter == "language"
    with pytest.raises(InvalidParameter, match="English only") as refused:
        await transcribe(engine, path, task=Task.TRANSLATE)
    assert refused.value.parameter == "task"
    assert (await transcribe(engine, path, language="en")).language == "en"


@pytest.mark.speech
async def test_a_prompt_longer_than_the_model_can_take_does_no_harm(engine: LocalEngine, jfk: Path) -> None:
    transcript = await transcribe(engine, jfk, prompt="A speech of the president. " * 300, hotwords="country " * 300)
    assert "country" in transcript.text
    assert words_in((await transcribe(engine, jfk)).text) == words_in(JFK)


# --- many at a time ---------------------------------------------------------------------------------------------------


@pytest.mark.speech
async def test_eight_at_once_say_what_each_says_alone(engine: LocalEngine, data: Path) -> None:
    paths = sorted((data / "english/libri_test_other_dev").glob("1688-*.flac"))[:8]
    alone = [await transcribe(engine, path) for path in paths]
    together = await asyncio.gather(*(transcribe(engine, path) for path in paths))
    assert [one.text for one in together] == [one.text for one in alone]
    assert all(one.text for one in alone)
    assert engine.status.requests == 0


@pytest.mark.speech
async def test_leaving_midway_empties_the_queue(engine: LocalEngine, long: Path, eventually: Eventually) -> None:
    opened = []
    for _ in range(3):
        async with aclosing(engine.transcribe(TranscriptionRequest(long))) as events:
            async for _ in events:
                break
        assert engine.status.requests == 0
        assert engine.status.chunks_waiting == 0
        await eventually(lambda: engine.status.chunks_running == 0, timeout=30)
        assert not engine._dispatcher._futures
        assert not engine._dispatcher._sources
        opened.append(open_descriptors())
    assert opened[2] <= opened[0]  # what the first one opens for all stays


@pytest.mark.speech
async def test_cancelling_midway_empties_the_queue(engine: LocalEngine, long: Path, eventually: Eventually) -> None:
    task = asyncio.create_task(transcribe(engine, long))
    await eventually(lambda: engine.status.chunks_running > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.status.requests, engine.status.chunks_waiting) == (0, 0)
    await eventually(lambda: engine.status.chunks_running == 0, timeout=30)


@pytest.mark.speech
async def test_more_than_may_wait_are_refused(demo_model: Path, long: Path) -> None:
    async with running(build(demo_model, max_queue=1)) as engine:
        engine.check_capacity()
        async with aclosing(engine.transcribe(TranscriptionRequest(long))) as events:
            await anext(events)
            with pytest.raises(QueueFull) as refused:
                await transcribe(engine, long)
            assert refused.value.retry_after >= 1
            with pytest.raises(QueueFull):
                engine.check_capacity()
        engine.check_capacity()


# --- the process's life -----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def expected(engine: LocalEngine, long: Path) -> str:
    """What the undisturbed engine makes of the long recording, a chunk at a time."""
    return (await transcribe(engine, long)).text


Disturb = Callable[[psutil.Process], None]


@pytest.mark.speech
@pytest.mark.parametrize("disturb", [psutil.Process.kill, psutil.Process.suspend], ids=["killed", "stopped"])
async def test_a_process_lost_midway_is_replaced_and_the_text_is_the_same(
    demo_model: Path,
    long: Path,
    expected: str,
    disturb: Disturb,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    monkeypatch.setattr(lifecycle, "_SILENCE_SECONDS", 2.5)
    async with running(build(demo_model, batch_size=1)) as engine:
        task = asyncio.create_task(transcribe(engine, long))
        await eventually(lambda: engine.status.chunks_running > 0, timeout=30)
        first = worker_of(engine)
        assert first is not None
        disturb(first)
        transcript = await task
        second = worker_of(engine)
        assert second is not None
        assert second != first
        assert not first.is_running()
        assert transcript.text == expected


@pytest.mark.speech
async def test_an_idle_model_is_unloaded_and_loaded_again(demo_model: Path, jfk: Path, eventually: Eventually) -> None:
    async with running(build(demo_model, idle_timeout_secs=0.2)) as engine:
        assert engine.status.state is ModelState.UNLOADED
        assert words_in((await transcribe(engine, jfk)).text) == words_in(JFK)
        first = worker_of(engine)
        assert first is not None
        await eventually(lambda: engine.status.state is ModelState.UNLOADED)
        assert not first.is_running()
        assert worker_of(engine) is None
        assert words_in((await transcribe(engine, jfk)).text) == words_in(JFK)
        assert worker_of(engine) != first


async def test_closing_ends_every_process(demo_model: Path, make_wav: MakeWav, eventually: Eventually) -> None:
    me = psutil.Process()
    before = set(me.children(recursive=True))
    async with running(build(demo_model)) as engine:
        await transcribe(engine, make_wav(np.zeros(16_000)))
        engine._dispatcher.model.want()
        await eventually(lambda: engine.status.state is ModelState.READY, timeout=30)
        assert len(set(me.children(recursive=True)) - before) == 2
    assert set(me.children(recursive=True)) <= before


@pytest.mark.speech
async def test_who_waits_when_the_engine_closes_is_told(demo_model: Path, long: Path, eventually: Eventually) -> None:
    engine = build(demo_model)
    await engine.start()
    task = asyncio.create_task(transcribe(engine, long))
    await eventually(lambda: engine.status.chunks_running > 0, timeout=30)
    await engine.close()
    with pytest.raises(TryLater, match="shutting down"):
        await task


@pytest.mark.speech
async def test_a_damaged_model_is_named(demo_model: Path, jfk: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(demo_model, broken)
    (broken / "model.bin").write_bytes(b"not a model")
    card = describe(demo_model, name="broken")
    process = ModelProcessOptions(path=broken, name="broken", device="cpu")
    async with running(LocalEngine(card, EngineOptions(model=process))) as engine:
        with pytest.raises(ModelUnavailable, match="could not be loaded") as failed:
            await transcribe(engine, jfk)
        assert failed.value.retry_after > 0
        assert engine.status.state is ModelState.FAILED
        assert engine.status.detail
        assert str(tmp_path) not in failed.value.detail, "a path of the server in a message"


@pytest.mark.speech
async def test_a_model_directory_that_is_gone(demo_model: Path, jfk: Path, tmp_path: Path) -> None:
    process = ModelProcessOptions(path=tmp_path / "nowhere", name="demo", device="cpu")
    async with running(LocalEngine(describe(demo_model, name="demo"), EngineOptions(model=process))) as engine:
        with pytest.raises(ModelUnavailable, match="could not be loaded"):
            await transcribe(engine, jfk)


@pytest.mark.speech
async def test_a_compute_type_that_the_device_lacks_is_named(demo_model: Path, jfk: Path) -> None:
    async with running(build(demo_model, compute_type="int8_bfloat16")) as engine:
        with pytest.raises(ModelUnavailable, match=r"int8_bfloat16.*not supported on cpu.*int8"):
            await transcribe(engine, jfk)


@pytest.mark.speech
async def test_a_load_that_hangs_is_given_up_and_the_next_request_loads_anew(
    demo_model: Path, jfk: Path, eventually: Eventually
) -> None:
    async with running(build(demo_model, load_timeout_secs=2.0)) as engine:
        task = asyncio.create_task(transcribe(engine, jfk))
        await eventually(lambda: worker_of(engine) is not None)
        stuck = worker_of(engine)
        assert stuck is not None
        os.kill(stuck.pid, signal.SIGSTOP)
        with pytest.raises(ModelUnavailable, match="not ready within"):
            await task
        try:
            await eventually(lambda: not stuck.is_running(), timeout=3)
        finally:
            if stuck.is_running():
                stuck.kill()


@pytest.mark.speech
async def test_a_request_too_large_for_the_process_fails_alone(demo_model: Path, jfk: Path) -> None:
    async with running(build(demo_model)) as engine:
        async with asyncio.timeout(15):
            with pytest.raises(MetalscribeError):
                await transcribe(engine, jfk, prompt="x" * 250_000)
            assert words_in((await transcribe(engine, jfk)).text) == words_in(JFK)


async def test_requests_are_refused_while_unloaded_where_so_configured(
    demo_model: Path, eventually: Eventually
) -> None:
    async with running(build(demo_model, reject_when_unloaded=True)) as engine:
        with pytest.raises(ModelUnavailable, match="being loaded"):
            engine.check_capacity()
        await eventually(lambda: engine.status.state is ModelState.READY, timeout=30)
        engine.check_capacity()


async def test_the_processes_know_no_secret(
    demo_model: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALSCRIBE_API_KEY", "secret-of-the-service")
    async with running(build(demo_model, preload=True)) as engine:
        await eventually(lambda: engine.status.state is ModelState.READY, timeout=30)
        worker = worker_of(engine)
        assert worker is not None
        assert "secret-of-the-service" not in worker.environ().values()


async def test_the_models_process_uses_its_memory_again(demo_model: Path, jfk: Path) -> None:
    def pages_touched_first(worker: psutil.Process) -> int:
        return int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[7])

    async with running(build(demo_model)) as engine:
        for _ in range(3):
            await transcribe(engine, jfk)
        worker = worker_of(engine)
        assert worker is not None
        before = pages_touched_first(worker)
        for _ in range(3):
            await transcribe(engine, jfk)
        # 7,000 a request; 80,000 where each layer's buffers are mapped and given back.
        assert pages_touched_first(worker) - before < 3 * 20_000
