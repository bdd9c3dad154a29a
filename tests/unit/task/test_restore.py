"""Coming back: to a store that is behind, ahead, gone or of another log; to logs that were compacted, trimmed, made anew."""

from __future__ import annotations

import asyncio
import logging
import shutil

import orjson
import pytest

from semel import Table
from semel.errors import RecoveryError, TopicChanged
from semel.memory.faults import lose_answer, refuse
from semel.port import TP
from semel.state import positions
from semel.state.store import Store
from tests.unit.harness import APP, Worker, World, check_store, payments_pipeline

REBUILT = "rebuilt from the changelogs"


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
    await world.settled(300)
    worker = world.start()
    await world.until_running(worker)
    # The marker of its last transaction, in each of five logs of two tasks.
    assert restored_records(worker) <= 10
    world.pay_many(20)
    await world.drained()
    world.check()
    assert REBUILT not in caplog.text


async def test_a_store_that_is_behind_is_brought_forward(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.settled()
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
    await world.settled()
    shutil.copytree(world.path / "w1", world.path / "copy")
    for _ in range(5):
        await world.settled(40)
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
    from tests.unit.oracle import by_account

    for p, task in worker.engine.tasks.items():
        truth = truth_of(world, p)
        assert {k.decode(): orjson.loads(v) for k, v in task.tables["balances"].scan()} == truth.balances
        assert {k.decode(): orjson.loads(v) for k, v in task.tables["journals"].scan()} == truth.journals
        assert {k[8:].decode() for k, _ in worker.store.scan_marks(p)} == set(truth.marks)
        outs = [orjson.loads(r.value or b"") for r in world.cluster.committed("settlements")[p]]
        assert by_account(outs) == by_account(truth.outputs)


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
    await world.settled()
    shutil.copytree(world.path / "w1", world.path / "copy")
    await world.settled(50)
    back_to_the_copy(world)
    world.clock.jump(13 * 3600)
    worker = world.start()
    await world.until_running(worker)
    assert REBUILT in caplog.text and "tombstones" in caplog.text
    await world.drained()
    world.check()


async def test_an_old_store_without_news_is_not_rebuilt(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.settled()
    # Everything is there but the markers that end the last transactions.
    world.clock.jump(30 * 86400)
    worker = world.start()
    await world.until_running(worker)
    assert REBUILT not in caplog.text
    world.check()


async def test_a_store_beyond_the_end_of_its_changelog_is_rebuilt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.settled()
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
    await world.settled()
    await world.reset()
    world.pay_many(20)
    worker = world.start()
    await world.drained()
    assert "is another topic" in caplog.text
    check_store(world, worker)


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
    await world.settled(200)
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


# ---------------------------------------------------------------------- sources that change (rule 17)


async def test_a_source_that_grew_stops_the_running_worker_before_it_commits_more(world: World) -> None:
    world.pay_many(40)
    worker = world.start()
    await world.drained()
    # Past the last look, and before the next.
    await asyncio.sleep(2.5)
    world.cluster.add_partitions("payments", 3)
    world.pay_many(5)
    error = await world.fate(worker)
    assert isinstance(error, TopicChanged) and "3 partitions" in str(error)
    assert not world.is_drained()


async def test_a_source_that_grew_in_between_is_refused_at_the_start(world: World) -> None:
    await world.settled()
    world.cluster.add_partitions("payments", 3)
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged)
    assert str(error).startswith("topic 'payments' has 3 partitions now, 2 when 'payments' last ran")
    assert "semel reset" in str(error)


@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_source_that_was_made_anew_is_refused(world: World, partitions: int) -> None:
    await world.settled()
    world.cluster.delete_topics(["payments"])
    world.cluster.create_topic("payments", partitions)
    world.partitions = partitions
    world.pay_many(40)
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged)
    assert str(error).startswith("topic 'payments' was deleted and created again") and "semel reset" in str(error)


async def test_a_changelog_that_somebody_gave_more_partitions_is_named(world: World) -> None:
    await world.settled()
    world.cluster.add_partitions(f"{APP}-journals-changelog", 5)
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged)
    assert str(error).startswith(f"topic '{APP}-journals-changelog' has 5 partitions, the source has 2")


async def test_a_source_that_was_trimmed_past_the_position_stops_the_worker(world: World) -> None:
    await world.settled(50)
    world.pay_many(50)
    for p in range(2):
        log = world.cluster.log(TP("payments", p))
        log.delete_before(log.end - 2)
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged) and "no longer holds offset" in str(error)


async def test_a_changelog_that_vanishes_under_running_workers_is_named(world: World) -> None:
    world.pay_many(30)
    worker = world.start()
    await world.drained()
    world.cluster.delete_topics([f"{APP}-journals-changelog"])
    world.pay_many(10)
    error = await world.fate(worker, within_s=120)
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
    await world.settled()
    kept = rows_on_disk(world)
    world.cluster.delete_topics([f"{APP}-{log}"])
    if store == "lost":
        world.lose_store("w1")
    for _ in range(2):
        error = await world.fate(world.start())
        assert isinstance(error, TopicChanged)
        assert f"{APP}-{log}" in str(error) and "created again" in str(error) and "semel reset" in str(error)
    if store == "kept":
        # It may be the last copy of what the topic held.
        assert rows_on_disk(world) == kept > 0
    # After the reset that the error names, all of it is there again.
    await asyncio.sleep(15)
    await world.reset()
    worker = world.start()
    await world.drained()
    check_store(world, worker)


async def about_to_read_its_logs(world: World) -> tuple[Worker, asyncio.Event]:
    """A worker whose store is behind, and what lets it go on once it knows where the logs end."""
    await world.settled()
    shutil.copytree(world.path / "w1", world.path / "copy")
    await world.settled()
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
    error = await world.fate(worker)
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
    error = await world.fate(worker)
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
    await world.settled()
    delete_records(world, log, 1, keep=keep)
    world.lose_store("w1")
    for _ in range(2):
        error = await world.fate(world.start())
        assert isinstance(error, TopicChanged), repr(error)
        assert f"records of {APP}-{log}[1] were deleted" in str(error) and "semel reset" in str(error)
    await asyncio.sleep(15)
    await world.reset()
    worker = world.start()
    await world.drained()
    check_store(world, worker)


@pytest.mark.parametrize("log", ["balances-changelog", "dedup-changelog"])
async def test_a_store_that_has_what_was_deleted_goes_on_and_says_that_it_may_be_the_last(
    world: World, log: str, caplog: pytest.LogCaptureFixture
) -> None:
    await world.settled()
    delete_records(world, log, 1)
    world.pay_many(20)
    worker = world.start()
    await world.drained()
    check_rows(world, worker) if log != "dedup-changelog" else None
    assert caplog.text.count(f"records of {APP}-{log}[1] were deleted") == 1
    await worker.stop()
    other = world.start("w2")
    error = await world.fate(other)
    assert isinstance(error, TopicChanged) and f"records of {APP}-{log}[1] were deleted" in str(error)


async def test_a_store_is_not_given_up_for_a_log_that_has_lost_records(world: World) -> None:
    await world.settled()
    kept = rows_on_disk(world, partition=1)
    delete_records(world, "balances-changelog", 1)
    # By its age the store would be made anew.
    await asyncio.sleep(14 * 86_400)
    for p in range(2):
        world.cluster.write(TP(f"{APP}-journals-changelog", p), [(b"a", b"[]"), (b"b", b"[]")])
    error = await world.fate(world.start())
    assert isinstance(error, TopicChanged) and "were deleted" in str(error)
    assert rows_on_disk(world, partition=1) == kept > 0


async def test_records_that_are_deleted_amid_a_restore_are_missed(world: World) -> None:
    await world.settled()
    world.lose_store("w1")
    worker = world.start()
    reached, go = worker.hold_at("restore.after_ends")
    await reached.wait()
    for p in range(2):
        delete_records(world, "journals-changelog", p)
    go.set()
    for at in (worker, None):
        error = await world.fate(at or world.start())
        assert isinstance(error, TopicChanged) and f"records of {APP}-journals-changelog" in str(error)


async def test_marks_that_a_former_version_trimmed_are_missed_by_nobody(world: World) -> None:
    """Its positions do not say how far it did."""
    await world.settled()
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
    await world.settled()
    await asyncio.sleep(15)
    world.cluster.delete_topics([f"{APP}-positions"])
    if store == "lost":
        world.lose_store("w1")
    if group == "offsets expired":
        world.cluster.groups._offsets[APP].visible.clear()
    for _ in range(2):
        error = await world.fate(world.start())
        assert isinstance(error, TopicChanged)
        assert f"{APP}-positions" in str(error) and "semel reset" in str(error)
        assert ("--adopt" in str(error)) == (group == "offsets kept")
    world.pay_many(20)
    await asyncio.sleep(15)
    if group == "offsets expired":
        # There is nothing to adopt.
        assert isinstance(await world.fate(world.start(adopt=True)), TopicChanged)
        return
    # State and the group's offsets were committed together: they fit each other without a position.
    worker = world.start(adopt=True)
    await world.drained()
    check_store(world, worker)
    check_rows(world, worker)


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
        error = await world.fate(worker)
        assert isinstance(error, TopicChanged) and name in str(error) and "created again" in str(error)
        assert not world.is_drained()
        worker = world.start()


async def test_positions_of_a_version_that_noted_no_changelogs_are_read_and_completed(world: World) -> None:
    await world.settled()
    for p in range(world.partitions):
        for record in world.cluster.log(TP(f"{APP}-positions", p)).committed():
            if record.key == positions.KEY:
                found = orjson.loads(record.value or b"")
                found.pop("types")
                changelogs = {f"{APP}-{n}-changelog" for n in ("balances", "journals", "dedup")}
                assert set(found.pop("logs")) == {*changelogs, f"{APP}-parked", f"{APP}-timers"}
                record.value = orjson.dumps(found)
    world.lose_store("w1")
    world.pay_many(60)
    worker = world.start()
    await world.drained()
    world.check()
    await worker.stop()
    assert all(len(at.logs) == 5 for at in world.committed_positions().values())


async def test_a_deletion_is_remembered_by_a_store_that_is_older_than_its_changelogs_tombstones(world: World) -> None:
    """A changelog of somebody else's making, or of a broker whose default is short."""
    changelog = f"{APP}-balances-changelog"
    world.cluster.create_topic(
        changelog, world.partitions, {"cleanup.policy": "compact", "delete.retention.ms": "60000"}
    )
    world.pay("a1", 10)
    world.pay("a2", 20)
    await (await world.caught_up()).stop()
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
    await world.settled(200)
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


# ---------------------------------------------------------------------- the input's own transactions


async def test_aborted_transactions_and_control_records_in_the_input_are_passed_over(world: World) -> None:
    broker = await world.connected("source")

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
    await world.settled(40)
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
    error = await world.fate(world.start())
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
