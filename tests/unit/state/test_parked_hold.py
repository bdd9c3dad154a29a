"""Holding: the key of an event that is in the dead letters waits for what becomes of its letter (`Retry(then="hold")`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Pipeline, Reject, Retry, Table, Topic
from semel.errors import RecoveryError
from semel.state.parked_event import ParkedEvent, ParkedRecord, decode, is_held
from semel.testing import PipelineTester
from semel.testing.results import DeadLetter
from tests.unit.state.flaky import AGENTS, Event, Flaky, batching, events, handling, ids, streaming

HOLD = Retry(attempts=2, first_delay=timedelta(seconds=1), max_delay=timedelta(seconds=8), then="hold")
RULE = Dedup("id", window=timedelta(hours=1))


def holding(flaky: Callable[[Event], None], *, agent: Any = handling, dedup: Dedup | None = RULE, retry: Retry = HOLD,
            partitions: int = 1, **declared: Any) -> PipelineTester:  # fmt: skip
    sums = Table("sums", key=str, value=int, default=int)
    pipeline = Pipeline(
        "pay", source=Topic("events", key=str, value=Event), agent=agent(flaky, sums), tables=[sums], dedup=dedup,
        sink=Topic("sums-out", key=str, value=dict), retry=retry, **declared,
    )  # fmt: skip
    return PipelineTester(pipeline, partitions=partitions)


def hold_of(letter: DeadLetter) -> bytes:
    return letter.letter_headers["semel.hold"]


def revision_of(letter: DeadLetter) -> int:
    return int(letter.headers.get("semel.replay") or b"0") + 1


def replay(t: PipelineTester, letter: DeadLetter, *, edited: Event | None = None, **options: Any) -> None:
    headers = [
        ("semel.replay", b"%d" % revision_of(letter)),
        ("semel.letter", b"pay.dlq[0]@0"),
        ("semel.hold", hold_of(letter)),
    ]
    headers += [("semel.edited", b"-")] if edited is not None else []
    t.send(edited or letter.value, key=letter.key, headers=headers, timestamp=letter.timestamp,
           partition=letter.partition, **options)  # fmt: skip


def drop(t: PipelineTester, letter: DeadLetter, **options: Any) -> None:
    headers = [("semel.skip", hold_of(letter)), ("semel.letter", b"pay.dlq[0]@0")]
    t.send(letter.value, key=letter.key, headers=headers, partition=letter.partition, **options)


def held_and_parked(t: PipelineTester) -> tuple[int, int]:
    logs = [task.parked for task in t._tasks() if task.parked is not None]
    return sum(log.held for log in logs), sum(log.count for log in logs)


def balanced(t: PipelineTester) -> bool:
    n = t.counts
    return n.received == n.accepted + n.duplicates + n.replayed + n.dropped + n.dead_lettered


@pytest.mark.parametrize("dedup", [RULE, None])
@pytest.mark.parametrize("agent", AGENTS)
def test_the_later_events_of_its_key_wait_behind_its_letter_and_all_others_go_on(
    agent: Any, dedup: Dedup | None
) -> None:
    with holding(Flaky({"a1": 99}), agent=agent, dedup=dedup) as t:
        t.send_all(events("a1", "a2", "b1", "a3", "b2"), key="key")
        [letter] = t.dead_letters()
        assert (letter.value.id, letter.reason, letter.attempts) == ("a1", "failed", 2)
        assert ids(t) == ["b1", "b2"]
        assert held_and_parked(t) == (1, 2)
        assert (t.counts.received, t.counts.dead_lettered) == (3, 1)
        assert balanced(t)


@pytest.mark.parametrize("dedup", [RULE, None])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_replay_that_succeeds_comes_before_all_that_waited_for_it(agent: Any, dedup: Dedup | None) -> None:
    flaky = Flaky({"a1": 99})
    with holding(flaky, agent=agent, dedup=dedup) as t:
        t.send_all(events("a1", "a2", "b1", "a3"), key="key")
        flaky.fails.clear()
        replay(t, t.dead_letters()[0])
        t.send_all(events("a4"), key="key")
        assert ids(t) == ["b1", "a1", "a2", "a3", "a4"]
        assert [out.value["sum"] for out in t.outputs() if out.value["id"][0] == "a"] == [1, 3, 6, 10]
        assert held_and_parked(t) == (0, 0)
        assert balanced(t)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_edited_replay_takes_effect_in_its_place(agent: Any) -> None:
    def refuse(event: Event) -> None:
        if event.n == 1:
            raise ValueError("one is too little")

    with holding(refuse, agent=agent) as t:
        t.send_all(events("a1", "a2"), key="key")
        replay(t, t.dead_letters()[0], edited=Event("a1", "a", 10))
        assert [(out.value["id"], out.value["sum"]) for out in t.outputs()] == [("a1", 10), ("a2", 12)]


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_replay_that_fails_in_the_end_again_holds_the_key_under_its_own_letter(agent: Any, crash: bool) -> None:
    flaky = Flaky({"a1": 99})
    with holding(flaky, agent=agent) as t:
        t.send_all(events("a1", "a2", "a3"), key="key")
        replay(t, t.dead_letters()[0])
        if crash:
            t.crash()
        first, second = t.dead_letters()
        assert hold_of(first) != hold_of(second)
        assert (ids(t), held_and_parked(t)) == ([], (1, 2))
        # The first letter's hold is over: what says that it ends it is one more duplicate.
        drop(t, first)
        assert (ids(t), held_and_parked(t)) == ([], (1, 2))
        flaky.fails.clear()
        replay(t, second)
        assert ids(t) == ["a1", "a2", "a3"]
        assert balanced(t)


@pytest.mark.parametrize("dedup", [RULE, None])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_key_whose_letter_is_dropped_goes_on_without_its_event(agent: Any, dedup: Dedup | None) -> None:
    flaky = Flaky({"a1": 99})
    with holding(flaky, agent=agent, dedup=dedup) as t:
        t.send_all(events("a1", "a2", "a3"), key="key")
        attempts = flaky.attempts["a1"]
        drop(t, t.dead_letters()[0])
        assert ids(t) == ["a2", "a3"]
        assert flaky.attempts["a1"] == attempts
        assert t.counts.duplicates == 1
        assert held_and_parked(t) == (0, 0)
        assert balanced(t)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_hold_and_its_queue_outlive_crashes_and_rebalances(agent: Any) -> None:
    flaky = Flaky({"a1": 99})
    with holding(flaky, agent=agent) as t:
        t.send_all(events("a1", "a2"), key="key")
        t.crash()
        t.rebalance(2)
        t.send_all(events("a3"), key="key")
        assert (ids(t), held_and_parked(t)) == ([], (1, 2))
        flaky.fails["a1"] = flaky.attempts["a1"] + 1
        replay(t, t.dead_letters()[0], settle=False)
        t.crash()
        t.settle()
        assert ids(t) == ["a1", "a2", "a3"]


def test_a_crash_between_a_replays_attempts_leaves_it_in_front() -> None:
    with holding(Flaky({"a1": 3}), retry=replace(HOLD, first_delay=timedelta(seconds=5))) as t:
        t.send_all(events("a1", "a2"), key="key")
        replay(t, t.dead_letters()[0], settle=False)
        t.advance_time(timedelta(seconds=1))
        assert held_and_parked(t) == (0, 2)
        t.crash()
        t.settle()
        assert ids(t) == ["a1", "a2"]


def test_one_of_those_behind_may_hold_the_key_in_its_turn() -> None:
    with holding(Flaky({"a1": 2, "a2": 2})) as t:
        t.send_all(events("a1", "a2", "a3"), key="key")
        replay(t, t.dead_letters()[0])
        assert (ids(t), held_and_parked(t)) == (["a1"], (1, 1))
        replay(t, t.dead_letters()[1])
        assert ids(t) == ["a1", "a2", "a3"]


def raising(error: BaseException) -> Callable[[Event], None]:
    def refuse(event: Event) -> None:
        if event.id == "a1":
            raise error

    return refuse


@pytest.mark.parametrize(
    ("error", "holds"), [(Reject("no"), 0), (KeyError("x"), 0), (OSError("x"), 1), (ValueError("not transient"), 1)]
)
def test_what_is_declared_to_be_no_loss_holds_up_nobody(error: BaseException, holds: int) -> None:
    retry = replace(HOLD, fatal=(KeyError,), transient=(OSError,))
    with holding(raising(error), retry=retry) as t:
        t.send_all(events("a1", "a2"), key="key")
        assert len(t.dead_letters()) == 1
        assert ids(t) == ([] if holds else ["a2"])
        assert held_and_parked(t)[0] == holds
        assert ("semel.hold" in t.dead_letters()[0].letter_headers) == bool(holds)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_replay_that_is_rejected_holds_the_key_all_the_same(agent: Any) -> None:
    """It is the event that the key waits for, whatever it fails with."""
    errors: list[BaseException] = [OSError("x")]

    def refuse(event: Event) -> None:
        if event.id == "a1" and errors:
            raise errors[-1]

    with holding(refuse, agent=agent) as t:
        t.send_all(events("a1", "a2"), key="key")
        errors.append(Reject("no"))
        replay(t, t.dead_letters()[0])
        assert [letter.reason for letter in t.dead_letters()] == ["failed", "rejected"]
        assert (ids(t), held_and_parked(t)) == ([], (1, 1))
        drop(t, t.dead_letters()[1])
        assert ids(t) == ["a2"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_replay_that_cannot_be_read_holds_the_key_all_the_same(agent: Any) -> None:
    with holding(Flaky({"a1": 99}), agent=agent) as t:
        t.send_all(events("a1", "a2"), key="key")
        replay(t, t.dead_letters()[0], edited=b"not json")  # type: ignore[arg-type]
        assert [letter.reason for letter in t.dead_letters()] == ["failed", "undecodable"]
        assert (ids(t), held_and_parked(t)) == ([], (1, 1))
        drop(t, t.dead_letters()[1])
        assert ids(t) == ["a2"]


def test_an_event_without_a_key_holds_nobody() -> None:
    with holding(Flaky({"a1": 99})) as t:
        t.send_all(events("a1", "a2"), key=None)
        assert (ids(t), held_and_parked(t)) == (["a2"], (0, 0))


@pytest.mark.parametrize("agent", [handling, streaming, batching])
def test_a_header_that_somebody_else_writes_opens_nothing(agent: Any) -> None:
    flaky = Flaky({"a1": 99})
    with holding(flaky, agent=agent) as t:
        t.send_all(events("a1", "a2"), key="key")
        hold = hold_of(t.dead_letters()[0])
        for name in ("semel.hold", "semel.skip"):
            # Of another key, of another event, of another pipeline, and of nothing at all.
            t.send(Event(f"b{len(name)}", "b", 1), key="b", headers=[(name, hold)])
            for wrong in (hold.replace(b"@0", b"@1"), hold.replace(b"pay/", b"other/"), b"", b"\xff"):
                t.send(Event(f"a{len(flaky.attempts)}", "a", 1), key="a", headers=[(name, wrong)])
        assert [id for id in ids(t) if id[0] == "a"] == []
        assert held_and_parked(t)[0] == 1
        assert balanced(t)


def test_a_replay_of_a_held_event_is_not_late_however_long_its_key_waited() -> None:
    with holding(Flaky({"a1": 2})) as t:
        t.send_all(events("a1", "a2"), key="key")
        t.advance_time(timedelta(days=3))
        t.send_all(events("b1", "b2", "b3"), key="key")
        replay(t, t.dead_letters()[0])
        assert ids(t)[-2:] == ["a1", "a2"]


def test_a_second_replay_of_one_letter_is_a_duplicate() -> None:
    flaky = Flaky({"a1": 2})
    with holding(flaky) as t:
        t.send_all(events("a1", "a2"), key="key")
        letter = t.dead_letters()[0]
        replay(t, letter, settle=False)
        replay(t, letter)
        replay(t, letter)
        assert ids(t) == ["a1", "a2"]
        assert t.counts.duplicates == 2


def test_a_replay_of_an_event_that_took_effect_otherwise_lets_its_key_go_on() -> None:
    """Replayed by other means it waits behind its own letter; a replay that says so is a duplicate of that, and opens the key."""
    with holding(Flaky({"a1": 2})) as t:
        t.send_all(events("a1", "a2"), key="key")
        letter = t.dead_letters()[0]
        t.send(letter.value, key="a", headers=[("semel.replay", b"1")])
        assert held_and_parked(t) == (1, 2)
        replay(t, letter)
        assert ids(t) == ["a2", "a1"]
        assert held_and_parked(t) == (0, 0)


def test_where_there_is_no_room_for_a_hold_the_partition_waits() -> None:
    with holding(Flaky({"a1": 99, "b1": 99}), retry=replace(HOLD, attempts=1)) as t:
        for task in t._tasks():
            assert task.parked is not None
            task.parked.limit = 1
        t.send_all(events("a1", "b1", "c1"), key="key", settle=False)
        t.advance_time(timedelta(minutes=5))
        assert [letter.value.id for letter in t.dead_letters()] == ["a1"]
        assert ids(t) == []
        assert "limit" in t._tasks()[0].held_up


def test_a_replay_behind_the_limit_of_its_key_is_reached_when_that_is_raised() -> None:
    with holding(Flaky({"a1": 2})) as t:
        [task] = t._tasks()
        assert task.parked is not None
        task.parked.key_limit = 3
        t.send_all(events("a1", "a2"), key="key")
        t.send_all(events("a3", "a4", "b1"), key="key", settle=False)
        replay(t, t.dead_letters()[0], settle=False)
        t.advance_time(timedelta(minutes=1))
        assert ids(t) == []
        assert "raise the limit, and restart the workers" in task.held_up
        task.parked.key_limit = 4
        t.settle()
        assert ids(t) == ["b1", "a1", "a2", "a3", "a4"]
        assert task.held_up == ""


@pytest.mark.parametrize("concurrency", [1, 4])
def test_keys_side_by_side_are_held_one_by_one(concurrency: int) -> None:
    with holding(Flaky({"a1": 3, "b2": 99}), agent=streaming, concurrency=concurrency) as t:
        t.send_all(events("a1", "b1", "a2", "b2", "c1", "b3"), key="key")
        assert sorted(ids(t)) == ["b1", "c1"]
        by_id = {letter.value.id: letter for letter in t.dead_letters()}
        replay(t, by_id["a1"])
        drop(t, by_id["b2"])
        assert [id for id in ids(t) if id[0] == "a"] == ["a1", "a2"]
        assert [id for id in ids(t) if id[0] == "b"] == ["b1", "b3"]
        assert held_and_parked(t) == (0, 0)


# -- rows


def test_a_row_of_a_held_event_says_so_and_whose_place_it_has() -> None:
    record = ParkedRecord(50, 7, b"a", None, ())
    held = ParkedEvent(record, attempts=2, hold=b"pay/handle/events[0]@50/7", place=10)
    assert decode(50, held.encode()) == replace(held, record=replace_headers(record))
    assert is_held(held.encode())
    in_place = ParkedEvent(ParkedRecord(50, 7, b"a", b"v", [("semel.hold", b"x")]), b"id", b"mark", place=10)
    assert decode(50, in_place.encode()) == in_place
    assert not is_held(in_place.encode())


def replace_headers(record: ParkedRecord) -> ParkedRecord:
    """As they are read: in a list."""
    return record._replace(headers=[])


def test_a_version_that_knows_of_no_holds_refuses_their_rows_and_reads_all_others() -> None:
    waits = ParkedEvent(ParkedRecord(50, 7, b"a", b"v", []))
    assert waits.encode()[0] == 1
    assert replace(waits, hold=b"x").encode()[0] == replace(waits, place=3).encode()[0] == 3
    with pytest.raises(RecoveryError, match="written by another version"):
        decode(50, replace(waits, place=3).encode()[:-4])
