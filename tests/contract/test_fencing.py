"""Who may no longer write: an earlier producer of the same id, and a member of an earlier generation (KIP-447)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from semel.port import TP, Broker, Membership
from tests.contract.rig import FENCED, Rig, Writer, code_of


async def test_every_call_of_an_earlier_producer_is_fenced(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    group = rig.name("group")
    membership = await rig.member(broker, group)
    name = rig.name("writer")
    zombie = await rig.writer(broker, name)
    await zombie.begin([tp], group)
    await zombie.send(tp, b"before")
    await rig.writer(broker, name)
    old = zombie.producer
    # The transaction coordinator says 90, a partition's log 47.
    calls: list[tuple[Callable[[], Awaitable[object]], int]] = [
        (lambda: broker.add_partitions(old, [tp]), 90),
        (lambda: broker.add_offsets(old, group), 90),
        (lambda: broker.produce(old, {tp: zombie.batch(b"after", base=1)}), 47),
        (lambda: broker.commit_offsets(old, membership, {tp: 1}), 47),
        (lambda: broker.end_txn(old, commit=True), 90),
        (lambda: broker.end_txn(old, commit=False), 90),
    ]
    for call, code in calls:
        assert await code_of(rig.patiently(call)) == code
    assert await rig.values(broker, tp) == []


async def test_an_earlier_producer_cannot_write_into_the_transaction_of_its_successor(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    name = rig.name("writer")
    zombie = await rig.writer(broker, name)
    await zombie.begin([tp])
    await zombie.send(tp, b"zombie")
    successor = await rig.writer(broker, name)
    await successor.begin([tp])
    await successor.send(tp, b"successor 1")
    assert await code_of(broker.produce(zombie.producer, {tp: zombie.batch(b"late", base=1)})) in FENCED
    await successor.send(tp, b"successor 2")
    await successor.end(commit=True)
    await rig.until(lambda: _stable(broker, tp))
    assert await rig.values(broker, tp) == [b"successor 1", b"successor 2"]


async def _open(rig: Rig, broker: Broker, group: str) -> tuple[Writer, TP]:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp], group)
    return writer, tp


async def test_the_current_generation_may_commit(rig: Rig, broker: Broker) -> None:
    membership = await rig.member(broker, rig.name("group"))
    writer, tp = await _open(rig, broker, membership.group)
    await writer.offsets(membership, {tp: 5})


async def test_a_commit_of_another_generation_is_refused(rig: Rig, broker: Broker) -> None:
    membership = await rig.member(broker, rig.name("group"))
    writer, tp = await _open(rig, broker, membership.group)
    for generation in (membership.generation - 1, membership.generation + 1):
        wrong = membership._replace(generation=generation)
        assert (
            await code_of(rig.patiently(lambda wrong=wrong: broker.commit_offsets(writer.producer, wrong, {tp: 5})))
            == 22
        )


async def test_a_commit_of_a_stranger_is_refused(rig: Rig, broker: Broker) -> None:
    membership = await rig.member(broker, rig.name("group"))
    writer, tp = await _open(rig, broker, membership.group)
    for wrong in (membership._replace(member_id="nobody"), membership._replace(instance_id="nobody")):
        assert (
            await code_of(rig.patiently(lambda wrong=wrong: broker.commit_offsets(writer.producer, wrong, {tp: 5})))
            == 25
        )


async def test_a_commit_for_a_group_that_does_not_exist_is_refused(rig: Rig, broker: Broker) -> None:
    writer, tp = await _open(rig, broker, group := rig.name("group"))
    nobody = Membership(group, 1, "nobody", None)
    assert await code_of(rig.patiently(lambda: broker.commit_offsets(writer.producer, nobody, {tp: 5}))) in {22, 25}


async def test_a_commit_of_a_static_member_that_was_replaced_is_fenced(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    zombie = await rig.member(broker, group, instance="worker")
    writer, tp = await _open(rig, broker, group)
    await rig.join(await rig.connect(), group, instance="worker")
    assert await code_of(rig.patiently(lambda: broker.commit_offsets(writer.producer, zombie, {tp: 5}))) == 82


async def test_an_unfenced_commit_is_refused_before_it_is_sent(rig: Rig, broker: Broker) -> None:
    membership = await rig.member(broker, rig.name("group"))
    writer, tp = await _open(rig, broker, membership.group)
    for unfenced in (membership._replace(generation=-1), membership._replace(member_id="")):
        with pytest.raises(ValueError, match=r"generation|member|unfenced"):
            await broker.commit_offsets(writer.producer, unfenced, {tp: 5})


async def test_after_a_refused_commit_the_transaction_can_be_aborted_and_the_producer_goes_on(
    rig: Rig, broker: Broker
) -> None:
    membership = await rig.member(broker, rig.name("group"))
    writer, tp = await _open(rig, broker, membership.group)
    await writer.send(tp, b"dropped")
    wrong = membership._replace(generation=99)
    assert await code_of(rig.patiently(lambda: broker.commit_offsets(writer.producer, wrong, {tp: 5}))) == 22
    await writer.end(commit=False)
    await writer.begin([tp], membership.group)
    await writer.send(tp, b"kept")
    await writer.offsets(membership, {tp: 6})
    await writer.end(commit=True)
    await rig.until(lambda: _stable(broker, tp))
    assert await rig.values(broker, tp) == [b"kept"]
    assert await rig.patiently(lambda: broker.stable_offsets(membership.group, [tp]), frozenset({88})) == {tp: 6}


async def test_offsets_of_a_group_outside_the_transaction_are_refused(rig: Rig, broker: Broker) -> None:
    membership = await rig.member(broker, rig.name("group"))
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    code = await code_of(rig.patiently(lambda: broker.commit_offsets(writer.producer, membership, {tp: 5})))
    assert code in {48, 120}


async def test_while_others_join_the_current_generation_may_still_commit_and_after_that_not(
    rig: Rig, broker: Broker
) -> None:
    group = rig.name("group")
    old = await rig.member(broker, group)
    writer, tp = await _open(rig, broker, group)
    other = await rig.connect()
    joining = asyncio.create_task(rig.join(other, group))
    await rig.until(lambda: _state(broker, group, "PreparingRebalance"))
    await writer.offsets(old, {tp: 5})
    rejoined = await rig.join(broker, group, member_id=old.member_id)
    await joining
    assert rejoined.generation == old.generation + 1
    assert await code_of(rig.patiently(lambda: broker.commit_offsets(writer.producer, old, {tp: 6}))) == 22
    # The new generation may commit as soon as it is known, before the assignment is.
    new = old._replace(generation=rejoined.generation)
    assert (await broker.describe_group(group)).state == "CompletingRebalance"
    await writer.offsets(new, {tp: 7})
    await writer.end(commit=True)
    assert await rig.patiently(lambda: broker.stable_offsets(group, [tp]), frozenset({88})) == {tp: 7}


async def test_a_woken_zombie_whose_session_ended_cannot_commit(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    zombie = await rig.member(broker, group, session_timeout_ms=600)
    writer, tp = await _open(rig, broker, group)
    await rig.until(lambda: _state(broker, group, "Empty"))
    assert await code_of(rig.patiently(lambda: broker.commit_offsets(writer.producer, zombie, {tp: 5}))) == 25


async def _state(broker: Broker, group: str, state: str) -> bool:
    return (await broker.describe_group(group)).state == state


async def _stable(broker: Broker, tp: TP) -> bool:
    return not (await broker.open_transactions([tp]))[tp]
