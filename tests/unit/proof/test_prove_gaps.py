"""Where witnesses are gone, the proof says so, for which stretch, and judges the rest all the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from semel import Dedup, Table, Topic
from semel.dedup import Handling
from semel.errors import SemelError, ShapeChanged, TopicChanged
from semel.plan import AgentKind, AgentPlan, Plan
from semel.port import TP
from semel.proof import Law, NothingToProve, Proof, Verdict
from tests.unit.harness import Payment
from tests.unit.proof.rig import LETTERS, MARKS, SINK, SOURCE, History, broken, random_times

Histories = Callable[..., History]


def only_gap(proof: Proof) -> tuple[TP, int, int]:
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()
    [gap] = proof.gaps
    return gap.tp, gap.start, gap.end


@pytest.mark.parametrize("seed", range(4))
async def test_events_deleted_from_the_source_are_unprovable(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    history.log(SOURCE, 1).delete_before(9)
    assert only_gap(await history.proof()) == (TP(SOURCE, 1), 0, 9)
    # What happens to the rest is still seen.
    entry, record = history.some(SINK, lambda r: history.said(r).partition == 0)
    history.append(SINK, history.partition_of(SINK, entry), record)
    assert Law.NO_DUPLICATE in broken(await history.proof())


@pytest.mark.parametrize(("topic", "what"), [(SINK, "outputs"), (LETTERS, "dead_letters")])
async def test_a_topic_that_was_deleted_is_named_with_what_went_there(
    histories: Histories, topic: str, what: str
) -> None:
    history = await histories(seed=2).filled(60)
    there = (await history.proof()).counts[what]
    history.cluster.delete_topics([topic])
    proof = await history.proof()
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()
    [gap] = [gap for gap in proof.gaps if gap.tp.topic == topic]
    assert (gap.events, gap.sentence) == (there, f"the topic is deleted; {there} records went there")


async def test_outputs_that_were_deleted_are_unprovable(histories: Histories) -> None:
    history = await histories(seed=1, partitions=1).filled(300)
    history.log(SINK, 0).delete_before(3)
    assert only_gap(await history.proof()) == (TP(SINK, 0), 0, 3)


async def test_events_of_which_nothing_but_a_deleted_dead_letter_can_tell_are_unprovable(histories: Histories) -> None:
    history = await histories(seed=1, partitions=1).filled(300)
    history.log(LETTERS, 0).delete_before(3)
    proof = await history.proof()
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()
    assert {gap.tp: gap.events for gap in proof.gaps} == {TP(LETTERS, 0): 0, TP(SOURCE, 0): 3}


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_dropped_before_the_declaration_changed_is_unprovable(histories: Histories, seed: int) -> None:
    history = histories(seed=seed, pipeline={"dedup": Dedup("id", window=timedelta(hours=1), missing="drop")})
    world = history.world
    world.pay_many(50)
    world.write({"id": "", "account": "a1", "amount": 3}, "a1")
    worker = world.start()
    await world.drained()
    await worker.stop()
    world.pipeline.dedup = Dedup("id", window=timedelta(hours=1))
    world.write({"id": "", "account": "a1", "amount": 4}, "a1")
    worker = world.start()
    await world.drained()
    proof = await history.proof()
    assert (proof.verdict, broken(proof)) == (Verdict.UNPROVABLE, set()), proof.text()
    [gap] = proof.gaps
    assert gap.events == 1 and "under an earlier declaration" in gap.sentence
    await worker.stop()


async def test_a_compacted_sink_proves_nothing_of_what_is_missing(histories: Histories) -> None:
    history = await histories(seed=2, partitions=1).filled()
    history.cluster.alter_topic(SINK, {"cleanup.policy": "compact"})
    history.cluster.compact(TP(SINK, 0))
    proof = await history.proof()
    assert only_gap(proof)[0] == TP(SINK, 0)
    assert "compaction" in proof.gaps[0].sentence


async def test_a_compacted_source_breaks_no_law(histories: Histories) -> None:
    history = await histories(seed=3, partitions=1).filled()
    history.cluster.alter_topic(SOURCE, {"cleanup.policy": "compact"})
    history.cluster.compact(TP(SOURCE, 0))
    assert (await history.proof()).verdict is Verdict.UNPROVABLE


async def test_outputs_without_lineage_are_unprovable_and_not_foreign(histories: Histories) -> None:
    history = histories(seed=4, lineage=False)
    history.world.pay_many(60)
    worker = history.world.start()
    await history.world.drained()
    await worker.stop()
    proof = await history.proof()
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()
    assert all("without lineage" in gap.sentence for gap in proof.gaps)


async def test_trimmed_marks_and_a_trimmed_source_leave_events_unprovable(histories: Histories) -> None:
    rule = Dedup("id", window=timedelta(hours=1))
    history = histories(seed=5, pipeline={"dedup": rule}, partitions=1, commit_interval_ms=10)
    worker = history.world.start()
    for part in range(6):
        random_times(history, rule, 200, part=part, calm=100)
        await history.world.drained()
    assert history.log(MARKS, 0).log_start > 0
    history.log(SOURCE, 0).delete_before(20)
    proof = await history.proof()
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()
    assert {gap.events > 0 for gap in proof.gaps if "marks were trimmed" in gap.sentence} == {True}
    await worker.stop()


@pytest.mark.parametrize("block", [1 << 18, 32])
async def test_marks_that_somebody_deleted_are_named_and_no_run_is_clean_without_them(
    histories: Histories, block: int
) -> None:
    history = await histories(seed=5, partitions=1).filled(100)
    log = history.log(MARKS, 0)
    log.delete_before(log.end - 20)
    proof = await history.proof(block=block)
    assert proof.verdict is Verdict.UNPROVABLE, proof.text()
    [gap] = [gap for gap in proof.gaps if gap.tp == TP(MARKS, 0)]
    assert (gap.start, gap.end) == (0, log.log_start) and "not by semel" in gap.sentence


@pytest.mark.parametrize("version", ["this", "a former one"])
@pytest.mark.parametrize("marks", ["of the first", "of both"])
@pytest.mark.parametrize("block", [1 << 18, 32])
async def test_events_of_one_id_that_both_have_outputs_are_found_where_their_marks_are_gone(
    histories: Histories, block: int, marks: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = histories(seed=5, partitions=1)
    world = history.world
    for n in range(100):
        world.pay(f"a{n % 5}", 1, id=f"p{n}")
    worker = world.start()
    await world.drained()
    await worker.stop()
    log = history.log(MARKS, 0)
    log.delete_before(log.end)
    world.lose_store("w1")
    # A worker that does not miss them, as those of former versions did not.
    monkeypatch.setattr("semel.task.restore.bereft", lambda *_: [])
    for n in range(0, 100, 4):
        world.pay(f"a{n % 5}", 1, id=f"p{n}")
    worker = world.start()
    await world.drained()
    await worker.stop()
    if marks == "of both":
        log.delete_before(log.end)
    if version == "a former one":
        for _, record in history.entries("payments-positions"):
            if record.key == b"position":
                history.change_position(_, record, lambda said: said.pop("trimmed", None))
    proof = await history.proof(block=block)
    assert proof.by_law[Law.NO_DUPLICATE] == 25, proof.text()
    ids = {w.id for f in proof.findings if f.law is Law.NO_DUPLICATE for w in f.witnesses}
    assert ids == {f"p{n}" for n in range(0, 100, 4)}


async def test_a_source_that_was_made_anew_is_named(histories: Histories) -> None:
    history = await histories(seed=6).filled(40)
    history.cluster.delete_topics([SOURCE])
    with pytest.raises(NothingToProve, match="does not exist"):
        await history.proof()
    history.cluster.create_topic(SOURCE, 2)
    with pytest.raises(NothingToProve, match="created again"):
        await history.proof()


async def test_a_pipeline_whose_source_is_another_topic_now_is_refused(histories: Histories) -> None:
    history = await histories(seed=12).filled(40)
    world = history.world
    world.cluster.create_topic("orders", 2)
    world.pipeline.source = Topic("orders", key=str, value=Payment)
    with pytest.raises(NothingToProve, match="took in events of payments under an earlier declaration"):
        await history.proof()
    worker = world.start()
    await world.until_running(worker)
    world.cluster.write(TP("orders", 0), [(b"a1", b'{"id": "o1", "account": "a1", "amount": 3}')])
    while "orders" not in world.committed_positions()[0].topics:
        await world.clock.sleep(0.05)
    await worker.stop()
    # Its counts go on, so that the old declaration does not explain them any more, either.
    for topic, other in ((Topic(SOURCE, key=str, value=Payment), "orders"), (world.pipeline.source, SOURCE)):
        world.pipeline.source = topic
        with pytest.raises(NothingToProve, match=f"took in events of {other} under"):
            await history.proof()


@pytest.mark.parametrize(("before", "after", "named"), [
    (["settle"], ["check"], None),
    (["settle"], ["settle", "audit"], "payments"),
    (["settle", "audit"], ["settle"], "payments by audit, payments by settle"),
    (["settle", "audit"], ["settle", "audit", "notify"], None),
    (["settle", "audit"], ["settle", "check"], "payments by audit"),
])  # fmt: skip
def test_who_took_events_in_is_told_apart_where_counts_would_be(
    before: list[str], after: list[str], named: str | None
) -> None:
    source = Topic(SOURCE, key=str, value=Payment)

    def readers(names: list[str]) -> frozenset[str]:
        return Plan("p", [AgentPlan(name, (source,), AgentKind.FUNCTION, print) for name in names]).readers

    assert ", ".join(sorted(readers(before) - readers(after))) == (named or "")


async def test_marks_that_were_deleted_are_named_and_those_made_anew_are_not_believed(histories: Histories) -> None:
    history = await histories(seed=13).filled(40)
    history.cluster.delete_topics([MARKS])
    with pytest.raises(NothingToProve, match=r"topic 'payments-dedup-changelog' is deleted.*`semel reset`"):
        await history.proof()
    history.cluster.create_topic(MARKS, 2)
    with pytest.raises(TopicChanged, match="deleted and created again"):
        await history.proof()


async def test_a_pipeline_that_never_ran_is_named(histories: Histories) -> None:
    with pytest.raises(NothingToProve, match="has never run"):
        await histories(seed=7).proof()


async def test_another_declaration_than_the_one_that_ran_is_refused(histories: Histories) -> None:
    history = await histories(seed=8).filled(40)
    history.world.pipeline.dedup = Dedup("account", window=timedelta(days=7))
    with pytest.raises(ShapeChanged):
        await history.proof()


async def test_a_declaration_that_workers_take_is_proven_before_one_of_them_has_committed(histories: Histories) -> None:
    history = await histories(seed=8).filled(40)
    balances = history.world.pipeline.tables[0]
    history.world.pipeline.tables = [balances, Table("journals", key=str, value=list[Any], default=list)]
    assert (await history.proof()).verdict is Verdict.CLEAN


CHANGES = [
    ("window", {"window": timedelta(hours=1)}, {"window": timedelta(hours=6)}),
    ("window", {"window": timedelta(hours=6)}, {"window": timedelta(hours=1)}),
    ("compare", {"window": timedelta(hours=1)}, {"window": timedelta(hours=1), "compare": "amount"}),
    ("compare and window", {"window": timedelta(hours=1), "compare": "id"}, {"window": timedelta(hours=2)}),
]


async def under_both(
    histories: Histories, seed: int, before: dict[str, Any], after: dict[str, Any], handling: Handling = "quarantine"
) -> tuple[History, dict[int, int]]:
    """Events under one rule, more under another, with redeliveries across the change; where each partition changed."""
    handled: dict[str, Any] = {"missing": handling, "late": handling, "conflict": handling}
    rules = [Dedup("id", **rule, **handled) for rule in (before, after)]
    history = histories(seed=seed, pipeline={"dedup": rules[0]}, commit_interval_ms=10)
    world = history.world
    changed: dict[int, int] = {}
    for n, rule in enumerate(rules):
        changed = {task: at.topics[SOURCE].next for task, at in world.committed_positions().items()} if n else {}
        world.pipeline.dedup = rule
        worker = world.start()
        for part in range(n, n + 2):
            # Ids and days of the last part come again first.
            random_times(history, rules[0], 120, part=part, calm=100)
            await world.drained()
        await worker.stop()
    return history, changed


@pytest.mark.parametrize(("named", "before", "after"), CHANGES)
async def test_events_that_another_rule_judged_are_unprovable_and_those_after_them_are_judged(
    histories: Histories, named: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    history = histories(seed=8, pipeline={"dedup": Dedup("id", **before)})
    world = history.world
    begun = int(world.clock.time() * 1000) - 600_000
    old = [world.pay("a1", 60, at_ms=begun + n) for n in range(20)]
    worker = world.start()
    await world.drained()
    await worker.stop()
    world.pipeline.dedup = Dedup("id", **after)
    # Declared, and no worker has committed under it.
    tp = world.place("a1")
    assert only_gap(await history.proof()) == (tp, 0, 20)
    assert only_gap(await history.proof(since_ms=begun + 10)) == (tp, 10, 20)
    worker = world.start()
    for n, event in enumerate(old):
        world.write({**event, "amount": 61} if n % 2 else event, "a1", at_ms=begun + 1_000 + n)
    for n in range(20):
        world.pay("a1", 60, at_ms=begun + 2_000 + n)
    await world.drained()
    await worker.stop()
    proof = await history.proof()
    assert only_gap(proof) == (tp, 0, 20)
    said = " and ".join(f"{name}=" for name in named.split(" and "))
    assert (
        proof.gaps[0].sentence.startswith(f"another {said} of the dedup rule") and "--since" in proof.gaps[0].sentence
    )
    later = await history.proof(since_ms=begun + 1_000)
    assert later.verdict is Verdict.CLEAN, later.text()
    entry, record = history.some(SINK, lambda r: history.said(r).offset >= 40)
    history.append(SINK, history.partition_of(SINK, entry), record)
    assert (await history.proof(since_ms=begun + 1_000)).verdict is Verdict.VIOLATED
    assert Law.NO_DUPLICATE in broken(await history.proof())


@pytest.mark.parametrize("handling", ["quarantine", "drop", "pass"])
@pytest.mark.parametrize(("named", "before", "after"), CHANGES)
@pytest.mark.parametrize("seed", range(3))
async def test_what_is_right_under_either_rule_is_never_called_wrong(
    histories: Histories, seed: int, named: str, before: dict[str, Any], after: dict[str, Any], handling: Handling
) -> None:
    history, changed = await under_both(histories, seed, before, after, handling)
    proof = await history.proof()
    assert not broken(proof), proof.text()
    gaps = {gap.tp.partition: gap.end for gap in proof.gaps if gap.sentence.startswith("another ")}
    assert gaps == changed
    # Declared once more, and no worker has committed under it.
    history.world.pipeline.dedup = Dedup("id", window=timedelta(days=9))
    proof = await history.proof()
    assert not broken(proof), proof.text()
    assert all(part.records == 0 for part in proof.parts)


async def test_an_event_that_takes_effect_again_within_every_window_there_was_is_doubled_across_the_change(
    histories: Histories,
) -> None:
    history = histories(seed=3, pipeline={"dedup": Dedup("id", window=timedelta(hours=1))})
    world = history.world
    begun = int(world.clock.time() * 1000) - 600_000
    for offset, window in enumerate((1, 6)):
        world.pipeline.dedup = Dedup("id", window=timedelta(hours=window))
        world.pay("a1", 60, id=f"p{offset}", at_ms=begun + offset)
        worker = world.start()
        await world.drained()
        await worker.stop()
    first, second = (record for _, record in history.entries(MARKS))
    second.key = first.key
    _, again = history.entries(SOURCE)[1]
    again.value = (again.value or b"").replace(b"p1", b"p0")
    assert Law.NO_DUPLICATE in broken(await history.proof(since_ms=begun + 1))


async def test_a_change_whose_place_was_not_noted_leaves_all_unprovable(histories: Histories) -> None:
    history, _ = await under_both(histories, 4, *CHANGES[0][1:])
    for partition in range(history.world.partitions):
        entry, record = history.position_records(partition)[-1]
        history.change_position(entry, record, lambda found: found["topics"][SOURCE].pop("windows"))
    proof = await history.proof()
    assert proof.verdict is Verdict.UNPROVABLE
    assert all(part.records == 0 for part in proof.parts)


async def test_a_rule_that_reads_other_ids_than_the_marks_have_is_refused(histories: Histories) -> None:
    history = await histories(seed=9, pipeline={"dedup": Dedup(lambda p: p.id, window=timedelta(days=7))}).filled(60)
    history.world.pipeline.dedup = Dedup(lambda p: p.account, window=timedelta(days=7))
    with pytest.raises(SemelError, match="reads other ids"):
        await history.proof()


async def test_a_sink_that_a_later_declaration_names_and_nobody_wrote_is_no_finding(histories: Histories) -> None:
    history = await histories(seed=10).filled(40)
    plan = history.world.plan()
    plan.outputs.append(Topic("not-there-yet"))
    assert (await history.proof(plan=plan)).verdict is Verdict.CLEAN
