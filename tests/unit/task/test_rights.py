"""What a worker may not do is said at its start, all of it, and nothing is begun."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, get_args

import pytest

from semel import Dedup, Pipeline, Table, Topic
from semel.codes import Code
from semel.errors import ConfigError
from semel.memory.faults import refuse
from semel.port import Right
from semel.task.rights import Missing, missing_on_topics, needed, refusal
from tests.unit.harness import APP, World

ALL: frozenset[Right] = frozenset(get_args(Right))


async def ended(worker: Any) -> BaseException | None:
    async with asyncio.timeout(60):
        return await worker.gone()


def shop() -> Any:
    return Pipeline(
        "shop", source=Topic("orders"), agent=lambda order: None, tables=[Table("sums")], sink=Topic("settled"),
        dead_letters=Topic("dlq.shop"), dedup=Dedup("id", window=timedelta(days=1)),
    ).plan()  # fmt: skip


def test_a_worker_reads_its_source_writes_results_and_dead_letters_and_does_both_with_its_state() -> None:
    rights: dict[str, set[str]] = {}
    for name, right, _ in needed(shop()):
        rights.setdefault(name, set()).add(right)
    both = {"Read", "Write"}
    assert rights == {
        "orders": {"Read"}, "settled": {"Write"}, "dlq.shop": {"Write"}, "shop-sums-changelog": both,
        "shop-dedup-changelog": both, "shop-parked": both, "shop-timers": both, "shop-positions": both,
    }  # fmt: skip


def test_what_a_broker_does_not_say_is_not_missing() -> None:
    plan = shop()
    assert missing_on_topics(plan, {}) == []
    given = {name: ALL for name, _, _ in needed(plan)}
    assert missing_on_topics(plan, given) == []
    given |= {"settled": ALL - {"Write"}, "shop-positions": frozenset()}
    assert [str(missing) for missing in missing_on_topics(plan, given)] == [
        "Write on the topic 'settled' (its results)",
        "Read on the topic 'shop-positions' (its state)",
        "Write on the topic 'shop-positions' (its state)",
    ]


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (Missing("Write", "topic", "settled", "its results"), "--operation Write --topic settled"),
        (Missing("Read", "group", "shop", "its group"), "--operation Read --group shop"),
        (Missing("Write", "transactional id", "shop-a", "its commits"), "--operation Write --transactional-id shop-a"),
    ],
)
def test_the_refusal_names_the_command_that_grants_it(missing: Missing, command: str) -> None:
    assert command in str(refusal("shop", [missing])) and "AUTHORIZATION_FAILED" in str(refusal("shop", [missing]))


@pytest.mark.parametrize(
    ("topic", "right"),
    [("settlements", "Write"), (f"{APP}.dlq", "Write"), ("payments", "Read"), (f"{APP}-positions", "Write"),
     (f"{APP}-dedup-changelog", "Read")],
)  # fmt: skip
async def test_a_worker_without_a_right_on_a_topic_ends_before_it_joins_its_group(
    world: World, topic: str, right: str
) -> None:
    world.pay_many(5)
    world.cluster.faults.deny(topic, right)
    calls: list[str] = []
    world.cluster.faults.script(lambda call: calls.append(call.api))
    error = await ended(world.start())
    assert "CreateTopics" in calls and "JoinGroup" not in calls
    assert isinstance(error, ConfigError)
    assert f"{right} on the topic {topic!r}" in str(error) and "kafka-acls --add" in str(error)
    world.cluster.faults.allow(topic)
    await world.until_running(world.start())
    await world.drained()


@pytest.mark.parametrize(
    ("api", "code", "words"),
    [("DescribeGroups", Code.GROUP_AUTHORIZATION_FAILED, f"Read on the group {APP!r}"),
     ("FindCoordinator", Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "Write on the transactional id")],
)  # fmt: skip
async def test_so_does_one_that_may_not_use_its_group_or_its_transactional_id(
    world: World, api: str, code: Code, words: str
) -> None:
    world.cluster.faults.script(lambda call: refuse(code) if call.api == api else None)
    error = await ended(world.start())
    assert isinstance(error, ConfigError) and words in str(error) and code.name in str(error)


async def test_all_that_is_missing_is_said_at_once(world: World) -> None:
    world.cluster.faults.deny("settlements", "Write")
    world.cluster.faults.deny(f"{APP}.dlq", "Write")
    error = await ended(world.start())
    assert "'settlements' (its results), Write on the topic" in str(error)


async def test_a_broker_that_does_not_answer_is_asked_again(world: World) -> None:
    world.pay_many(5)
    times = 3

    def busy(call: Any) -> Any:
        nonlocal times
        if call.api == "DescribeGroups" and times:
            times -= 1
            return refuse(Code.COORDINATOR_LOAD_IN_PROGRESS)
        return None

    world.cluster.faults.script(busy)
    await world.until_running(world.start())
    await world.drained()
    assert times == 0


async def test_a_right_that_is_taken_later_is_waited_for(world: World) -> None:
    await world.until_running(world.start())
    world.cluster.faults.deny("settlements", "Write")
    world.pay_many(5)
    await world.clock.sleep(5)
    world.cluster.faults.allow("settlements")
    await world.drained()
