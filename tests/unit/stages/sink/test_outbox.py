"""Outputs without an event: sent once, told when they are committed, refused clearly where nothing can fence them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import Context
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import orjson
import pytest

from semel import Topic
from semel.errors import CarryOverFull, CommitError, HandlingError, InstanceTaken, TopicChanged
from semel.faust_.app import App
from semel.memory.faults import Fault, delay, lose_answer, lose_request, refuse
from semel.plan import Plan
from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from semel.state import positions
from semel.worker.engine_host import EngineHost
from tests.unit.harness import APP, Payment, World

NOTES = TP("notes", 0)


@pytest.fixture
def notes(world: World) -> Iterator[World]:
    world.cluster.create_topic("notes", 1)
    yield world


def note(text: str) -> ProducerRecord:
    return ProducerRecord(NOTES, None, b"k", text.encode(), ())


def written(world: World) -> list[str]:
    return [(r.value or b"").decode() for r in world.cluster.committed("notes")[0]]


async def test_an_output_without_an_event_is_committed_and_then_its_future_resolves(notes: World) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    done = worker.engine.outbox(note("hello"))
    assert written(notes) == []
    await done
    assert written(notes) == ["hello"]


async def test_outputs_without_an_event_go_with_the_events_of_the_epoch_in_their_order(notes: World) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    for n in range(5):
        notes.pay_many(10)
        await worker.engine.outbox(note(str(n)))
    await notes.drained()
    notes.check()
    assert written(notes) == ["0", "1", "2", "3", "4"]


FATES = {
    "refused before": ("Produce", refuse(45)),
    "the request for the end lost": ("EndTxn", lose_request(after_s=0.1)),
    "the answer to the end lost": ("EndTxn", lose_answer(after_s=0.1)),
    "the end late": ("EndTxn", delay(there_s=3.0)),
    "fenced at the end, after it took effect": ("EndTxn", refuse(90, applied=True)),
    "fenced at the end, before": ("EndTxn", refuse(90)),
    "the membership refused": ("TxnOffsetCommit", refuse(25)),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("with_events", [False, True], ids=["alone", "with events"])
async def test_whatever_becomes_of_its_epoch_an_output_without_an_event_is_written_once(
    notes: World, fate: str, with_events: bool
) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    await worker.engine.outbox(note("first"))
    api, fault = FATES[fate]
    rule = notes.cluster.faults.add(api, fault)
    if with_events:
        notes.pay_many(20)
    done = [worker.engine.outbox(note("second")), worker.engine.outbox(note("third"))]
    await asyncio.gather(*done)
    assert rule.hits == 1
    assert written(notes) == ["first", "second", "third"]
    await worker.engine.outbox(note("fourth"))
    assert written(notes) == ["first", "second", "third", "fourth"]
    await notes.drained()
    notes.check()


@pytest.mark.parametrize("point", ["commit.after_produce", "commit.after_offsets", "commit.after_end"])
async def test_a_revoke_that_cuts_the_commit_short_neither_loses_nor_doubles_an_output(
    notes: World, point: str
) -> None:
    worker = notes.start(revoke_timeout_ms=300, commit_timeout_ms=5_000)
    await notes.until_running(worker)
    reached, go = worker.hold_at(point)
    done = worker.engine.outbox(note("once"))
    await reached.wait()
    # The group calls while the commit stands still.
    other = notes.start("w2")
    await asyncio.sleep(2)
    go.set()
    await asyncio.wait_for(done, 60)
    assert written(notes) == ["once"]
    await notes.until_running(worker, other)


async def test_a_revoke_that_cuts_its_own_commit_short_neither_loses_nor_doubles_an_output(notes: World) -> None:
    worker = notes.start(revoke_timeout_ms=300, commit_interval_ms=60_000, handler_timeout_ms=100)
    await notes.until_running(worker)

    async def slow(payment: object) -> None:
        await asyncio.sleep(3)

    notes.work.before = slow
    notes.pay()
    await asyncio.sleep(0.1)
    # The runner is busy, so that nothing but the revoke commits.
    done = worker.engine.outbox(note("once"))
    reached, go = worker.hold_at("commit.after_produce")
    other = notes.start("w2")
    await reached.wait()
    await asyncio.sleep(2)
    go.set()
    notes.work.before = None
    await asyncio.wait_for(done, 60)
    assert written(notes) == ["once"]
    await notes.until_running(worker, other)
    await notes.drained()
    notes.check()


async def test_a_worker_that_owns_nothing_fails_its_outputs_after_the_commit_bound(notes: World) -> None:
    first, second, third = notes.start("w1"), notes.start("w2"), notes.start("w3")
    await notes.until(lambda: sum(len(w.engine.tasks) for w in (first, second, third)) == 2)
    await asyncio.sleep(1)
    idle = next(w for w in (first, second, third) if not w.engine.tasks)
    before = notes.clock.monotonic()
    with pytest.raises(CommitError, match="owns no partition"):
        await idle.engine.outbox(note("nobody"))
    assert 5 <= notes.clock.monotonic() - before < 7
    assert written(notes) == []


async def test_an_output_that_comes_while_everything_is_restored_waits_and_stops_nothing(notes: World) -> None:
    notes.pay_many(50)
    first = notes.start()
    await notes.drained()
    await first.stop()
    worker = notes.start()
    go = asyncio.Event()

    async def stand() -> None:
        await go.wait()

    worker.failpoints.hooks["restore.after_offsets"] = stand
    await notes.until(lambda: len(worker.engine.tasks) == 2)
    done = worker.engine.outbox(note("patient"))
    await asyncio.sleep(1)
    assert not done.done()
    go.set()
    await asyncio.wait_for(done, 10)
    assert written(notes) == ["patient"]


async def test_too_many_outputs_are_refused(notes: World) -> None:
    worker = notes.start(carry_over_limit=3)
    await notes.until_running(worker)
    done = [worker.engine.outbox(note(str(n))) for n in range(3)]
    with pytest.raises(CarryOverFull, match="carry_over_limit"):
        worker.engine.outbox(note("one too many"))
    await asyncio.gather(*done)
    await worker.engine.outbox(note("now there is room"))


async def test_a_worker_that_stops_commits_what_waits(notes: World) -> None:
    worker = notes.start(commit_interval_ms=60_000)
    await notes.until_running(worker)
    done = worker.engine.outbox(note("last words"))
    await worker.stop()
    await done
    assert written(notes) == ["last words"]


async def test_a_worker_that_has_stopped_takes_no_more_outputs(notes: World) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    await worker.stop()
    with pytest.raises(CommitError, match="has stopped"):
        worker.engine.outbox(note("too late"))


async def test_a_worker_that_dies_fails_what_waits(notes: World) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    notes.cluster.faults.add("AddPartitionsToTxn", Fault(lost=True, applied=False, answer_delay_s=1), times=None)
    done = worker.engine.outbox(note("never"))
    await asyncio.sleep(3)
    worker.kill()
    await worker.gone()
    with pytest.raises(CommitError, match="stopped"):
        await done
    assert written(notes) == []


async def test_a_full_disk_after_the_commit_does_not_hold_back_who_waits(notes: World) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    worker.fail_writes(1)
    await asyncio.wait_for(worker.engine.outbox(note("committed")), 10)
    assert written(notes) == ["committed"]
    await asyncio.wait_for(worker.engine.outbox(note("again")), 30)
    assert written(notes) == ["committed", "again"]


# ---------------------------------------------------------------------- waiting for one inside an event (rule 5)


async def test_a_handler_that_waits_for_a_commit_that_waits_for_it_is_refused(notes: World) -> None:
    worker = notes.start(commit_interval_ms=1_000)
    await notes.until_running(worker)
    waiting: list[asyncio.Future[None]] = []

    async def wait(payment: Payment) -> None:
        if not waiting:
            # As a timer does that fires meanwhile: it knows nothing of the event.
            waiting.append(Context().run(worker.engine.outbox, note("from a timer")))
        await waiting[0]

    notes.work.before = wait
    began = notes.clock.monotonic()
    for n in range(3):
        notes.pay("a1", 1 + n)
    await notes.drained()
    # The first attempt is refused; when the next one is made the commit has been.
    assert notes.clock.monotonic() - began < 3
    assert worker.engine.stats["left_out"] == 0
    assert notes.work.handled == ["p1", "p1", "p2", "p3"]
    assert written(notes) == ["from a timer"]
    notes.check()


async def test_a_handler_that_always_waits_for_its_own_commit_is_dead_lettered_with_the_reason(
    notes: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = notes.start(commit_interval_ms=1_000)
    await notes.until_running(worker)

    async def wait(payment: Payment) -> None:
        if payment.id == "p1":
            await worker.engine.outbox(note("again"))

    notes.work.before = wait
    began = notes.clock.monotonic()
    notes.pay("a1", 1)
    notes.pay("a1", 2)
    await notes.drained()
    assert notes.clock.monotonic() - began < 4
    assert "was waited for inside an event" in caplog.text
    [letter] = [r for log in notes.cluster.committed(f"{APP}.dlq") for r in log]
    assert dict(letter.headers)["semel.reason"] == b"failed"
    settled = [r for log in notes.cluster.committed("settlements") for r in log]
    assert [orjson.loads(r.value or b"")["id"] for r in settled] == ["p2"]


async def test_a_faust_topic_is_sent_to_without_waiting_inside_an_event_and_its_commit_is_waited_for_outside(
    notes: World,
) -> None:
    app = App("notes-app", broker="kafka://127.0.0.1:29999")
    topic = app.topic("notes", key_type=str, value_type=str)
    worker = notes.start(commit_interval_ms=1_000)
    app.host = cast(EngineHost, SimpleNamespace(engine=worker.engine))
    await notes.until_running(worker)
    refused: list[str] = []

    async def send(payment: Payment) -> None:
        metadata = await (await topic.send(key="k", value=f"of {payment.id}"))
        assert (metadata.topic, metadata.offset) == ("notes", -1)
        pending = Context().run(topic.send_soon, key="k", value=f"beside {payment.id}")
        try:
            await pending
        except HandlingError as exc:
            refused.append(str(exc))

    notes.work.before = send
    began = notes.clock.monotonic()
    notes.pay("a1", 1)
    await notes.drained()
    assert notes.clock.monotonic() - began < 3
    assert len(refused) == 1 and "a message to 'notes'" in refused[0]
    # A timer, a web handler: they may wait.
    await (await topic.send(key="k", value="of a timer"))
    assert sorted(written(notes)) == ['"beside p1"', '"of a timer"', '"of p1"']
    assert [len(log) for log in notes.cluster.committed(f"{APP}.dlq")] == [0, 0]


class Outputs(World):
    """An app without source topics: timers and web handlers send, nothing is read."""

    def plan(self) -> Plan:
        return Plan(APP, outputs=[Topic("notes", key=str, value=str, partitions=1)])


@pytest.mark.parametrize("fate", ["the answer to the end lost", "the request for the end lost", "refused before"])
async def test_an_app_without_sources_commits_under_its_id_alone_and_each_output_once(
    tmp_path: Path, fate: str
) -> None:
    world = Outputs(tmp_path)
    for _ in range(2):
        # The second process counts its epochs from the beginning again, and is told apart from the first all the same.
        worker = world.start()
        await worker.engine.outbox(note("a"))
        api, fault = FATES[fate]
        world.cluster.faults.add(api, fault)
        await asyncio.wait_for(worker.engine.outbox(note("b")), 30)
        await asyncio.wait_for(worker.engine.outbox(note("c")), 30)
        await worker.stop()
    assert written(world) == ["a", "b", "c", "a", "b", "c"]
    await world.close()


async def test_of_two_workers_without_sources_and_with_one_name_the_fenced_one_gives_up(tmp_path: Path) -> None:
    world = Outputs(tmp_path)
    first = world.start()
    await first.engine.outbox(note("a"))
    stranger = await world.connected("stranger")
    for _ in range(2):
        await stranger.init_producer_id(f"{APP}-w1", 10_000)
        done = first.engine.outbox(note("b"))
        await asyncio.wait({done}, timeout=5)
    error = await first.gone()
    assert isinstance(error, InstanceTaken)
    await world.close()


async def test_an_output_in_doubt_for_longer_than_its_record_is_kept_is_told_as_unknown_and_not_sent_again(
    notes: World,
) -> None:
    worker = notes.start()
    await notes.until_running(worker)
    notes.cluster.faults.add("EndTxn", lose_answer(after_s=0.5))
    done = worker.engine.outbox(note("once"))
    await notes.until(lambda: bool(worker.engine._committer.outbox.in_doubt), what="in doubt")
    notes.cluster.faults.cut(worker.client)
    await notes.clock.sleep(700)
    # What compaction may do by then.
    for log in notes.cluster.topics()[f"{APP}-positions"].logs:
        log._entries = [entry for entry in log._entries if not any(r.key == positions.KEY for r in entry.records)]
    notes.cluster.faults.mend(worker.client)
    with pytest.raises(CommitError, match="nobody knows any more"):
        await done
    await notes.clock.sleep(20)
    assert written(notes) == ["once"]


async def test_an_output_in_doubt_whose_log_was_made_anew_meanwhile_is_told_as_unknown_and_not_sent_again(
    notes: World,
) -> None:
    """The commit may have gone to the log that is there now, or to the one before, at any offset."""
    worker = notes.start()
    await notes.until_running(worker)
    notes.pay_many(10)
    await notes.drained()
    positions_topic = f"{APP}-positions"
    partitions = len(notes.cluster.topics()[positions_topic].logs)
    notes.cluster.faults.add("EndTxn", lose_answer(after_s=0.5))
    done = worker.engine.outbox(note("once"))
    await notes.until(lambda: bool(worker.engine._committer.outbox.in_doubt), what="in doubt")
    notes.cluster.delete_topics([positions_topic])
    notes.cluster.create_topic(positions_topic, partitions)
    with pytest.raises(CommitError, match="deleted and created again"):
        await done
    with pytest.raises(TopicChanged):
        raise await worker.gone() or AssertionError("it goes on")
    assert written(notes) == ["once"]
