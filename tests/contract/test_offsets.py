"""Offsets of a group: visible when their transaction is committed, and never a moment of doubt about which."""

from __future__ import annotations

from semel.port import TP, Broker, TopicSpec
from tests.contract.rig import Rig, code_of

PENDING = frozenset({14, 15, 16, 88})


async def test_a_group_that_never_committed_has_no_offset(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    group = rig.name("group")
    assert await rig.patiently(lambda: broker.stable_offsets(group, [tp])) == {tp: -1}


async def test_pending_offsets_are_unstable_until_their_transaction_is_committed(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 2)
    touched, other = TP(name, 0), TP(name, 1)
    membership = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)
    await writer.begin([touched], membership.group)
    await writer.offsets(membership, {touched: 7})
    assert await code_of(broker.stable_offsets(membership.group, [touched, other])) == 88
    assert await broker.stable_offsets(membership.group, [other]) == {other: -1}
    await writer.end(commit=True)
    found = await rig.patiently(lambda: broker.stable_offsets(membership.group, [touched, other]), PENDING)
    assert found == {touched: 7, other: -1}


async def test_an_abort_brings_the_old_offset_back(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    membership = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)
    for offset, commit in ((3, True), (9, False)):
        await writer.begin([tp], membership.group)
        await writer.offsets(membership, {tp: offset})
        await writer.end(commit=commit)
    assert await rig.patiently(lambda: broker.stable_offsets(membership.group, [tp]), PENDING) == {tp: 3}


async def test_the_last_of_several_commits_in_one_transaction_counts(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    membership = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)
    await writer.begin([tp], membership.group)
    await writer.offsets(membership, {tp: 9})
    await writer.offsets(membership, {tp: 4})
    await writer.end(commit=True)
    assert await rig.patiently(lambda: broker.stable_offsets(membership.group, [tp]), PENDING) == {tp: 4}


async def test_offsets_of_a_fenced_producer_vanish(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    membership = await rig.member(broker, rig.name("group"))
    name = rig.name("writer")
    dead = await rig.writer(broker, name)
    await dead.begin([tp], membership.group)
    await dead.offsets(membership, {tp: 9})
    await rig.writer(broker, name)
    assert await rig.patiently(lambda: broker.stable_offsets(membership.group, [tp]), PENDING) == {tp: -1}


async def test_offsets_outlive_the_last_member(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    membership = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)
    await writer.begin([tp], membership.group)
    await writer.offsets(membership, {tp: 7})
    await writer.end(commit=True)
    await broker.leave_group(membership)
    assert await rig.patiently(lambda: broker.stable_offsets(membership.group, [tp]), PENDING) == {tp: 7}


async def test_offsets_of_a_missing_partition_are_refused(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker)
    membership = await rig.member(broker, rig.name("group"))
    writer = await rig.writer(broker)
    await writer.begin([], membership.group)
    missing = TP(name, 8)
    code = await code_of(
        rig.patiently(lambda: broker.commit_offsets(writer.producer, membership, {TP(name, 0): 1, missing: 1}))
    )
    assert code == 3


async def test_an_empty_groups_offsets_can_be_set(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    group = rig.name("group")
    await rig.patiently(lambda: broker.set_group_offsets(group, {tp: 12}))
    assert await broker.stable_offsets(group, [tp]) == {tp: 12}
    await rig.patiently(lambda: broker.set_group_offsets(group, {tp: 5}))
    assert await broker.stable_offsets(group, [tp]) == {tp: 5}
    membership = await rig.member(broker, group)
    await broker.leave_group(membership)
    await broker.set_group_offsets(group, {tp: 6})
    assert await broker.stable_offsets(group, [tp]) == {tp: 6}


async def test_a_groups_offsets_cannot_be_set_while_it_has_members(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    membership = await rig.member(broker, rig.name("group"))
    assert await code_of(broker.set_group_offsets(membership.group, {tp: 12})) in {25, 68}
    assert await broker.stable_offsets(membership.group, [tp]) == {tp: -1}


async def test_a_group_with_offsets_and_no_members_is_empty(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    group = rig.name("group")
    await rig.patiently(lambda: broker.set_group_offsets(group, {tp: 12}))
    assert await broker.describe_group(group) == ("Empty", ())


async def test_the_offsets_of_a_deleted_topic_go_with_it(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    group = rig.name("group")
    await rig.patiently(lambda: broker.set_group_offsets(group, {tp: 12}))
    await broker.delete_topics([*(await broker.topics([tp.topic])).values()])

    async def gone() -> bool:
        return await broker.stable_offsets(group, [tp]) == {tp: -1}

    await rig.until(gone)
    await broker.create_topics([TopicSpec(tp.topic, 1, 1, {})])
    assert await broker.stable_offsets(group, [tp]) == {tp: -1}
