"""Many requests while everything that can go wrong does: each ends in its own text or in a clear error, and nothing stays.

Most of them go to scripted processes (scripted/scripted_model.py), which load in a tenth of a second and can be made to run out of
memory, hang and die as often as is wanted; decoders, rings, channels, scheduling and lifecycles are the real ones, and a row's
text is a digest of its samples, so that a mix-up shows. A smaller number goes to the real model, which proves that what was
learnt of the scripted one holds for it.

``CHAOS_REQUESTS`` (1000) and ``CHAOS_SEED`` make a longer or another run.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from scripts import FOLDER, Script

from common import Eventually, MakeWav
from metalscribe.engine import lifecycle
from metalscribe.engine.fleet import FleetModel, ServedModel
from metalscribe.engine.interface import ModelState
from metalscribe.engine.lifecycle import ModelProcessOptions
from metalscribe.engine.local import EngineOptions, LocalEngine
from metalscribe.engine.memory import MemoryGauge
from metalscribe.engine.weights import describe
from metalscribe.errors import EngineFailed, ModelUnavailable
from metalscribe.transcript import Done, ModelCard, TranscriptionRequest

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "1000"))
SEED = int(os.environ.get("CHAOS_SEED", "20260501"))
AT_ONCE = 12
STUCK_SECONDS = 90.0
"""Far beyond what any request here can take, on a machine however busy."""

WARM_UP = max(100, REQUESTS // 5)
MIB = 2**20
SAMPLE = Path(lifecycle.__file__).parents[1] / "samples" / "sample.flac"

FAULTS = {
    "loads": {"oom": 0.15, "fail": 0.03, "die": 0.05},
    "batches": {"oom": 0.03, "fail": 0.01, "die": 0.015, "mute": 0.002},
}


@dataclass
class Chaos:
    """Requests and what disturbs them."""

    engine: LocalEngine
    clips: list[TranscriptionRequest]
    models: dict[str, float]
    dice: random.Random
    expected: dict[tuple[Path, bool], str] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    orders: set[asyncio.Task[None]] = field(default_factory=set)

    async def learn(self) -> None:
        """What each clip says while nothing disturbs; those that the gate sent back are left out: sampling has moods."""
        for clip in self.clips:
            done = await self.transcribe(clip)
            if not done.statistics.retries:
                self.expected[clip.path, clip.vad] = done.transcript.text
        self.clips = [clip for clip in self.clips if (clip.path, clip.vad) in self.expected]
        assert len(self.clips) >= 2

    async def transcribe(self, request: TranscriptionRequest) -> Done:
        last = None
        async for event in self.engine.transcribe(request):
            last = event
        assert isinstance(last, Done)
        return last

    async def text(self, request: TranscriptionRequest) -> str:
        return (await self.transcribe(request)).transcript.text

    async def run(self, count: int) -> None:
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await self.request()
                if self.dice.random() < 0.15:
                    self.disturb()

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        await asyncio.gather(*self.orders)
        self.orders.clear()

    async def request(self) -> None:
        """One request: its text, a clear error, or cut off by its own caller."""
        (name,) = self.dice.choices(list(self.models), list(self.models.values()))
        clip = replace(self.dice.choice(self.clips), model=name)
        task = asyncio.create_task(self.text(clip))
        if self.dice.random() < 0.15:
            asyncio.get_running_loop().call_later(self.dice.random() * 0.3, task.cancel)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                text = await task
            assert text == self.expected[clip.path, clip.vad]
            self.outcomes["done"] += 1
        except TimeoutError:
            for other in asyncio.all_tasks():
                other.print_stack()
            pytest.fail(f"a request is stuck: {self.engine.models}")
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
        except (ModelUnavailable, EngineFailed) as error:
            self.outcomes[error.code if error.detail else "an error without a reason"] += 1

    def disturb(self) -> None:
        (action,) = self.dice.choices(["load", "unload", "force", "kill", "stop"], [8, 8, 3, 3, 0.3])
        model = self.dice.choice([name for name, share in self.models.items() if share])
        if action == "load":
            self.engine.load(model)
        elif action in {"unload", "force"}:
            order = asyncio.create_task(self.engine.unload(model, force=action == "force"))
            self.orders.add(order)
            order.add_done_callback(self.orders.discard)
        else:
            process = member(self.engine, model).dispatcher.model._process
            if process is None:
                return
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        self.actions[action] += 1


def member(engine: LocalEngine, name: str) -> FleetModel:
    return engine._fleet[name]


async def quiet(engine: LocalEngine) -> None:
    """No model, no request."""
    for model in engine.models:
        await engine.unload(model.model)
    assert {model.state for model in engine.models} == {ModelState.UNLOADED}
    assert engine.status.requests == engine.status.chunks_waiting == engine.status.chunks_running == 0
    for one in engine._fleet:
        assert not one.dispatcher._futures
        assert not one.dispatcher._sources
        assert not one.dispatcher.model.in_use


@dataclass(frozen=True)
class Footprint:
    """What a quiet engine has of the machine."""

    resident: int
    descriptors: int
    tasks: int
    children: int

    @classmethod
    def now(cls) -> Footprint:
        gc.collect()
        me = psutil.Process()
        children = me.children()
        resident = sum(process.memory_info().rss for process in (me, *children))
        return cls(resident, me.num_fds(), len(asyncio.all_tasks()), len(children))


@pytest.fixture
def clips(make_wav: MakeWav) -> list[TranscriptionRequest]:
    """Pieces of the packaged recording, a half to four seconds long."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    with av.open(str(SAMPLE)) as container:
        frames = [out.to_ndarray().ravel() for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    samples = np.concatenate(frames).astype(np.float32) / 32768
    made = []
    for number, (start, seconds) in enumerate([(0, 2), (2, 3), (5, 1), (6, 4), (10, 2), (12, 0.5)]):
        piece = samples[int(start * 16_000) : int((start + seconds) * 16_000)]
        path = make_wav(piece, name=f"clip{number}.wav")
        made += [TranscriptionRequest(path, segments=False, vad=vad) for vad in (True, False)]
    return made


class Gauge(MemoryGauge):
    """Every model takes 100 MiB."""

    async def used(self, pid: int, device: str, baseline: int | None = None) -> int | None:
        return 100 * MIB


@asynccontextmanager
async def running(engine: LocalEngine) -> AsyncIterator[LocalEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def test_a_thousand_requests_against_everything(
    tmp_path: Path,
    clips: list[TranscriptionRequest],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setattr(lifecycle, "_SILENCE_SECONDS", 2.0)
    before = set(asyncio.all_tasks())
    scripts = [Script(tmp_path / name, seed=SEED) for name in ("one", "two", "three")]
    first, *further = [
        ServedModel(
            ModelCard(script.directory.name, multilingual=False, languages=("en",)),
            script.options(idle_timeout_secs=1.0, gpu_poll_interval_secs=0.05),
        )
        for script in scripts
    ]
    options = EngineOptions(model=first.process, memory_budget=250 * MIB, load_timeout_secs=15.0)
    engine = LocalEngine(first.card, options, further=further, gauge=Gauge())
    engine._fleet.budget._patience = 0.5
    models = {"one": 0.7, "two": 0.2, "three": 0.1}
    chaos = Chaos(engine, clips, models, random.Random(SEED))
    async with running(engine):
        await chaos.learn()
        for script in scripts:
            script.chances = FAULTS
            script.write()

        await chaos.run(WARM_UP)
        await quiet(engine)
        warm = Footprint.now()

        await chaos.run(REQUESTS - WARM_UP)
        await quiet(engine)
        after = Footprint.now()

        # Whatever happened, each is as good as new.
        for script in scripts:
            script.chances = {}
            script.write()
        for name in models:
            for clip in clips:
                assert await chaos.text(replace(clip, model=name)) == chaos.expected[clip.path, clip.vad]

    counters = [model.counters for model in engine.models]
    figures = {
        "outcomes": dict(chaos.outcomes),
        "actions": dict(chaos.actions),
        "models": [str(counter) for counter in counters],
        "warm": warm,
        "after": after,
    }
    for name, value in figures.items():
        record_property(name, str(value))  # with --junit-xml
        sys.stdout.write(f"{name}: {value}\n")  # with -s
    assert sum(chaos.outcomes.values()) == REQUESTS
    assert set(chaos.outcomes) <= {"done", "cancelled", "model_unloaded", "model_unavailable", "engine_failed"}
    assert chaos.outcomes["done"] > REQUESTS / 2
    for what in ("loads", "load_failures", "unloads", "evictions", "deaths"):
        assert sum(getattr(counter, what) for counter in counters) >= REQUESTS / 100, what
    assert {"load", "unload", "force", "kill"} <= set(chaos.actions)
    assert chaos.outcomes["cancelled"]
    assert chaos.outcomes["model_unloaded"]
    assert after.resident <= 1.1 * warm.resident
    assert (after.descriptors, after.tasks, after.children) == (warm.descriptors, warm.tasks, warm.children)
    await eventually(lambda: set(asyncio.all_tasks()) <= before | {asyncio.current_task()})
    assert not psutil.Process().children()


async def test_the_real_model_bears_the_same(
    demo_model: Path, clips: list[TranscriptionRequest], record_property: Callable[[str, object], None]
) -> None:
    process = ModelProcessOptions(path=demo_model, name="demo", device="cpu", gpu_poll_interval_secs=0.05)
    count = REQUESTS // 40
    # One row a batch: texts must not depend on what else happens to be in it.
    engine = LocalEngine(describe(demo_model, name="demo"), EngineOptions(model=process, batch_size=1))
    chaos = Chaos(engine, [clip for clip in clips if clip.vad], {"demo": 1.0}, random.Random(SEED))
    async with running(engine):
        await chaos.learn()
        await chaos.run(count)
        await quiet(engine)
        before = dict(chaos.expected)
        await chaos.learn()
        assert chaos.expected == before
    record_property("outcomes", dict(chaos.outcomes))
    assert sum(chaos.outcomes.values()) == count
    assert chaos.outcomes["done"] > count / 2
    assert chaos.actions.total()
