"""How the language of a recording is found; the dispatcher is scripted, since only its answers matter here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from metalscribe.engine.dispatch import Dispatcher, Outcome
from metalscribe.engine.language import LanguageFinder, Ranking
from metalscribe.engine.messages import RowDone, Search
from metalscribe.engine.scheduler import Ticket
from metalscribe.media.messages import Chunk, Piece

SECOND = 16_000

ENGLISH: Ranking = [("en", 0.98), ("de", 0.01)]
SPANISH: Ranking = [("es", 0.95), ("it", 0.03)]
SPANISH_OR_ITALIAN: Ranking = [("it", 0.5), ("es", 0.4), ("la", 0.05)]
ANYTHING: Ranking = [("nn", 0.2), ("en", 0.15), ("la", 0.12)]


def heard(ranking: Ranking, **changes: object) -> RowDone:
    language, probability = ranking[0]
    given: dict[str, Any] = {"avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0, **changes}
    return RowDone(1, "", [], language, probability, words=[], languages=ranking, **given)


@dataclass
class Scripted:
    """What the model takes each chunk for by its start, and how surely it writes in each language."""

    rankings: Mapping[int, Ranking] = field(default_factory=dict)
    silences: Mapping[int, float] = field(default_factory=dict)
    logprobs: Mapping[str, float] = field(default_factory=dict)
    loops: frozenset[str] = frozenset()
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def decode(self, **wanted: Any) -> Outcome:
        self.asked.append(wanted)
        language = wanted["language"]
        if language is None:
            assert wanted["max_tokens"] == 0, "the language alone is asked for"
            at = wanted["start"] // SECOND
            return Outcome(heard(self.rankings[at], no_speech_prob=self.silences.get(at, 0.0)), 0.0, 0.0)
        ratio = 5.0 if language in self.loops else 1.0
        return Outcome(heard([(language, 1.0)], avg_logprob=self.logprobs[language], compression_ratio=ratio), 0.0, 0.0)


def chunks(*seconds: int) -> list[Chunk]:
    """Chunks of so many seconds each."""
    made, at = [], 0
    for length in seconds:
        made.append(Chunk(at * SECOND, length * SECOND, [Piece(at * SECOND, length * SECOND)], float(length)))
        at += length
    return made


async def find(first: Ranking, opening: list[Chunk], scripted: Scripted) -> tuple[str, float]:
    finder = LanguageFinder(cast("Dispatcher", scripted), 7, Ticket(), Search(), None)
    silence = scripted.silences.get(0, 0.0)
    return await finder.find(heard(first, no_speech_prob=silence), opening)


async def test_a_single_chunk_of_which_the_model_is_sure_costs_nothing() -> None:
    scripted = Scripted()
    assert await find(SPANISH, chunks(8), scripted) == ("es", 0.95)
    assert not scripted.asked


async def test_a_longer_recording_is_heard_in_a_second_place() -> None:
    scripted = Scripted({33: SPANISH})
    assert await find(SPANISH, chunks(9, 24, 24), scripted) == ("es", 0.95)
    assert [(one["start"] // SECOND, one["length"] // SECOND) for one in scripted.asked] == [(33, 5)]


async def test_where_the_two_disagree_the_opening_votes_by_length() -> None:
    scripted = Scripted({9: SPANISH, 33: SPANISH, 57: SPANISH})
    language, probability = await find(ENGLISH, chunks(9, 24, 24, 24), scripted)
    assert language == "es"
    assert probability == pytest.approx(0.95 * 72 / 81)
    assert [(one["start"] // SECOND, one["length"] // SECOND) for one in scripted.asked] == [
        *((57, 5), (9, 10), (33, 10), (57, 10))
    ]


async def test_music_at_the_beginning_is_outvoted() -> None:
    scripted = Scripted({9: ANYTHING, 33: SPANISH, 57: SPANISH})
    assert (await find(ANYTHING, chunks(9, 24, 24, 24), scripted))[0] == "es"


async def test_a_close_vote_is_decided_by_the_text() -> None:
    scripted = Scripted(logprobs={"it": -0.32, "es": -0.1})
    language, probability = await find(SPANISH_OR_ITALIAN, chunks(8), scripted)
    assert language == "es"
    assert 0.8 * 0.9 < probability < 0.9
    assert [one["language"] for one in scripted.asked] == ["it", "es"]
    scripted = Scripted(logprobs={"it": -0.3, "es": -0.3})
    assert (await find(SPANISH_OR_ITALIAN, chunks(8), scripted))[0] == "it"


async def test_a_loop_is_no_good_text() -> None:
    scripted = Scripted(logprobs={"it": -0.05, "es": -0.6}, loops=frozenset({"it"}))
    assert (await find(SPANISH_OR_ITALIAN, chunks(8), scripted))[0] == "es"


async def test_a_language_without_a_rival_needs_no_text() -> None:
    scripted = Scripted()
    assert await find([("cy", 0.5), ("en", 0.09)], chunks(8), scripted) == ("cy", 0.5)
    assert not scripted.asked


async def test_where_nobody_speaks_nobody_votes() -> None:
    quiet: Ranking = [("en", 0.95)]
    scripted = Scripted({9: quiet, 33: quiet, 57: SPANISH}, {0: 0.9, 9: 0.95, 33: 0.95})
    language, probability = await find(quiet, chunks(9, 24, 24, 24), scripted)
    assert language == "es"
    assert probability > 0.7
