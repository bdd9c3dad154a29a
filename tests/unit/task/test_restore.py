"""Coming back: to a store that is behind, ahead, gone or of another log; to logs that were compacted, trimmed, made anew."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.errors import PositionConflict, RecoveryError, SemelError, ShapeChanged, TopicChanged
from semel.memory.batch import MemoryRecord
from semel.partitioner import partition_of
from semel.plan import Plan
from semel.port import TP, Producer, TopicInfo
from semel.runtime.settings import EngineSettings
from semel.state import positions
from semel.state.positions import Position, TopicPosition
from semel.state.store import Store
from semel.state.task import TaskState
from semel.task.restore import BEHIND_S
from semel.task.start_position import of_a_life_that_is_over
from semel.testing.broker import MemoryBroker, lose_answer, refuse
from semel.testing.clock import VirtualClock
from semel.worker import engine
from semel.worker.reset import reset
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, Settlement, Worker, World, check_store, payments_pipeline

REBUILT = "rebuilt from the changelogs"


async def settled(world: World, count: int = 100) -> None:
    """One worker has done some input and is gone; its store stays."""
    world.pay_many(count)
    worker = world.start()
    await world.drained()
    await worker.stop()


async def fate(world: World, worker: Worker, within_s: float = 30.0) -> SemelError:
    """The error that the worker ends with."""
    async with asyncio.timeout(within_s):
        error = await worker.gone()
    assert isinstance(error, SemelError), repr(error)
    return error


def restored_records(worker: Worker) -> int:
    return sum(t.restored for t in worker.engine.tasks.values())


# ---------------------------------------------------------------------- incremental, mostly


def back_to_the_copy(world: World) -> None:
    """The worker has the store that it had before."""
    shutil.rmtree(world.path / "w1")
    shutil.move(world.path / "copy", world.path / "w1")


async def test_a_worker_that_comes_back_reads_only_what_it_has_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await settled(world, 300)
    worker = world.start()
    await world.until_running(worker)
    # The marker of its last transaction, in each of four logs of two tasks.
    assert restored_records(worker) <= 8
    world.pay_many(20)
    await world.drained()
    world.check()
    assert REBUILT not in caplog.text


async def test_a_store_that_is_behind_is_brought_forward(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await settled(world)
    shutil.copytree(world.path / "w1", world.path / "copy")
    world.pay_many(100)
    worker = world.start()
    await world.drained()
    await worker.stop()
    back_to_the_copy(world)
    worker = world.start()
    await world.until_running(worker)
    assert 0 < restored_records(worker) < 1_000
    await world.drained()
    world.check()
    assert REBUILT not in caplog.text


@pytest.mark.parametrize("compacted", [False, True], ids=["whole logs", "compacted logs"])
@pytest.mark.parametrize("store", ["behind", "lost"])
async def test_a_restore_after_compaction_finds_the_same_state(world: World, store: str, compacted: bool) -> None:
    await settled(world)
    shutil.copytree(world.path / "w1", world.path / "copy")
    for _ in range(5):
        await settled(world, 40)
    if compacted:
        for name in ("balances-changelog", "journals-changelog", "positions"):
            for p in range(2):
                world.cluster.compact(TP(f"{APP}-{name}", p))
    shutil.rmtree(world.path / "w1")
    if store == "behind":
        shutil.move(world.path / "copy", world.path / "w1")
    world.pay_many(20)
    worker = world.start()
    await world.drained()
    check_rows(world, worker)


def check_rows(world: World, worker: Worker) -> None:
    """The store and the outputs, where the logs themselves were compacted or trimmed."""
    from tests.unit.harness import truth_of

    for p, task in worker.engine.tasks.items():
        truth = truth_of(world, p)
        assert {k.decode(): orjson.loads(v) for k, v in task.tables["balances"].scan()} == truth.balances
        assert {k.decode(): orjson.loads(v) for k, v in task.tables["journals"].scan()} == truth.journals
        assert {k[8:].decode() for k, _ in worker.store.scan_marks(p)} == set(truth.marks)
        outs = [orjson.loads(r.value or b"") for r in world.cluster.committed("settlements")[p]]
        assert outs == truth.outputs


async def test_rows_that_were_deleted_stay_deleted_after_a_restore(world: World) -> None:
    def make(tables: tuple[Table, Table]) -> object:
        balances, _ = tables

        async def settle(payments: object) -> None:
            async for payment in payments:  # type: ignore[attr-defined]
                if payment.amount:
                    balances[payment.account] = payment.amount
                else:
                    balances.pop(payment.account, None)

        return settle

    world.pipeline = payments_pipeline(world.work, make=make)
    for n in range(10):
        world.pay(f"a{n}", 5)
    first = world.start()
    await world.drained()
    await first.stop()
    shutil.copytree(world.path / "w1", world.path / "w2")
    second = world.start("w1")
    for n in range(0, 10, 2):
        world.pay(f"a{n}", 0)
    await world.drained()
    await second.stop()
    for name in ("w2", "w3"):
        worker = world.start(name, session_timeout_ms=6_000)
        await world.until_running(worker)
        await world.until(lambda w=worker: len(w.engine.tasks) == 2, within_s=30)
        await world.until_running(worker)
        rows = {k.decode() for t in worker.engine.tasks.values() for k, _ in t.tables["balances"].scan()}
        assert rows == {f"a{n}" for n in range(1, 10, 2)}
        await worker.stop()


# ---------------------------------------------------------------------- the three cases of a rebuild (rule 18)


async def test_an_old_store_with_news_in_its_changelog_is_rebuilt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await settled(world)
    shutil.copytree(world.path / "w1", world.path / "copy")
    await settled(world, 50)
    back_to_the_copy(world)
    world.clock.jump(13 * 3600)
    worker = world.start()
    await world.until_running(worker)
    assert REBUILT in caplog.text and "tombstones" in caplog.text
    await world.drained()
    world.check()


async def test_an_old_store_without_news_is_not_rebuilt(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await settled(world)
    # Everything is there but the markers that end the last transactions.
    world.clock.jump(30 * 86400)
    worker = world.start()
    await world.until_running(worker)
    assert REBUILT not in caplog.text
    world.check()


async def test_a_store_beyond_the_end_of_its_changelog_is_rebuilt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await settled(world)
    for p in range(2):
        log = world.cluster.log(TP(f"{APP}-balances-changelog", p))
        if log.end:
            # An unclean election: the log's tail is lost, and with it rows that the store has.
            log._entries.clear()
            log.end = 0
    worker = world.start()
    await world.until_running(worker)
    assert "beyond the end" in caplog.text
    assert [list(t.tables["balances"].scan()) for t in worker.engine.tasks.values()] == [[], []]


async def test_a_store_from_before_a_reset_is_rebuilt(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await settled(world)
    await reset_all(world)
    world.pay_many(20)
    worker = world.start()
    await world.drained()
    assert "is another topic" in caplog.text
    check_store(world, worker)


async def reset_all(world: World, to: Any = "earliest", *, say: Callable[[str], None] = lambda text: None) -> None:
    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    await reset(world.plan(), EngineSettings(), broker, world.clock, to, say=say)


async def test_a_reset_of_a_source_that_grew_says_what_becomes_of_the_events_from_before(world: World) -> None:
    """They stand where their keys do not belong any more. From the time on at which it grew, all is as ever."""
    await settled(world)
    world.cluster.add_partitions("payments", 5)
    grown_at = datetime.fromtimestamp(world.clock.time() + 0.5, UTC)
    await world.clock.sleep(1)
    accounts = [f"a{n}" for n in range(8)]
    for account in accounts:
        event = {"id": f"new-{account}", "account": account, "amount": 1}
        tp = TP("payments", partition_of(account.encode(), 5))
        world.cluster.write(tp, [(account.encode(), orjson.dumps(event))])
    world.partitions = 5
    said: list[str] = []
    done = len(all_committed(world, "settlements"))
    await reset_all(world, "earliest", say=said.append)
    [text] = [text for text in said if "WrongPartition" in text]
    assert "payments had 2 partitions" in text and "--to TIME" in text
    for to in ("earliest", grown_at):
        if to != "earliest":
            await reset_all(world, to, say=said.append)
        letters = len(all_committed(world, f"{APP}.dlq"))
        worker = world.start()
        await world.drained()
        await worker.stop()
        await world.clock.sleep(15)
        misplaced = [
            record
            for record in all_committed(world, f"{APP}.dlq")[letters:]
            if b"belongs to partition" in (dict(record.headers)["semel.error"] or b"")
        ]
        assert bool(misplaced) is (to == "earliest")
        done, before = len(all_committed(world, "settlements")), done
    ids = sorted(orjson.loads(r.value or b"")["id"] for r in all_committed(world, "settlements"))
    assert done - before == len(accounts) and ids.count("new-a0") == 2


async def test_a_reset_says_where_outputs_go_before_anybody_begins(world: World) -> None:
    """Else a topic that grows meanwhile is met otherwise by each task."""
    await settled(world)
    await reset_all(world)
    for log in world.cluster.committed(f"{APP}-positions"):
        last = next(r for r in reversed(log) if r.key == positions.KEY)
        sinks = positions.decode(last.value or b"", "").sinks
        assert sinks["settlements"][1:] == (2, 2)


def all_committed(world: World, topic: str) -> list[MemoryRecord]:
    return [record for log in world.cluster.committed(topic) for record in log]


@pytest.mark.parametrize("restored_between", [False, True], ids=["since its commit", "since a restore"])
@pytest.mark.parametrize("unanswered", [False, True], ids=["", "when it is asked again"])
async def test_a_store_whose_position_record_is_another_ones_is_rebuilt(
    world: World, caplog: pytest.LogCaptureFixture, restored_between: bool, unanswered: bool
) -> None:
    world.pay("a1", 1)
    p, _ = world.write(orjson.dumps({"id": "x", "account": "a1", "amount": 1}), "a1")
    worker = world.start()
    await world.drained()
    await worker.stop()
    if restored_between:
        worker = world.start()
        await world.until_running(worker)
        await worker.stop()
    tp = TP(f"{APP}-positions", p.partition)
    log = world.cluster.log(tp)
    record = next(r for r in reversed(log.committed()) if r.key == positions.KEY)
    found = positions.decode(record.value or b"", "")
    # At the very offset there stands what another writer committed after an unclean election.
    record.value = positions.moved(found, writer="payments-w9", epoch=77).encode()
    if unanswered:
        world.cluster.faults.add("Fetch", refuse(6), times=2)
    worker = world.start()
    await world.until_running(worker)
    assert REBUILT in caplog.text and "payments-w9" in caplog.text
    world.check()


async def test_a_crash_amid_a_restore_leaves_a_store_that_goes_on(world: World) -> None:
    await settled(world, 200)
    world.lose_store("w1")
    for nth in range(1, 9):
        worker = world.start()
        reached = worker.kill_at("restore.chunk", nth)
        await asyncio.sleep(5)
        if not reached.is_set():
            await worker.stop()
            break
        await worker.gone()
    world.pay_many(20)
    world.start()
    await world.drained()
    world.check()


# ---------------------------------------------------------------------- positions and the group (rule 10)


async def test_a_group_that_somebody_moved_is_an_error_that_names_the_choices(world: World) -> None:
    await settled(world)
    await asyncio.sleep(15)
    world.move_group({TP("payments", 0): 3})
    error = await fate(world, world.start())
    assert isinstance(error, PositionConflict)
    assert "3" in str(error) and "semel reset" in str(error)
    # Moved back, it goes on where it was.
    await asyncio.sleep(15)
    world.move_group({TP("payments", 0): world.committed_positions()[0].topics["payments"].next})
    world.pay_many(10)
    world.start()
    await world.drained()
    world.check()


async def test_a_coordinator_that_has_not_loaded_all_its_offsets_yet_is_asked_again(world: World) -> None:
    await settled(world)
    world.pay_many(300)
    worker = world.start()
    await world.drained()
    await worker.stop()
    world.cluster.move_coordinator("group", APP, behind_s=BEHIND_S / 2)
    groups, tps = world.cluster.groups, [TP("payments", p) for p in (0, 1)]
    assert groups.answered_offsets(APP, tps) != groups.stable_offsets(APP, tps), "it is not behind"
    world.pay_many(10)
    world.start()
    await world.drained()
    world.check()


async def test_a_coordinator_that_still_says_what_was_before_a_reset_is_asked_again(world: World) -> None:
    await settled(world)
    await reset_all(world)
    own = world.cluster.groups._offsets[APP]
    own.former = {TP("payments", p): (-1, 40) for p in (0, 1)}
    world.cluster.move_coordinator("group", APP, behind_s=BEHIND_S / 2)
    world.start()
    await world.drained()


async def test_group_offsets_that_expired_do_not_matter(world: World) -> None:
    await settled(world)
    await asyncio.sleep(15)
    world.cluster.groups._offsets[APP].visible.clear()
    world.pay_many(10)
    world.start()
    await world.drained()
    world.check()


async def test_offsets_of_another_consumer_are_adopted_only_when_told_to(world: World) -> None:
    world.pay_many(40, trouble=False)
    world.move_group({TP("payments", 0): 5, TP("payments", 1): 5})
    error = await fate(world, world.start())
    assert isinstance(error, PositionConflict) and "--adopt" in str(error)
    await asyncio.sleep(15)
    world.start(adopt=True)
    await world.drained()
    history = world.position_history()
    assert all(found[0].topics["payments"].next >= 5 for found in history if found)
    done = sum(found[-1].counts["in"] for found in history)
    assert done == sum(len(log) for log in world.cluster.committed("payments")) - 10


async def test_a_task_that_begins_at_the_latest_record_begins_there_once(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, start="latest")
    world.pay_many(40)
    worker = world.start()
    await world.until_running(worker)
    await asyncio.sleep(1)
    worker.kill()
    await worker.gone()
    # These came after it began, though it had done nothing yet.
    sent = [world.pay("a1", 1), world.pay("a2", 1)]
    world.start()
    await world.until(lambda: sum(len(log) for log in world.cluster.committed("settlements")) == len(sent), within_s=30)


# ---------------------------------------------------------------------- sources that change (rule 17)


async def test_a_source_that_grew_stops_the_running_worker_before_it_commits_more(world: World) -> None:
    world.pay_many(40)
    worker = world.start()
    await world.drained()
    # Past the last look, and before the next.
    await asyncio.sleep(2.5)
    world.cluster.add_partitions("payments", 3)
    world.pay_many(5)
    error = await fate(world, worker)
    assert isinstance(error, TopicChanged) and "3 partitions" in str(error)
    assert not world.is_drained()


async def test_a_source_that_grew_in_between_is_refused_at_the_start(world: World) -> None:
    await settled(world)
    world.cluster.add_partitions("payments", 3)
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged)
    assert str(error).startswith("topic 'payments' has 3 partitions now, 2 when 'payments' last ran")
    assert "semel reset" in str(error)


@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_source_that_was_made_anew_is_refused(world: World, partitions: int) -> None:
    await settled(world)
    world.cluster.delete_topics(["payments"])
    world.cluster.create_topic("payments", partitions)
    world.partitions = partitions
    world.pay_many(40)
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged)
    assert str(error).startswith("topic 'payments' was deleted and created again") and "semel reset" in str(error)


async def test_a_changelog_that_somebody_gave_more_partitions_is_named(world: World) -> None:
    await settled(world)
    world.cluster.add_partitions(f"{APP}-journals-changelog", 5)
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged)
    assert str(error).startswith(f"topic '{APP}-journals-changelog' has 5 partitions, the source has 2")


async def test_a_source_that_was_trimmed_past_the_position_stops_the_worker(world: World) -> None:
    await settled(world, 50)
    world.pay_many(50)
    for p in range(2):
        log = world.cluster.log(TP("payments", p))
        log.delete_before(log.end - 2)
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged) and "no longer holds offset" in str(error)


async def test_a_changelog_that_vanishes_under_running_workers_is_named(world: World) -> None:
    world.pay_many(30)
    worker = world.start()
    await world.drained()
    world.cluster.delete_topics([f"{APP}-journals-changelog"])
    world.pay_many(10)
    error = await fate(world, worker, within_s=120)
    assert isinstance(error, TopicChanged) and f"{APP}-journals-changelog" in str(error)


# ---------------------------------------------------------------------- logs made anew (rules 10, 17, 18)


def rows_on_disk(world: World, name: str = "w1", *, partition: int | None = None) -> int:
    store = Store(world.path / name / "db", cache_mb=2, buffer_mb=2)
    try:
        mine = range(world.partitions) if partition is None else [partition]
        return sum(1 for p in mine for _ in store.scan_marks(p))
    finally:
        store.close()


@pytest.mark.parametrize("store", ["kept", "lost"])
@pytest.mark.parametrize("log", ["balances-changelog", "journals-changelog", "dedup-changelog"])
async def test_a_changelog_made_anew_while_nobody_ran_is_refused(world: World, log: str, store: str) -> None:
    await settled(world)
    kept = rows_on_disk(world)
    world.cluster.delete_topics([f"{APP}-{log}"])
    if store == "lost":
        world.lose_store("w1")
    for _ in range(2):
        error = await fate(world, world.start())
        assert isinstance(error, TopicChanged)
        assert f"{APP}-{log}" in str(error) and "created again" in str(error) and "semel reset" in str(error)
    if store == "kept":
        # It may be the last copy of what the topic held.
        assert rows_on_disk(world) == kept > 0
    # After the reset that the error names, all of it is there again.
    await asyncio.sleep(15)
    await reset_all(world)
    worker = world.start()
    await world.drained()
    check_store(world, worker)


async def about_to_read_its_logs(world: World) -> tuple[Worker, asyncio.Event]:
    """A worker whose store is behind, and what lets it go on once it knows where the logs end."""
    await settled(world)
    shutil.copytree(world.path / "w1", world.path / "copy")
    await settled(world)
    back_to_the_copy(world)
    worker = world.start()
    reached, go = worker.hold_at("restore.after_ends")
    await reached.wait()
    return worker, go


@pytest.mark.parametrize("behind_s", [0.0, 3.0], ids=["brokers know", "brokers hear of it late"])
@pytest.mark.parametrize("log", ["balances-changelog", "journals-changelog", "dedup-changelog", "positions"])
async def test_a_log_that_is_made_anew_while_it_is_read_is_another_one_and_was_not_truncated(
    world: World, log: str, behind_s: float
) -> None:
    worker, go = await about_to_read_its_logs(world)
    world.cluster.delete_topics([f"{APP}-{log}"])
    world.cluster.create_topic(f"{APP}-{log}", 2)
    world.cluster.faults.metadata_delay_s = lambda: behind_s
    go.set()
    error = await fate(world, worker)
    assert isinstance(error, TopicChanged), error
    assert f"'{APP}-{log}' was deleted and created again" in str(error) and "semel reset" in str(error)


async def test_a_log_that_was_truncated_is_said_to_be(world: World) -> None:
    worker, go = await about_to_read_its_logs(world)
    topic = world.cluster.topics()[f"{APP}-positions"]
    world.cluster.delete_topics([topic.name])
    world.cluster.create_topic(topic.name, 2)
    # The same topic, that is, as brokers that lost its end after an unclean election have it.
    world.cluster.topics()[topic.name].id = topic.id
    go.set()
    error = await fate(world, worker)
    assert isinstance(error, RecoveryError) and "was it truncated?" in str(error)


def delete_records(world: World, log: str, partition: int, *, keep: int = 0) -> None:
    """Somebody deletes all of a log but for so many offsets, as Kafka does by a retention that the topic has for a while."""
    there = world.cluster.log(TP(f"{APP}-{log}", partition))
    policy = there.configs["cleanup.policy"]
    world.cluster.alter_topic(f"{APP}-{log}", {"cleanup.policy": "delete"})
    there.delete_before(there.end - keep)
    world.cluster.alter_topic(f"{APP}-{log}", {"cleanup.policy": policy})


@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("log", ["balances-changelog", "journals-changelog", "dedup-changelog"])
async def test_a_restore_misses_records_that_somebody_deleted(world: World, log: str, keep: int) -> None:
    await settled(world)
    delete_records(world, log, 1, keep=keep)
    world.lose_store("w1")
    for _ in range(2):
        error = await fate(world, world.start())
        assert isinstance(error, TopicChanged), repr(error)
        assert f"records of {APP}-{log}[1] were deleted" in str(error) and "semel reset" in str(error)
    await asyncio.sleep(15)
    await reset_all(world)
    worker = world.start()
    await world.drained()
    check_store(world, worker)


@pytest.mark.parametrize("log", ["balances-changelog", "dedup-changelog"])
async def test_a_store_that_has_what_was_deleted_goes_on_and_says_that_it_may_be_the_last(
    world: World, log: str, caplog: pytest.LogCaptureFixture
) -> None:
    await settled(world)
    delete_records(world, log, 1)
    world.pay_many(20)
    worker = world.start()
    await world.drained()
    check_rows(world, worker) if log != "dedup-changelog" else None
    assert caplog.text.count(f"records of {APP}-{log}[1] were deleted") == 1
    await worker.stop()
    other = world.start("w2")
    error = await fate(world, other)
    assert isinstance(error, TopicChanged) and f"records of {APP}-{log}[1] were deleted" in str(error)


async def test_a_store_is_not_given_up_for_a_log_that_has_lost_records(world: World) -> None:
    await settled(world)
    kept = rows_on_disk(world, partition=1)
    delete_records(world, "balances-changelog", 1)
    # By its age the store would be made anew.
    await asyncio.sleep(14 * 86_400)
    for p in range(2):
        world.cluster.write(TP(f"{APP}-journals-changelog", p), [(b"a", b"[]"), (b"b", b"[]")])
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged) and "were deleted" in str(error)
    assert rows_on_disk(world, partition=1) == kept > 0


async def test_records_that_are_deleted_amid_a_restore_are_missed(world: World) -> None:
    await settled(world)
    world.lose_store("w1")
    worker = world.start()
    reached, go = worker.hold_at("restore.after_ends")
    await reached.wait()
    for p in range(2):
        delete_records(world, "journals-changelog", p)
    go.set()
    for at in (worker, None):
        error = await fate(world, at or world.start())
        assert isinstance(error, TopicChanged) and f"records of {APP}-journals-changelog" in str(error)


async def test_marks_that_a_former_version_trimmed_are_missed_by_nobody(world: World) -> None:
    """Its positions do not say how far it did."""
    await settled(world)
    for p in range(2):
        for record in world.cluster.committed(f"{APP}-positions")[p]:
            if record.key == positions.KEY:
                said = orjson.loads(record.value or b"")
                said.pop("trimmed", None)
                record.value = orjson.dumps(said)
        delete_records(world, "dedup-changelog", p, keep=4)
    world.lose_store("w1")
    world.pay("a1")
    world.start()
    await world.drained()
    assert any(at.trimmed > 0 for at in world.committed_positions().values())


@pytest.mark.parametrize("group", ["offsets kept", "offsets expired"])
@pytest.mark.parametrize("store", ["kept", "lost"])
async def test_positions_made_anew_while_nobody_ran_are_refused(world: World, store: str, group: str) -> None:
    await settled(world)
    await asyncio.sleep(15)
    world.cluster.delete_topics([f"{APP}-positions"])
    if store == "lost":
        world.lose_store("w1")
    if group == "offsets expired":
        world.cluster.groups._offsets[APP].visible.clear()
    for _ in range(2):
        error = await fate(world, world.start())
        assert isinstance(error, TopicChanged)
        assert f"{APP}-positions" in str(error) and "semel reset" in str(error)
        assert ("--adopt" in str(error)) == (group == "offsets kept")
    world.pay_many(20)
    await asyncio.sleep(15)
    if group == "offsets expired":
        # There is nothing to adopt.
        assert isinstance(await fate(world, world.start(adopt=True)), TopicChanged)
        return
    # State and the group's offsets were committed together: they fit each other without a position.
    worker = world.start(adopt=True)
    await world.drained()
    check_store(world, worker)
    check_rows(world, worker)


@pytest.mark.parametrize(
    "stored, first, over",
    [
        ({"payments": "old"}, {"payments": ("new", 1)}, True),
        ({"orders": "old"}, {"payments": ("new", 1)}, True),
        # Of this life; there when the reset began it; of a source that is yet another; nobody says.
        ({"payments": "new"}, {"payments": ("new", 1)}, False),
        ({"payments": "old"}, {"payments": ("new", 2)}, False),
        ({"payments": "old"}, {"payments": ("newer", 1)}, False),
        ({"payments": "old"}, None, False),
    ],
)
def test_what_a_store_alone_knows_of_a_partition_is_over_only_where_the_app_began_anew_without_it(
    stored: dict[str, str], first: dict[str, tuple[str, int]] | None, over: bool
) -> None:
    local = Position({name: TopicPosition(topic_id, 3, 5) for name, topic_id in stored.items()})
    told = first and Position({name: TopicPosition(i, 3, 0, born=born) for name, (i, born) in first.items()})
    topics = {"payments": TopicInfo("payments", "new", 3)}
    assert of_a_life_that_is_over(1, ["payments"], local, told or None, topics) is over


async def test_a_changelog_made_anew_under_a_running_worker_stops_it(world: World) -> None:
    world.pay_many(40)
    worker = world.start()
    await world.drained()
    await asyncio.sleep(2.5)
    name = f"{APP}-balances-changelog"
    world.cluster.delete_topics([name])
    world.cluster.create_topic(name, world.partitions)
    world.pay_many(5)
    for _ in range(2):
        error = await fate(world, worker)
        assert isinstance(error, TopicChanged) and name in str(error) and "created again" in str(error)
        assert not world.is_drained()
        worker = world.start()


async def test_positions_of_a_version_that_noted_no_changelogs_are_read_and_completed(world: World) -> None:
    await settled(world)
    for p in range(world.partitions):
        for record in world.cluster.log(TP(f"{APP}-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                found.pop("types")
                assert set(found.pop("logs")) == {f"{APP}-{n}-changelog" for n in ("balances", "journals", "dedup")}
                record.value = orjson.dumps(found)
    world.lose_store("w1")
    world.pay_many(60)
    worker = world.start()
    await world.drained()
    world.check()
    await worker.stop()
    assert all(len(at.logs) == 3 for at in world.committed_positions().values())


async def test_a_deletion_is_remembered_by_a_store_that_is_older_than_its_changelogs_tombstones(world: World) -> None:
    """A changelog of somebody else's making, or of a broker whose default is short."""
    changelog = f"{APP}-balances-changelog"
    world.cluster.create_topic(
        changelog, world.partitions, {"cleanup.policy": "compact", "delete.retention.ms": "60000"}
    )
    world.pay("a1", 10)
    world.pay("a2", 20)
    await (await settled_by(world)).stop()
    await asyncio.sleep(1)
    other = world.start("w2")
    await world.until_running(other, within_s=120)
    world.pay("a1", -10)
    await world.drained()
    for _ in range(3):
        await asyncio.sleep(61)
        for p in range(world.partitions):
            world.cluster.compact(TP(changelog, p))
    assert not any(r.key == b"a1" for log in world.cluster.committed(changelog) for r in log)
    await other.stop()
    worker = world.start("w1")
    await world.until_running(worker, within_s=120)
    rows = {k.decode(): int(v) for t in worker.engine.tasks.values() for k, v in t.tables["balances"].scan()}
    assert rows == {"a2": 20}


async def test_a_store_whose_restore_was_broken_off_is_no_younger_for_it(world: World) -> None:
    await settled(world, 200)
    store = world.open_store("w1")
    at = {p: (store.meta(p) or {})["at"] for p in range(world.partitions)}
    store.close()
    other = world.start("w2")
    world.pay_many(100)
    await world.drained()
    await other.stop()
    await asyncio.sleep(3600)
    worker = world.start("w1")
    reached = worker.kill_at("restore.chunk", nth=3)
    await world.until(reached.is_set)
    # A store whose owner is killed writes no more; what it had written says of when its rows are.
    await worker.gone()
    store = world.open_store("w1")
    assert {p: (store.meta(p) or {})["at"] for p in range(world.partitions)} == at
    store.close()


# ---------------------------------------------------------------------- names that meet


def sums(app: str, table: str, amount: int) -> Pipeline:
    """Two of these may have one changelog: app `pay` with table `eu-sums`, app `pay-eu` with table `sums`."""
    rows = Table(table, key=str, value=int, default=int)

    def add(payment: Payment) -> None:
        rows[payment.account] += amount

    return Pipeline(app, source=Topic("payments", key=str, value=Payment), agent=add, tables=[rows])


def start_app(world: World, pipeline: Pipeline, name: str) -> Worker:
    world.plan = pipeline.plan  # type: ignore[method-assign]
    return world.start(name)


def sums_in(worker: Worker, table: str) -> dict[str, int]:
    return {k.decode(): int(v) for t in worker.engine.tasks.values() for k, v in t.tables[table].scan()}


@pytest.mark.parametrize("apart_s", [0.0, 5.0])
async def test_of_two_apps_with_one_changelog_the_second_is_refused(world: World, apart_s: float) -> None:
    pay, pay_eu = sums("pay", "eu-sums", 1), sums("pay-eu", "sums", 1000)
    first = start_app(world, pay, "p1")
    await asyncio.sleep(apart_s)
    second = start_app(world, pay_eu, "e1")
    over: list[Worker] = []
    async with asyncio.timeout(60):
        while not over:
            await asyncio.sleep(0.1)
            over = [w for w in (first, second) if w.over]
    refused = {w.name: await fate(world, w) for w in over}
    for error in refused.values():
        assert isinstance(error, TopicChanged)
        assert "pay-eu-sums-changelog" in str(error) and "'pay'" in str(error) and "'pay-eu'" in str(error)
    assert set(refused) == {"e1"}
    await world.until_running(first)
    for _ in range(10):
        world.pay("a1")
    await world.until(lambda: sums_in(first, "eu-sums") == {"a1": 10})
    await first.stop()
    # Also at the next start, and without its disk.
    for lost in (False, True):
        if lost:
            world.lose_store("e1")
            world.lose_store("p1")
        error = await fate(world, start_app(world, pay_eu, "e1"))
        assert isinstance(error, TopicChanged) and "same name" in str(error)
        owner = start_app(world, pay, "p1")
        await world.until(lambda owner=owner: sums_in(owner, "eu-sums") == {"a1": 10})
        await owner.stop()


def claim(world: World, app: str, log: str, at_ms: int) -> None:
    """A worker of that app said that it is about to write there, and is gone."""
    world.cluster.create_topic(f"{app}-positions", world.partitions)
    for p in range(world.partitions):
        said = Position({}, claims={log: at_ms}).encode()
        world.cluster.write(TP(f"{app}-positions", p), [(positions.KEY, said)])


@pytest.mark.parametrize("ahead_s", [7200, -7200])
@pytest.mark.parametrize(("app", "table", "other"), [("pay", "eu-sums", "pay-eu"), ("pay-eu", "sums", "pay")])
async def test_the_claim_of_a_worker_that_is_gone_is_waited_for_as_long_as_it_could_live_whatever_its_clock(
    world: World, caplog: pytest.LogCaptureFixture, app: str, table: str, other: str, ahead_s: int
) -> None:
    claim(world, other, "pay-eu-sums-changelog", int((world.clock.time() + ahead_s) * 1000))
    worker = start_app(world, sums(app, table, 1), "w1")
    await world.clock.sleep(8)
    assert not worker.engine.restored
    assert f"app {other!r} said that it is about to write to pay-eu-sums-changelog, too" in caplog.text
    await world.until_running(worker, within_s=60)


@pytest.mark.parametrize("ahead_s", [7200, -7200])
async def test_of_two_apps_with_one_changelog_the_second_is_refused_also_where_clocks_are_apart(
    world: World, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    first = start_app(world, sums("pay", "eu-sums", 1), "p1")
    other_clock = VirtualClock()
    other_clock.jump(world.clock.time() + ahead_s - other_clock.time())
    monkeypatch.setattr(world, "clock_of", lambda name: other_clock if name == "e1" else world.clock)  # pyright: ignore
    second = start_app(world, sums("pay-eu", "sums", 1000), "e1")
    assert isinstance(await fate(world, second, within_s=60), TopicChanged)
    await world.until_running(first)


async def test_a_task_that_waits_for_another_app_keeps_no_other_from_being_restored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RESTORES", 1)
    claim(world, "pay-eu", "pay-eu-sums-changelog", int(world.clock.time() * 1000))
    worker = start_app(world, sums("pay", "eu-sums", 1), "p1")
    await world.until_running(worker, within_s=25)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("rights", [["Describe"], ["Read"], ["Read", "Describe"]], ids=" and ".join)
async def test_an_app_that_may_not_see_the_positions_of_another_runs_and_says_what_it_does_not_know(
    world: World, caplog: pytest.LogCaptureFixture, rights: list[str], there: bool
) -> None:
    if there:
        world.cluster.create_topic("pay-positions", world.partitions)
        for p in range(world.partitions):
            world.cluster.write(TP("pay-positions", p), [(positions.KEY, Position({}).encode())])
    world.cluster.faults.deny("pay-positions", *rights)
    pipeline = sums("pay-eu", "sums", 1)
    worker = start_app(world, pipeline, "e1")
    await world.until_running(worker)
    await world.clock.sleep(10)
    assert EngineView(worker.engine).readiness()[0]
    unseen = [r for r in caplog.messages if "pay-positions" in r and "is not known" in r]
    assert bool(unseen) is (there or "Describe" in rights)
    assert len(unseen) <= world.partitions
    assert all("grant Describe and Read on it" in r for r in unseen)
    await worker.stop()
    await asyncio.sleep(15)
    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    said: list[str] = []
    await reset(pipeline.plan(), EngineSettings(), broker, world.clock, "earliest", say=said.append)
    assert any("pay-positions" in text and "is not known" in text for text in said) is bool(unseen)
    await broker.close()


async def test_a_changelog_that_had_an_owner_before_owners_were_noted_is_nobody_elses(world: World) -> None:
    pay, pay_eu = sums("pay", "eu-sums", 1), sums("pay-eu", "sums", 1000)
    first = start_app(world, pay, "p1")
    await world.until_running(first)
    for n in range(10):
        world.pay(f"a{n}")
    await world.until(lambda: len(sums_in(first, "eu-sums")) == 10)
    await first.stop()
    for p in range(world.partitions):
        for record in world.cluster.log(TP("pay-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                for name in ("types", "claims"):
                    found.pop(name, None)
                record.value = orjson.dumps(found)
    world.lose_store("p1")
    assert isinstance(await fate(world, start_app(world, pay_eu, "e1")), TopicChanged)
    owner = start_app(world, pay, "p1")
    await world.until_running(owner)
    assert len(sums_in(owner, "eu-sums")) == 10


async def test_a_table_whose_changelog_holds_rows_of_an_earlier_life_is_refused(world: World) -> None:
    world.pipeline = declared()
    await settled(world, 40)
    log = f"{APP}-counts-changelog"
    world.cluster.create_topic(log, world.partitions, {"cleanup.policy": "compact"})
    world.cluster.write(TP(log, 0), [(b"a1", b"7")])
    world.pipeline = declared(extra="counts")
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged)
    assert log in str(error) and "did not write" in str(error)


async def test_a_reset_deletes_no_other_apps_state(world: World) -> None:
    first = start_app(world, sums("pay", "eu-sums", 1), "p1")
    await world.until_running(first)
    await first.stop()
    await asyncio.sleep(15)
    broker = MemoryBroker(world.cluster, "reset")
    await broker.start()
    plan = sums("pay-eu", "sums", 1).plan()
    with pytest.raises(RecoveryError, match="holds state of app 'pay'"):
        await reset(plan, EngineSettings(), broker, world.clock, "earliest", say=lambda text: None)
    assert "pay-eu-sums-changelog" in world.cluster.topics()


# ---------------------------------------------------------------------- declarations that change (rule 24)


def declared(**changed: Any) -> Pipeline:
    """Balances by account; `value`, `migrate`, `version`, `book(balances, payment)` of them; `extra`, another table."""

    def add(balances: Table, payment: Payment) -> None:
        balances[payment.account] += payment.amount

    book = changed.get("book", add)

    async def settle(payments: Any) -> Any:
        async for payment in payments:
            book(balances, payment)
            if extra is not None:
                extra[payment.account] += 1
            yield Settlement(payment.id, payment.account, 0)

    value = changed.get("value", int)
    more = {name: changed[name] for name in ("migrate", "version") if name in changed}
    balances = Table("balances", key=str, value=value, default=changed.get("default", int), **more)
    name = changed.get("extra")
    extra = Table(str(name), key=str, value=int, default=int) if name else None
    tables = [balances, extra] if extra is not None else [balances]
    rule = {"conflict": changed.get("conflict", "quarantine"), "compare": changed.get("compare")}
    dedup = Dedup(changed.get("id", "id"), window=timedelta(days=changed.get("days", 7)), **rule)
    source = Topic(changed.get("source", "payments"), key=str, value=Payment)
    sink = Topic("settlements", key=str, value=Settlement)
    return Pipeline(APP, source=source, dedup=dedup, agent=settle, tables=tables, sink=sink)


@pytest.mark.parametrize("change", [{"value": float}, {"version": 2}, {"id": "account"}, "table gone"], ids=str)
async def test_a_changed_shape_is_refused_and_nothing_is_touched(world: World, change: Any) -> None:
    world.pipeline = declared(extra="counts") if change == "table gone" else declared()
    await settled(world, 60)
    before = [r.value for log in world.cluster.committed(f"{APP}-balances-changelog") for r in log]
    world.pipeline = declared() if change == "table gone" else declared(**change)
    error = await fate(world, world.start())
    assert isinstance(error, ShapeChanged)
    assert "migrate=" in str(error) and "another name" in str(error)
    assert [r.value for log in world.cluster.committed(f"{APP}-balances-changelog") for r in log] == before
    # Declared as it was, it goes on.
    world.pipeline = declared(extra="counts") if change == "table gone" else declared()
    world.pay_many(10)
    world.start()
    await world.drained(within_s=60)


@dataclass
class Account:
    balance: int


@dataclass
class Konto:
    balance: int
    currency: str = "EUR"


@dataclass
class Renamed:
    amount: int = 0


@dataclass
class Required:
    balance: int
    currency: str


def to_account(made: Any) -> Any:
    def book(balances: Table, payment: Payment) -> None:
        old = balances.get(payment.account)
        balances[payment.account] = made((old.balance if old else 0) + payment.amount)

    return book


def rows_of(worker: Worker) -> dict[str, Any]:
    tasks = worker.engine.tasks.values()
    return {k.decode(): t.tables["balances"].decode(v) for t in tasks for k, v in t.tables["balances"].scan()}


async def test_a_renamed_class_and_a_field_with_a_default_go_on_with_the_old_rows(world: World) -> None:
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 10)
    await (await settled_by(world)).stop()
    for balance in (11, 12):
        world.pipeline = declared(value=Konto, default=None, book=to_account(Konto))
        world.pay("a1", 1)
        worker = await settled_by(world)
        assert rows_of(worker) == {"a1": Konto(balance)}
        await worker.stop()


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Renamed, "field balance is gone, and what stands in it would be lost"),
        (Required, "field currency is new and has no default"),
    ],
)
async def test_a_row_type_that_would_lose_or_miss_something_is_refused(world: World, now: Any, why: str) -> None:
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 10)
    await (await settled_by(world)).stop()
    world.pipeline = declared(value=now, default=None, book=to_account(now))
    error = await fate(world, world.start())
    assert isinstance(error, ShapeChanged)
    assert why in str(error) and "'balances'" in str(error) and "migrate=" in str(error)


async def test_state_of_a_version_that_noted_no_types_is_compared_by_their_names(world: World) -> None:
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 10)
    await (await settled_by(world)).stop()
    forget_types(world)
    world.lose_store("w1")
    world.pipeline = declared(value=Konto, default=None, book=to_account(Konto))
    assert isinstance(await fate(world, world.start()), ShapeChanged)
    world.pipeline = declared(value=Account, default=None, book=to_account(Account))
    world.pay("a1", 1)
    worker = await settled_by(world)
    assert rows_of(worker) == {"a1": Account(11)}
    await worker.stop()
    # From now on they are known.
    world.pipeline = declared(value=Konto, default=None, book=to_account(Konto))
    assert rows_of(await settled_by(world)) == {"a1": Konto(11)}


def forget_types(world: World) -> None:
    """What the position records of earlier versions did not have."""
    for p in range(world.partitions):
        for record in world.cluster.log(TP(f"{APP}-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                found.pop("types")
                record.value = orjson.dumps(found)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("crash", [None, "commit.before_store", "barrier.after_seal", "restore.end"])
async def test_rows_are_migrated_once_each_before_any_event_sees_them(
    world: World, monkeypatch: pytest.MonkeyPatch, noted: bool, crash: str | None
) -> None:
    monkeypatch.setattr("semel.task.migration.CHUNK_ROWS", 3)
    world.pipeline = declared()
    for n in range(16):
        world.pay(f"a{n}", 10 + n)
    await (await settled_by(world)).stop()
    if not noted:
        forget_types(world)
        world.lose_store("w1")

    def migrated(old: Any) -> Required:
        assert isinstance(old, int), "a row was migrated twice"
        return Required(old, "EUR")

    def book(balances: Table, payment: Payment) -> None:
        balances[payment.account].balance += payment.amount

    new = declared(value=Required, default=None, migrate=migrated, book=book)
    world.pipeline = new
    world.pay("a3", 100)
    for nth in (2, 3) if crash else ():
        worker = world.start()
        reached = worker.kill_at(crash, nth)
        await world.until(lambda reached=reached: reached.is_set() or world.is_drained())
        worker.kill()
        await worker.gone()
        if (
            nth == 2
            and crash == "commit.before_store"
            and any(at.migrating for at in world.committed_positions().values())
        ):
            # Half of the rows are new: neither the old declaration nor a third one may read them.
            for other in (declared(), declared(value=float, migrate=float)):
                world.pipeline = other
                assert "half migrated" in str(await fate(world, world.start("w2")))
            world.pipeline = new
    worker = await settled_by(world)
    assert rows_of(worker) == {f"a{n}": Required(10 + n + (100 if n == 3 else 0), "EUR") for n in range(16)}
    await worker.stop()
    assert not any(at.migrating for at in world.committed_positions().values())
    # The changelog has them, too, and the way there may be taken out of the declaration.
    world.lose_store("w1")
    world.pipeline = declared(value=Required, default=None, book=book)
    assert len(rows_of(await settled_by(world))) == 16


async def test_a_migration_that_fails_names_the_row_and_the_error(world: World) -> None:
    world.pipeline = declared()
    world.pay("a1", 10)
    await (await settled_by(world)).stop()
    world.pipeline = declared(value=str, default=str, migrate=lambda old: old)
    error = await fate(world, world.start())
    assert isinstance(error, ShapeChanged)
    assert "row b'a1'" in str(error) and "expected str, got int" in str(error)


async def test_a_window_may_change_and_marks_stay_findable(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = declared(days=7)
    now_ms = int(world.clock.time() * 1000)
    day = 86_400_000
    for n in range(6):
        world.pay(f"a{n}", 1, id=f"p{n}", at_ms=now_ms - (6 - n) * day)
    await (await settled_by(world)).stop()
    for days in (14, 1, 30):
        world.pipeline = declared(days=days)
        world.pay("a5", 1, id="p5", at_ms=now_ms)
        worker = await settled_by(world)
        assert f"is {days * day} ms" in caplog.text
        words = "from before the new one are not known any more" if days == 1 else "had expired by the old one"
        assert words in caplog.text
        caplog.clear()
        await worker.stop()
    counts = [at.counts for at in world.committed_positions().values()]
    assert sum(c["conflicts"] + c["duplicates"] for c in counts) == 3
    assert sum(c["out"] for c in counts) == 6


@pytest.mark.parametrize("conflict", ["quarantine", "pass"])
async def test_another_compare_makes_no_conflicts_of_events_from_before(world: World, conflict: str) -> None:
    world.pipeline = declared(conflict=conflict)
    event = world.pay("a1", 10)
    await (await settled_by(world)).stop()
    world.pipeline = declared(compare=["amount"], conflict=conflict)
    world.write({**event, "fails": 0}, "a1")
    later = world.pay("a1", 5)
    world.write({**later, "amount": 6}, "a1")
    worker = await settled_by(world)
    counts = worker.engine.tasks[world.place("a1").partition].counts
    # Of the later one there is a hash by the new rule.
    assert counts["duplicates"] == 1
    assert counts["out"] == (2 if conflict == "quarantine" else 3)
    assert counts["conflicts"] == (1 if conflict == "quarantine" else 0)


async def test_another_function_as_dedup_key_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pipeline = declared(id=lambda payment: payment.id)
    await settled(world, 20)
    world.pipeline = declared(
        id=lambda payment: (
            payment.id  # laid out otherwise
        )
    )
    await (await settled_by(world)).stop()
    assert "dedup key" not in caplog.text
    world.pipeline = declared(id=lambda payment: payment.id + payment.account)
    await settled_by(world)
    assert caplog.text.count("the function that makes the dedup key of 'payments' is another") == 1


class Agents:
    """Plans with several agents of one topic, and what each of them saw."""

    def __init__(self, world: World) -> None:
        self.seen: dict[str, list[str]] = {}
        self.world = world
        self.pipeline = Pipeline(APP, source=Topic("payments", key=str, value=Payment), agent=lambda payment: None)

    def declare(self, *names: str) -> None:
        def plan() -> Plan:
            plan = self.pipeline.plan()
            plan.agents = [replace(plan.agents[0], name=name, run=self._seen_by(name)) for name in names]
            return plan

        self.world.plan = plan  # type: ignore[method-assign]

    def _seen_by(self, name: str) -> Any:
        seen = self.seen.setdefault(name, [])

        def handle(payment: Payment) -> None:
            seen.append(payment.id)

        return handle


@pytest.mark.parametrize("others", [("settle",), ("settle", "audit")])
async def test_an_agent_that_was_taken_out_and_comes_back_misses_nothing(world: World, others: tuple[str, ...]) -> None:
    agents = Agents(world)
    ids: list[str] = []
    for names in (others, (*others, "notify"), others, others, (*others, "notify"), (*others, "notify")):
        agents.declare(*names)
        ids += [world.pay()["id"] for _ in range(20)]
        await (await settled_by(world)).stop()
    assert sorted(agents.seen["settle"]) == sorted(ids)
    # It began where the app stood when it came first.
    assert sorted(agents.seen["notify"]) == sorted(ids[20:])


async def test_an_agent_that_left_before_that_was_noted_begins_where_the_app_stands(world: World) -> None:
    agents = Agents(world)
    agents.declare("settle", "audit", "notify")
    world.pay_many(20)
    await (await settled_by(world)).stop()
    # The version of then: it knew that there was a third one, and nothing else of it.
    for p in range(world.partitions):
        for record in world.cluster.log(TP(f"{APP}-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                found.pop("types")
                record.value = orjson.dumps(found)
    world.lose_store("w1")
    for _ in range(3):
        agents.declare("settle", "audit")
        world.pay_many(20)
        await (await settled_by(world)).stop()
        for p in range(world.partitions):
            log = world.cluster.log(TP("payments", p))
            log.delete_before(log.end)
    agents.seen["notify"].clear()
    agents.declare("settle", "audit", "notify")
    ids = [world.pay()["id"] for _ in range(20)]
    await (await settled_by(world)).stop()
    assert sorted(agents.seen["notify"]) == sorted(ids)


async def test_an_agent_that_comes_back_too_late_is_refused(world: World) -> None:
    agents = Agents(world)
    for names in (("settle", "notify"), ("settle",)):
        agents.declare(*names)
        for _ in range(20):
            world.pay()
        await (await settled_by(world)).stop()
    for p in range(world.partitions):
        log = world.cluster.log(TP("payments", p))
        log.delete_before(log.end)
    agents.declare("settle", "notify")
    error = await fate(world, world.start())
    assert isinstance(error, TopicChanged)
    assert "'notify'" in str(error) and "another name" in str(error)


async def test_another_source_is_said_and_the_first_is_read_on_from_where_it_was_left(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.create_topic("others", world.partitions)
    world.pipeline = declared()
    world.pay("a1", 1)
    await (await settled_by(world)).stop()
    world.pipeline = declared(source="others")
    worker = world.start()
    await world.until_running(worker)
    world.cluster.write(TP("others", world.place("a1").partition), [(b"a1", b'{"id":"o1","account":"a1","amount":5}')])
    await world.until(lambda: sum(at.counts["out"] for at in world.committed_positions().values()) == 2)
    assert "read payments at offset" in caplog.text
    await worker.stop()
    # The group forgets in time; the positions do not.
    await asyncio.sleep(15)
    world.cluster.groups._offsets[APP].visible.clear()
    world.pipeline = declared()
    world.pay("a1", 1)
    worker = await settled_by(world)
    assert rows_of(worker) == {"a1": 7}
    assert sum(len(log) for log in world.cluster.committed("settlements")) == 3


async def test_a_table_that_is_new_starts_empty_beside_rows_that_stay_what_they_were(world: World) -> None:
    world.pipeline = declared()
    for n in range(8):
        world.pay(f"a{n}", 10 + n)
    worker = world.start()
    await world.drained()
    await worker.stop()
    # By name it comes before the other.
    world.pipeline = declared(extra="accounts")
    worker = world.start()
    await world.until_running(worker)
    tasks = worker.engine.tasks.values()
    assert {k.decode(): int(v) for t in tasks for k, v in t.tables["balances"].scan()} == {
        f"a{n}": 10 + n for n in range(8)
    }
    assert [k for t in tasks for k, _ in t.tables["accounts"].scan()] == []
    world.pay("a1", 5)
    await world.drained()
    assert {k.decode(): int(v) for t in tasks for k, v in t.tables["accounts"].scan()} == {"a1": 1}


async def test_tables_keep_their_rows_where_a_store_is_opened_again_and_is_empty(world: World) -> None:
    world.pipeline = declared()
    for n in range(8):
        world.pay(f"a{n}", 10 + n)
    await (await settled_by(world)).stop()
    # By name it comes before the other, by its number behind it.
    world.pipeline = declared(extra="accounts")
    worker = await settled_by(world)
    worker.fail_writes(1)
    world.pay("a0", 1)
    await world.until(lambda: "no space" in worker.engine.paused_by)
    worker.store.close()
    shutil.rmtree(worker.store.path)
    await world.until(lambda: not worker.engine.paused_by)
    world.pay("a1", 1)
    await world.drained()
    for n in range(2):
        tasks = worker.engine.tasks.values()
        rows = {
            name: {k.decode(): int(v) for t in tasks for k, v in t.tables[name].scan()}
            for name in ("balances", "accounts")
        }
        assert rows["balances"] == {f"a{n}": 10 + n + (n < 2) for n in range(8)}, n
        assert rows["accounts"] == {"a0": 1, "a1": 1}, n
        await worker.stop()
        worker = await settled_by(world)


async def settled_by(world: World) -> Worker:
    """A new worker that has done everything."""
    worker = world.start()
    await world.until_running(worker)
    await world.drained()
    return worker


async def test_a_reset_that_was_broken_off_keeps_workers_from_starting(world: World) -> None:
    await settled(world, 40)
    world.cluster.write(TP(f"{APP}-positions", 0), [(positions.RESETTING_KEY, b"{}")])
    for _ in range(2):
        error = await fate(world, world.start())
        assert isinstance(error, RecoveryError) and "semel reset" in str(error)


# ---------------------------------------------------------------------- taking over from the dead (rule 15)


async def test_what_a_dead_writer_left_open_is_ended_at_once(world: World) -> None:
    first, second = world.start("w1"), world.start("w2")
    await world.until_running(first, second)
    world.pay_many(60, trouble=False)
    await world.drained()
    reached = first.kill_at("commit.after_offsets")
    while not reached.is_set():
        world.pay_many(5, trouble=False)
        await asyncio.sleep(0.02)
    await first.gone()
    # Its session ends after ten seconds, its transaction only ten to twenty after that.
    await world.until(lambda: len(second.engine.tasks) == 2, within_s=15)
    began = world.clock.monotonic()
    await world.until_running(second)
    assert world.clock.monotonic() - began < 1.0
    await world.drained()
    world.check()


async def test_the_open_transaction_of_a_living_member_is_never_ended_by_another(world: World) -> None:
    first, second = world.start("w1"), world.start("w2")
    world.pay_many(60)
    await world.until_running(first, second)
    await world.drained()
    (held,) = second.engine.tasks
    # w1 is a member; that it writes where w2 restores is between the two of them and time.
    producer = await hold_open(world, f"{APP}-w1", TP(f"{APP}-positions", held), timeout_ms=6_000)
    second.kill()
    await second.gone()
    again = world.start("w2")
    await asyncio.sleep(4)
    assert again.engine.tasks[held].state is TaskState.RESTORING
    assert world.cluster.transactions.get(f"{APP}-w1").epoch == producer.epoch  # type: ignore[union-attr]
    await world.until_running(again)
    world.pay_many(20)
    await world.drained()
    world.check()


async def test_a_stranger_that_writes_to_our_logs_is_never_fenced(world: World) -> None:
    await settled(world, 40)
    await asyncio.sleep(15)
    producer = await hold_open(world, "somebody-else", TP(f"{APP}-positions", 0), timeout_ms=12_000)
    worker = world.start()
    await asyncio.sleep(5)
    assert worker.engine.tasks[0].state is TaskState.RESTORING
    assert world.cluster.transactions.get("somebody-else").epoch == producer.epoch  # type: ignore[union-attr]
    # It runs as soon as the stranger's transaction is over.
    await world.until_running(worker, within_s=60)
    world.check()


async def test_a_restore_that_waits_behind_an_open_transaction_says_whose(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await settled(world, 40)
    await asyncio.sleep(15)
    await hold_open(world, "somebody-else", TP(f"{APP}-balances-changelog", 0), timeout_ms=60_000)
    world.lose_store("w1")
    worker = world.start()
    await asyncio.sleep(15)
    ready, detail = EngineView(worker.engine).readiness()
    assert (
        not ready
        and "held by an open transaction: somebody-else" in detail["unreadable"][f"{APP}-balances-changelog[0]"]
    )
    assert caplog.text.count("it is held by an open transaction: somebody-else") == 1
    assert "transaction.timeout.ms" in caplog.text
    await world.until_running(worker, within_s=120)
    assert EngineView(worker.engine).readiness()[0]
    assert not worker.engine.troubles.counts


@pytest.mark.parametrize(
    ("holder", "others", "fenced"),
    [
        (f"{APP}-eu-w9", [], True),
        (f"{APP}-eu-w9", [f"{APP}-eu"], False),
        (f"{APP}-eu/w9", [f"{APP}-eu"], True),
        # Its own transaction, from before it was upgraded.
        (f"{APP}-eu-w1", [], True),
        # Of a member that is to be upgraded yet.
        (f"{APP}-eu-w2", [], False),
    ],
)
async def test_what_a_former_version_left_open_is_ended_unless_it_lives_or_is_another_apps(
    world: World, holder: str, others: list[str], fenced: bool
) -> None:
    """Its transactional id has dashes where ours has slashes, so that another app could have it."""
    world.pay_many(40)
    first, second = world.start("eu-w1"), world.start("eu-w2")
    await world.until_running(first, second)
    await world.drained()
    for app in others:
        world.cluster.create_topic(f"{app}-positions", 2)
    (held,) = first.engine.tasks
    first.kill()
    await first.gone()
    producer = await hold_open(world, holder, TP(f"{APP}-positions", held), timeout_ms=15_000)
    again = world.start("eu-w1")
    await asyncio.sleep(5)
    transaction = world.cluster.transactions.get(holder)
    assert transaction is not None
    assert (transaction.epoch != producer.epoch) is fenced
    await world.until_running(again, within_s=60)
    world.check()


async def hold_open(world: World, transactional_id: str, tp: TP, timeout_ms: int = 60_000) -> Producer:
    broker = MemoryBroker(world.cluster, "holder")
    await broker.start()
    producer = await broker.init_producer_id(transactional_id, timeout_ms)
    await broker.add_partitions(producer, [tp])
    builder = broker.batch_builder(1 << 20)
    builder.append(None, b"other", Position({}).encode(), ())
    await broker.produce(producer, {tp: builder.build(producer, 0)})
    return producer


# ---------------------------------------------------------------------- the input's own transactions


async def test_aborted_transactions_and_control_records_in_the_input_are_passed_over(world: World) -> None:
    broker = MemoryBroker(world.cluster, "source")
    await broker.start()

    async def send(commit: bool, count: int) -> None:
        producer = await broker.init_producer_id("source", 60_000)
        tps = [TP("payments", p) for p in range(2)]
        await broker.add_partitions(producer, tps)
        for tp in tps:
            builder = broker.batch_builder(1 << 20)
            for _ in range(count):
                world.numbers += 1
                account = next(a for a in ("a0", "a1", "a2", "a3", "a4") if world.place(a) == tp)
                value = {"id": f"p{world.numbers}", "account": account, "amount": 1}
                builder.append(None, account.encode(), orjson.dumps(value), ())
            await broker.produce(producer, {tp: builder.build(producer, 0)})
        await broker.end_txn(producer, commit=commit)

    worker = world.start()
    for n in range(12):
        await send(commit=n % 3 != 1, count=7)
        if n == 6:
            worker.kill()
            await worker.gone()
            worker = world.start()
    await send(commit=False, count=20)
    await world.until(
        lambda: all(
            p in world.committed_positions()
            and world.committed_positions()[p].topics["payments"].next == world.cluster.log(TP("payments", p)).end
            for p in range(2)
        ),
        what="positions behind the last marker",
    )
    world.check()


@pytest.mark.parametrize("api", ["OffsetFetch", "ListOffsets", "Fetch", "InitProducerId", "Metadata"])
@pytest.mark.parametrize("code", [-1, 3, 6, 7, 14, 15, 16, 51, 88])
async def test_a_passing_error_amid_a_takeover_is_asked_again(world: World, api: str, code: int) -> None:
    await settled(world, 40)
    rule = world.cluster.faults.add(api, refuse(code), times=3)
    world.pay_many(20)
    world.start()
    await world.drained()
    assert rule.hits == 3
    world.check()


@pytest.mark.parametrize("api, code", [("OffsetFetch", 30), ("ListOffsets", 29), ("InitProducerId", 53), ("JoinGroup", 30),
                                       ("JoinGroup", 26)])  # fmt: skip
async def test_an_error_that_only_a_person_can_mend_ends_the_worker_and_says_what(
    world: World, api: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.cluster.faults.add(api, refuse(code), times=None)
    error = await fate(world, world.start())
    assert api in str(error)


async def test_the_end_of_a_transaction_without_an_answer_costs_no_marks_and_no_sums(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    for _ in range(10):
        world.cluster.faults.add("EndTxn", lose_answer(after_s=0.01))
        sent = world.pay_many(20, trouble=False)
        await world.drained()
        for event in sent:
            world.write(event, event["account"])
        await world.drained()
    assert worker.engine.stats["unknown"] == 10
    world.check()
