"""What stock Faust got wrong under exactly_once, one test each, named after what must hold instead.

The docstrings say what Faust 0.15.3 did. Where it is about Faust code, the test runs a `semel.App` as well.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence

import pytest

from semel.kafka import KafkaBroker
from semel.local.kafka import LocalKafka
from semel.port import Membership
from semel.state.store import Store, row_prefix
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.figures import Figures
from tests.broker.ledger import SESSION_TIMEOUT_MS, Ledger
from tests.broker.logs import Line, Message
from tests.broker.truth import payments
from tests.broker.workers import WorkerProcess

pytestmark = pytest.mark.broker

KILLED = -9
MARKERS = 12  # 3 logs of 4 partitions: each may end in one control record that was not read yet


@pytest.fixture(params=["ledger:pipeline", "ticker:app"], ids=["Pipeline", "App"])
async def either(request: pytest.FixtureRequest, kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    """The same ledger as a pipeline and as Faust code."""
    return await make_ledger(kafka, target=request.param)


@pytest.fixture
async def ledger(kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    """As a pipeline only: where what is tested lies below both."""
    return await make_ledger(kafka)


def once(seed: int, count: int) -> list[Message]:
    """Without redeliveries: Faust code has no dedup rule."""
    return payments(seed, count, redeliver=0)


def ids(records: Sequence[Message | Line]) -> list[str]:
    return [json.loads(record.value or b"")["id"] for record in records]


async def killed_at(ledger: Ledger, failpoint: str, **environment: str) -> WorkerProcess:
    """A worker that died there, some epochs on: the first ones note where its partitions begin, and hold no events."""
    worker = ledger.worker().start(failpoint=f"{failpoint}:kill:12", HANDLER_S="0.005", **environment)
    assert await worker.ended() == KILLED, worker.log_end()
    return worker


async def without_its_session(ledger: Ledger, instance: str) -> None:
    """The group without the dead instance, as an operator takes it out who will not wait for its session's end."""
    broker = KafkaBroker(ledger.bootstrap)
    await broker.start()
    try:
        (dead,) = (await broker.describe_group(ledger.name)).members
        assert dead.instance_id == f"{ledger.name}-{instance}"
        await broker.leave_group(Membership(ledger.name, -1, dead.member_id, dead.instance_id))
    finally:
        await broker.close()


async def at_rest(ledger: Ledger) -> None:
    """Waits until no transaction is open: a dead writer's ends with its timeout."""
    names = (ledger.sink, ledger.changelog, ledger.positions)
    deadline = time.monotonic() + 30
    for name in names:
        while await logs.ends(ledger.bootstrap, name) != await logs.ends(ledger.bootstrap, name, committed=True):
            assert time.monotonic() < deadline, f"a transaction stays open on {name}"
            await asyncio.sleep(0.1)


# -- E1 to E7: what is in a transaction, and when it is committed


async def test_an_output_and_its_source_offset_commit_in_one_transaction(either: Ledger) -> None:
    """E1: outputs went outside any transaction (no id for a topic that nobody subscribes to): duplicates after a crash."""
    await either.feed(once(201, 600))
    worker = await killed_at(either, "commit.after_offsets")
    uncommitted = len(await logs.read(either.bootstrap, either.sink, committed=False))
    await at_rest(either)
    truth = await either.expect_whole_epochs()
    committed = sum(c.out for c in truth.counts.values())
    assert len(await logs.read(either.bootstrap, either.sink)) == committed < uncommitted
    await either.settle(worker.start())


async def test_an_output_to_any_partition_commits_with_its_source_offset(
    kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    """E2: the transaction was chosen by the output's partition, the offset's by the source's: errors with more than one
    worker, outputs aborted after their offsets were committed."""
    relay = await make_ledger(kafka, target="relay:app")
    events = once(202, 2_000)
    await relay.feed(events[:1_000])
    workers = [relay.worker(f"w{n}").start() for n in (1, 2)]
    await relay.until_done(300)
    workers[0].kill9()
    await relay.feed(events[1_000:])
    workers[0].start()
    await relay.drained()
    found = await logs.read(relay.bootstrap, relay.sink)
    assert sorted(ids(found)) == sorted(ids(events))
    assert {line.partition for line in found} == set(range(7))


async def test_an_event_in_flight_at_a_commit_counts_whole_or_not_at_all(either: Ledger) -> None:
    """E3: nothing waited for events in flight, so that an output was committed before its event was done."""
    await either.feed(once(203, 300))
    worker = either.worker().start(HANDLER_S="0.2", SEMEL_HANDLER_TIMEOUT_MS="100")
    await either.until_done(8)
    await worker.said("is left out of")
    worker.kill9()
    await at_rest(either)
    await either.expect_whole_epochs()
    await either.settle(worker.start(HANDLER_S="0"))


async def test_a_changelog_row_commits_with_the_offset_of_its_event(either: Ledger) -> None:
    """E4: changelog records were still in a buffer when the offsets of their events were committed: state lost."""
    await either.feed(once(204, 600))
    worker = await killed_at(either, "commit.after_end")
    await at_rest(either)
    truth = await either.expect_whole_epochs()
    assert truth.balances
    shutil.rmtree(worker.state_dir)
    await either.settle(worker.start())


async def test_a_record_that_the_broker_refuses_stops_its_commit(kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    """E5: a failed send was logged and the transaction committed without it: silent loss.

    The topic takes less than it said when the worker started, so that only the broker can refuse it; then it is looked at
    anew, and the record is refused by its size.
    """
    ledger = await make_ledger(kafka)
    worker = ledger.worker().start()
    await ledger.feed(once(205, 50))
    await ledger.drained()
    await logs.configure(ledger.bootstrap, ledger.sink, {"max.message.bytes": "700"})
    long = f"a-{'x' * 600}"
    large = Message(b"account-1", json.dumps({"id": long, "account": "account-1", "amount": 1}).encode())
    await ledger.feed([*once(206, 20), large, *once(207, 20)])
    await ledger.drained()
    [dead] = await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    assert dead.value == large.value
    assert "max.message.bytes=700" in dead.header("semel.error")
    settled = ids(await logs.read(ledger.bootstrap, ledger.sink))
    assert sorted(settled) == sorted(ids([*once(205, 50), *once(206, 20), *once(207, 20)]))
    assert worker.running


async def test_a_rebalance_leaves_nothing_of_an_open_epoch_behind(either: Ledger) -> None:
    """E6: the transaction stayed open through a rebalance, the events were done again into it: duplicates committed."""
    await either.feed(once(208, 1_500))
    first = either.worker("w1", HANDLER_S="0.004").start()
    await either.until_done(50)
    second = either.worker("w2", HANDLER_S="0.002").start()
    await second.ready()
    assert await either.done() < 1_500, "the load ended before the partitions moved"
    assert await second.stopped() == 0
    await either.settle(first)


async def test_an_event_whose_handler_raises_is_not_counted_as_done(kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    """E7: an agent that raised acknowledged its event, and what it had sent was committed."""
    picky = await make_ledger(kafka, target="picky:pipeline")
    worker = picky.worker().start()
    bad = json.dumps({"id": "again", "account": "a", "amount": 5, "do": "fail once"}).encode()
    await picky.feed([Message(b"a", bad), Message(b"a", bad.replace(b"again", b"next").replace(b"fail once", b""))])
    await picky.drained()
    settled = [json.loads(line.value or b"") for line in await logs.read(picky.bootstrap, picky.sink)]
    assert [(s["id"], s["balance"]) for s in settled] == [("again", 5), ("next", 10)]
    assert worker.running


# -- E8 to E11: recovery


async def test_no_event_is_processed_before_its_state_is_whole(ledger: Ledger) -> None:
    """E8: the end to recover to could be unknown, was taken for -1, and work began with empty state.

    The changelog ends in the open transaction of a dead worker: its true end is not known until that is ended.
    """
    await ledger.feed(once(209, 600))
    dead = await killed_at(ledger, "commit.after_produce")
    heir = ledger.worker("w2", state="another").start()
    await ledger.feed(once(210, 200))
    await ledger.settle(heir)
    assert dead.exit_code == KILLED


async def test_recovery_ends_where_the_log_ends_in_a_control_record(ledger: Ledger, figures: Figures) -> None:
    """E9: it waited for a record at the last offset, where a transaction's marker stands: ten seconds and more."""
    await ledger.feed(once(211, 1_000))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    shutil.rmtree(worker.state_dir)
    worker.start()
    figures.record("start to ready, 1,000 events to restore, s", await worker.ready())
    _, said = await worker.get("/pipelines")
    for task in said[0]["tasks"]:
        assert task["restored"] == task["to_restore"] > 0
    assert "is held by the open transaction" not in worker.log


async def test_a_restart_reads_nothing_that_it_has(ledger: Ledger) -> None:
    """E10: the stored offset never moved under exactly_once, so that every restart read the whole changelog again."""
    await ledger.feed(once(212, 2_000))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    worker.start()
    await worker.ready()
    _, said = await worker.get("/pipelines")
    assert sum(task["restored"] for task in said[0]["tasks"]) <= MARKERS


@pytest.mark.parametrize("failpoint", ["barrier.after_seal", "commit.after_offsets"])
async def test_a_store_never_holds_what_is_not_committed(either: Ledger, failpoint: str) -> None:
    """E11: rows were written to RocksDB at once, and those of aborted transactions stayed: "seen before", event lost."""
    await either.feed(once(213, 600))
    worker = await killed_at(either, failpoint)
    await at_rest(either)
    history = {(line.key, line.value) for line in await logs.read(either.bootstrap, either.changelog)}
    everything = {
        (line.key, line.value) for line in await logs.read(either.bootstrap, either.changelog, committed=False)
    }
    store = Store(worker.state_dir / either.name / worker.instance / "db")
    held = {row for partition in range(4) for row in store.scan_rows(row_prefix(partition, 1))}
    store.close()
    assert held
    assert held <= history
    if failpoint != "barrier.after_seal":
        assert history < everything, "nothing was aborted"
    await either.settle(worker.start())


# -- E12 to E17: transactional ids, starts, stops, options


async def test_apps_with_workers_of_the_same_name_do_not_fence_each_other(
    kafka: LocalKafka, make_ledger: MakeLedger, topic_prefix: str
) -> None:
    """E12: transactional ids were numbers that others could have too, and changed when a topic was added."""
    ledgers = [await make_ledger(kafka, name=f"{topic_prefix}-{n}") for n in "ab"]
    for n, ledger in enumerate(ledgers):
        ledger.feed_beside(payments(214 + n, 1_000), per_s=500)
    workers = [ledger.worker("same").start() for ledger in ledgers]
    for ledger in ledgers:
        await ledger.until_done(200)
    for ledger, worker in zip(ledgers, workers, strict=True):
        await ledger.settle(worker)
        assert await worker.metric("semel_commit_fences") == 0
        writers = {json.loads(p.value or b"")["writer"] for p in await logs.read(kafka.bootstrap, ledger.positions)}
        assert writers == {f"{ledger.name}-same"}


async def test_an_app_without_tables_starts(kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    """E13: KeyError at the start, where there were no tables and no standbys."""
    relay = await make_ledger(kafka, target="relay:app")
    worker = relay.worker().start()
    await relay.feed(once(216, 100))
    await relay.drained()
    assert len(await logs.read(relay.bootstrap, relay.sink)) == 100
    assert await worker.stopped() == 0


async def test_a_worker_that_stops_leaves_no_transaction_open(either: Ledger) -> None:
    """E14: a stop left the transaction open, and its outputs unread, for a minute."""
    await either.feed(once(217, 3_000))
    worker = either.worker().start(HANDLER_S="0.001")
    await either.until_done(100)
    assert await worker.stopped() == 0
    names = (either.sink, either.changelog, either.positions)
    for name in names:
        assert await logs.ends(either.bootstrap, name) == await logs.ends(either.bootstrap, name, committed=True)
    truth = await either.expect_whole_epochs()
    assert 0 < sum(c.records for c in truth.counts.values()) < 3_000, "it should have been in the middle"


async def test_the_transaction_of_a_worker_that_died_is_ended_by_whoever_takes_over(
    ledger: Ledger, figures: Figures
) -> None:
    """E14, the harder half: nobody aborts for the dead; whoever takes over fences it by name."""
    patient = {"SEMEL_SESSION_TIMEOUT_MS": "60000", "SEMEL_TRANSACTION_TIMEOUT_MS": "60000"}
    await ledger.feed(once(218, 600))
    await killed_at(ledger, "commit.after_produce", **patient)
    died = time.monotonic()
    await without_its_session(ledger, "w1")
    heir = ledger.worker("w2", state="another").start(**patient)
    await heir.said("is held by the open transaction", within_s=30)
    await ledger.drained()
    # Without the fence they wait for the end of the transaction's own timeout, and for the broker to notice it.
    assert time.monotonic() - died < 60
    figures.record("killed in a transaction: until a new worker has committed all, s", time.monotonic() - died)
    await ledger.settle(heir)


async def test_a_worker_keeps_its_session_however_long_a_restore_takes(ledger: Ledger) -> None:
    """E15: no heartbeat was sent while state was restored: session lost, rebalance, again.

    The restore is held up by somebody else's open transaction in the changelog, for longer than the session.
    """
    await ledger.feed(once(219, 500))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    shutil.rmtree(worker.state_dir)
    async with logs.transaction(ledger.bootstrap, "a-stranger") as stranger:
        await stranger.send_and_wait(ledger.changelog, b"0", b'"stranger"', partition=0)
        worker.start()
        await worker.said("generation")
        await asyncio.sleep(2 * SESSION_TIMEOUT_MS / 1000)
        status, said = await worker.get("/readyz")
        assert (status, list(said["restoring"])) == (503, ["0"]), said
        await ledger.feed(once(220, 200))
        await stranger.abort_transaction()
    await ledger.settle(worker)
    assert worker.log.count("generation ") == 1, worker.log_end()


@pytest.mark.parametrize(
    "options",
    [{"producer_threaded": True}, {"stream_publish_on_commit": True}, {"processing_guarantee": "exactly_once"}],
    ids=lambda options: next(iter(options)),
)
async def test_no_option_of_faust_takes_an_output_out_of_its_transaction(
    kafka: LocalKafka, make_ledger: MakeLedger, options: dict[str, object]
) -> None:
    """E16: producer_threaded sent past the transaction. E17: stream_publish_on_commit published the next event's output."""
    ledger = await make_ledger(kafka, target="ticker:app")
    await ledger.feed(once(221, 600))
    worker = await killed_at(ledger, "commit.after_offsets", OPTIONS=json.dumps(options))
    await at_rest(ledger)
    await ledger.expect_whole_epochs()
    await ledger.settle(worker.start())


# -- E18, E21 to E23: offsets


async def test_gaps_in_the_source_neither_stop_nor_skip_anything(either: Ledger) -> None:
    """E18: an aborted batch right after offset 0 stopped commits for good; elsewhere an event could be skipped."""
    first, *rest = [m for m in once(222, 400) if m.key == b"account-1"] + once(223, 200)
    await either.feed([first])
    for n in range(3):
        async with logs.transaction(either.bootstrap, f"{either.name}-feeder") as producer:
            for bad in once(224, 30):
                await producer.send(either.source, bad.value, bad.key)
            await producer.flush()
            await producer.abort_transaction()
        await either.feed(rest[n * 60 : (n + 1) * 60])
    worker = either.worker().start()
    await either.settle(worker)


async def test_a_zombie_cannot_commit_offsets(ledger: Ledger) -> None:
    """E21: the offsets of a transaction were committed without looking at the generation."""
    await ledger.feed(once(225, 400))
    zombie = ledger.worker("w1", HANDLER_S="0.002").start(failpoint="commit.before_partitions:stop:4")
    await zombie.frozen()
    heir = ledger.worker("w2").start()
    await ledger.drained()
    assert await heir.stopped() == 0
    await asyncio.sleep(SESSION_TIMEOUT_MS / 1000 + 0.5)
    before = await logs.group_offsets(ledger.bootstrap, ledger.name)
    zombie.thaw()
    await zombie.said("is not committed")
    assert await logs.group_offsets(ledger.bootstrap, ledger.name) == before
    await ledger.settle(zombie)


async def test_each_row_is_restored_into_its_own_table(kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    """E22: a record of a topic that recovery did not know went into the table before it."""
    pair = await make_ledger(kafka, target="pair:pipeline")
    events = once(226, 500)
    await pair.feed(events)
    worker = pair.worker().start()
    await pair.drained()
    before = await worker.rows("balances"), await worker.rows("latest")
    assert await worker.stopped() == 0
    shutil.rmtree(worker.state_dir)
    worker.start()
    await worker.ready()
    assert (await worker.rows("balances"), await worker.rows("latest")) == before
    last = {json.loads(e.value or b"")["account"]: json.loads(e.value or b"")["id"] for e in events}
    assert before[1] == last


async def test_a_partition_that_was_never_committed_begins_at_its_start_again(either: Ledger) -> None:
    """E23: a seek to a committed offset of none or 0 did nothing, and what was read and dropped before was skipped."""
    await either.feed(once(227, 300))
    worker = either.worker().start(failpoint="commit.before_partitions:kill:1")
    assert await worker.ended() == KILLED, worker.log_end()
    assert await logs.group_offsets(either.bootstrap, either.name) == {}
    other = either.worker("w2", HANDLER_S="0.01").start(failpoint="commit.before_partitions:stop:1")
    await other.frozen()
    worker.start()
    await either.drained()
    other.thaw()
    await either.settle(worker)
