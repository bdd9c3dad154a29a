"""What a transaction may do in which state, and who ends it when nobody else does."""

from __future__ import annotations

from semel.port import LATEST, TP, Broker, OpenTransaction, Producer
from tests.contract.rig import FENCED, Rig, code_of

# What a broker says while it still writes the markers of the transaction that it is asked about.
VERIFYING = frozenset({19})


async def test_who_coordinates_a_transactional_id_is_found_before_anybody_writes_under_it(
    rig: Rig, broker: Broker
) -> None:
    await rig.patiently(lambda: broker.find_writer(rig.name("writer")))


async def test_a_new_transactional_id_starts_with_epoch_zero_and_each_later_start_raises_it(
    rig: Rig, broker: Broker
) -> None:
    name = rig.name("writer")
    first = (await rig.writer(broker, name)).producer
    second = (await rig.writer(broker, name)).producer
    assert (first.epoch, second.epoch) == (0, 1)
    assert first.id == second.id
    assert first.transactional_id == name


async def test_several_commits_of_one_producer_go_on_with_its_sequences(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    for value in (b"a", b"b", b"c"):
        await writer.begin([tp])
        await writer.send(tp, value)
        await writer.end(commit=True)
    await rig.until(lambda: _closed(broker, tp))
    assert writer.sequences == {tp: 3}
    assert await rig.values(broker, tp) == [b"a", b"b", b"c"]


async def test_writing_to_a_partition_outside_the_transaction_is_refused(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 2)
    writer = await rig.writer(broker)
    await writer.begin([TP(name, 0)])
    batch = writer.batch(b"v", base=0)
    assert await code_of(rig.patiently(lambda: broker.produce(writer.producer, {TP(name, 1): batch}), VERIFYING)) in {
        48,
        120,
    }
    assert await broker.list_offsets([TP(name, 1)], LATEST) == {TP(name, 1): 0}


async def test_writing_without_any_transaction_is_refused(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    batch = writer.batch(b"v", base=0)
    assert await code_of(rig.patiently(lambda: broker.produce(writer.producer, {tp: batch}), VERIFYING)) in {48, 120}


async def test_writing_after_the_commit_is_refused(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"a")
    await writer.end(commit=True)
    await rig.until(lambda: _closed(broker, tp))
    late = writer.batch(b"late", base=1)
    assert await code_of(rig.patiently(lambda: broker.produce(writer.producer, {tp: late}), VERIFYING)) in {48, 120}
    assert await rig.values(broker, tp, committed=False) == [b"a"]


async def test_a_sequence_with_a_gap_is_out_of_order(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"a", b"b")
    assert await code_of(broker.produce(writer.producer, {tp: writer.batch(b"v", base=3)})) == 45
    assert await code_of(broker.produce(writer.producer, {tp: writer.batch(b"v", base=1)})) == 45
    assert await broker.list_offsets([tp], LATEST) == {tp: 2}


async def test_a_batch_sent_twice_is_acknowledged_twice_and_stored_once(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"a", b"b")
    again = await broker.produce(writer.producer, {tp: writer.batch(b"a", b"b", base=0)})
    assert again[tp] in {0, -1}
    assert await rig.values(broker, tp, committed=False) == [b"a", b"b"]


async def test_a_duplicate_is_known_five_batches_long(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    for value in (b"0", b"1", b"2", b"3", b"4", b"5"):
        await writer.send(tp, value)
    assert (await broker.produce(writer.producer, {tp: writer.batch(b"1", base=1)}))[tp] in {1, -1}
    assert await code_of(broker.produce(writer.producer, {tp: writer.batch(b"0", base=0)})) in {45, 46}
    assert len(await rig.values(broker, tp, committed=False)) == 6


async def test_a_new_epoch_starts_its_sequences_at_zero(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    name = rig.name("writer")
    old = await rig.writer(broker, name)
    await old.begin([tp])
    await old.send(tp, b"a", b"b")
    await old.end(commit=True)
    new = await rig.writer(broker, name)
    await new.begin([tp])
    assert await code_of(broker.produce(new.producer, {tp: new.batch(b"v", base=2)})) == 45
    await new.send(tp, b"c")
    await new.end(commit=True)
    await rig.until(lambda: _closed(broker, tp))
    assert await rig.values(broker, tp) == [b"a", b"b", b"c"]


async def test_ending_a_transaction_that_never_began_is_an_invalid_state(rig: Rig, broker: Broker) -> None:
    writer = await rig.writer(broker)
    assert await code_of(broker.end_txn(writer.producer, commit=True)) == 48
    assert await code_of(broker.end_txn(writer.producer, commit=False)) == 48


async def test_ending_twice_in_the_same_way_is_fine_and_in_the_other_way_refused(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    for commit in (True, False):
        await writer.begin([tp])
        await writer.end(commit=commit)
        await writer.end(commit=commit)
        assert await code_of(broker.end_txn(writer.producer, commit=not commit)) == 48


async def test_a_missing_partition_cannot_be_added(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker)
    writer = await rig.writer(broker)
    assert await code_of(broker.add_partitions(writer.producer, [TP(name, 0), TP(name, 5)])) == 3
    assert await code_of(broker.add_partitions(writer.producer, [TP(name, 0)])) == 0


async def test_an_unknown_producer_id_is_refused(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    wrong = Producer(writer.producer.transactional_id, writer.producer.id + 1_000_000, 0)
    assert await code_of(broker.add_partitions(wrong, [tp])) == 49
    assert await code_of(broker.end_txn(wrong, commit=True)) == 49
    nobody = Producer(rig.name("nobody"), 1, 0)
    assert await code_of(rig.patiently(lambda: broker.add_partitions(nobody, [tp]))) == 49


async def test_a_timeout_beyond_the_brokers_limit_is_refused(rig: Rig, broker: Broker) -> None:
    name = rig.name("writer")
    assert await code_of(rig.patiently(lambda: broker.init_producer_id(name, 900_001))) == 50


async def test_a_new_producer_of_the_same_id_ends_the_open_transaction(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    name = rig.name("writer")
    old = await rig.writer(broker, name)
    await old.begin([tp])
    await old.send(tp, b"lost")
    # The broker aborts first, and asks to be asked again.
    assert await code_of(broker.init_producer_id(name, 60_000)) == 51
    new = await rig.writer(broker, name)
    # One epoch for the fence, one for the new producer.
    assert new.producer.epoch == old.producer.epoch + 2
    await new.begin([tp])
    await new.send(tp, b"kept")
    await new.end(commit=True)
    await rig.until(lambda: _closed(broker, tp))
    assert await rig.values(broker, tp) == [b"kept"]


async def test_a_transaction_past_its_timeout_is_aborted_and_its_producer_fenced(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker, timeout_ms=1000)
    await writer.begin([tp])
    await writer.send(tp, b"lost")
    waited = await rig.until(lambda: _closed(broker, tp))
    assert 0.8 < waited < 8
    assert await code_of(broker.produce(writer.producer, {tp: writer.batch(b"late", base=1)})) in FENCED
    assert await code_of(broker.add_partitions(writer.producer, [tp])) in FENCED
    assert await code_of(broker.end_txn(writer.producer, commit=True)) in FENCED
    assert await rig.values(broker, tp) == []


async def test_a_producer_without_an_open_transaction_has_no_timeout(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker, timeout_ms=1000)
    await rig.clock.sleep(3.0)
    await writer.begin([tp])
    await writer.send(tp, b"v")
    await writer.end(commit=True)
    await rig.until(lambda: _closed(broker, tp))
    assert await rig.values(broker, tp) == [b"v"]


async def test_the_holder_of_a_stable_offset_is_named(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 2)
    tp, other = TP(name, 0), TP(name, 1)
    await rig.produced(broker, tp, b"before")
    writer = await rig.writer(broker)
    await writer.begin([tp, other])
    await writer.send(tp, b"open")
    p = writer.producer
    assert await broker.open_transactions([tp, other]) == {
        tp: (OpenTransaction(p.transactional_id, p.id, 2),),
        other: (),
    }
    await writer.end(commit=False)
    await rig.until(lambda: _closed(broker, tp))


async def test_one_produce_reaches_several_partitions(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 3)
    tps = [TP(name, partition) for partition in range(3)]
    writer = await rig.writer(broker)
    await writer.begin(tps)
    bases = await broker.produce(writer.producer, {tp: writer.batch(b"v", base=0) for tp in tps})
    assert bases == dict.fromkeys(tps, 0)
    await writer.end(commit=True)
    for tp in tps:
        await rig.until(lambda tp=tp: _closed(broker, tp))
        assert await rig.values(broker, tp) == [b"v"]


async def test_the_worst_of_several_answers_to_one_produce_is_raised(rig: Rig, broker: Broker) -> None:
    good, bad = await rig.partition(broker), await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([good, bad])
    batches = {good: writer.batch(b"v", base=0), bad: writer.batch(b"v", base=9)}
    await writer.send(bad, b"first")
    assert await code_of(broker.produce(writer.producer, batches)) == 45
    assert await rig.values(broker, good, committed=False) == [b"v"]


async def _closed(broker: Broker, tp: TP) -> bool:
    """Every marker is written."""
    return not (await broker.open_transactions([tp]))[tp] and await broker.list_offsets(
        [tp], LATEST, committed=True
    ) == await broker.list_offsets([tp], LATEST)
