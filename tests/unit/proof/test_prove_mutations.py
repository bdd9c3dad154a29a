"""A clean history is clean; with one record removed, doubled, moved or made up, the right law is broken, every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semel.port import TP
from semel.proof import Law, Verdict
from semel.state.dedup_marks import Mark, unpack
from tests.unit.proof.rig import LETTERS, MARKS, POSITIONS, SINK, SOURCE, History, broken, mark_offset

Histories = Callable[..., History]
every_time = pytest.mark.parametrize("seed", range(6))


@every_time
async def test_a_history_with_retries_redeliveries_conflicts_and_a_kill_is_clean(
    histories: Histories, seed: int
) -> None:
    history = await histories(seed=seed).filled()
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
    assert proof.ledger
    assert history.entries(SINK, outcome="aborted"), "nothing was aborted"
    assert proof.counts["duplicates"] and proof.counts["dead_letters"]


@every_time
async def test_an_event_removed_from_the_source_was_read_without_being_committed(
    histories: Histories, seed: int
) -> None:
    history = await histories(seed=seed).filled()
    marked = {(history.partition_of(MARKS, e), mark_offset(r)) for e, r in history.entries(MARKS)}
    history.remove(SOURCE, lambda r: any((p, r.offset) in marked for p in (0, 1)))
    assert {Law.ATOMIC, Law.CONSERVATION} & broken(await history.proof())


@every_time
async def test_an_event_whose_mark_is_gone_and_that_has_no_output_is_lost(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled(300)
    with_output = history.sources_with_output()
    there = [(history.partition_of(MARKS, e), e, r) for e, r in history.entries(MARKS)]
    silent = [
        (e, r) for p, e, r in there if (p, mark_offset(r)) not in with_output and unpack(r.value or b"").outcome == 0
    ]
    entry, record = history.rng.choice(silent)
    entry.records.remove(record)
    proof = await history.proof()
    assert Law.NO_LOSS in broken(proof), proof.text()
    # So are its redeliveries then: what they are duplicates of did not take effect.
    lost = {w.offset: w.id for f in proof.findings if f.law is Law.NO_LOSS for w in f.witnesses}
    assert mark_offset(record) in lost
    assert set(lost.values()) == {(record.key or b"").decode()}


@every_time
async def test_an_output_whose_events_mark_is_gone_is_torn_off(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    with_output = history.sources_with_output()
    there = [(history.partition_of(MARKS, e), e, r) for e, r in history.entries(MARKS)]
    entry, record = history.rng.choice([(e, r) for p, e, r in there if (p, mark_offset(r)) in with_output])
    entry.records.remove(record)
    assert Law.ATOMIC in broken(await history.proof())


@every_time
async def test_a_missing_output_does_not_balance(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    gone = history.said(history.remove(SINK))
    proof = await history.proof()
    assert Law.CONSERVATION in broken(proof)
    first_of_two = gone.step == 0 and any(
        (s.partition, s.offset, s.step) == (gone.partition, gone.offset, 1)
        for _, r in history.entries(SINK)
        for s in [history.said(r)]
    )
    assert (Law.ATOMIC in broken(proof)) == first_of_two


@every_time
async def test_an_output_that_is_there_twice_is_doubled(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    entry, record = history.some(SINK)
    history.append(SINK, history.partition_of(SINK, entry), record)
    proof = await history.proof()
    assert Law.NO_DUPLICATE in broken(proof)
    finding = next(f for f in proof.findings if f.law is Law.NO_DUPLICATE)
    assert {w.offset for w in finding.witnesses if w.tp.topic == SINK} >= {record.offset}


@every_time
async def test_a_redelivered_event_that_took_effect_within_the_window_is_doubled(
    histories: Histories, seed: int
) -> None:
    history = await histories(seed=seed).filled()
    by_id = {r.key: (history.partition_of(MARKS, e), unpack(r.value or b"")) for e, r in history.entries(MARKS)}
    first = history.rng.choice(sorted(by_id.items(), key=str))
    id, (partition, mark) = first
    again = mark._replace(offset=mark.offset + 1, filed_at=mark.filed_at + 1000)
    history.cluster.write(TP(MARKS, partition), [(id, Mark(*again).pack())])
    assert Law.NO_DUPLICATE in broken(await history.proof())


@every_time
async def test_an_event_that_has_two_marks_took_effect_twice(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    entry, record = history.some(MARKS)
    history.cluster.write(TP(MARKS, history.partition_of(MARKS, entry)), [(record.key, record.value)])
    proof = await history.proof()
    assert broken(proof) == {Law.NO_DUPLICATE, Law.CONSERVATION}, proof.text()
    [finding] = [f for f in proof.findings if f.law is Law.NO_DUPLICATE]
    assert [w.offset for w in finding.witnesses] == [mark_offset(record)]


@every_time
async def test_an_output_of_an_event_that_counted_as_a_duplicate_is_doubled(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    marked = {(history.partition_of(MARKS, e), mark_offset(r)) for e, r in history.entries(MARKS)}
    dead = {
        (int(dict(r.headers)["semel.partition"] or b""), int(dict(r.headers)["semel.offset"] or b""))
        for _, r in history.entries(LETTERS)
    }
    places = [(history.partition_of(SOURCE, e), e, r) for e, r in history.entries(SOURCE)]
    partition, _, record = history.rng.choice([x for x in places if (x[0], x[2].offset) not in marked | dead])
    _, output = history.some(SINK)
    name = output.headers[-1][0]
    forged = [(name, b"payments/payments/%d/%d/0/x" % (partition, record.offset))]
    history.append(SINK, partition, output, headers=forged)
    assert Law.NO_DUPLICATE in broken(await history.proof())


@every_time
async def test_two_outputs_of_a_key_that_changed_places_are_out_of_order(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    entry, one = history.some(SINK)
    partition = history.partition_of(SINK, entry)
    same_key = [
        r for e, r in history.entries(SINK)
        if r.key == one.key and r is not one and history.partition_of(SINK, e) == partition
    ]  # fmt: skip
    other = history.rng.choice(same_key)
    for name in ("value", "headers"):
        a, b = getattr(one, name), getattr(other, name)
        setattr(one, name, b)
        setattr(other, name, a)
    proof = await history.proof()
    assert Law.ORDER in broken(proof)
    finding = next(f for f in proof.findings if f.law is Law.ORDER)
    assert finding.witnesses[0].key == (one.key or b"").decode()


@every_time
async def test_outputs_of_different_keys_may_stand_in_any_order(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed, partitions=1).filled()
    # Next to each other, of different keys: an order that was never promised.
    placed = [r for _, r in history.entries(SINK)]
    at = history.rng.choice([i for i in range(len(placed) - 1) if placed[i].key != placed[i + 1].key])
    one, other = placed[at], placed[at + 1]
    for name in ("key", "value", "headers", "timestamp"):
        a, b = getattr(one, name), getattr(other, name)
        setattr(one, name, b)
        setattr(other, name, a)
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()


@every_time
@pytest.mark.parametrize("topic", [SINK, MARKS])
async def test_a_record_of_an_aborted_transaction_that_can_be_read_is_doubled(
    histories: Histories, seed: int, topic: str
) -> None:
    history = await histories(seed=seed).filled()
    entry, _ = history.rng.choice(history.entries(topic, outcome="aborted"))
    entry.outcome = "committed"
    assert Law.NO_DUPLICATE in broken(await history.proof())


@every_time
async def test_an_effect_of_an_event_that_was_never_committed_is_an_aborted_read(
    histories: Histories, seed: int
) -> None:
    history = await histories(seed=seed).filled()
    entry = history.log(SOURCE, 0)._entries[history.rng.randrange(5, 20)]
    # The transaction that it was written in is aborted after all.
    entry.outcome = "aborted"
    offsets = {r.offset for r in entry.records}
    proof = await history.proof()
    marked = {mark_offset(r) for e, r in history.entries(MARKS) if history.partition_of(MARKS, e) == 0}
    assert (Law.ATOMIC if offsets & marked else Law.CONSERVATION) in broken(proof)


@every_time
async def test_a_position_that_goes_back_is_found(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    _, last = history.position_records(0)[-1]
    _, first = history.position_records(0)[0]
    history.append(POSITIONS, 0, last, value=first.value)
    assert Law.POSITION in broken(await history.proof())


@every_time
async def test_a_fenced_worker_that_writes_between_two_records_of_another_is_found(
    histories: Histories, seed: int
) -> None:
    history = await histories(seed=seed).filled()
    _, last = history.position_records(0)[-1]

    def write(writer: str, generation: int, epoch: int) -> None:
        history.append(POSITIONS, 0, last)
        entry, record = history.position_records(0)[-1]
        history.change_position(entry, record, lambda f: f.update(writer=writer, generation=generation, epoch=epoch))

    write("payments-w2", 70, 1)
    write("payments-w1", 69, 33)
    assert Law.FENCED not in broken(await history.proof())
    write("payments-w2", 70, 2)
    proof = await history.proof()
    assert broken(proof) == {Law.FENCED}, proof.text()
    assert proof.by_law[Law.FENCED] == 1, "what is read twice is found once"


@every_time
async def test_an_event_whose_dead_letter_is_gone_is_lost(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled(300)
    history.remove(LETTERS)
    assert {Law.NO_LOSS, Law.CONSERVATION} <= broken(await history.proof())


@every_time
async def test_a_dead_letter_that_is_there_twice_is_doubled(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled(300)
    entry, record = history.some(LETTERS)
    history.append(LETTERS, history.partition_of(LETTERS, entry), record)
    assert Law.NO_DUPLICATE in broken(await history.proof())


@every_time
@pytest.mark.parametrize("what", ["key", "value"])
async def test_a_dead_letter_that_is_not_as_its_event_came_is_torn(histories: Histories, seed: int, what: str) -> None:
    history = await histories(seed=seed).filled(300)
    _, record = history.some(LETTERS)
    setattr(record, what, (getattr(record, what) or b"") + b" ")
    proof = await history.proof()
    assert broken(proof) == {Law.ATOMIC}, proof.text()
    [finding] = proof.findings
    assert [w.offset for w in finding.witnesses if w.tp.topic == LETTERS] == [record.offset]


@every_time
@pytest.mark.parametrize("what", ["mark", "output"])
async def test_what_lies_beyond_the_position_is_torn_off(histories: Histories, seed: int, what: str) -> None:
    history = await histories(seed=seed).filled()
    [(tp, offset)] = [history.world.write({"id": "late", "account": "a1", "amount": 5}, "a1")]
    if what == "mark":
        _, record = history.some(MARKS)
        beyond = unpack(record.value or b"")._replace(offset=offset)
        history.cluster.write(TP(MARKS, tp.partition), [(b"late", Mark(*beyond).pack())])
    else:
        _, record = history.some(SINK)
        forged = [(record.headers[-1][0], b"payments/payments/%d/%d/0/late" % (tp.partition, offset))]
        history.append(SINK, tp.partition, record, headers=forged)
    proof = await history.proof()
    assert broken(proof) == {Law.ATOMIC}, proof.text()


@every_time
@pytest.mark.parametrize("name", ["in", "out", "filtered", "duplicates", "dead"])
async def test_running_counts_that_do_not_close_are_found(histories: Histories, seed: int, name: str) -> None:
    history = await histories(seed=seed).filled()
    entry, last = history.position_records(0)[-1]

    def more(found: dict[str, Any]) -> None:
        found["counts"][name] += 1
        if name == "out":
            found["outputs"][SINK] += 1

    history.change_position(entry, last, more)
    assert broken(await history.proof()) == {Law.CONSERVATION}


@every_time
async def test_records_that_another_program_writes_to_the_sink_are_one_finding(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    _, record = history.some(SINK)
    for partition in (0, 1, 1):
        history.append(SINK, partition, record, headers=[])
    proof = await history.proof()
    assert proof.by_law == {Law.CONSERVATION: 1}
    assert proof.findings[0].sentence.startswith(f"3 records in {SINK} carry no lineage of payments")
    assert {witness.tp for witness in proof.findings[0].witnesses} == {TP(SINK, 0), TP(SINK, 1)}
    assert proof.counts["without_lineage"] == 3


@every_time
async def test_what_another_pipeline_writes_to_the_sink_is_its_own_affair(histories: Histories, seed: int) -> None:
    history = await histories(seed=seed).filled()
    _, record = history.some(SINK)
    history.append(SINK, 0, record, headers=[(record.headers[-1][0], b"refunds/refunds/0/7/0/r7")])
    proof = await history.proof()
    assert proof.verdict is Verdict.CLEAN, proof.text()
