"""Where a task starts: what the position record, the store and the group say (rule 10)."""

from __future__ import annotations

import asyncio

import pytest

from semel.errors import PositionConflict, TopicChanged
from semel.plan import Plan
from semel.port import EARLIEST, LATEST, TP, TopicInfo
from semel.state.positions import UNKNOWN, Position, TopicPosition
from semel.task.restore import BEHIND_S
from semel.task.start_position import begun, ends_to_begin_at, resumed_at, unplaced
from semel.task.topic_identity import of_a_life_that_is_over
from tests.unit.harness import APP, World, payments_pipeline


async def test_a_group_that_somebody_moved_is_an_error_that_names_the_choices(world: World) -> None:
    await world.settled()
    await asyncio.sleep(15)
    world.move_group({TP("payments", 0): 3})
    error = await world.fate(world.start())
    assert isinstance(error, PositionConflict)
    assert "3" in str(error) and "semel reset" in str(error)
    # Moved back, it goes on where it was.
    await asyncio.sleep(15)
    world.move_group({TP("payments", 0): world.committed_positions()[0].topics["payments"].next})
    world.pay_many(10)
    world.start()
    await world.drained()
    world.check()


async def test_a_coordinator_that_has_not_loaded_all_its_offsets_yet_is_asked_again(world: World) -> None:
    await world.settled()
    world.pay_many(300)
    worker = world.start()
    await world.drained()
    await worker.stop()
    own = world.cluster.groups._offsets[APP]
    own.former = {TP("payments", p): (-1, 40) for p in (0, 1)}
    world.cluster.move_coordinator("group", APP, behind_s=BEHIND_S / 2)
    groups, tps = world.cluster.groups, [TP("payments", p) for p in (0, 1)]
    assert groups.answered_offsets(APP, tps) != groups.stable_offsets(APP, tps), "it is not behind"
    world.pay_many(10)
    world.start()
    await world.drained()
    world.check()


async def test_a_coordinator_that_still_says_what_was_before_a_reset_is_asked_again(world: World) -> None:
    await world.settled()
    await world.reset()
    own = world.cluster.groups._offsets[APP]
    own.former = {TP("payments", p): (-1, 40) for p in (0, 1)}
    world.cluster.move_coordinator("group", APP, behind_s=BEHIND_S / 2)
    world.start()
    await world.drained()


async def test_group_offsets_that_expired_do_not_matter(world: World) -> None:
    await world.settled()
    await asyncio.sleep(15)
    world.cluster.groups._offsets[APP].visible.clear()
    world.pay_many(10)
    world.start()
    await world.drained()
    world.check()


async def test_offsets_of_another_consumer_are_adopted_only_when_told_to(world: World) -> None:
    world.pay_many(40, trouble=False)
    world.move_group({TP("payments", 0): 5, TP("payments", 1): 5})
    error = await world.fate(world.start())
    assert isinstance(error, PositionConflict) and "--adopt" in str(error)
    await asyncio.sleep(15)
    world.start(adopt=True)
    await world.drained()
    history = world.position_history()
    assert all(found[0].topics["payments"].next >= 5 for found in history if found)
    done = sum(found[-1].counts["in"] for found in history)
    assert done == sum(len(log) for log in world.cluster.committed("payments")) - 10


async def test_a_task_that_begins_at_the_latest_record_begins_there_once(world: World) -> None:
    world.pipeline = payments_pipeline(world.work, start="latest")
    world.pay_many(40)
    worker = world.start()
    await world.until_running(worker)
    await asyncio.sleep(1)
    worker.kill()
    await worker.gone()
    # These came after it began, though it had done nothing yet.
    sent = [world.pay("a1", 1), world.pay("a2", 1)]
    world.start()
    await world.until(lambda: sum(len(log) for log in world.cluster.committed("settlements")) == len(sent), within_s=30)


@pytest.mark.parametrize(
    "stored, first, over",
    [
        ({"payments": "old"}, {"payments": ("new", 1)}, True),
        ({"orders": "old"}, {"payments": ("new", 1)}, True),
        # Of this life; there when the reset began it; of a source that is yet another; nobody says.
        ({"payments": "new"}, {"payments": ("new", 1)}, False),
        ({"payments": "old"}, {"payments": ("new", 2)}, False),
        ({"payments": "old"}, {"payments": ("newer", 1)}, False),
        ({"payments": "old"}, None, False),
    ],
)
def test_what_a_store_alone_knows_of_a_partition_is_over_only_where_the_app_began_anew_without_it(
    stored: dict[str, str], first: dict[str, tuple[str, int]] | None, over: bool
) -> None:
    local = Position({name: TopicPosition(topic_id, 3, 5) for name, topic_id in stored.items()})
    told = first and Position({name: TopicPosition(i, 3, 0, born=born) for name, (i, born) in first.items()})
    topics = {"payments": TopicInfo("payments", "new", 3)}
    assert of_a_life_that_is_over(1, ["payments"], local, told or None, topics) is over


FROM_NOW = Plan("payments", start="latest")
FROM_THE_START = Plan("payments", start="earliest")


def at(next: int = -1, *, id: str = "a", partitions: int = 4, born: int = 0) -> TopicPosition:
    return TopicPosition(id, partitions, next, born=born)


def test_a_task_begins_where_the_declaration_says_in_every_topic_that_it_never_was_at() -> None:
    position = Position({"clicks": at(), "payments": at(7)})
    assert unplaced(2, position) == [TP("clicks", 2)]
    assert ends_to_begin_at(FROM_NOW, 2, position, None) == {TP("clicks", 2): LATEST}
    assert ends_to_begin_at(FROM_THE_START, 2, position, None) == {TP("clicks", 2): EARLIEST}


@pytest.mark.parametrize(("partition", "end"), [(1, LATEST), (2, EARLIEST), (3, EARLIEST)])
def test_a_partition_that_came_after_the_app_is_read_from_its_first_record(partition: int, end: int) -> None:
    first = Position({"clicks": at(100, born=2)})
    assert ends_to_begin_at(FROM_NOW, partition, Position({"clicks": at()}), first) == {TP("clicks", partition): end}


def test_a_topic_that_the_first_task_does_not_know_is_new_to_the_app() -> None:
    first = Position({"payments": at(100, born=1)})
    assert ends_to_begin_at(FROM_NOW, 3, Position({"clicks": at()}), first) == {TP("clicks", 3): LATEST}


def test_where_the_first_task_was_of_another_topic_nothing_begins() -> None:
    with pytest.raises(TopicChanged, match="deleted and created again"):
        ends_to_begin_at(FROM_NOW, 3, Position({"clicks": at()}), Position({"clicks": at(100, id="b")}))


def test_where_a_task_has_begun_is_noted_and_what_it_was_at_stays() -> None:
    position = begun(2, Position({"clicks": at(), "payments": at(7)}), {TP("clicks", 2): 40}, None)
    assert [(t, p.next, p.first) for t, p in position.topics.items()] == [("clicks", 40, 40), ("payments", 7, -1)]
    assert position.counts["in"] == 0


@pytest.mark.parametrize(
    ("cursors", "former", "resumes"),
    [({}, {}, None), ({}, {"audit": 30}, 30), ({}, {"audit": UNKNOWN}, None), ({}, {"audit": 50}, None),
     ({"audit": 60}, {"audit": 50}, 50)],
    ids=["never left", "behind the others", "not noted", "where the others are", "ahead of the others since"],
)  # fmt: skip
def test_an_agent_that_comes_back_goes_on_where_it_stood(
    cursors: dict[str, int], former: dict[str, int], resumes: int | None
) -> None:
    assert resumed_at(TopicPosition("a", 4, 50, cursors, former=former), "audit") == resumes
