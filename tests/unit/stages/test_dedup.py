"""What an event is to the mark of its id, and what it does to stream time, case by case."""

from __future__ import annotations

import pytest

from semel.stages.dedup import Timed, Verdict, judge, move_time
from semel.state.marks import DEAD, DONE, Mark
from semel.state.positions import StreamTime

WINDOW = 100
WALL = 10_000


def at(stream: StreamTime, *times: int, wall: int = WALL) -> Timed:
    for time in times[:-1]:
        stream = move_time(stream, time, wall, WINDOW).stream_time
    return move_time(stream, times[-1], wall, WINDOW)


def test_the_first_event_sets_stream_time_whatever_its_time() -> None:
    assert at(StreamTime(), 5) == Timed(StreamTime(5), None, 5)
    assert at(StreamTime(), -1) == Timed(StreamTime(-1), None, -1)


def test_stream_time_is_the_greatest_event_time_and_later_ones_are_filed_under_it() -> None:
    assert at(StreamTime(500), 550) == Timed(StreamTime(550), None, 550)
    assert at(StreamTime(550), 500) == Timed(StreamTime(550), None, 550)


def test_stream_time_never_passes_the_wall_clock() -> None:
    assert at(StreamTime(WALL - 10), WALL + 50) == Timed(StreamTime(WALL), None, WALL)
    assert at(StreamTime(), WALL + WINDOW) == Timed(StreamTime(WALL), None, WALL)


def test_an_event_more_than_a_window_ahead_of_the_wall_clock_has_a_bad_clock_and_moves_nothing() -> None:
    stream = StreamTime(500, (900,))
    assert at(stream, WALL + WINDOW + 1) == Timed(stream, Verdict.CLOCK, WALL + WINDOW + 1)


def test_an_event_older_than_the_window_is_late_and_one_at_its_edge_is_not() -> None:
    assert at(StreamTime(500), 400).verdict is None
    assert at(StreamTime(500), 399).verdict is Verdict.LATE


def test_a_wall_clock_that_goes_back_takes_stream_time_nowhere() -> None:
    assert at(StreamTime(500), 480, wall=450) == Timed(StreamTime(500), None, 500)


def test_one_jump_takes_effect_under_its_own_time_and_moves_nothing() -> None:
    assert at(StreamTime(500), 600).stream_time == StreamTime(600)
    assert at(StreamTime(500), 601) == Timed(StreamTime(500, (601,)), None, 601)


def test_three_jumps_in_a_row_that_agree_move_stream_time_to_the_greatest() -> None:
    assert at(StreamTime(500), 1000, 1050) == Timed(StreamTime(500, (1000, 1050)), None, 1050)
    assert at(StreamTime(500), 1000, 1050, 1020) == Timed(StreamTime(1050), None, 1050)


def test_an_event_in_between_breaks_the_row() -> None:
    for ordinary in (500, 450, 550, 300):
        assert at(StreamTime(500), 1000, 1050, ordinary).stream_time.pending == ()


def test_three_jumps_in_a_row_move_stream_time_as_far_as_they_agree() -> None:
    assert at(StreamTime(500), 1000, 5000).stream_time == StreamTime(500, (1000, 5000))
    assert at(StreamTime(500), 1000, 5000, 1020) == Timed(StreamTime(1020, (5000,)), None, 1020)
    assert at(StreamTime(500), 1000, 1090, 1180).stream_time == StreamTime(1180)
    assert at(StreamTime(500), 1180, 1000, 1090).stream_time == StreamTime(1180)


def test_events_that_are_further_apart_than_the_window_move_stream_time_two_events_later() -> None:
    stream, times = StreamTime(500), range(1000, 5000, 500)
    for n, time in enumerate(times):
        moved = move_time(stream, time, WALL, WINDOW)
        assert moved.filed_at == time
        stream = moved.stream_time
        assert stream.ms == (500 if n < 2 else times[n - 2])


def test_one_bad_clock_among_good_ones_moves_nothing() -> None:
    stream = StreamTime(500)
    for time in (9000, 510, 9000, 9000, 520, 9000, 9000, 530):
        stream = move_time(stream, time, WALL, WINDOW).stream_time
    assert stream == StreamTime(530)


MARK = Mark(offset=7, event_time=480, filed_at=500, payload=1, outcome=DONE)


@pytest.mark.parametrize(
    ("mark", "offset", "payload", "stream", "verdict"),
    [
        (None, 7, 1, 500, Verdict.FRESH),
        (MARK, 7, 1, 500, Verdict.REPLAYED),
        (MARK, 7, 2, 500, Verdict.REPLAYED),
        (MARK, 8, 1, 500, Verdict.DUPLICATE),
        (MARK, 6, 1, 600, Verdict.DUPLICATE),
        (MARK, 8, 2, 600, Verdict.CONFLICT),
        (MARK, 8, 1, 601, Verdict.FRESH),
        (MARK, 8, 2, 601, Verdict.FRESH),
        (MARK._replace(outcome=DEAD), 8, 1, 500, Verdict.DUPLICATE),
    ],
)
def test_what_an_event_is_to_the_mark_of_its_id(
    mark: Mark | None, offset: int, payload: int, stream: int, verdict: Verdict
) -> None:
    assert judge(mark, offset, payload, stream, WINDOW) is verdict
