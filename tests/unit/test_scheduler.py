from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalscribe.engine.context import FULL_CONTEXT
from metalscribe.engine.messages import DecodeOptions, Row, Search
from metalscribe.engine.scheduler import BatchLimits, Scheduler, Ticket, WaitingRow

SEARCHES = [Search(), Search(beam_size=1), Search(temperature=0.2), Search(timestamps=True)]
CONTEXTS = [700, 705, 1290, 3000]
STEP = 100
RATE = 10.0


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def limits(rows: int, frames: int | None = None) -> BatchLimits:
    return BatchLimits(rows, rows * FULL_CONTEXT if frames is None else frames, STEP)


def rounded(context: int) -> int:
    return -(-context // STEP) * STEP


class Rows:
    """Makes rows with ids of their own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids = itertools.count(1)

    def __call__(
        self,
        ticket: Ticket,
        *,
        seconds: float = 30.0,
        search: Search = SEARCHES[0],
        context: int = FULL_CONTEXT,
        alone: bool = False,
    ) -> WaitingRow:
        row = Row(next(self._ids), 0, 0, int(seconds * 16_000), "en", DecodeOptions(), 224)
        return WaitingRow(row, search, context, ticket, seconds, self._clock.now, alone=alone)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def row(clock: Clock) -> Rows:
    return Rows(clock)


@pytest.fixture
def scheduler(clock: Clock) -> Scheduler:
    return Scheduler(clock)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.integers(0, 4), st.sampled_from(SEARCHES), st.sampled_from(CONTEXTS), st.booleans()
        ),
        st.tuples(st.just("take"), st.integers(1, 8), st.integers(0, 30_000)),
        st.tuples(st.just("pass"), st.floats(0, 100)),
        st.tuples(st.just("remove"), st.integers(1, 60)),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_no_row_is_lost_or_taken_twice_and_batches_keep_the_rules(steps: list[tuple[object, ...]]) -> None:
    clock = Clock()
    make, scheduler = Rows(clock), Scheduler(clock)
    tickets = [Ticket(weight=1.0 + number, audio_left=10.0**number) for number in range(5)]
    waiting: dict[int, WaitingRow] = {}
    for step in steps:
        match step:
            case ("add", int(ticket), Search() as search, int(context), bool(alone)):
                added = make(tickets[ticket], search=search, context=context, alone=alone)
                waiting[added.row.row] = added
                scheduler.add(added)
            case ("pass", float(seconds)):
                clock.now += seconds
            case ("remove", int(number)):
                waiting.pop(number, None)
                scheduler.remove([number])
            case ("take", int(rows), int(frames)):
                batch, shared = scheduler.take(limits(rows, frames), RATE)
                assert len(batch) <= rows
                assert bool(batch) == bool(waiting)
                assert len(batch) <= 1 or len(batch) * shared <= frames
                assert len({taken.search for taken in batch}) <= 1
                assert {rounded(taken.context) for taken in batch} <= {shared}
                assert len(batch) == 1 or not any(taken.alone for taken in batch)
                for taken in batch:
                    assert waiting.pop(taken.row.row) is taken
                for ticket_ in tickets:  # nothing of a request overtakes what it queued earlier for the same call
                    ids = [taken.row.row for taken in batch if taken.ticket is ticket_]
                    assert ids == sorted(ids)
        assert len(scheduler) == len(waiting)
        assert scheduler.audio_seconds == pytest.approx(sum(left.seconds for left in waiting.values()))
    assert {left.row.row for left in scheduler.drain()} == set(waiting)
    assert len(scheduler) == 0
    assert scheduler.take(limits(8), RATE) == ([], 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SEARCHES), st.sampled_from(CONTEXTS)), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_a_batch_is_as_full_as_its_rows_allow(kinds: list[tuple[Search, int]], most: int) -> None:
    clock = Clock()
    make, scheduler = Rows(clock), Scheduler(clock)
    ticket = Ticket()
    for search, context in kinds:
        scheduler.add(make(ticket, search=search, context=context))
    while len(scheduler):
        same = [(left.search, rounded(left.context)) for left in scheduler._rows]
        batch, shared = scheduler.take(limits(most), RATE)
        assert len(batch) == min(most, same.count((batch[0].search, shared)))


def test_a_batch_takes_no_longer_than_one_window(scheduler: Scheduler, row: Rows) -> None:
    for _ in range(8):
        scheduler.add(row(Ticket(), context=980))
    assert len(scheduler.take(limits(8, FULL_CONTEXT), RATE)[0]) == 3
    for _ in range(8):
        scheduler.add(row(Ticket(audio_left=3.0), context=FULL_CONTEXT))
    assert len(scheduler.take(limits(8, FULL_CONTEXT), RATE)[0]) == 1
    assert len(scheduler.take(limits(8, 10), RATE)[0]) == 1, "a row is always allowed"


def test_a_rows_context_does_not_depend_on_its_company(scheduler: Scheduler, row: Rows) -> None:
    short, long = row(Ticket(audio_left=1.0), context=710), row(Ticket(audio_left=2.0), context=1900)
    for waiting in (long, short):
        scheduler.add(waiting)
    assert scheduler.take(limits(8), RATE) == ([short], 800)
    assert scheduler.take(limits(8), RATE) == ([long], 1900)


def test_a_short_clip_overtakes_a_long_recording(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    recording = Ticket(audio_left=7200.0)
    for _ in range(100):
        scheduler.add(row(recording))
    clock.now = 20.0
    clip = row(Ticket(audio_left=5.0), seconds=5.0, context=900)
    scheduler.add(clip)
    clock.now = 20.05
    assert scheduler.take(limits(8), RATE) == ([clip], 900)


def test_the_rest_of_a_batch_serves_the_long_recording(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    recording = [row(Ticket(audio_left=7200.0)) for _ in range(10)]
    for waiting in recording:
        scheduler.add(waiting)
    clip = row(Ticket(audio_left=5.0), seconds=5.0)
    scheduler.add(clip)
    clock.now = 1.0
    assert scheduler.take(limits(4), RATE)[0] == [clip, *recording[:3]]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_long_recording_is_served_though_short_clips_never_cease(
    scheduler: Scheduler, row: Rows, clock: Clock, batch_size: int
) -> None:
    # As many clips arrive as a batch holds: without ageing, the recording would never get a place.
    recording = row(Ticket(audio_left=7200.0))
    scheduler.add(recording)
    served = None
    for turn in range(40_000):
        for _ in range(batch_size):
            scheduler.add(row(Ticket(audio_left=3.0), seconds=3.0))
        clock.now += 1.0
        if recording in scheduler.take(limits(batch_size), RATE)[0]:
            served = turn
            break
    assert served is not None, "starved"
    assert served <= 7200, "waited longer than the recording is long"


def test_a_retry_of_another_kind_is_not_starved_by_the_usual_ones(
    scheduler: Scheduler, row: Rows, clock: Clock
) -> None:
    retry = row(Ticket(audio_left=30.0), search=Search(temperature=0.4))
    scheduler.add(retry)
    for _ in range(200):
        for _ in range(8):
            scheduler.add(row(Ticket(audio_left=30.0)))
        clock.now += 1.0
        if retry in scheduler.take(limits(8), RATE)[0]:
            return
    pytest.fail("starved")


def test_a_heavier_request_is_served_as_if_it_had_waited_longer(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    light, heavy = row(Ticket(audio_left=60.0)), row(Ticket(weight=3.0, audio_left=60.0))
    scheduler.add(light)
    scheduler.add(heavy)
    clock.now = 1.0
    assert scheduler.take(limits(1), RATE)[0] == [heavy]


def test_of_two_that_came_together_the_shorter_is_served_first(scheduler: Scheduler, row: Rows) -> None:
    long, short = row(Ticket(audio_left=60.0)), row(Ticket(audio_left=6.0))
    scheduler.add(long)
    scheduler.add(short)
    assert scheduler.next(2, RATE) == [short, long]
    assert scheduler.take(limits(1), RATE)[0] == [short]


def test_a_suspect_is_decoded_alone(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    suspect = row(Ticket(audio_left=10.0), alone=True)
    others = [row(Ticket(audio_left=30.0)) for _ in range(3)]
    for waiting in (*others, suspect):
        scheduler.add(waiting)
    clock.now = 5.0
    assert scheduler.take(limits(8), RATE)[0] == [suspect]
    assert scheduler.take(limits(8), RATE)[0] == others


def test_rows_of_a_request_keep_their_order(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    ticket = Ticket(audio_left=600.0)
    rows = []
    for _ in range(20):
        rows.append(row(ticket))
        scheduler.add(rows[-1])
        clock.now += 0.5
    taken: list[WaitingRow] = []
    while len(scheduler):
        taken += scheduler.take(limits(3), RATE)[0]
    assert taken == rows


def test_a_clock_that_stands_still_or_goes_back_does_no_harm(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    clock.now = 10.0
    rows = [row(Ticket(audio_left=0.0)), row(Ticket(audio_left=0.0))]
    for waiting in rows:
        scheduler.add(waiting)
    clock.now = 3.0
    assert scheduler.take(limits(2), RATE)[0] == rows
