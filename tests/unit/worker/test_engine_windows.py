"""Dedup in time: windows, late and early events, jumps, and what Kafka may forget (rules 19 to 21)."""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from typing import Any

import orjson
import pytest

from semel import Dedup
from semel.memory.faults import lose_answer, refuse
from semel.port import TP
from semel.state.dedup_marks import DONE, Marks, pack, unpack
from tests.unit.harness import APP, Worker, World, dead_letters, payments_pipeline

HOUR = 3_600_000
MARKS = f"{APP}-dedup-changelog"
A1 = "a1"


@pytest.fixture
def hours(world: World) -> World:
    """Ids are protected for an hour."""
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1)))
    return world


def now_ms(world: World) -> int:
    return int(world.clock.time() * 1000)


def ids(world: World) -> list[str]:
    return [orjson.loads(r.value or b"")["id"] for log in world.cluster.committed("settlements") for r in log]


def dead(world: World) -> list[str]:
    found = dead_letters([r for log in world.cluster.committed(f"{APP}.dlq") for r in log])
    return [reason for _, reason in sorted(found)]


def counts(world: World) -> dict[str, int]:
    at = world.committed_positions()[world.place(A1).partition]
    return {name: count for name, count in at.counts.items() if count}


async def test_within_its_window_an_id_takes_effect_once_after_it_again(hours: World) -> None:
    start = now_ms(hours) - 10 * HOUR
    event = hours.pay(A1, 1, id="x", at_ms=start)
    hours.write(event, A1, at_ms=start + HOUR)
    hours.write(event, A1, at_ms=start + HOUR + 1)
    # The third one took effect, and protects from then on.
    hours.write(event, A1, at_ms=start + 2 * HOUR)
    hours.start()
    await hours.drained()
    assert ids(hours) == ["x", "x"]
    assert counts(hours) == {"in": 4, "out": 2, "duplicates": 2}


async def test_a_late_event_within_the_window_is_protected_for_the_whole_window(hours: World) -> None:
    start = now_ms(hours) - 10 * HOUR
    hours.pay(A1, 1, id="first", at_ms=start)
    late = hours.pay(A1, 1, id="late", at_ms=start - HOUR + 1)
    # It is filed under stream time, not under its own: an hour later it is still known.
    hours.pay(A1, 1, id="tick", at_ms=start + HOUR)
    hours.write(late, A1, at_ms=start + 10)
    hours.start()
    await hours.drained()
    assert ids(hours) == ["first", "late", "tick"]


@pytest.mark.parametrize("handling", ["quarantine", "drop", "pass"])
async def test_an_event_older_than_the_window_is_handled_as_declared(world: World, handling: Any) -> None:
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1), late=handling))
    start = now_ms(world) - 10 * HOUR
    world.pay(A1, 1, id="first", at_ms=start)
    world.pay(A1, 1, id="old", at_ms=start - HOUR - 1)
    world.start()
    await world.drained()
    assert ids(world) == (["first", "old"] if handling == "pass" else ["first"])
    assert dead(world) == (["late"] if handling == "quarantine" else [])
    assert counts(world)["in"] == 2


@pytest.mark.parametrize("handling", ["quarantine", "drop", "pass"])
@pytest.mark.parametrize("what", ["missing", "conflict"])
async def test_events_without_an_id_and_conflicts_are_handled_as_declared(
    world: World, handling: Any, what: str
) -> None:
    rules = {"missing": handling, "conflict": handling}
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1), **rules))
    world.pay(A1, 1, id="x")
    world.write({"id": "" if what == "missing" else "x", "account": A1, "amount": 7}, A1)
    world.start()
    await world.drained()
    assert len(ids(world)) == (2 if handling == "pass" else 1)
    assert dead(world) == ([what] if handling == "quarantine" else [])
    said = counts(world)
    assert said["in"] == said["out"] + said.get("dead", 0) + said.get("dropped", 0)


@pytest.mark.parametrize("handling", ["quarantine", "pass", "drop"])
@pytest.mark.parametrize("first", [True, False], ids=["as the first of its partition", "behind others"])
async def test_a_record_without_a_timestamp_is_handled_as_missing_and_moves_nothing(
    world: World, handling: Any, first: bool
) -> None:
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1), missing=handling))
    start = now_ms(world)
    if not first:
        world.pay(A1, id="x", at_ms=start)
    world.pay(A1, id="timeless", at_ms=-1)
    again = world.pay(A1, id="y", at_ms=start)
    world.write(again, A1, at_ms=start + HOUR // 2)
    world.start()
    await world.drained()
    before = [] if first else ["x"]
    assert ids(world) == [*before, *(["timeless"] if handling == "pass" else []), "y"]
    assert dead(world) == (["missing"] if handling == "quarantine" else [])
    assert counts(world)["duplicates"] == 1
    if handling == "quarantine":
        [letter] = (r for log in world.cluster.committed(f"{APP}.dlq") for r in log)
        assert b"the record has no timestamp (-1)" in (dict(letter.headers)["semel.error"] or b"")


async def test_an_event_more_than_a_window_ahead_of_the_clock_is_quarantined_and_moves_nothing(hours: World) -> None:
    # A broker takes timestamps up to an hour ahead of its clock.
    hours.cluster.alter_topic("payments", {"message.timestamp.after.max.ms": str(99 * HOUR)})
    now = now_ms(hours)
    hours.pay(A1, 1, id="first", at_ms=now - 10)
    hours.pay(A1, 1, id="future", at_ms=now + HOUR + 60_000)
    hours.pay(A1, 1, id="soon", at_ms=now + HOUR // 2)
    hours.pay(A1, 1, id="past", at_ms=now - HOUR // 2)
    hours.start()
    await hours.drained()
    assert ids(hours) == ["first", "soon", "past"]
    assert dead(hours) == ["clock"]
    # Never past the wall clock.
    at = hours.committed_positions()[hours.place(A1).partition].stream_time.ms
    assert at is not None and now - 10 <= at <= now_ms(hours)


async def test_one_bad_clock_does_not_move_stream_time_three_that_agree_do(hours: World) -> None:
    start = now_ms(hours) - 20 * HOUR
    hours.pay(A1, 1, id="first", at_ms=start)
    hours.pay(A1, 1, id="jump", at_ms=start + 10 * HOUR)
    hours.pay(A1, 1, id="usual", at_ms=start + 1)
    hours.pay(A1, 1, id="j1", at_ms=start + 10 * HOUR)
    hours.pay(A1, 1, id="j2", at_ms=start + 10 * HOUR + 1)
    worker = hours.start()
    await hours.drained()
    # All of them took effect; time stands where it stood.
    assert ids(hours) == ["first", "jump", "usual", "j1", "j2"]
    at = hours.committed_positions()[hours.place(A1).partition].stream_time
    assert at.ms == start + 1 and at.pending == (start + 10 * HOUR, start + 10 * HOUR + 1)
    # What agrees is remembered over a restart.
    worker.kill()
    await worker.gone()
    hours.lose_store("w1")
    hours.start()
    hours.pay(A1, 1, id="j3", at_ms=start + 10 * HOUR + 2)
    hours.pay(A1, 1, id="old", at_ms=start + 2)
    await hours.drained()
    assert dead(hours) == ["late"]
    assert hours.committed_positions()[hours.place(A1).partition].stream_time.ms == start + 10 * HOUR + 2


async def test_an_event_that_fails_and_jumps_does_not_agree_with_itself(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1), conflict="pass"))
    start = now_ms(world) - 20 * HOUR
    world.pay(A1, 1, id="x", at_ms=start)
    # Three attempts at one conflict that jumps, none of which counts.
    world.write({"id": "x", "account": A1, "amount": 2, "fails": 2}, A1, at_ms=start + 10 * HOUR)
    world.pay(A1, 1, id="usual", at_ms=start + 1)
    world.start()
    await world.drained()
    assert ids(world) == ["x", "x", "usual"]
    assert world.committed_positions()[world.place(A1).partition].stream_time.ms == start + 1


async def test_a_restore_decides_as_the_worker_before_would_have(hours: World) -> None:
    """Between two events of one slice the epoch may be cut: stream time goes with the event that moved it."""
    start = now_ms(hours) - 10 * HOUR

    async def let_commits_in(payment: Any) -> None:
        await asyncio.sleep(0.02)

    hours.work.before = let_commits_in
    worker = hours.start(commit_interval_ms=1)
    await hours.until_running(worker)
    for n in range(20):
        hours.pay(A1, 1, at_ms=start + n * 60_000)
    p = hours.place(A1).partition
    await hours.drained()
    assert worker.engine.stats["commits"] > 5
    records = hours.cluster.committed("payments")[p]
    for position in hours.position_history()[p]:
        at = position.topics["payments"].next
        assert position.stream_time.ms == max((r.timestamp for r in records if r.offset < at), default=None)


async def test_a_duplicate_of_a_dead_letter_follows_it(world: World) -> None:
    event = world.pay(A1, 1, fails=-1)
    world.start()
    await world.drained()
    world.write(event, A1)
    await world.drained()
    assert dead(world) == ["failed", "duplicate"]
    world.check()


async def test_a_conflict_that_passes_and_fails_leaves_the_first_ones_mark_alone(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, dedup=Dedup("id", window=timedelta(hours=1), conflict="pass"))
    event = world.pay(A1, 1, id="x")
    world.write({**event, "amount": 2, "fails": -1}, A1)
    world.write(event, A1)
    world.start()
    await world.drained()
    # The third is a duplicate of the first, which took effect: not of the second, which died.
    assert counts(world) == {"in": 3, "out": 1, "dead": 1, "duplicates": 1}
    assert dead(world) == ["failed"]


async def test_an_epoch_that_was_committed_without_an_answer_is_not_repeated_but_known(hours: World) -> None:
    worker = hours.start()
    await hours.until_running(worker)
    hours.cluster.faults.add("EndTxn", lose_answer(after_s=0.01))
    event = hours.pay(A1, 1, id="x", at_ms=now_ms(hours))
    await hours.drained()
    hours.write(event, A1)
    await hours.drained()
    assert worker.engine.stats["unknown"] == 1
    assert ids(hours) == ["x"] and counts(hours) == {"in": 2, "out": 1, "duplicates": 1}


# ---------------------------------------------------------------------- what may be forgotten (rule 21)


async def stream_of(world: World, worker: Worker, since_ms: int, hours: int, per_hour: int = 4) -> int:
    """So many hours of events, one committed before the next; the last event's time."""
    at = since_ms
    for n in range(hours * per_hour):
        at = since_ms + n * HOUR // per_hour
        world.pay(A1, 1, at_ms=at)
        await world.drained()
    await asyncio.sleep(0.1)
    return at


async def test_expired_marks_leave_the_store_and_the_log_and_live_ones_stay(hours: World) -> None:
    start = now_ms(hours) - 100 * HOUR
    worker = hours.start()
    await hours.until_running(worker)
    last = await stream_of(hours, worker, start, 12)
    tp = TP(MARKS, hours.place(A1).partition)
    assert worker.engine.stats["trims"] > 0
    log = hours.cluster.log(tp)
    assert log.log_start > 0
    kept = [unpack(r.value or b"") for r in hours.cluster.committed(MARKS)[tp.partition]]
    # Everything that can still protect is there; little else is.
    assert {m.filed_at for m in kept} >= set(range(last - HOUR, last + 1, HOUR // 4))
    assert len(kept) <= 8
    assert len(list(worker.store.scan_marks(tp.partition))) <= 8


@pytest.mark.parametrize("store", ["lost", "behind the start of the log"])
async def test_a_restore_from_a_trimmed_log_knows_every_id_that_is_still_protected(hours: World, store: str) -> None:
    start = now_ms(hours) - 100 * HOUR
    worker = hours.start()
    await hours.until_running(worker)
    await stream_of(hours, worker, start, 2)
    if store != "lost":
        await worker.stop()
        shutil.copytree(hours.path / "w1", hours.path / "copy")
        worker = hours.start()
        await hours.until_running(worker)
    last = await stream_of(hours, worker, start + 2 * HOUR, 10)
    await worker.stop()
    hours.lose_store("w1")
    if store != "lost":
        shutil.move(hours.path / "copy", hours.path / "w1")
    before = len(ids(hours))
    records = hours.cluster.committed("payments")[hours.place(A1).partition]
    protected = [r for r in records if r.timestamp >= last - HOUR]
    for record in protected:
        hours.write(record.value, A1, at_ms=last)
    hours.start()
    await hours.drained()
    assert len(protected) == 5 and len(ids(hours)) == before
    assert counts(hours)["duplicates"] == len(protected)


async def test_where_deleting_is_not_permitted_nothing_is_trimmed_and_a_warning_says_so(
    hours: World, caplog: pytest.LogCaptureFixture
) -> None:
    refused = hours.cluster.faults.add("DeleteRecords", refuse(29), times=None)
    start = now_ms(hours) - 100 * HOUR
    worker = hours.start()
    await hours.until_running(worker)
    await stream_of(hours, worker, start, 6)
    assert refused.hits == 1
    assert "not permitted" in caplog.text
    assert hours.cluster.log(TP(MARKS, hours.place(A1).partition)).log_start == 0


async def test_a_restore_keeps_no_mark_that_has_expired(hours: World) -> None:
    """The log of marks still has them where it is not trimmed, and it may be long until the next commit."""
    hours.cluster.faults.add("DeleteRecords", refuse(29), times=None)
    worker = hours.start()
    await hours.until_running(worker)
    last = await stream_of(hours, worker, now_ms(hours) - 100 * HOUR, 6)
    await worker.stop()
    hours.lose_store("w1")
    worker = hours.start()
    await hours.until_running(worker)
    partition = hours.place(A1).partition
    kept = [unpack(raw) for _, raw in worker.store.scan_marks(partition)]
    assert {m.filed_at for m in kept} >= set(range(last - HOUR, last + 1, HOUR // 4))
    assert len(kept) <= 8


async def test_the_log_is_not_trimmed_past_marks_whose_place_is_not_known(hours: World) -> None:
    """A Produce that is acknowledged as a duplicate tells no offset."""
    worker = hours.start()
    await hours.until_running(worker)
    marks = Marks(worker.store, 7, window_ms=HOUR, bucket_ms=HOUR // 4)
    raw = marks_of(1_000_000)
    batch = worker.store.batch()
    marks.file(batch, [(b"a", raw)], -1)
    marks.file(batch, [(b"b", raw)], 50)
    assert marks.first_live_offset() is None
    marks.file(batch, [(b"c", marks_of(1_000_000 + HOUR))], 60)
    assert marks.first_live_offset() is None


def marks_of(filed_at: int) -> bytes:
    return pack(0, filed_at, filed_at, 0, DONE)


async def test_times_far_ahead_cost_no_bucket_each_and_their_ids_are_known_after_a_restore(hours: World) -> None:
    """Every other event is of some time of the year since: none of these times is agreed on."""
    start = now_ms(hours) - 8_000 * HOUR
    sent: list[tuple[dict[str, Any], int]] = []
    first = hours.start()
    for n in range(300):
        at = start + n * 60_000 + (hours.rng.randrange(3, 7_000) * HOUR if n % 2 else 0)
        sent.append((hours.pay(A1, 1, at_ms=at), at))
        if n % 20 == 0:
            await hours.drained()
    await hours.drained()

    def buckets(worker: Worker) -> int:
        marks = worker.engine.tasks[hours.place(A1).partition].marks
        assert marks is not None
        return len(marks.buckets)

    assert len(ids(hours)) == 300
    assert buckets(first) < 60
    await first.stop()
    hours.lose_store("w1")
    again = hours.start("w1")
    await hours.until_running(again)
    assert buckets(again) < 60
    ahead = [(event, at) for event, at in sent if at > start + 300 * 60_000]
    for event, at in ahead:
        hours.write(event, A1, at_ms=at)
        hours.pay(A1, 1, at_ms=start + 300 * 60_000)
    await hours.drained()
    assert len(ids(hours)) == 300 + len(ahead)
    assert counts(hours)["duplicates"] == len(ahead)
