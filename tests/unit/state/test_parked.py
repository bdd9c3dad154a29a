"""Parking: an event that fails waits with its key, all others go on, and whatever happens each takes effect once (rule 3)."""

from __future__ import annotations

import asyncio
import secrets
import tracemalloc
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Dedup, Pipeline, Reject, Retry, Table, Topic
from semel.stages.agent.runner import AgentRunner
from semel.state.parked import ParkedLog, ParkedQueue
from semel.state.parked_event import ParkedEvent, ParkedRecord
from semel.state.store import StoreError
from semel.testing import PipelineTester
from semel.testing.worker import open_store
from tests.unit.state.flaky import AGENTS, Event, Flaky, events, handling, ids, streaming

SOON = Retry(attempts=4, first_delay=timedelta(seconds=1), max_delay=timedelta(seconds=8))


def parking(
    flaky: Flaky, *, agent: Any = handling, dedup: Dedup | None = None, retry: Retry = SOON, partitions: int = 1
) -> PipelineTester:
    sums = Table("sums", key=str, value=int, default=int)
    pipeline = Pipeline(
        "pay", source=Topic("events", key=str, value=Event), agent=agent(flaky, sums), tables=[sums],
        dedup=Dedup("id", window=timedelta(hours=1)) if dedup is None else dedup,
        sink=Topic("sums-out", key=str, value=dict), retry=retry,
    )  # fmt: skip
    return PipelineTester(pipeline, partitions=partitions)


@pytest.mark.parametrize("agent", AGENTS)
def test_while_one_event_waits_for_its_next_attempt_other_keys_of_its_partition_go_on(agent: Any) -> None:
    with parking(Flaky({"a1": 2}), agent=agent) as t:
        t.send_all(events("a1", "b1", "c1", "b2"), key="key")
        assert ids(t) == ["b1", "c1", "b2", "a1"]
        assert dict(t.tables["sums"].items()) == {"a": 1, "b": 3, "c": 1}
        assert t.counts.accepted == 4


@pytest.mark.parametrize("agent", AGENTS)
def test_later_events_of_its_key_wait_behind_it_in_their_order(agent: Any) -> None:
    with parking(Flaky({"a1": 3, "a3": 1}), agent=agent) as t:
        t.send_all(events("a1", "a2", "b1", "a3", "a4", "b2"), key="key")
        assert [id for id in ids(t) if id[0] == "a"] == ["a1", "a2", "a3", "a4"]
        assert [out.value["sum"] for out in t.outputs() if out.value["id"][0] == "a"] == [1, 3, 6, 10]
        assert ids(t)[:2] == ["b1", "b2"]


def test_a_failed_attempt_leaves_no_trace_and_the_last_one_goes_to_the_dead_letters_with_their_number() -> None:
    with parking(Flaky({"a1": 99})) as t:
        t.send_all(events("a1", "a2", "b1"), key="key")
        [letter] = t.dead_letters()
        assert (letter.value.id, letter.reason, letter.attempts) == ("a1", "failed", 4)
        assert ids(t) == ["b1", "a2"]
        assert dict(t.tables["sums"].items()) == {"a": 2, "b": 1}


def test_a_redelivery_of_a_parked_event_is_a_duplicate() -> None:
    flaky = Flaky({"a1": 2})
    with parking(flaky) as t:
        sent = t.send(events("a1")[0], key="a", settle=False)
        t.advance_time(timedelta(milliseconds=300))
        t.redeliver(sent)
        assert ids(t) == ["a1"]
        assert t.counts.duplicates == 1
        assert flaky.done == ["a1"]


def test_a_redelivery_of_one_that_ended_in_the_dead_letters_follows_it_there() -> None:
    with parking(Flaky({"a1": 99})) as t:
        sent = t.send(events("a1")[0], key="a")
        t.redeliver(sent)
        assert [letter.reason for letter in t.dead_letters()] == ["failed", "duplicate"]
        assert not ids(t)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_redelivery_of_one_that_is_parked_follows_it_to_the_dead_letters(agent: Any) -> None:
    with parking(Flaky({"a1": 99}), agent=agent) as t:
        sent = t.send(events("a1")[0], key="a", settle=False)
        t.redeliver(sent, settle=False)
        t.send(events("a2")[0], key="a")
        assert [letter.reason for letter in t.dead_letters()] == ["failed", "duplicate"]
        assert ids(t) == ["a2"]


@pytest.mark.parametrize(("fails", "fate"), [(99, ["failed", "duplicate"]), (2, [])])
@pytest.mark.parametrize("crash", [False, True])
def test_a_redelivery_that_is_parked_follows_the_first_whatever_became_of_its_mark(
    fails: int, fate: list[str], crash: bool
) -> None:
    """The dedup window is over before their turns come."""
    short = Dedup("id", window=timedelta(seconds=1))
    with parking(Flaky({"a1": fails, "a2": 3}), dedup=short) as t:
        sent = t.send(events("a1")[0], key="a", settle=False)
        t.send(events("a2")[0], key="a", settle=False)
        t.redeliver(sent, settle=False)
        for n in range(6):
            t.advance_time(timedelta(seconds=1.5))
            t.send(events(f"b{n + 1}")[0], key="b", settle=False)
            if crash:
                t.advance_time(timedelta(milliseconds=300))
                t.crash()
        t.settle()
        assert [letter.reason for letter in t.dead_letters()] == fate
        assert t.counts.duplicates == (0 if fate else 1)
        assert [id for id in ids(t) if id[0] == "a"] == (["a2"] if fate else ["a1", "a2"])


@pytest.mark.parametrize("lose_state", [False, True])
def test_parked_events_survive_a_crash_with_their_attempts_and_their_order(lose_state: bool) -> None:
    flaky = Flaky({"a1": 3})
    with parking(flaky) as t:
        t.send_all(events("a1", "a2", "b1", "a3"), key="key", settle=False)
        t.advance_time(timedelta(milliseconds=400))
        assert ids(t) == ["b1"]
        t.crash(lose_state=lose_state)
        t.settle()
        assert ids(t) == ["b1", "a1", "a2", "a3"]
        assert flaky.attempts["a1"] == 4
        assert [out.value["sum"] for out in t.outputs()] == [1, 1, 3, 6]


def test_an_undecodable_event_of_a_parked_key_keeps_its_place_in_the_dead_letters() -> None:
    with parking(Flaky({"a1": 99})) as t:
        t.send(events("a1")[0], key="a", settle=False)
        t.send(b"{", key="a", settle=False)
        t.send(b"{", key="b", settle=False)
        t.settle()
        assert [(letter.key, letter.reason) for letter in t.dead_letters()] == [
            ("b", "undecodable"),
            ("a", "failed"),
            ("a", "undecodable"),
        ]


def test_what_is_rejected_goes_to_the_dead_letters_at_once() -> None:
    def handle(event: Event) -> None:
        raise Reject("never")

    pipeline = Pipeline(
        "pay",
        source=Topic("events", key=str, value=Event),
        agent=handle,
        dedup=Dedup("id", window=timedelta(hours=1)),
        retry=SOON,
    )
    with PipelineTester(pipeline) as t:
        t.send_all(events("a1", "a2"), key="key")
        assert [letter.attempts for letter in t.dead_letters()] == [1, 1]


def test_events_without_a_key_wait_for_nobody() -> None:
    with parking(Flaky({"a1": 2})) as t:
        t.send_all(events("a1", "a2", "a3"))
        assert sorted(ids(t)) == ["a1", "a2", "a3"]
        assert ids(t)[-1] == "a1"


@pytest.mark.parametrize("agent", AGENTS)
def test_with_park_a_key_waits_for_as_long_as_it_takes_and_the_others_go_on(agent: Any) -> None:
    flaky = Flaky({"a1": 20})
    with parking(flaky, agent=agent, retry=Retry(2, timedelta(seconds=1), timedelta(seconds=10), then="park")) as t:
        t.send_all(events("a1", "a2", "b1"), key="key")
        assert ids(t) == ["b1"]
        t.advance_time(timedelta(seconds=30))
        t.send_all(events("b2"), key="key")
        assert ids(t) == ["b1", "b2"] and not t.dead_letters()
        t.crash()
        t.advance_time(timedelta(seconds=300))
        assert ids(t) == ["b1", "b2", "a1", "a2"]
        assert flaky.attempts["a1"] == 21


def test_with_stop_its_partition_takes_no_further_events_until_it_succeeds() -> None:
    flaky = Flaky({"a1": 10})
    with parking(flaky, retry=Retry(2, timedelta(seconds=1), timedelta(seconds=10), then="stop")) as t:
        t.send_all(events("a1"), key="key", settle=False)
        t.advance_time(timedelta(seconds=5))
        t.send_all(events("b1"), key="key", settle=False)
        t.advance_time(timedelta(seconds=20))
        assert not ids(t)
        t.crash()
        t.advance_time(timedelta(seconds=20))
        assert not ids(t)
        t.advance_time(timedelta(seconds=200))
        assert ids(t) == ["a1", "b1"]


def test_the_waits_may_be_given_one_by_one() -> None:
    retry = Retry(4, delays=(timedelta(seconds=1), timedelta(seconds=60)))
    assert [retry.delay_s(OSError(), attempt, 1.0) for attempt in (1, 2, 3, 4)] == [1.0, 60.0, 60.0, None]


def test_a_late_event_stays_what_it_was_when_it_came_however_long_it_is_parked() -> None:
    """Its verdict is that of its arrival: stream time goes on meanwhile, past the window."""
    flaky = Flaky({"a1": 3})
    with parking(flaky, dedup=Dedup("id", window=timedelta(seconds=2))) as t:
        t.send(events("a1")[0], key="a", settle=False)
        for n in range(1, 8):
            t.advance_time(timedelta(milliseconds=800))
            t.send(events(f"b{n}")[0], key="b", settle=False)
        t.settle()
        assert "a1" in ids(t) and not t.dead_letters()


def test_without_a_dedup_rule_events_are_parked_as_well() -> None:
    flaky = Flaky({"a1": 2})
    sums = Table("sums", key=str, value=int, default=int)
    pipeline = Pipeline(
        "pay", source=Topic("events", key=str, value=Event), agent=handling(flaky, sums), tables=[sums],
        sink=Topic("sums-out", key=str, value=dict), retry=SOON,
    )  # fmt: skip
    with PipelineTester(pipeline) as t:
        t.send_all(events("a1", "a2", "b1"), key="key", settle=False)
        t.advance_time(timedelta(milliseconds=300))
        t.crash()
        t.settle()
        assert ids(t) == ["b1", "a1", "a2"]


def test_of_a_store_that_cannot_be_read_nobody_takes_nothing_for_what_is_parked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position that was written then said that none is."""
    store = open_store(tmp_path / "db")
    log = ParkedLog(store, 0, 1, "pay-parked", limit=10, key_limit=10, most_delay_s=30.0, most_bytes=1 << 20)

    def unreadable(prefix: bytes) -> Any:
        raise StoreError("a sector cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(store, "scan_rows", unreadable)
        with pytest.raises(StoreError):
            log.load(0.0, 0)
    assert not log.loaded
    log.load(0.0, 0)
    assert log.loaded
    store.close()


@pytest.mark.parametrize("key", ["a", ""], ids=["with-others-behind", "without-a-key"])
@pytest.mark.parametrize("text", ["x" * 30_000, secrets.token_hex(30_000)], ids=["compressible", "random"])
@pytest.mark.parametrize("agent", AGENTS)
def test_an_event_larger_than_the_log_takes_is_parked_compressed_or_holds_its_partition_and_ends_as_any_other(
    agent: Any, text: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its producer compressed it, so that the source took it."""
    refused: list[str] = []

    def small(*args: Any, **limits: Any) -> ParkedLog:
        return ParkedLog(*args, **{**limits, "most_bytes": 20_000})

    def watched(self: ParkedQueue, event: ParkedEvent) -> str:
        refused.append(no_room_for(self, event))
        return refused[-1]

    no_room_for = ParkedQueue.no_room_for
    monkeypatch.setattr(ParkedQueue, "no_room_for", watched)
    monkeypatch.setattr("semel.task.activation.ParkedLog", small)
    flaky = Flaky({"a1": 2, "a2": 9})
    with parking(flaky, agent=agent) as t:
        for event in events("a1", "a2", "a3", "b1"):
            t.send(event, key=event.key if key else None, headers={"text": text.encode()}, settle=False)
        t.advance_time(timedelta(milliseconds=400))
        assert ("b1" in flaky.done) is not any(refused)
        assert any("raise its max.message.bytes" in why for why in refused) is (text[0] != "x")
        t.settle()
        assert sorted(ids(t)) == ["a1", "a3", "b1"]
        assert [letter.attempts for letter in t.dead_letters()] == [4]


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("limit", ["limit", "key_limit"])
def test_a_limit_holds_up_its_partition_and_drops_nothing(
    agent: Any, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_limit(*args: Any, **limits: Any) -> ParkedLog:
        return ParkedLog(*args, **{**limits, limit: 3})

    monkeypatch.setattr("semel.task.activation.ParkedLog", with_limit)
    flaky = Flaky({"a1": 3})
    with parking(flaky, agent=agent) as t:
        t.send_all(events("a1", "a2", "a3", "a4", "a5", "b1", "a6"), key="key", settle=False)
        t.advance_time(timedelta(milliseconds=400))
        assert "b1" not in flaky.done
        t.settle()
        assert [id for id in flaky.done if id[0] == "a"] == ["a1", "a2", "a3", "a4", "a5", "a6"]
        assert sorted(flaky.done) == sorted(set(flaky.done)) and "b1" in flaky.done
        assert [out.value["sum"] for out in t.outputs() if out.value["id"][0] == "a"] == [1, 3, 6, 10, 15, 21]


def test_an_agent_that_ends_between_two_events_costs_none_and_doubles_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next event has not begun: it is neither parked nor given up, and a duplicate stays one."""
    paused = AgentRunner.pause
    pauses: list[int] = []

    async def cancelled_now_and_then(runner: AgentRunner, context: Any, turn_ends: float) -> float:
        pauses.append(1)
        if len(pauses) % 2:
            raise asyncio.CancelledError
        return await paused(runner, context, turn_ends)

    monkeypatch.setattr("semel.stages.agent.stream.TURN_S", -1.0)
    monkeypatch.setattr(AgentRunner, "pause", cancelled_now_and_then)
    flaky = Flaky()
    with parking(flaky, agent=streaming) as t:
        sent = [t.send(event, key=event.key, settle=False) for event in events("a1", "b1")]
        t.redeliver(*sent, settle=False)
        t.send_all(events("a2", "b2", "c1", "c2"), key="key")
        assert sorted(ids(t)) == ["a1", "a2", "b1", "b2", "c1", "c2"] == sorted(flaky.done)
        assert not t.dead_letters() and t.counts.duplicates == 2
    assert len(pauses) >= 2


@pytest.mark.parametrize("agent", [handling, streaming])
def test_what_lies_behind_failed_events_is_not_judged_anew_as_often_as_they_fail(agent: Any) -> None:
    judged = Counter[str]()

    def id_of(event: Event) -> str:
        judged[event.id] += 1
        return event.id

    sent = [Event(f"{key}{n}", key, n) for n in range(8) for key in "abcdefghijklmnopqrstuvwxyz"]
    flaky = Flaky({event.id: 1 for event in sent[5::10]})
    with parking(flaky, agent=agent, dedup=Dedup(id_of, window=timedelta(hours=1))) as t:
        t.send_all(sent, key="key")
        assert len(ids(t)) == len(sent)
        assert judged.total() < 6 * len(sent)


@pytest.mark.parametrize(("keys", "most_bytes"), [(20_000, 600), (20, 300)])
def test_a_parked_event_takes_little_memory_also_where_each_has_a_key_of_its_own(
    tmp_path: Path, keys: int, most_bytes: int
) -> None:
    """What it is stays in the store, as large as it may be."""
    count, value = 20_000, bytes(1_000)
    store = open_store(tmp_path / "db")
    log = ParkedLog(store, 0, 1, "pay-parked", limit=count, key_limit=count, most_delay_s=30.0, most_bytes=1 << 20)
    queue: ParkedQueue = log.queue("events", "handle", Retry(then="park"))
    tracemalloc.start()
    try:
        for n in range(count):
            record = ParkedRecord(n, 0, b"account-%06d" % (n % keys), value)
            queue.recall(ParkedEvent(record, attempts=int(n < keys)), float(n))
        took, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        store.close()
    assert queue.count == count and queue.heads == keys
    assert 100 < took / count < most_bytes
