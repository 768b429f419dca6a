"""The ladder that a chunk climbs until the gate is content; the dispatcher is scripted, since only its answers matter here."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from metalscribe.engine.context import AdaptiveContext
from metalscribe.engine.dispatch import Dispatcher, Outcome
from metalscribe.engine.messages import AlignedWord, DecodeOptions, RowDone, Search
from metalscribe.engine.metrics import EngineMetrics, ModelMetrics
from metalscribe.engine.scheduler import Ticket
from metalscribe.engine.settle import Settler

SECOND = 16_000
SHORT = AdaptiveContext(margin=5.0, longest=20.0)
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


async def as_decoded(result: RowDone) -> str:
    return result.language


def settler(
    answer: Answer,
    adaptive: AdaptiveContext | None = SHORT,
    find_language: Callable[[RowDone], Awaitable[str]] = as_decoded,
) -> tuple[Settler, Scripted]:
    scripted = Scripted(answer)
    counted: list[Outcome] = []
    made = Settler(
        dispatcher=cast("Dispatcher", scripted),
        source=7,
        ticket=Ticket(),
        options=DecodeOptions(prompt="Glossary"),
        search=Search(),
        adaptive=adaptive,
        on_outcome=counted.append,
        find_language=find_language,
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


async def test_a_row_whose_language_turns_out_to_be_another_is_decoded_in_that() -> None:
    italian, spanish = result(language="it", avg_logprob=-2.0), result(language="es")
    told: list[RowDone] = []

    async def find_language(first: RowDone) -> str:
        told.append(first)
        return "es"

    made, scripted = settler(lambda asked: spanish if asked["language"] == "es" else italian, None, find_language)
    (settled,) = await made.settle(0, 3 * SECOND, None, voiced=1.0)
    assert settled.result == spanish
    assert told == [italian]
    assert [one["language"] for one in scripted.asked] == [None, "es"]

    (settled,) = await made.settle(0, 3 * SECOND, "es", voiced=1.0)
    assert told == [italian], "asked although it is known"


async def test_then_it_is_sampled_ever_more_boldly_and_the_least_bad_is_taken() -> None:
    chances = itertools.count()
    made, scripted = settler(lambda _: result(avg_logprob=-2.0 + 0.1 * next(chances)), adaptive=None)
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


def words(*texts_and_times: tuple[str, float, float]) -> list[AlignedWord]:
    return [AlignedWord(start, end, text, 0.9) for text, start, end in texts_and_times]


def saying(*texts_and_times: tuple[str, float, float]) -> RowDone:
    """A word is a token."""
    return result(
        text="".join(text for text, _, _ in texts_and_times),
        tokens=list(range(len(texts_and_times))),
        words=words(*texts_and_times),
    )


OUTER = saying((" One", 0.0, 0.5), (" two.", 0.5, 1.0), (" Six", 5.0, 5.5), (" seven.", 5.5, 6.0))


async def test_what_was_skipped_is_asked_for_alone_and_put_where_it_belongs() -> None:
    inner = saying((" Three", 0.5, 1.2), (" four", 1.2, 2.0), (" five.", 2.0, 3.0))
    made, scripted = settler(lambda asked: OUTER if asked["length"] == 6 * SECOND else inner)
    parts = await made.settle(1000, 6 * SECOND, None, voiced=5.0)
    assert "".join(part.result.text for part in parts) == " One two. Three four five. Six seven."
    assert [(part.start - 1000, part.length) for part in parts] == [
        (0, SECOND),
        (SECOND, 4 * SECOND),
        (5 * SECOND, SECOND),
    ]
    assert [part.result.tokens for part in parts] == [[0, 1], [0, 1, 2], [2, 3]]
    assert [word.start for word in parts[2].result.words] == [0.0, 0.5], "counted from the part's start"
    assert [(one["start"] - 1000, one["language"]) for one in scripted.asked] == [(0, None), (SECOND, "en")]
    assert all(one["source"] == 7 and one["options"].prompt == "Glossary" for one in scripted.asked)
    assert [(decision.verdict, decision.hole) for decision in made.decisions] == [("skipped", 4.0), ("plausible", 0.0)]


async def test_a_hole_in_which_nobody_says_anything_more_stays() -> None:
    silent = result(text=" uh", tokens=[1], words=words((" uh", 0.0, 0.3)))
    made, scripted = settler(lambda asked: OUTER if asked["length"] == 6 * SECOND else silent)
    (part,) = await made.settle(0, 6 * SECOND, "en", voiced=5.0)
    assert part.result == OUTER
    assert len(scripted.asked) == 2


async def test_a_filling_is_never_sampled() -> None:
    made, scripted = settler(
        lambda asked: OUTER if asked["length"] == 6 * SECOND else result(avg_logprob=-3.0, tokens=list(range(50)))
    )
    (part,) = await made.settle(0, 6 * SECOND, "en", voiced=5.0)
    assert part.result == OUTER
    assert [(one["context"], one["search"].temperature) for one in scripted.asked[1:]] == [(900, 0.0), (3000, 0.0)]


async def test_holes_in_fillings_are_filled_and_there_is_an_end() -> None:
    def half(asked: dict[str, Any]) -> RowDone:
        """A model that hears four words in the first five seconds of whatever it is given, and no more."""
        return saying((" a", 0.0, 1.2), (" b", 1.2, 2.4), (" c", 2.4, 3.6), (" d", 3.6, 5.0))

    made, scripted = settler(half)
    parts = await made.settle(0, 24 * SECOND, "en", voiced=24.0)
    assert [(part.start // SECOND, part.length // SECOND) for part in parts] == [(0, 5), (5, 5), (10, 14)]
    assert [one["start"] // SECOND for one in scripted.asked] == [0, 5, 10]


async def test_text_enough_is_not_looked_at() -> None:
    dense = result(tokens=list(range(40)), words=words((" One", 0.0, 0.5), (" last", 11.5, 12.0)))
    made, scripted = settler(lambda _: dense)
    await made.settle(0, 12 * SECOND, "en", voiced=10.0)
    assert made.decisions[0].hole is None
    assert scripted.asked[0]["align_below"] == 36


async def test_translations_are_not_looked_at() -> None:
    made, scripted = settler(lambda _: OUTER)
    made.options = DecodeOptions(task="translate")
    await made.settle(0, 6 * SECOND, "de", voiced=5.0)
    assert scripted.asked[0]["align_below"] == 0
    assert [decision.verdict for decision in made.decisions] == ["plausible"]


async def test_no_word_at_all_is_asked_for_with_the_whole_window_once() -> None:
    made, scripted = settler(lambda _: result(text="", tokens=[]))
    (part,) = await made.settle(0, 12 * SECOND, "en", voiced=10.0)
    assert not part.result.text
    assert [one["context"] for one in scripted.asked] == [1700, 3000]


async def test_a_window_of_the_sequential_way_sees_everything_and_reads_on() -> None:
    made, scripted = settler(lambda _: GOOD)
    settled = await made.once(0, 30 * SECOND, "en", (5, 6, 7))
    assert settled.result == GOOD
    assert scripted.asked[0]["context"] == 3000
    assert scripted.asked[0]["options"] == DecodeOptions(prompt="Glossary", previous=(5, 6, 7))
