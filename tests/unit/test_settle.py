"""The ladder that a chunk climbs until the gate is content; the dispatcher is scripted, since only its answers matter here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from metalscribe.engine.dispatch import Dispatcher, Outcome
from metalscribe.engine.messages import DecodeOptions, RowDone, Search
from metalscribe.engine.metrics import EngineMetrics, ModelMetrics
from metalscribe.engine.scheduler import Ticket
from metalscribe.engine.settle import Settler

SECOND = 16_000
GOOD = RowDone(1, " Hello there.", [1, 2, 3], "en", 1.0, -0.3, 0.01, 1.1, [])

Answer = Callable[[dict[str, Any]], RowDone]


@dataclass
class Scripted:
    """Answers each decoding by a function of what was asked."""

    answer: Answer
    asked: list[dict[str, Any]] = field(default_factory=list)
    metrics: ModelMetrics = field(default_factory=lambda: ModelMetrics(EngineMetrics(), "scripted"))

    async def decode(self, **wanted: Any) -> Outcome:
        self.asked.append(wanted)
        return Outcome(self.answer(wanted), 0.0, 0.0)


def result(**changes: object) -> RowDone:
    return msgspec.structs.replace(GOOD, **changes)


def settler(answer: Answer, margin: float | None = 5.0) -> tuple[Settler, Scripted]:
    scripted = Scripted(answer)
    counted: list[Outcome] = []
    made = Settler(
        dispatcher=cast("Dispatcher", scripted),
        source=7,
        ticket=Ticket(),
        options=DecodeOptions(prompt="Glossary"),
        search=Search(),
        margin=margin,
        on_outcome=counted.append,
    )
    return made, scripted


async def test_a_plausible_text_is_taken_at_once() -> None:
    made, scripted = settler(lambda _: GOOD)
    (settled,) = await made.settle(100, 3 * SECOND, "en", voiced=1.0)
    assert (settled.start, settled.length, settled.result, settled.empty) == (100, 3 * SECOND, GOOD, False)
    assert [(one["context"], one["search"].temperature) for one in scripted.asked] == [(800, 0.0)]
    assert scripted.asked[0]["max_tokens"] < 224
    assert [decision.verdict for decision in made.decisions] == ["plausible"]


async def test_a_loop_in_a_short_context_is_tried_with_the_whole_window() -> None:
    made, scripted = settler(lambda asked: GOOD if asked["context"] == 3000 else result(truncated=True))
    (settled,) = await made.settle(0, 3 * SECOND, None, voiced=1.0)
    assert settled.result == GOOD
    assert [(one["context"], one["search"].temperature, one["language"]) for one in scripted.asked] == [
        (800, 0.0, None),
        (3000, 0.0, "en"),  # the language is settled
    ]
    assert [decision.verdict for decision in made.decisions] == ["loop", "plausible"]


async def test_then_it_is_sampled_ever_more_boldly_and_the_least_bad_is_taken() -> None:
    chances = itertools.count()
    made, scripted = settler(lambda _: result(avg_logprob=-2.0 + 0.1 * next(chances)), margin=None)
    (settled,) = await made.settle(0, 20 * SECOND, "en")
    assert [one["search"].temperature for one in scripted.asked] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert settled.result.avg_logprob == -1.5
    assert settled.temperature == 1.0


async def test_silence_and_phantoms_have_no_text() -> None:
    made, _ = settler(lambda _: result(text=" Thank you.", no_speech_prob=0.7))
    (settled,) = await made.settle(0, 3 * SECOND, "en")
    assert settled.empty
    made, _ = settler(lambda _: result(avg_logprob=-1.2, no_speech_prob=0.7))
    (settled,) = await made.settle(0, 3 * SECOND, "en")
    assert settled.empty


def spoken(asked: dict[str, Any]) -> RowDone:
    """A model that skips whatever follows the first five seconds."""
    return result(tokens=list(range(4 * min(5, asked["length"] // SECOND))))


async def test_what_was_skipped_comes_back_when_the_chunk_is_cut() -> None:
    made, scripted = settler(spoken)
    cuts = [5 * SECOND, 10 * SECOND, 15 * SECOND]
    parts = await made.settle(1000, 20 * SECOND, "en", voiced=18.0, cuts=cuts)
    assert [(part.start - 1000, part.length) for part in parts] == [
        (place * SECOND, 5 * SECOND) for place in (0, 5, 10, 15)
    ]
    assert sum(len(part.result.tokens) for part in parts) == 80
    assert sorted((one["start"] - 1000) // SECOND for one in scripted.asked) == [0, 0, 0, 5, 10, 10, 15]
    assert all(one["source"] == 7 and one["options"].prompt == "Glossary" for one in scripted.asked)


async def test_what_cannot_be_cut_is_taken_as_it_is() -> None:
    made, scripted = settler(spoken)
    (part,) = await made.settle(0, 20 * SECOND, "en", voiced=18.0)
    assert len(scripted.asked) == 1
    assert not part.empty


async def test_a_slow_speaker_costs_one_second_look() -> None:
    made, scripted = settler(lambda asked: result(tokens=list(range(2 * asked["length"] // SECOND))))
    for number in range(5):
        (part,) = await made.settle(number * 20 * SECOND, 20 * SECOND, "en", voiced=16.0, cuts=[10 * SECOND])
        assert part.length == 20 * SECOND, "the whole is preferred where the parts say no more"
    assert len(scripted.asked) == 3 + 4


async def test_a_window_of_the_sequential_way_sees_everything_and_reads_on() -> None:
    made, scripted = settler(lambda _: GOOD)
    settled = await made.once(0, 30 * SECOND, "en", (5, 6, 7))
    assert settled.result == GOOD
    assert scripted.asked[0]["context"] == 3000
    assert scripted.asked[0]["options"] == DecodeOptions(prompt="Glossary", previous=(5, 6, 7))
