"""What an event is to the mark of its id, and what it does to stream time, case by case."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.dedup import Dedup
from semel.stages.dedup.classify import JUMP_MS, Columns, Timed, Verdict, classify, judge, move_time, move_times
from semel.state.dedup_marks import DEAD, DONE, Mark, pack, unpack, with_outcome
from semel.state.positions import StreamTime
from semel.state.replay import Replay

WINDOW = 100
WALL = 10_000


def at(stream: StreamTime, *times: int, wall: int = WALL) -> Timed:
    for time in times[:-1]:
        stream = StreamTime(*move_time(stream.ms, stream.pending, time, wall, WINDOW)[2:])
    return move_time(stream.ms, stream.pending, times[-1], wall, WINDOW)


def moved(stream: StreamTime, *times: int) -> StreamTime:
    return StreamTime(*at(stream, *times)[2:])


def test_the_first_event_sets_stream_time_whatever_its_time() -> None:
    assert at(StreamTime(), 5) == (None, 5, 5, ())
    assert at(StreamTime(), -1) == (None, -1, -1, ())


def test_stream_time_is_the_greatest_event_time_and_later_ones_are_filed_under_it() -> None:
    assert at(StreamTime(500), 550) == (None, 550, 550, ())
    assert at(StreamTime(550), 500) == (None, 550, 550, ())


def test_stream_time_never_passes_the_wall_clock() -> None:
    assert at(StreamTime(WALL - 10), WALL + 50) == (None, WALL, WALL, ())
    assert at(StreamTime(), WALL + WINDOW) == (None, WALL, WALL, ())


def test_an_event_more_than_a_window_ahead_of_the_wall_clock_has_a_bad_clock_and_moves_nothing() -> None:
    stream = StreamTime(500, (900,))
    assert at(stream, WALL + WINDOW + 1) == (Verdict.CLOCK, WALL + WINDOW + 1, 500, (900,))


def test_an_event_older_than_the_window_is_late_and_one_at_its_edge_is_not() -> None:
    assert at(StreamTime(500), 400)[0] is None
    assert at(StreamTime(500), 399)[0] is Verdict.LATE


def test_a_wall_clock_that_goes_back_takes_stream_time_nowhere() -> None:
    assert at(StreamTime(500), 480, wall=450) == (None, 500, 500, ())


def test_one_jump_takes_effect_under_its_own_time_and_moves_nothing() -> None:
    assert moved(StreamTime(500), 600) == StreamTime(600)
    assert at(StreamTime(500), 601) == (None, 601, 500, (601,))


def test_three_jumps_in_a_row_that_agree_move_stream_time_to_the_greatest() -> None:
    assert at(StreamTime(500), 1000, 1050) == (None, 1050, 500, (1000, 1050))
    assert at(StreamTime(500), 1000, 1050, 1020) == (None, 1050, 1050, ())


def test_an_event_in_between_breaks_the_row() -> None:
    for ordinary in (500, 450, 550, 300):
        assert moved(StreamTime(500), 1000, 1050, ordinary).pending == ()


def test_three_jumps_in_a_row_move_stream_time_as_far_as_they_agree() -> None:
    assert moved(StreamTime(500), 1000, 5000) == StreamTime(500, (1000, 5000))
    assert at(StreamTime(500), 1000, 5000, 1020) == (None, 1020, 1020, (5000,))
    assert moved(StreamTime(500), 1000, 1090, 1180) == StreamTime(1180)
    assert moved(StreamTime(500), 1180, 1000, 1090) == StreamTime(1180)


def test_events_that_are_further_apart_than_the_window_move_stream_time_two_events_later() -> None:
    stream, times = StreamTime(500), range(1000, 5000, 500)
    for n, time in enumerate(times):
        assert at(stream, time)[1] == time
        stream = moved(stream, time)
        assert stream.ms == (500 if n < 2 else times[n - 2])


def test_one_bad_clock_among_good_ones_moves_nothing() -> None:
    stream = StreamTime(500)
    for time in (9000, 510, 9000, 9000, 520, 9000, 9000, 530):
        stream = moved(stream, time)
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


# -- a whole batch

RULE = Dedup("id", window=timedelta(milliseconds=WINDOW))
PASSES = Dedup("id", window=timedelta(milliseconds=WINDOW), conflict="pass")


def columns(*records: tuple[int, bytes | str | None, int | str | None, int]) -> Columns:
    return Columns(*map(list, zip(*records, strict=True)))  # type: ignore[arg-type]


def test_an_event_of_a_batch_is_a_duplicate_of_one_before_it_in_the_batch() -> None:
    judged = classify(columns((7, b"a", 500, 1), (8, b"a", 500, 1), (9, b"a", 500, 2)), {}, StreamTime(), RULE, WALL)
    assert judged.verdicts == [Verdict.FRESH, Verdict.DUPLICATE, Verdict.CONFLICT]
    assert judged.marks == [pack(7, 500, 500, 1, DONE), None, None]
    assert judged.known == {1: judged.marks[0], 2: judged.marks[0]}


def test_a_batch_changes_nothing_that_it_is_given() -> None:
    marks: dict[bytes, bytes] = {}
    classify(columns((7, b"a", 500, 1)), marks, StreamTime(), RULE, WALL)
    assert marks == {}


def test_what_has_no_id_or_time_moves_nothing() -> None:
    batch = columns((1, None, 900, 0), (2, "cannot be read", 900, 0), (3, b"a", None, 0), (4, b"a", "no time", 0))
    judged = classify(batch, {}, StreamTime(500), RULE, WALL)
    assert judged.verdicts == [Verdict.MISSING, Verdict.MISSING, Verdict.MISSING, Verdict.UNREADABLE]
    assert judged.marks == [None] * 4
    assert judged.streams == [(500, ())] * 4


def test_stream_time_moves_record_by_record() -> None:
    judged = classify(columns((1, b"a", 510, 0), (2, b"b", 505, 0), (3, b"c", 530, 0)), {}, StreamTime(500), RULE, WALL)
    assert judged.streams == [(510, ()), (510, ()), (530, ())]
    assert [unpack(mark or b"").filed_at for mark in judged.marks] == [510, 510, 530]


def test_a_late_event_breaks_a_row_of_jumps_and_is_a_duplicate_where_its_id_is_known() -> None:
    mark = pack(1, 390, 500, 7, DONE)
    judged = classify(
        columns((5, b"new", 390, 7), (6, b"old", 390, 7)), {b"old": mark}, StreamTime(500, (900,)), RULE, WALL
    )
    assert judged.verdicts == [Verdict.LATE, Verdict.DUPLICATE]
    assert judged.streams == [(500, ()), (500, ())]


@pytest.mark.parametrize(
    ("rule", "payload", "stream"),
    [(RULE, 1, (460, ())), (RULE, 2, (460, ())), (PASSES, 1, (460, ())), (PASSES, 2, (460, (570,)))],
)
def test_an_event_that_comes_again_is_no_witness_of_a_jump_unless_it_takes_effect(
    rule: Dedup, payload: int, stream: tuple[int, tuple[int, ...]]
) -> None:
    known = {b"a": pack(1, 480, 480, 1, DONE)}
    assert classify(columns((9, b"a", 570, payload)), known, StreamTime(460), rule, WALL).streams == [stream]


# -- replays


def replayed(revision: int, *, edited: bool = False) -> Callable[[int], Replay]:
    return lambda nth: Replay(revision, edited)


def dead_mark(revision: int = 0) -> bytes:
    return with_outcome(pack(7, 480, 500, 1, DONE), DEAD, revision)


@pytest.mark.parametrize(
    ("mark", "revision", "edited", "payload", "verdict"),
    [
        # Of a dead event the next revision is accepted, and no other twice.
        (dead_mark(), 1, False, 1, Verdict.FRESH),
        (dead_mark(), 1, True, 2, Verdict.FRESH),
        (dead_mark(), 9, False, 2, Verdict.FRESH),
        (dead_mark(1), 1, False, 1, Verdict.DUPLICATE),
        (dead_mark(1), 1, True, 2, Verdict.DUPLICATE),
        (dead_mark(1), 2, False, 1, Verdict.FRESH),
        # What took effect does so once, whatever a record says of itself.
        (pack(7, 480, 500, 1, DONE), 1, False, 1, Verdict.DUPLICATE),
        (pack(7, 480, 500, 1, DONE), 63, True, 2, Verdict.DUPLICATE),
        (pack(7, 480, 500, 1, DONE), 63, False, 2, Verdict.CONFLICT),
        (Mark(7, 480, 500, 1, DONE, 3).pack(), 4, False, 1, Verdict.DUPLICATE),
        (Mark(7, 480, 500, 1, DONE, 3).pack(), 4, False, 2, Verdict.DUPLICATE),
        # No replay: as ever.
        (dead_mark(), 0, False, 1, Verdict.DUPLICATE),
        (dead_mark(), 0, False, 2, Verdict.CONFLICT),
        (Mark(7, 480, 500, 1, DONE, 3).pack(), 0, False, 1, Verdict.DUPLICATE),
        (Mark(7, 480, 500, 1, DONE, 3).pack(), 0, False, 2, Verdict.CONFLICT),
    ],
)
def test_what_a_replay_is_to_the_mark_of_its_id(
    mark: bytes, revision: int, edited: bool, payload: int, verdict: Verdict
) -> None:
    replay = replayed(revision, edited=edited) if revision else (lambda nth: None)
    judged = classify(columns((9, b"a", 505, payload)), {b"a": mark}, StreamTime(500), RULE, WALL, 0, replay)
    assert judged.verdicts == [verdict]
    if verdict is Verdict.FRESH:
        # Its first record's payload stays: that is what its producer may redeliver.
        assert unpack(judged.marks[0] or b"") == Mark(9, 505, 505, 1, DONE, revision)
        assert judged.known == {}
    else:
        assert (judged.marks, judged.known) == ([None], {0: mark})


def test_the_same_record_read_again_is_done_whatever_its_revision() -> None:
    judged = classify(columns((7, b"a", 505, 1)), {b"a": dead_mark()}, StreamTime(500), RULE, WALL, 0, replayed(5))
    assert judged.verdicts == [Verdict.REPLAYED]


def test_of_two_replays_in_one_batch_the_first_is_accepted() -> None:
    batch = columns((8, b"a", 500, 1), (9, b"a", 500, 2), (10, b"a", 500, 1))
    judged = classify(batch, {b"a": dead_mark()}, StreamTime(500), RULE, WALL, 0, replayed(1))
    assert judged.verdicts == [Verdict.FRESH, Verdict.DUPLICATE, Verdict.DUPLICATE]


def test_a_replay_that_waited_in_the_dead_letters_is_not_late_while_its_mark_protects() -> None:
    late = columns((9, b"a", 450, 1), (10, b"other", 450, 1))
    judged = classify(late, {b"a": dead_mark()}, StreamTime(580), RULE, WALL, 0, replayed(1))
    assert judged.verdicts == [Verdict.FRESH, Verdict.LATE]
    assert unpack(judged.marks[0] or b"") == Mark(9, 450, 580, 1, DONE, 1)
    # Nobody knows any more whether it took effect since.
    judged = classify(late, {b"a": dead_mark()}, StreamTime(601), RULE, WALL, 0, replayed(1))
    assert judged.verdicts == [Verdict.LATE, Verdict.LATE]


def test_a_replay_ahead_of_the_clock_is_refused_as_any_other() -> None:
    ahead = columns((9, b"a", WALL + WINDOW + 1, 1))
    judged = classify(ahead, {b"a": dead_mark()}, StreamTime(580), RULE, WALL, 0, replayed(1))
    assert judged.verdicts == [Verdict.CLOCK]


def test_whether_a_record_is_a_replay_is_asked_only_where_it_matters() -> None:
    asked: list[int] = []

    def replay(nth: int) -> Replay:
        asked.append(nth)
        return Replay(1)

    marks = {b"done": pack(1, 480, 500, 1, DONE), b"dead": dead_mark()}
    batch = columns((8, b"new", 500, 1), (9, b"done", 500, 1), (10, b"new", 500, 1), (11, b"dead", 500, 1))
    classify(batch, marks, StreamTime(500), RULE, WALL, 0, replay)
    assert asked == [3]


def test_a_replay_under_another_compare_takes_the_payload_of_its_own() -> None:
    judged = classify(columns((9, b"a", 505, 5)), {b"a": dead_mark()}, StreamTime(500), RULE, WALL, 8, replayed(1))
    assert unpack(judged.marks[0] or b"").payload == 5


# -- without a rule

HOURS = st.integers(-6, 6).map(lambda hours: hours * JUMP_MS // 2)
NEAR = st.integers(-2, 2)


@given(
    now=st.none() | st.tuples(HOURS, NEAR).map(sum),
    pending=st.lists(st.tuples(HOURS, NEAR).map(sum), max_size=2),
    times=st.lists(st.tuples(HOURS, NEAR).map(sum), max_size=8),
    wall=st.tuples(HOURS, NEAR).map(sum),
)
def test_many_events_move_stream_time_as_they_do_one_by_one(
    now: int | None, pending: list[int], times: list[int], wall: int
) -> None:
    stream = StreamTime(now, tuple(pending) if now is not None else ())
    one_by_one = stream
    for time in times:
        one_by_one = StreamTime(*move_time(one_by_one.ms, one_by_one.pending, time, wall, JUMP_MS)[2:])
    assert move_times(stream, times, wall) == one_by_one


def test_without_a_rule_a_jump_is_more_than_an_hour() -> None:
    assert move_times(StreamTime(0), [JUMP_MS], 10 * JUMP_MS) == StreamTime(JUMP_MS)
    assert move_times(StreamTime(0), [JUMP_MS + 1], 10 * JUMP_MS) == StreamTime(0, (JUMP_MS + 1,))
    assert move_times(StreamTime(0), [JUMP_MS + 1] * 3, 10 * JUMP_MS) == StreamTime(JUMP_MS + 1)
    assert move_times(StreamTime(0), [JUMP_MS * 3], JUMP_MS) == StreamTime(0)
    assert move_times(StreamTime(0), [JUMP_MS], JUMP_MS // 2) == StreamTime(JUMP_MS // 2)
