"""The classic group protocol: who is in, in which generation, and who must hear of it."""

from __future__ import annotations

import asyncio

import pytest

from semel.port import Broker, Joined, MemberIdRequired, Membership
from tests.contract.rig import Rig, code_of


def membership(group: str, joined: Joined, instance: str | None = None) -> Membership:
    return Membership(group, joined.generation, joined.member_id, instance)


async def state_is(broker: Broker, group: str, state: str) -> bool:
    return (await broker.describe_group(group)).state == state


async def test_a_dynamic_member_is_given_an_id_before_it_may_join(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    with pytest.raises(MemberIdRequired) as required:
        await rig.patiently(
            lambda: broker.join_group(group, "", None, b"m", session_timeout_ms=10_000, rebalance_timeout_ms=10_000)
        )
    assert required.value.code == 79
    joined = await rig.join(broker, group, member_id=required.value.member_id)
    assert joined.member_id == required.value.member_id


async def test_without_an_authorizer_a_client_has_every_right_on_a_group_that_is_there_or_not(
    rig: Rig, broker: Broker
) -> None:
    group = rig.name("group")
    for _ in range(2):
        rights = await rig.patiently(lambda: broker.group_rights(group))
        assert rights is None or {"Read", "Describe"} <= rights
        await rig.member(broker, group)
    rights = await rig.patiently(lambda: broker.group_rights(group))
    assert rights is not None and {"Read", "Describe"} <= rights


async def test_a_static_member_joins_at_once(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    joined = await rig.patiently(
        lambda: broker.join_group(group, "", "worker", b"m", session_timeout_ms=10_000, rebalance_timeout_ms=10_000)
    )
    assert joined.is_leader
    assert [(m.member_id, m.instance_id, m.metadata) for m in joined.members] == [(joined.member_id, "worker", b"m")]


async def test_an_id_nobody_was_given_is_refused(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    assert await code_of(rig.join(broker, group, member_id="nobody")) == 25
    await rig.member(broker, group)
    assert await code_of(rig.join(broker, group, member_id="nobody")) == 25


async def test_session_timeouts_outside_the_brokers_limits_are_refused(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    assert await code_of(rig.join(broker, group, session_timeout_ms=100)) == 26
    assert await code_of(rig.join(broker, group, session_timeout_ms=1_800_001)) == 26


async def test_the_first_member_leads_and_the_assignment_it_makes_reaches_it(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    joined = await rig.join(broker, group)
    assert (joined.generation, joined.is_leader) == (1, True)
    # Kafka 4 does not show a new group before its first assignment is written.
    assert (await broker.describe_group(group)).state in {"CompletingRebalance", "Dead"}
    await broker.heartbeat(membership(group, joined))
    assert await broker.sync_group(membership(group, joined), {joined.member_id: b"mine"}) == b"mine"
    await broker.heartbeat(membership(group, joined))
    info = await broker.describe_group(group)
    assert info.state == "Stable"
    assert [(m.member_id, m.instance_id, m.metadata) for m in info.members] == [(joined.member_id, None, b"metadata")]


async def pair(
    rig: Rig, first: Broker, second: Broker, group: str, *, session_timeout_ms: int = 10_000
) -> tuple[Joined, Joined]:
    """Two dynamic members in one generation, which is not synced yet; the first leads."""
    alone = await rig.join(first, group, session_timeout_ms=session_timeout_ms)
    await first.sync_group(membership(group, alone), {alone.member_id: b""})
    joining = asyncio.create_task(rig.join(second, group, session_timeout_ms=session_timeout_ms))
    await rig.until(lambda: state_is(first, group, "PreparingRebalance"))
    again = await rig.join(first, group, member_id=alone.member_id, session_timeout_ms=session_timeout_ms)
    return again, await joining


async def settle(first: Broker, second: Broker, group: str, one: Joined, two: Joined) -> tuple[bytes, bytes]:
    """Sync a pair: each gets its assignment."""
    leader = first.sync_group(membership(group, one), {one.member_id: b"one", two.member_id: b"two"})
    follower = second.sync_group(membership(group, two), {})
    mine, other = await asyncio.gather(leader, follower)
    return mine, other


async def test_a_second_member_starts_a_new_generation_that_both_hear_of(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    alone = await rig.join(broker, group)
    await broker.sync_group(membership(group, alone), {alone.member_id: b""})
    joining = asyncio.create_task(rig.join(other, group))
    await rig.until(lambda: state_is(broker, group, "PreparingRebalance"))
    assert await code_of(broker.heartbeat(membership(group, alone))) == 27
    assert await code_of(broker.sync_group(membership(group, alone), {})) == 27
    assert not joining.done()
    one = await rig.join(broker, group, member_id=alone.member_id)
    two = await joining
    assert one.generation == two.generation == alone.generation + 1
    assert one.leader_id == two.leader_id == one.member_id
    assert {m.member_id for m in one.members} == {one.member_id, two.member_id}
    assert two.members == ()
    assert await settle(broker, other, group, one, two) == (b"one", b"two")
    assert await state_is(broker, group, "Stable")


async def test_a_follower_waits_for_the_leaders_assignment(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    follower = asyncio.create_task(other.sync_group(membership(group, two), {}))
    await rig.clock.sleep(0.3)
    assert not follower.done()
    await broker.sync_group(membership(group, one), {one.member_id: b"one"})
    # The leader gave it nothing.
    assert await follower == b""


async def test_a_synced_member_may_ask_for_its_assignment_again(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    await settle(broker, other, group, one, two)
    assert await other.sync_group(membership(group, two), {}) == b"two"


async def test_what_a_stranger_or_an_old_generation_says_is_refused(rig: Rig, broker: Broker) -> None:
    m = await rig.member(broker, rig.name("group"))
    for wrong, code in (
        (m._replace(generation=m.generation + 1), 22),
        (m._replace(generation=m.generation - 1), 22),
        (m._replace(member_id="nobody"), 25),
        (m._replace(instance_id="nobody"), 25),
        (m._replace(group=rig.name("other")), 25),
    ):
        assert await code_of(rig.patiently(lambda wrong=wrong: broker.heartbeat(wrong))) == code
        assert await code_of(rig.patiently(lambda wrong=wrong: broker.sync_group(wrong, {}))) == code


async def test_a_member_that_is_silent_for_its_session_timeout_is_out(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    silent = await rig.member(broker, group, session_timeout_ms=1000)
    for _ in range(4):
        await rig.clock.sleep(0.4)
        await broker.heartbeat(silent)
    waited = await rig.until(lambda: state_is(broker, group, "Empty"))
    assert 0.8 < waited < 6
    assert await code_of(broker.heartbeat(silent)) == 25


async def test_when_one_of_two_falls_silent_the_other_rebalances(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group, session_timeout_ms=1500)
    await settle(broker, other, group, one, two)

    async def told() -> bool:
        return await code_of(broker.heartbeat(membership(group, one))) == 27

    await rig.until(told)
    alone = await rig.join(broker, group, member_id=one.member_id)
    assert alone.generation == one.generation + 1
    assert [m.member_id for m in alone.members] == [one.member_id]


async def test_leaving_ends_the_membership_at_once(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    await settle(broker, other, group, one, two)
    await other.leave_group(membership(group, two))
    assert await code_of(other.heartbeat(membership(group, two))) == 25
    assert await code_of(broker.heartbeat(membership(group, one))) == 27
    await broker.leave_group(membership(group, one))
    assert await broker.describe_group(group) == ("Empty", ())


async def test_a_static_member_leaves_at_once_too(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    static = await rig.member(broker, group, instance="worker")
    await broker.leave_group(static)
    assert (await broker.describe_group(group)).state == "Empty"
    assert await code_of(broker.leave_group(static)) == 25


async def test_a_group_nobody_knows_is_dead(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    assert await rig.patiently(lambda: broker.describe_group(group)) == ("Dead", ())


async def test_when_the_leader_leaves_the_other_leads(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    await settle(broker, other, group, one, two)
    await broker.leave_group(membership(group, one))
    assert (await rig.join(other, group, member_id=two.member_id)).is_leader


async def test_a_follower_that_joins_again_unchanged_disturbs_nobody(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    await settle(broker, other, group, one, two)
    again = await rig.join(other, group, member_id=two.member_id)
    assert (again.generation, again.leader_id) == (two.generation, one.member_id)
    await broker.heartbeat(membership(group, one))
    assert await other.sync_group(membership(group, again), {}) == b"two"


async def test_a_leader_that_joins_again_or_a_member_that_changed_starts_a_rebalance(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    await settle(broker, other, group, one, two)
    leading = asyncio.create_task(rig.join(broker, group, member_id=one.member_id))
    await rig.until(lambda: state_is(broker, group, "PreparingRebalance"))
    two = await rig.join(other, group, member_id=two.member_id)
    one = await leading
    await settle(broker, other, group, one, two)
    changed = asyncio.create_task(rig.join(other, group, member_id=two.member_id, metadata=b"other"))
    await rig.until(lambda: state_is(broker, group, "PreparingRebalance"))
    one = await rig.join(broker, group, member_id=one.member_id)
    assert {m.member_id: m.metadata for m in one.members} == {one.member_id: b"metadata", two.member_id: b"other"}
    await changed


async def test_joining_again_before_the_sync_gives_the_same_generation(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await pair(rig, broker, other, group)
    assert await rig.join(broker, group, member_id=one.member_id) == one
    assert await rig.join(other, group, member_id=two.member_id) == two


async def test_a_dynamic_member_that_does_not_come_back_is_left_behind_after_the_rebalance_timeout(
    rig: Rig, broker: Broker
) -> None:
    group, other = rig.name("group"), await rig.connect()
    late = await rig.join(broker, group, rebalance_timeout_ms=1500, session_timeout_ms=20_000)
    await broker.sync_group(membership(group, late), {})
    start = rig.clock.monotonic()
    joined = await rig.join(other, group, rebalance_timeout_ms=1500)
    assert 1.2 < rig.clock.monotonic() - start < 8
    assert [m.member_id for m in joined.members] == [joined.member_id]
    assert await code_of(broker.heartbeat(membership(group, late))) == 25


async def test_a_static_member_that_does_not_come_back_keeps_its_place(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    late = await rig.join(broker, group, instance="late", rebalance_timeout_ms=1500, session_timeout_ms=20_000)
    await broker.sync_group(membership(group, late, "late"), {})
    joined = await rig.join(other, group, instance="other", rebalance_timeout_ms=1500)
    assert joined.is_leader
    assert {m.instance_id for m in joined.members} == {"late", "other"}
    assert await code_of(broker.heartbeat(membership(group, late, "late"))) == 22


async def test_a_member_that_never_syncs_is_out_after_the_rebalance_timeout(rig: Rig, broker: Broker) -> None:
    group = rig.name("group")
    joined = await rig.join(broker, group, rebalance_timeout_ms=1500, session_timeout_ms=20_000)
    start = rig.clock.monotonic()

    async def out() -> bool:
        return await code_of(broker.heartbeat(membership(group, joined))) == 25

    await rig.until(out)
    assert 1.2 < rig.clock.monotonic() - start < 8


async def test_a_static_member_that_restarts_gets_its_place_back_without_a_rebalance(rig: Rig, broker: Broker) -> None:
    group, other, restarted = rig.name("group"), await rig.connect(), await rig.connect()
    one, two = await static_pair(rig, broker, other, group)
    again = await rig.join(restarted, group, instance="two")
    assert again.generation == two.generation
    assert again.member_id != two.member_id
    assert again.leader_id == one.member_id
    await broker.heartbeat(membership(group, one, "one"))
    assert await restarted.sync_group(membership(group, again, "two"), {}) == b"two"
    old = membership(group, two, "two")
    assert await code_of(other.heartbeat(old)) == 82
    assert await code_of(other.sync_group(old, {})) == 82
    assert await code_of(other.leave_group(old)) == 82
    assert await code_of(rig.join(other, group, member_id=two.member_id, instance="two")) == 82
    await restarted.heartbeat(membership(group, again, "two"))


async def test_a_static_leader_that_restarts_does_not_know_that_it_leads(rig: Rig, broker: Broker) -> None:
    group, other, restarted = rig.name("group"), await rig.connect(), await rig.connect()
    one, two = await static_pair(rig, broker, other, group)
    again = await rig.join(restarted, group, instance="one")
    assert (again.generation, again.leader_id, again.members) == (one.generation, one.member_id, ())
    assert not again.is_leader
    assert await restarted.sync_group(membership(group, again, "one"), {}) == b"one"
    await other.heartbeat(membership(group, two, "two"))
    # It does lead: when it joins once more, everybody has to.
    leading = asyncio.create_task(rig.join(restarted, group, member_id=again.member_id, instance="one"))
    await rig.until(lambda: state_is(other, group, "PreparingRebalance"))
    await rig.join(other, group, member_id=two.member_id, instance="two")
    assert (await leading).is_leader


async def test_a_static_member_that_restarts_while_others_join_is_part_of_the_new_generation(
    rig: Rig, broker: Broker
) -> None:
    group, other, restarted, third = rig.name("group"), await rig.connect(), await rig.connect(), await rig.connect()
    one, _ = await static_pair(rig, broker, other, group)
    joining = asyncio.create_task(rig.join(third, group, instance="three"))
    await rig.until(lambda: state_is(broker, group, "PreparingRebalance"))
    rejoining = asyncio.create_task(rig.join(restarted, group, instance="two"))
    await rig.clock.sleep(0.3)
    leader = await rig.join(broker, group, member_id=one.member_id, instance="one")
    new_two, three = await rejoining, await joining
    assert leader.generation == new_two.generation == three.generation == one.generation + 1
    assert {m.member_id for m in leader.members} == {one.member_id, new_two.member_id, three.member_id}


async def test_a_waiting_join_of_a_replaced_static_member_is_fenced(rig: Rig, broker: Broker) -> None:
    group, other, restarted, third = rig.name("group"), await rig.connect(), await rig.connect(), await rig.connect()
    _, two = await static_pair(rig, broker, other, group)
    joining = asyncio.create_task(rig.join(third, group, instance="three"))
    await rig.until(lambda: state_is(broker, group, "PreparingRebalance"))
    waiting = asyncio.create_task(code_of(rig.join(other, group, member_id=two.member_id, instance="two")))
    await rig.clock.sleep(0.3)
    replacing = asyncio.create_task(rig.join(restarted, group, instance="two"))
    assert await waiting == 82
    for task in (joining, replacing):
        task.cancel()


async def test_an_instance_id_is_not_lent_to_another_member_id(rig: Rig, broker: Broker) -> None:
    group, other = rig.name("group"), await rig.connect()
    one, two = await static_pair(rig, broker, other, group)
    swapped = membership(group, one, "two")
    assert await code_of(broker.heartbeat(swapped)) == 82
    assert await code_of(broker.leave_group(swapped)) == 82
    assert await code_of(broker.sync_group(swapped, {})) == 82
    await other.heartbeat(membership(group, two, "two"))


async def static_pair(rig: Rig, first: Broker, second: Broker, group: str) -> tuple[Joined, Joined]:
    """Static members "one", who leads, and "two", in a stable group."""
    alone = await rig.join(first, group, instance="one")
    await first.sync_group(membership(group, alone, "one"), {})
    joining = asyncio.create_task(rig.join(second, group, instance="two"))
    await rig.until(lambda: state_is(first, group, "PreparingRebalance"))
    one = await rig.join(first, group, member_id=alone.member_id, instance="one")
    two = await joining
    leader = first.sync_group(membership(group, one, "one"), {one.member_id: b"one", two.member_id: b"two"})
    await asyncio.gather(leader, second.sync_group(membership(group, two, "two"), {}))
    return one, two


async def test_a_static_member_that_restarts_with_other_metadata_disturbs_nobody_either(
    rig: Rig, broker: Broker
) -> None:
    # Brokers compare names of protocols here, not what a member says in them: the leader hears of the change only
    # with the next rebalance.
    group, other, restarted = rig.name("group"), await rig.connect(), await rig.connect()
    one, two = await static_pair(rig, broker, other, group)
    again = await rig.join(restarted, group, instance="two", metadata=b"changed")
    assert (again.generation, again.leader_id) == (two.generation, one.member_id)
    await broker.heartbeat(membership(group, one, "one"))
    info = await broker.describe_group(group)
    assert {m.instance_id: m.metadata for m in info.members} == {"one": b"metadata", "two": b"changed"}
