"""What is right is never called wrong: windows that end, every way of handling, storms, resets, chains, live pipelines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from semel import Dedup, Reject, Topic
from semel.memory.broker import MemoryBroker
from semel.plan import AgentKind, AgentPlan, Plan
from semel.port import NO_TIMESTAMP
from semel.proof import Gap, Law, NothingToProve, Verdict, prove
from semel.runtime.settings import EngineSettings
from semel.state import replay
from semel.state.dedup_marks import DEAD, DONE, PARKED, unpack
from semel.testing.clock import VirtualClock
from semel.testing.worker import MemoryWorker, open_store
from tests.simulation.storm import brewed
from tests.unit.harness import Payment, Settlement, World, payments_pipeline
from tests.unit.proof.rig import LETTERS, MARKS, SINK, SOURCE, History, broken, chained, random_times, receipts

Histories = Callable[..., History]
HOUR_MS = 3_600_000


@pytest.mark.parametrize("handling", ["quarantine", "pass", "drop"])
@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_to_time_and_ids_a_run_is_clean(histories: Histories, seed: int, handling: Any) -> None:
    rule = Dedup("id", window=timedelta(hours=1), missing=handling, late=handling, conflict=handling)
    history = histories(seed=seed, pipeline={"dedup": rule}, commit_interval_ms=[10, 1000][seed % 2])
    history.world.settings["trim_marks"] = False
    random_times(history, rule)
    worker = history.world.start()
    await history.world.drained()
    proof = await history.proof(block=[1 << 18, 32][seed % 2])
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.counts["counted_duplicates"] == proof.counts["duplicates"] > 0
    await worker.stop()


@pytest.mark.parametrize("handling", ["quarantine", "pass", "drop"])
async def test_a_record_without_a_timestamp_is_missing_where_that_is_the_event_time(
    histories: Histories, handling: Any
) -> None:
    """The worker judges it missing: there is no event time. Redelivered or not, that is no loss, and nothing torn."""
    rule = Dedup("id", window=timedelta(hours=1), missing=handling)
    history = histories(pipeline={"dedup": rule})
    world = history.world
    for number in range(30):
        event = {"id": f"e{number}", "account": f"a{number % 5}", "amount": 60}
        world.write(event, event["account"], at_ms=NO_TIMESTAMP if number % 3 == 1 else None)
    world.write({"id": "e0", "account": "a0", "amount": 60}, "a0", at_ms=NO_TIMESTAMP)
    worker = world.start()
    await world.drained()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    await worker.stop()


@pytest.mark.parametrize("calm", [0.3, 0.7, 2, 5])
@pytest.mark.parametrize("trim", [False, True], ids=["marks stay", "marks go"])
@pytest.mark.parametrize("handling", ["quarantine", "pass", "drop"])
@pytest.mark.parametrize("seed", range(100, 104))
async def test_events_further_apart_than_the_window_and_those_that_are_late_for_it_are_never_called_wrong(
    histories: Histories, seed: int, handling: Any, trim: bool, calm: float
) -> None:
    rule = Dedup("id", window=timedelta(hours=1), missing=handling, late=handling, conflict=handling)
    history = histories(seed=seed, pipeline={"dedup": rule}, commit_interval_ms=[10, 1000][seed % 2])
    history.world.settings["trim_marks"] = trim
    random_times(history, rule, 200, calm=calm)
    worker = history.world.start()
    await history.world.drained()
    proof = await history.proof(block=[1 << 18, 32][seed % 2])
    assert proof.verdict is Verdict.CLEAN, proof.text()
    await worker.stop()


@pytest.mark.parametrize("seed", range(6))
async def test_marks_trimmed_after_their_window_are_made_up_for_by_the_running_counts(
    histories: Histories, seed: int
) -> None:
    rule = Dedup("id", window=timedelta(hours=1))
    history = histories(seed=seed, pipeline={"dedup": rule}, partitions=1, commit_interval_ms=10)
    worker = history.world.start()
    for part in range(6):
        random_times(history, rule, 300, part=part, calm=100)
        await history.world.drained()
    assert history.log(MARKS, 0).log_start > 0, "nothing was trimmed"
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    await worker.stop()


@pytest.mark.parametrize("seed", range(40, 46))
async def test_a_storm_is_proven_clean_while_it_lasts_and_after_it(tmp_path: Path, seed: int) -> None:
    storm = brewed(tmp_path, seed)
    # Outputs that went with their topic are lost, and the proof says so: here topics stay what they are.
    storm.others.share = 0.0
    world = storm.world
    live: list[str] = []

    def taken_by_retention(gap: Gap) -> bool:
        # The storm deletes input once it is processed: of that nobody can say anything.
        return gap.tp.topic == SOURCE and gap.end <= world.cluster.log(gap.tp).log_start

    async def prove_it(name: str) -> str:
        broker = MemoryBroker(world.cluster, name)
        try:
            await broker.start()
            proof = await prove(broker, world.plan(), world.clock, block=64)
            if proof.verdict is Verdict.VIOLATED or not all(map(taken_by_retention, proof.gaps)):
                return proof.text()
            return "clean" if proof.verdict is Verdict.CLEAN else "clean but for what retention took"
        except NothingToProve:
            return "nothing yet"
        finally:
            await broker.close()

    async def again_and_again() -> None:
        while True:
            await world.clock.sleep(4)
            try:
                live.append(await prove_it(f"live-{len(live)}"))
            except Exception as exc:
                live.append(f"no answer: {exc}")

    proving = asyncio.create_task(again_and_again())
    try:
        await storm.run()
        proving.cancel()
        assert any(said.startswith("clean") for said in live), live
        assert [said for said in live if "violated" in said or "unprovable" in said] == []
        assert (await prove_it("last")).startswith("clean")
    finally:
        proving.cancel()
        await world.close()


async def test_a_pipeline_without_dedup_is_proven_by_lineage_and_counts(histories: Histories) -> None:
    history = histories(seed=1)
    history.world.pipeline.dedup = None
    history.world.pay_many(100, trouble=False)
    worker = history.world.start()
    await history.world.drained()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.counts["took_effect"] == 100
    history.remove(SINK)
    assert (await history.proof()).verdict is Verdict.VIOLATED
    await worker.stop()


@pytest.mark.parametrize("seed", range(4))
async def test_dead_letters_that_are_replayed_and_edited_are_clean(histories: Histories, seed: int) -> None:
    """In several rounds: as they were, which fail again, or mended; some twice in a row, some with a revision of before."""
    history = histories(seed=seed, commit_interval_ms=[10, 1000][seed % 2])
    world = history.world
    world.pay_many(150)
    worker = world.start()
    await world.drained()
    for _ in range(3):
        for _, letter in history.entries(LETTERS):
            draw, event = history.rng.random(), None
            if draw < 0.3:
                said = dict(letter.headers)["semel.reason"]
                event = b'{"id":"m%d","account":"a1","amount":1}' % letter.offset if said == b"undecodable" else None
                if said == b"failed":
                    event = orjson.dumps({**orjson.loads(letter.value or b""), "fails": 0})
            elif draw < 0.5:
                continue
            for _ in range(history.rng.choice([1, 1, 2])):
                world.replay(letter, value=event)
            if draw > 0.9:
                world.replay(letter, revision=1, value=b'{"id":"p1","account":"a1","amount":77}')
        await world.drained()
    proof = await history.proof(block=[1 << 18, 32][seed % 2])
    assert proof.verdict is Verdict.CLEAN, proof.text()
    taken = [r for _, r in history.entries(MARKS) if unpack(r.value or b"").revision]
    assert {unpack(r.value or b"").outcome for r in taken} - {PARKED} <= {DEAD, DONE}
    # Results are of the events, and not of their coming back.
    assert not {name for _, r in history.entries(SINK) for name, _ in r.headers} & replay.HEADERS
    await worker.stop()


async def test_a_replay_that_took_effect_is_there_once_and_a_second_effect_is_found(histories: Histories) -> None:
    history = histories(seed=3, partitions=1)
    world = history.world
    world.pay("a1", 5, id="bad", fails=-1)
    worker = world.start()
    await world.drained()
    [(_, letter)] = history.entries(LETTERS)
    mended = b'{"id":"bad","account":"a1","amount":5}'
    for revision in (1, 1, 2, 63):
        world.replay(letter, value=mended, revision=revision)
    await world.drained()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert [orjson.loads(r.value or b"")["balance"] for _, r in history.entries(SINK)] == [5]
    assert (proof.counts["took_effect"], proof.counts["duplicates"]) == (1, 3)
    await worker.stop()
    # Somebody's worker that takes the second for another event: its mark says so.
    (_, first), (_, second) = [(tp, r) for tp, r in history.entries(MARKS) if unpack(r.value or b"").outcome != PARKED]
    assert unpack(first.value or b"").outcome == DEAD
    again = unpack(second.value or b"")._replace(offset=2, revision=2).pack()
    history.append(MARKS, 0, second, value=again)
    proof = await history.proof()
    assert proof.verdict is Verdict.VIOLATED
    assert "both took effect" in proof.text()
    # A mark of the revision that died already is none of a replay.
    second.value = unpack(second.value or b"")._replace(revision=0).pack()
    assert (await history.proof()).verdict is Verdict.VIOLATED


async def test_a_replay_that_was_to_be_handled_again_and_was_not_is_lost(histories: Histories) -> None:
    rule = Dedup("id", window=timedelta(hours=1), conflict="drop", late="drop")
    history = histories(seed=3, partitions=1, pipeline={"dedup": rule})
    world = history.world
    world.pay("a1", 5, id="bad", fails=-1)
    worker = world.start()
    await world.drained()
    [(_, letter)] = history.entries(LETTERS)
    world.replay(letter, value=b'{"id":"bad","account":"a1","amount":5}')
    await world.drained()
    await worker.stop()
    history.remove(SINK)
    history.remove(MARKS, lambda record: unpack(record.value or b"").outcome == DONE)
    proof = await history.proof()
    assert Law.NO_LOSS in broken(proof), proof.text()


async def test_without_dedup_events_whose_time_cannot_be_read_are_proven_by_their_dead_letters(
    histories: Histories,
) -> None:
    history = histories(seed=2)
    world = history.world
    world.pipeline.dedup = None
    world.pipeline.source = Topic(
        "payments", value=Payment, time=lambda payment: None if payment.amount % 2 else 10**12
    )
    for amount in range(40):
        world.pay(f"a{amount % 5}", amount)
    worker = world.start()
    await world.drained()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert (proof.counts["took_effect"], proof.counts["dead_letters"]) == (20, 20)
    assert {p.stream_time.ms for p in world.committed_positions().values() if p.counts["out"]} == {10**12}
    history.remove(LETTERS)
    assert (await history.proof()).verdict is Verdict.VIOLATED
    await worker.stop()


async def test_what_was_written_before_a_reset_is_of_another_life(histories: Histories) -> None:
    history = await histories(seed=2).filled()
    world = history.world
    # A dynamic group that nobody is in any more.
    await world.clock.sleep(30)
    broker = await world.connected("reset")
    await world.reset(by=broker)
    await broker.close()
    # All of its input again, on top of the outputs of the first time.
    worker = world.start("w2")
    world.work.failures.clear()
    await world.drained()
    assert len(history.entries(SINK)) > 1.9 * len({(s.partition, s.offset, s.step) for _, r in history.entries(SINK)
                                                  for s in [history.said(r)]})  # fmt: skip
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    await worker.stop()


async def test_a_chained_pipeline_says_its_own_lineage(histories: Histories) -> None:
    history = await histories(seed=3).filled()
    world = history.world
    world.pipeline, first = chained(), world.plan()
    worker = world.start("w9")
    await worker_done(history, "receipts", SINK)
    assert {history.said(r).app for _, r in history.entries("receipts")} == {"receipts"}
    assert {history.said(r).topic for _, r in history.entries("receipts")} == {SINK}
    for plan in (first, world.plan()):
        proof = await history.proof(plan=plan)
        assert proof.verdict is Verdict.CLEAN, proof.text()
    await worker.stop()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("before", "after"), [
    ("quarantine", "pass"), ("quarantine", "drop"), ("pass", "quarantine"), ("pass", "drop"), ("drop", "pass"),
])  # fmt: skip
@pytest.mark.parametrize("which", ["missing", "conflict", "late"])
async def test_what_was_handled_as_declared_then_is_right_under_another_declaration(
    histories: Histories, which: str, before: Any, after: Any, seed: int
) -> None:
    def declared(handling: str) -> Dedup:
        handled: dict[str, Any] = {which: handling}
        return Dedup("id", window=timedelta(hours=1), **handled)

    history = histories(seed=seed, pipeline={"dedup": declared(before)}, partitions=1, commit_interval_ms=10)
    for part, handling in enumerate((before, after)):
        rule = history.world.pipeline.dedup = declared(handling)
        random_times(history, rule, 200, part=part)
        worker = history.world.start()
        await history.world.drained()
        await worker.stop()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


async def test_a_dead_letter_whose_value_did_not_fit_is_clean(histories: Histories) -> None:
    history = histories(seed=14, partitions=1)
    history.cluster.create_topic(LETTERS, 1, {"max.message.bytes": "6000"})
    history.world.write(b"no JSON " * 1000, "a1")
    history.world.write(b"nor this", "a1")
    worker = history.world.start()
    await history.world.drained()
    await worker.stop()
    letters = [record for _, record in history.entries(LETTERS)]
    assert [record.value for record in letters] == [None, b"nor this"]
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


@pytest.mark.parametrize("names", [("dlq.payments",), (None, "dlq.payments"), ("dlq.a", "dlq.b"), ("dlq.a", None)])
async def test_dead_letters_are_found_whatever_their_topic_was_called_before(
    histories: Histories, names: tuple[str | None, ...]
) -> None:
    history = histories(seed=31, partitions=2)
    world = history.world
    for name in names:
        topic = None if name is None else Topic(name)
        world.pipeline = payments_pipeline(world.work, make=receipts(world.work), dead_letters=topic)
        world.pay_many(60)
        world.write(b"no JSON", "a1")
        worker = world.start()
        await world.drained()
        await worker.stop()
    there = world.cluster.topics()
    assert {name or LETTERS for name in names} <= there.keys()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.counts["dead_letters"] == proof.counts["counted_dead"] > len(names)


async def test_two_agents_on_one_topic_are_told_apart(tmp_path: Path) -> None:
    clock = VirtualClock()
    world = World(tmp_path, seed=4)
    world.clock, sink = clock, Topic("settlements", key=str, value=Settlement)
    source = Topic(SOURCE, key=str, value=Payment)

    def at_least(amount: int) -> Callable[[Payment], Settlement]:
        def check(payment: Payment) -> Settlement:
            if payment.amount < amount:
                raise Reject(f"{payment.amount} is less than {amount}")
            return Settlement(payment.id, payment.account, payment.amount)

        return check

    agents = [
        AgentPlan(name, (source,), AgentKind.FUNCTION, at_least(amount), sink=sink)
        for name, amount in (("settle", 20), ("audit", 40))
    ]
    plan = Plan("payments", agents=agents, outputs=[sink])
    for number in range(60):
        world.pay(amount=number)
    broker, store = MemoryBroker(world.cluster, "w"), open_store(tmp_path / "db")
    worker = MemoryWorker("w", plan, broker, store, clock, random.Random(1), EngineSettings())
    while sum(t.committed.counts.get("in", 0) for t in worker.engine.tasks.values()) < 120:
        await clock.sleep(0.05)
    worker.engine.stop()
    assert await worker.gone() is None
    broker = await world.connected("prover")
    proof = await prove(broker, plan, clock)
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.counts["outputs"] == 40 + 20
    assert proof.counts["dead_letters"] == 20 + 40


async def test_only_the_events_of_the_time_asked_for_are_judged(histories: Histories) -> None:
    history = histories(seed=5, pipeline={"dedup": Dedup("id", window=timedelta(days=7))})
    world = history.world
    start = int(world.clock.time() * 1000) - 10 * HOUR_MS
    for number in range(100):
        world.pay(at_ms=start + number * 60_000, amount=60)
    worker = world.start()
    await world.drained()
    await worker.stop()
    first = history.remove(MARKS, lambda r: r.key == b"p1")
    assert (await history.proof()).verdict is Verdict.VIOLATED
    later = await history.proof(since_ms=start + 30 * 60_000)
    assert later.verdict is Verdict.CLEAN, later.text()
    assert later.counts["records"] == 70
    between = await history.proof(since_ms=start + 30 * 60_000, until_ms=start + 50 * 60_000)
    assert (between.verdict, between.counts["records"]) == (Verdict.CLEAN, 20)
    earlier = await history.proof(until_ms=start + 30 * 60_000)
    assert earlier.verdict is Verdict.VIOLATED
    assert first.key == b"p1"


async def worker_done(history: History, app: str, source: str) -> None:
    """Until a pipeline of another name has come to the end of its source."""
    world = history.world

    def done() -> bool:
        engines = [w.engine for w in world.workers.values() if not w.over]
        tasks = [t for e in engines for t in e.tasks.values() if e.app == app]
        ends = {p: history.log(source, p).end for p in range(world.partitions)}
        return len(tasks) == len(ends) and all(
            t.committed.topics.get(source) is not None and t.committed.topics[source].next >= ends[t.partition]
            for t in tasks
        )

    await world.until(done, what="the end")


async def test_a_pipeline_that_drops_late_events_and_outlives_its_window_is_not_called_torn(
    histories: Histories,
) -> None:
    rule = Dedup("id", window=timedelta(hours=1), late="drop")
    history = histories(seed=1, pipeline={"dedup": rule}, partitions=1, commit_interval_ms=10)
    world = history.world
    worker = world.start()
    now = int(world.clock.time() * 1000) - 30 * HOUR_MS
    for number in range(60):
        world.pay("a1", amount=6, at_ms=now + number * 600_000)
        if number % 5 == 0:
            await world.drained()
    await world.drained()
    await worker.stop()
    assert history.log(MARKS, 0).log_start > 0
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


class Panic(BaseException):
    """As native code raises it: no Exception."""


@pytest.mark.parametrize("what", ["key", "compare", "time"])
async def test_what_functions_of_the_rule_raise_is_said_as_the_worker_had_it(histories: Histories, what: str) -> None:
    def panicking(read: Callable[[Payment], Any]) -> Callable[[Payment], Any]:
        def asked(payment: Payment) -> Any:
            if payment.amount % 7 == 0:
                raise Panic("native code")
            return read(payment)

        return asked

    declared: dict[str, Any] = {"window": timedelta(hours=1)}
    if what == "compare":
        declared["compare"] = panicking(lambda payment: payment.amount)
    if what == "time":
        declared["time"] = panicking(lambda payment: 1_760_000_000_000)
    rule = Dedup(panicking(lambda payment: payment.id) if what == "key" else "id", **declared)
    history = histories(pipeline={"dedup": rule})
    history.world.pay_many(60)
    worker = history.world.start()
    await history.world.drained()
    await worker.stop()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert len([r for log in history.cluster.committed(LETTERS) for r in log]) > 3
