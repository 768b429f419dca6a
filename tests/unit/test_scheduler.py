from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalscribe.engine.messages import DecodeOptions, Row
from metalscribe.engine.scheduler import Scheduler, Ticket, WaitingRow

CHOICES = [DecodeOptions(), DecodeOptions(words=True), DecodeOptions(temperature=0.2), DecodeOptions(prompt="Glossary")]


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rows:
    """Makes rows with ids of their own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids = itertools.count(1)

    def __call__(
        self, ticket: Ticket, *, seconds: float = 30.0, options: DecodeOptions = CHOICES[0], attempts: int = 0
    ) -> WaitingRow:
        row = Row(next(self._ids), 0, 0, int(seconds * 16_000), "en")
        return WaitingRow(row, options, ticket, seconds, self._clock.now, attempts)


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
        st.tuples(st.just("add"), st.integers(0, 4), st.sampled_from(CHOICES), st.integers(0, 1)),
        st.tuples(st.just("take"), st.integers(1, 8)),
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
            case ("add", int(ticket), DecodeOptions() as options, int(attempts)):
                added = make(tickets[ticket], options=options, attempts=attempts)
                waiting[added.row.row] = added
                scheduler.add(added)
            case ("pass", float(seconds)):
                clock.now += seconds
            case ("remove", int(number)):
                waiting.pop(number, None)
                scheduler.remove([number])
            case ("take", int(limit)):
                batch = scheduler.take(limit)
                assert len(batch) <= limit
                assert bool(batch) == bool(waiting)
                assert len({taken.options for taken in batch}) <= 1
                assert len(batch) == 1 or not any(taken.alone for taken in batch)
                for taken in batch:
                    assert waiting.pop(taken.row.row) is taken
                for ticket_ in tickets:  # nothing of a request overtakes what it queued earlier under the same options
                    ids = [taken.row.row for taken in batch if taken.ticket is ticket_]
                    assert ids == sorted(ids)
        assert len(scheduler) == len(waiting)
        assert scheduler.audio_seconds == pytest.approx(sum(left.seconds for left in waiting.values()))
    assert {left.row.row for left in scheduler.drain()} == set(waiting)
    assert len(scheduler) == 0
    assert scheduler.take(8) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(CHOICES), min_size=1, max_size=40), st.integers(1, 8))
def test_a_batch_is_as_full_as_the_options_allow(kinds: list[DecodeOptions], limit: int) -> None:
    clock = Clock()
    make, scheduler = Rows(clock), Scheduler(clock)
    ticket = Ticket()
    for kind in kinds:
        scheduler.add(make(ticket, options=kind))
    while len(scheduler):
        same = [left.options for left in scheduler._rows]
        batch = scheduler.take(limit)
        assert len(batch) == min(limit, same.count(batch[0].options))


def test_a_short_clip_overtakes_a_long_recording(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    recording = Ticket(audio_left=7200.0)
    for _ in range(100):
        scheduler.add(row(recording))
    clock.now = 20.0
    clip = row(Ticket(audio_left=5.0), seconds=5.0)
    scheduler.add(clip)
    clock.now = 20.5
    assert clip in scheduler.take(8)


def test_the_rest_of_a_batch_serves_the_long_recording(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    recording = [row(Ticket(audio_left=7200.0)) for _ in range(10)]
    for waiting in recording:
        scheduler.add(waiting)
    clip = row(Ticket(audio_left=5.0), seconds=5.0)
    scheduler.add(clip)
    clock.now = 1.0
    assert scheduler.take(4) == [clip, *recording[:3]]


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
        if recording in scheduler.take(batch_size):
            served = turn
            break
    assert served is not None, "starved"
    assert served <= 7200, "waited longer than the recording is long"


def test_a_retry_on_other_options_is_not_starved_by_the_usual_ones(
    scheduler: Scheduler, row: Rows, clock: Clock
) -> None:
    retry = row(Ticket(audio_left=30.0), options=DecodeOptions(temperature=0.4))
    scheduler.add(retry)
    for _ in range(200):
        for _ in range(8):
            scheduler.add(row(Ticket(audio_left=30.0)))
        clock.now += 1.0
        if retry in scheduler.take(8):
            return
    pytest.fail("starved")


def test_a_heavier_request_is_served_as_if_it_had_waited_longer(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    light, heavy = row(Ticket(audio_left=60.0)), row(Ticket(weight=3.0, audio_left=60.0))
    scheduler.add(light)
    scheduler.add(heavy)
    clock.now = 1.0
    assert scheduler.take(1) == [heavy]


def test_a_suspect_is_decoded_alone(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    suspect = row(Ticket(audio_left=10.0), attempts=1)
    others = [row(Ticket(audio_left=30.0)) for _ in range(3)]
    for waiting in (*others, suspect):
        scheduler.add(waiting)
    clock.now = 5.0
    assert scheduler.take(8) == [suspect]
    assert scheduler.take(8) == others


def test_rows_of_a_request_keep_their_order(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    ticket = Ticket(audio_left=600.0)
    rows = []
    for _ in range(20):
        rows.append(row(ticket))
        scheduler.add(rows[-1])
        clock.now += 0.5
    taken = []
    while len(scheduler):
        taken += scheduler.take(3)
    assert taken == rows


def test_a_clock_that_stands_still_or_goes_back_does_no_harm(scheduler: Scheduler, row: Rows, clock: Clock) -> None:
    clock.now = 10.0
    rows = [row(Ticket(audio_left=0.0)), row(Ticket(audio_left=-5.0))]
    for waiting in rows:
        scheduler.add(waiting)
    clock.now = 3.0
    assert scheduler.take(2) == rows
