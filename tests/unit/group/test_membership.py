"""Workers come, go, stand still, and are taken for dead: nothing crosses a generation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from semel.chaos.faults.zombie import FORGOTTEN
from semel.errors import InstanceTaken
from semel.group.assignor import Assignment, MemberInfo, decode_assignment, encode_assignment, encode_member
from semel.memory.broker import MemoryBroker
from semel.memory.faults import Call, delay, lose_request, refuse
from semel.plan import Plan
from semel.port import TP, GroupMember, MemberIdRequired, Membership
from semel.runtime.settings import EngineSettings
from semel.stages.sink.destination import ProducerRecord
from semel.state.store import Store
from semel.testing.worker import MemoryWorker
from semel.web.view import Restoring
from semel.worker.view import EngineView
from tests.unit.harness import APP, Payment, Worker, World, payments_pipeline

NOTES = TP("notes", 0)


async def feed(world: World, seconds: float) -> None:
    until = world.clock.monotonic() + seconds
    while world.clock.monotonic() < until:
        world.pay_many(6)
        await asyncio.sleep(0.03)


def owned(*workers: Worker) -> list[int]:
    return sorted(p for w in workers for p in w.engine.tasks)


# ---------------------------------------------------------------------- rebalances


async def test_a_worker_joins_with_the_topics_it_reads_so_that_its_offsets_do_not_expire(world: World) -> None:
    joined: list[object] = []

    def script(call: Call) -> None:
        if call.api == "JoinGroup":
            joined.append(call.args["topics"])

    world.cluster.faults.script(script)
    worker = world.start()
    await world.until_running(worker)
    assert joined and set(joined) == {("payments",)}


async def test_one_then_three_then_two_workers_share_the_work(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=6)
    world.slow_network(0.005)
    feeding = asyncio.create_task(feed(world, 40))
    first = world.start("w1")
    await world.until(lambda: owned(first) == list(range(6)))
    await asyncio.sleep(3)
    second, third = world.start("w2"), world.start("w3")
    await world.until(lambda: [len(w.engine.tasks) for w in (first, second, third)] == [2, 2, 2], within_s=30)
    assert owned(first, second, third) == list(range(6))
    await asyncio.sleep(5)
    second.kill()
    await second.gone()
    await world.until(lambda: owned(first, third) == list(range(6)), within_s=30)
    await feeding
    await world.drained()
    world.check()
    await world.close()


@pytest.mark.parametrize("point", ["barrier.before_seal", "barrier.after_seal", "commit.after_partitions",
                                   "commit.after_produce", "commit.after_offsets", "commit.after_end",
                                   "commit.before_store", "commit.after_store"])  # fmt: skip
@pytest.mark.parametrize("held_s", [0.5, 20.0], ids=["within the deadline", "past the deadline"])
async def test_a_rebalance_amid_a_commit_takes_or_drops_the_epoch_whole(
    world: World, point: str, held_s: float
) -> None:
    first = world.start("w1", commit_timeout_ms=60_000, handler_timeout_ms=500)
    await world.until_running(first)
    world.pay_many(40)
    reached, go = first.hold_at(point, 2)
    while not reached.is_set():
        world.pay_many(4)
        await asyncio.sleep(0.02)
    second = world.start("w2")
    await asyncio.sleep(held_s)
    go.set()
    world.pay_many(40)
    await world.until(lambda: owned(first, second) == [0, 1] and bool(second.engine.tasks), within_s=120)
    await world.drained()
    world.check()


async def test_a_worker_that_stops_hands_over_a_clean_place(world: World) -> None:
    first = world.start("w1", leave_on_stop=True)
    world.pay_many(60)
    await asyncio.sleep(0.2)
    await first.stop()
    began = world.clock.monotonic()
    second = world.start("w2")
    await world.until_running(second)
    # It left: nobody waits for its session.
    assert world.clock.monotonic() - began < 1
    await world.drained()
    world.check()


async def test_nothing_restores_any_more_when_a_worker_has_stopped(world: World) -> None:
    first = world.start("w1", commit_timeout_ms=60_000, revoke_timeout_ms=200)
    await world.until_running(first)
    world.pay_many(40)
    reached, go = first.hold_at("commit.after_produce")
    await reached.wait()
    # It is told to stop amid a commit, and to take over something before it has.
    first.engine.stop()
    second = world.start("w2")
    await world.until(lambda: first.engine.stats["rebalances"] == 2, within_s=30)
    go.set()
    await asyncio.wait({first.running})
    assert [t for t in asyncio.all_tasks() if t.get_name() == "take over" and first.engine in locals_of(t)] == []
    await first.gone()
    await world.until(lambda: owned(second) == [0, 1], within_s=60)
    await world.drained()
    world.check()


def locals_of(task: asyncio.Task[None]) -> list[object]:
    return [value for frame in task.get_stack() for value in frame.f_locals.values()]


async def test_a_static_member_that_restarts_moves_nobodys_tasks(world: World) -> None:
    first, second = world.start("w1", web_url="http://w1"), world.start("w2")
    await world.until(lambda: [len(w.engine.tasks) for w in (first, second)] == [1, 1])
    before = (owned(first), second.engine.stats["rebalances"])
    world.pay_many(40)
    await first.stop()
    first = world.start("w1", web_url="http://w1")
    await world.until_running(first)
    await world.drained()
    assert (owned(first), second.engine.stats["rebalances"]) == before
    world.check()


async def test_a_worker_that_dropped_an_epoch_takes_a_new_writer_also_when_it_then_owns_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=1)
    first = world.start("w1", session_timeout_ms=6_000, commit_timeout_ms=600_000, revoke_timeout_ms=600_000)
    await world.until_running(first)
    reached, go = first.hold_at("commit.after_produce")
    world.pay("a1", 1)
    await reached.wait()
    world.cluster.faults.pause(first.client)
    # In the order of names it comes first, so that it keeps what it took.
    other = world.start("a1")
    await world.until(lambda: owned(other) == [0], within_s=60)
    inits: list[str] = []

    def watch(call: Call) -> None:
        if call.api == "InitProducerId":
            inits.append(call.client)

    world.cluster.faults.script(watch)
    go.set()
    world.cluster.faults.resume(first.client)
    await world.until(lambda: first.engine.stats["rebalances"] == 2, within_s=60)
    await asyncio.sleep(2)
    assert first.engine.tasks == {}
    assert first.client in inits
    world.pay_many(10)
    await world.drained()
    world.check()
    await world.close()


# ---------------------------------------------------------------------- zombies


@pytest.mark.parametrize("has", ["an event in hand", "a sealed epoch", "an output without an event", "nothing"])
async def test_a_zombie_that_wakes_writes_nothing(world: World, has: str) -> None:
    world.cluster.create_topic("notes", 1)
    # It stands still for longer than its session: whatever bounds its own steps must not end them first.
    first = world.start("w1", commit_timeout_ms=600_000, revoke_timeout_ms=600_000, session_timeout_ms=6_000)
    await world.until_running(first)
    world.pay_many(40)
    await world.drained()
    done: asyncio.Future[None] | None = None
    if has == "an event in hand":
        stand = asyncio.Event()

        async def stop_here(payment: object) -> None:
            await stand.wait()

        world.work.before = stop_here
        world.pay("a1", 5)
        await asyncio.sleep(0.05)
        world.work.before = None
    elif has == "a sealed epoch":
        reached, go = first.hold_at("barrier.after_seal")
        world.pay("a1", 5)
        await reached.wait()
    world.cluster.faults.pause(first.client)
    if has == "an output without an event":
        done = first.engine.outbox(ProducerRecord(NOTES, None, b"k", b"zombie", ()))
    second = world.start("w2")
    world.pay_many(60)
    await world.until(lambda: owned(second) == [0, 1], within_s=60)
    await world.until_running(second)
    await asyncio.sleep(3)
    if has == "an event in hand":
        stand.set()
    elif has == "a sealed epoch":
        go.set()
    world.cluster.faults.resume(first.client)
    world.pay_many(30)
    await world.until_running(first, second)
    await world.drained()
    world.check()
    if done is not None:
        # It is a member again: now the output counts, and once.
        await asyncio.wait_for(done, 30)
        assert [r.value for r in world.cluster.committed("notes")[0]] == [b"zombie"]


async def test_a_zombies_commit_is_refused_by_the_generation_not_by_luck(world: World) -> None:
    """Its whole transaction goes through but for the offsets: there it is told that it is nobody."""
    first = world.start("w1", commit_timeout_ms=600_000, revoke_timeout_ms=600_000, session_timeout_ms=6_000)
    await world.until_running(first)
    reached, go = first.hold_at("commit.before_partitions")
    world.pay("a1", 5)
    await reached.wait()
    world.cluster.faults.pause(first.client)
    second = world.start("w2")
    home = world.place("a1").partition
    await world.until(lambda: world.committed_positions()[home].topics["payments"].next > 0, within_s=60)
    assert owned(second) == [0, 1]
    go.set()
    world.cluster.faults.resume(first.client)
    await world.until(lambda: first.engine.stats["aborts"] >= 1, within_s=30)
    world.pay_many(20)
    await world.drained()
    world.check()


async def test_a_lost_session_drops_what_is_open_and_starts_over(world: World) -> None:
    first = world.start("w1")
    await world.until_running(first)
    feeding = asyncio.create_task(feed(world, 20))
    await asyncio.sleep(1)
    world.cluster.faults.add("Heartbeat", lose_request(), times=None)
    await world.until(lambda: first.engine.stats["rebalances"] >= 2, within_s=60)
    world.cluster.faults.clear()
    await feeding
    await world.drained()
    world.check()


async def test_a_session_that_ends_amid_a_commit_costs_the_epoch_and_nothing_else(world: World) -> None:
    first = world.start("w1", commit_timeout_ms=60_000)
    await world.until_running(first)
    world.pay_many(30)
    world.cluster.faults.add("TxnOffsetCommit", delay(there_s=1.5), times=1)
    world.cluster.faults.add("Heartbeat", refuse(25), times=1)
    await asyncio.sleep(5)
    world.pay_many(30)
    await world.drained()
    world.check()


# ---------------------------------------------------------------------- one name, two workers (rule 16)


async def test_a_writer_of_the_same_id_fences_the_first_which_proves_its_membership_and_goes_on(world: World) -> None:
    first = world.start("w1")
    await world.until_running(first)
    stranger = await world.connected("stranger")
    await stranger.init_producer_id(f"{APP}-w1", 10_000)
    world.pay_many(40)
    await world.drained()
    assert first.engine.stats["fences"] == 1
    assert first.engine.stats["rebalances"] == 2
    world.check()


async def test_a_writer_that_is_fenced_twice_within_a_minute_gives_its_name_up(world: World) -> None:
    first = world.start("w1")
    await world.until_running(first)
    stranger = await world.connected("stranger")
    for _ in range(2):
        await stranger.init_producer_id(f"{APP}-w1", 10_000)
        world.pay_many(10)
        await asyncio.sleep(2)
    error = await first.gone()
    assert isinstance(error, InstanceTaken) and "--instance" in str(error)
    world.start("w2")
    await world.drained(within_s=60)
    world.check()


async def test_a_worker_that_was_thought_dead_twice_within_a_minute_keeps_its_name(world: World) -> None:
    first = world.start("w1", session_timeout_ms=6_000, commit_timeout_ms=60_000, revoke_timeout_ms=60_000)
    second = world.start("w2")
    await world.until(lambda: [len(w.engine.tasks) for w in (first, second)] == [1, 1])
    for _ in range(2):
        # It stands still within a commit; the other one, waiting for its transaction, fences it by name.
        world.pay_many(20)
        reached, go = first.hold_at("commit.after_produce")
        await world.until(reached.is_set)
        world.cluster.faults.pause(first.client)
        await world.until(lambda: owned(second) == [0, 1], within_s=60)
        await world.until_running(second)
        go.set()
        world.cluster.faults.resume(first.client)
        await world.until(lambda: [len(w.engine.tasks) for w in (first, second)] == [1, 1], within_s=60)
        await world.until_running(first, second)
    world.pay_many(20)
    await world.drained()
    assert not first.over
    world.check()


async def test_a_worker_that_the_group_has_at_an_old_address_is_heard_though_it_said_all_before(world: World) -> None:
    """Seed 903110: what a coordinator had written of it was all that it had to say, and it joined for ever."""
    first = world.start("w1")
    await world.until_running(first)
    second = world.start("w2")
    await world.until(lambda: [len(w.engine.tasks) for w in (first, second)] == [1, 1])
    await world.until_running(first, second)
    second.engine.group.request_rejoin()
    await world.until(lambda: second.engine.stats["rebalances"] == 2)
    group = world.cluster.groups.group(APP)
    assert group is not None
    [member] = [m for m in group.members.values() if m.instance_id == f"{APP}-w2"]
    assert member.member_id != group.leader
    old = decode_assignment(member.assignment)
    there = {task: (owner, "http://elsewhere" if owner == "w2" else url) for task, (owner, url) in old.owners.items()}
    member.assignment = encode_assignment(Assignment(old.tasks, old.partitions, there))
    second.engine.group.request_rejoin()
    await world.until(lambda: second.engine.stats["rebalances"] == 3)
    await world.until_running(first, second)
    assert {url for owner, url in first.engine.assignment.owners.values() if owner == "w2"} == {
        second.engine.settings.web_url
    }
    world.pay_many(10)
    await world.drained()
    world.check()


async def test_a_worker_that_slept_while_another_did_its_work_and_retention_took_it_is_no_trimmed_one(
    world: World,
) -> None:
    first = world.start("w1", session_timeout_ms=6_000)
    second = world.start("w2")
    await world.until(lambda: [len(w.engine.tasks) for w in (first, second)] == [1, 1])
    await world.until_running(first, second)
    [task] = first.engine.tasks
    world.cluster.faults.pause(first.client)
    await world.until(lambda: owned(second) == [0, 1], within_s=60)
    await world.until_running(second)
    world.pay_many(40)
    log = world.cluster.log(TP("payments", task))
    await world.until(lambda: len(world.committed_positions()) == 2)
    await world.until(lambda: world.committed_positions()[task].topics["payments"].next == log.end)
    log.delete_before(log.end)
    # It reads on before the group tells it.
    world.cluster.faults.add("Heartbeat", delay(1.0), when=lambda call: call.client == first.client, times=3)
    world.cluster.faults.resume(first.client)
    await world.until(lambda: [len(w.engine.tasks) for w in (first, second)] == [1, 1], within_s=60)
    await world.until_running(first, second)
    assert not first.over
    world.pay_many(10)
    await world.drained()


@pytest.mark.parametrize("address", ["", "http://elsewhere"], ids=["same address", "another address"])
async def test_a_second_worker_of_the_same_instance_ends_the_first_with_its_own_error(
    world: World, address: str
) -> None:
    first = world.start("w1", web_url="")
    await world.until_running(first)
    # The first must hear of it however long the second takes between one join and the next.
    world.cluster.faults.add("JoinGroup", delay(1.5), when=lambda call: call.client == "twin", times=None, skip=1)
    world.pay_many(30)
    twin = twin_of("w1", world, web_url=address)
    async with asyncio.timeout(90):
        assert isinstance(await first.gone(), InstanceTaken)
    world.pay_many(30)
    await world.drained()
    world.check()
    twin.engine.stop()
    assert await twin.gone() is None


@pytest.mark.parametrize("woken_last", [True, False], ids=["the frozen one joins last", "its replacement joins last"])
async def test_of_two_of_one_name_that_the_group_forgot_the_last_to_join_goes_on_and_the_other_ends(
    world: World, woken_last: bool
) -> None:
    first = world.start("w1")
    await world.until_running(first)
    world.cluster.faults.pause(first.client)
    twin = twin_of("w1", world)
    await world.until(lambda: bool(twin.engine.tasks))
    world.cluster.faults.pause("twin")
    await world.until(lambda: not members(world))
    world.pay_many(30)
    loser, goes_on = (twin, first) if woken_last else (first, twin)
    last = first.client if woken_last else "twin"
    # Both have heard that they are unknown when the first of them joins.
    world.cluster.faults.add("JoinGroup", delay(1.5), when=lambda call: call.client == last)
    world.cluster.faults.resume(first.client)
    world.cluster.faults.resume("twin")
    async with asyncio.timeout(90):
        assert isinstance(await loser.gone(), InstanceTaken)
    world.pay_many(30)
    await world.drained()
    world.check()
    assert not goes_on.over
    twin.engine.stop()
    await twin.gone()


async def test_a_worker_that_the_group_has_forgotten_says_so_before_it_takes_its_name_anew(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """`semel chaos` goes by that: else it has taken its name from somebody whom the group knew."""
    first = world.start("w1")
    await world.until_running(first)

    def said(since: int) -> bool:
        return FORGOTTEN.search("\n".join(caplog.messages[since:])) is not None

    began = len(caplog.messages)
    world.cluster.faults.add("Heartbeat", refuse(25))
    await world.until(lambda: first.engine.stats["rebalances"] == 2)
    assert said(began)
    began = len(caplog.messages)
    world.cluster.faults.add("Heartbeat", refuse(82))
    await world.until(lambda: first.engine.stats["rebalances"] == 3)
    assert not said(began), "the group has it by its own id"
    began = len(caplog.messages)
    world.cluster.faults.add("JoinGroup", refuse(82))
    world.cluster.faults.pause(first.client)
    await world.until(lambda: not members(world))
    world.cluster.faults.resume(first.client)
    world.cluster.faults.add("Heartbeat", refuse(82))
    await world.until(lambda: first.engine.stats["rebalances"] == 4)
    assert said(began)


def members(world: World) -> tuple[GroupMember, ...]:
    """Those whose session is not over."""
    world.cluster.timers.run_due()
    return world.cluster.groups.describe(APP).members


def twin_of(name: str, world: World, **settings: str) -> MemoryWorker:
    """Another process of that name, on a disk of its own."""
    return MemoryWorker(
        name, world.plan(), MemoryBroker(world.cluster, "twin"), Store(world.path / "twin" / "db"), world.clock, world.rng,
        EngineSettings(**settings),
    )  # fmt: skip


@pytest.mark.parametrize("api", ["JoinGroup", "SyncGroup", "Heartbeat", "TxnOffsetCommit"])
async def test_wherever_it_hears_that_its_name_is_taken_a_worker_ends(world: World, api: str) -> None:
    points = {
        "JoinGroup": "group.before_join",
        "SyncGroup": "group.after_join",
        "TxnOffsetCommit": "commit.after_produce",
    }
    first = world.start("w1")
    await world.until_running(first)
    if api in points:
        reached, go = first.hold_at(points[api])
        if api == "TxnOffsetCommit":
            world.cluster.faults.add(
                "Heartbeat", delay(30.0), when=lambda call: call.client == first.client, times=None
            )
            world.pay_many(10)
        else:
            world.cluster.move_coordinator("group", APP)
            first.engine.group.request_rejoin()
        await world.until(reached.is_set)
    await join_as("w1", world)
    if api in points:
        go.set()
    async with asyncio.timeout(90):
        error = await first.gone()
    assert isinstance(error, InstanceTaken) and "--instance" in str(error)


async def test_a_worker_that_is_refused_for_long_says_why_every_few_seconds_not_at_each_attempt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.start("w1")
    await world.until_running(first)
    with caplog.at_level("INFO", logger="semel"):
        await join_as("w1", world)
        began = world.clock.monotonic()
        async with asyncio.timeout(90):
            await first.gone()
    said = sum("joining the group" in line for line in caplog.messages)
    assert 2 <= said <= 1 + (world.clock.monotonic() - began) / 5


async def join_as(name: str, world: World) -> None:
    """Another process joins under a worker's name, and lives on."""
    stranger = await world.connected("stranger")
    before = world.cluster.groups.describe(APP).members

    async def join() -> None:
        joined = await stranger.join_group(
            APP, "", f"{APP}-{name}", b"", session_timeout_ms=10_000, rebalance_timeout_ms=10_000
        )
        membership = Membership(APP, joined.generation, joined.member_id, f"{APP}-{name}")
        await stranger.sync_group(membership, {})
        while True:
            await asyncio.sleep(1)
            await stranger.heartbeat(membership)

    world.others.append(asyncio.create_task(join()))
    await world.until(lambda: world.cluster.groups.describe(APP).members != before)


@pytest.mark.parametrize("api", ["JoinGroup", "SyncGroup", "Heartbeat", "TxnOffsetCommit"])
async def test_a_worker_that_is_told_its_name_is_taken_but_has_it_goes_on(world: World, api: str) -> None:
    first = world.start("w1")
    if api in ("Heartbeat", "TxnOffsetCommit"):
        await world.until_running(first)
    told: list[Call] = []
    world.cluster.faults.add(api, refuse(82), when=lambda call: told.append(call) is None)
    world.pay_many(10)
    await world.until(lambda: bool(told))
    await world.drained()
    assert not first.over
    world.check()


@pytest.mark.parametrize("point", ["group.after_join", "group.after_sync"])
@pytest.mark.parametrize("lapsed", [False, True], ids=["within the session", "after the session"])
async def test_workers_that_a_new_coordinator_knows_by_former_ids_keep_their_names(
    world: World, point: str, lapsed: bool
) -> None:
    first, second = world.start("w1"), world.start("w2")
    await world.until_running(first, second)
    world.pay_many(30)
    # While a third one joins, both come back as newcomers, as after a broker was away for long: under new ids...
    for worker in (first, second):
        world.cluster.faults.add("Heartbeat", refuse(25), when=lambda call, of=worker.client: call.client == of)
    reached, go = first.hold_at(point)
    third = world.start("w3")
    await world.until(reached.is_set)
    # ...and the coordinator dies before, or after, that is written.
    world.cluster.move_coordinator("group", APP)
    if lapsed:
        await asyncio.sleep(30)
    go.set()
    world.pay_many(30)
    await world.until(lambda: sorted(len(w.engine.tasks) for w in (first, second, third)) == [0, 1, 1], within_s=60)
    await world.drained()
    assert not any(worker.over for worker in (first, second, third))
    world.check()


@pytest.mark.parametrize("lost", [False, True], ids=["with its disk", "without its disk"])
async def test_a_worker_that_comes_back_while_a_coordinator_dies_keeps_the_name_of_its_former_process(
    world: World, lost: bool
) -> None:
    first, second = world.start("w1"), world.start("w2")
    await world.until_running(first, second)
    second.kill()
    await second.gone()
    if lost:
        world.lose_store("w2")
    third = world.start("w3")
    again = world.start("w2")
    reached, go = again.hold_at("group.after_join")
    await world.until(reached.is_set)
    world.cluster.move_coordinator("group", APP)
    go.set()
    world.pay_many(30)
    await world.until(lambda: sorted(len(w.engine.tasks) for w in (first, again, third)) == [0, 1, 1], within_s=60)
    await world.drained()
    assert not again.over
    world.check()


@pytest.mark.parametrize("app", ["pay", "pay-eu", "pay-", "pay-eu-"])
@pytest.mark.parametrize("instance", ["w1", "eu-w1", "-w1", "eu", "eu--w1"])
def test_no_two_apps_and_instances_share_a_transactional_id(app: str, instance: str) -> None:
    own = Plan(app).transactional_id(instance)
    assert Plan(app).is_writer(own)
    for other in ("pay", "pay-eu", "pay-", "pay-eu-"):
        for name in ("w1", "eu-w1", "-w1", "eu", "eu--w1"):
            if (other, name) != (app, instance):
                assert Plan(other).transactional_id(name) != own
        assert Plan(other).is_writer(own) == (other == app)


# ---------------------------------------------------------------------- a disk that is full


@pytest.mark.parametrize("times", [1, 3])
async def test_a_full_disk_after_the_commit_stops_work_until_there_is_room(world: World, times: int) -> None:
    first = world.start("w1")
    await world.until_running(first)
    world.pay_many(40)
    await world.drained()
    first.fail_writes(times)
    world.pay_many(40)
    await world.until(lambda: "no space" in first.engine.paused_by)
    await world.drained()
    world.pay_many(40)
    await world.drained()
    assert first.engine.paused_by == ""
    world.check()


async def test_a_store_that_missed_a_commit_is_read_by_nobody_until_it_has_it(world: World) -> None:
    first = world.start("w1")
    world.pay("a1", 10)
    await world.drained()
    view, (_, p) = EngineView(first.engine), world.place("a1")
    answers: list[object] = []

    def read() -> object:
        try:
            row = view.get("balances", "a1", p)
        except Restoring:
            return "restoring"
        return row.value if row is not None else None

    def committed() -> int:
        changelog = world.cluster.committed(f"{APP}-balances-changelog")[p]
        return orjson.loads(changelog[-1].value or b"")

    assert read() == committed() == 10
    # Kafka has the epoch, the store does not, and for a while cannot be brought up to it either.
    first.fail_writes(6)
    world.pay("a1", 5)
    await world.until(lambda: committed() == 15)
    world.pay("a1", 1)
    while "no space" in first.engine.paused_by or not world.is_drained():
        answers.append(read())
        if committed() == 15:
            assert answers[-1] in ("restoring", 15)
        await asyncio.sleep(0.01)
    assert answers.count("restoring") > 100
    assert read() == 16
    world.check()


async def test_a_store_that_cannot_be_read_blames_no_event(world: World) -> None:
    first = world.start("w1")
    await world.until_running(first)
    for n in range(10):
        world.pay(f"a{n}", 1)
    await world.drained()
    get_marks, left = first.store.get_marks, 3

    def broken(prefix: bytes, ids: object) -> object:
        nonlocal left
        if left:
            left -= 1
            raise first.store.failed("read from", OSError("input/output error"))
        return get_marks(prefix, ids)  # type: ignore[arg-type]

    first.store.get_marks = broken  # type: ignore[assignment,method-assign]
    world.pay_many(40, trouble=False)
    await world.drained()
    assert left == 0
    world.check()


# ---------------------------------------------------------------------- members that are none of ours


async def join_with(world: World, broker: MemoryBroker, metadata: bytes, decide: bytes | None = None) -> bool:
    """Join the group with these bytes; what a leader assigns to everybody is `decide`. True where it led."""
    member_id = ""
    await broker.start()
    while True:
        try:
            joined = await broker.join_group(
                APP, member_id, None, metadata,
                session_timeout_ms=30_000, rebalance_timeout_ms=60_000, topics=("payments",),
            )  # fmt: skip
        except MemberIdRequired as exc:
            member_id = exc.member_id
            continue
        membership = Membership(APP, joined.generation, joined.member_id, None)
        shares = {} if decide is None else {m.member_id: decide for m in joined.members}
        await broker.sync_group(membership, shares if joined.is_leader else {})
        return joined.is_leader


@pytest.mark.parametrize("metadata", [
    b"{not json", b"[1]", b"null", b"\xff", b"[" * 50_000, b'{"topics":null,"instance":null,"url":null,"tasks":null}',
    b'{"topics":[],"instance":7,"url":"","tasks":["x"],"anew":0}', b'{"url":5}', b"1" * (2 << 20),
], ids=lambda raw: repr(raw[:20]))  # fmt: skip
async def test_a_member_that_is_no_worker_gets_no_task_and_the_leader_goes_on(
    world: World, metadata: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.start("w1")
    await world.until_running(worker)
    world.pay_many(20)
    stranger = MemoryBroker(world.cluster, "stranger")
    assert not await join_with(world, stranger, metadata)
    await world.until(lambda: worker.engine.stats["rebalances"] == 2)
    await world.until_running(worker)
    world.pay_many(20)
    await world.drained()
    assert owned(worker) == [0, 1]
    said = [r.getMessage() for r in caplog.records if "no worker of semel" in r.getMessage()]
    assert len(said) == 1 and APP in said[0] and len(said[0]) < 600 and "\n" not in said[0]
    world.check()


async def test_workers_of_one_app_that_read_other_topics_are_named_by_the_leader_and_by_whom_it_leads(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.start("w1")
    await world.until_running(worker)
    stranger = MemoryBroker(world.cluster, "stranger")
    await join_with(world, stranger, b'{"topics":["orders"],"instance":"w2","url":"","tasks":[],"anew":0}')
    await world.until(lambda: worker.engine.stats["rebalances"] == 2)
    await world.clock.sleep(1)
    [line] = [r.getMessage() for r in caplog.records if "different programs" in r.getMessage()]
    assert "w1 reads 'payments'" in line and "w2 reads 'orders'" in line


def mixtures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "the same topics and run different programs" in r.getMessage()]


def another_program(world: World) -> None:
    """What starts from here on has an agent of another name."""

    def audit(payment: Payment) -> None: ...

    world.pipeline = payments_pipeline(world.work, make=lambda tables: audit)


async def test_workers_of_one_app_with_other_agents_on_the_same_topics_are_named_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.start("w1")
    await world.until_running(first)
    another_program(world)
    second = world.start("w2")
    await world.until(lambda: len(owned(first)) == len(owned(second)) == 1)
    [line] = mixtures(caplog)
    assert "workers of 'payments'" in line and "w1 with settle (" in line and "w2 with audit (" in line
    assert "While an upgrade is under way that is in order" in line and "an id of its own" in line
    await world.clock.sleep(120)
    world.start("w3")
    await world.until(lambda: first.engine.stats["rebalances"] == 3)
    assert mixtures(caplog) == [line]


async def test_workers_of_one_program_and_of_versions_that_do_not_say_theirs_are_no_mixture(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = world.start("w1"), world.start("w2")
    await world.until(lambda: len(owned(first)) == len(owned(second)) == 1)
    before = b'{"topics":["payments"],"instance":"w0","url":"","tasks":[],"anew":0}'
    rebalances = first.engine.stats["rebalances"]
    await join_with(world, MemoryBroker(world.cluster, "before"), before)
    await world.until(lambda: first.engine.stats["rebalances"] > rebalances)
    await world.clock.sleep(1)
    assert mixtures(caplog) == []


async def test_an_upgrade_worker_by_worker_is_said_once_by_each_that_leads_it_and_ends_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, partitions=6)
    names = ["w1", "w2", "w3"]
    workers = {name: world.start(name) for name in names}
    await world.until_running(*workers.values())
    another_program(world)
    for name in names:
        await workers[name].stop()
        workers[name] = world.start(name)
        await world.clock.sleep(120)
        await world.until_running(*workers.values())
    lines = mixtures(caplog)
    assert 1 <= len(lines) <= 2
    caplog.clear()
    workers["w4"] = world.start("w4")
    await world.until_running(*workers.values())
    assert mixtures(caplog) == []
    await world.close()


@pytest.mark.parametrize("decided", [b"{not json", b"[1]", b'{"tasks":[7],"partitions":{"payments":2}}',
                                     b'{"tasks":["x"]}', b'{"owners":{"0":null}}'], ids=repr)  # fmt: skip
async def test_a_leader_that_is_no_worker_is_waited_out(
    world: World, decided: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = MemoryBroker(world.cluster, "stranger")
    assert await join_with(world, stranger, b"{}", decided)
    worker = world.start("w1")
    rejoined = asyncio.create_task(join_with(world, stranger, b"{}", decided))
    assert await rejoined
    await asyncio.sleep(20)
    assert not worker.over and not owned(worker)
    said = [r for r in caplog.records if "is not semel's" in r.getMessage()]
    assert 1 <= len(said) <= 6
    assert "is not semel's" in EngineView(worker.engine).readiness()[1]["group"]
    # The stranger's session ends.
    await world.until(lambda: owned(worker) == [0, 1], within_s=120)
    world.pay_many(20)
    await world.drained()
    world.check()


async def test_a_member_that_takes_a_worker_s_name_does_not_keep_it_from_its_work(world: World) -> None:
    worker = world.start("w1")
    await world.until_running(worker)
    liar = encode_member(MemberInfo("", ("payments",), "w1", "http://elsewhere", (), 0))
    assert not await join_with(world, MemoryBroker(world.cluster, "liar"), liar)
    await world.until(lambda: len(owned(worker)) == 1, within_s=20)
    await world.until_running(worker)


async def test_a_group_that_another_program_uses_is_named_until_it_is_free(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.cluster.faults.add("JoinGroup", refuse(23), times=40)
    worker = world.start()
    await world.until(lambda: worker.engine.group is not None and worker.engine.group.refused != "")
    ready, said = EngineView(worker.engine).readiness()
    assert not ready
    assert said["group"].startswith(f"group '{APP}' is in use by another program, a consumer with this group.id")
    await world.until_running(worker)
    assert EngineView(worker.engine).readiness()[0]
    lines = [r for r in caplog.records if "in use by another program" in r.getMessage()]
    assert 1 <= len(lines) <= 4


# ---------------------------------------------------------------------- while the loop is held


async def test_what_a_thread_was_answered_counts_for_the_membership_it_asked_for(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    group = worker.engine.group
    assert group is not None
    mine = group.to_keep
    assert mine is not None and mine is group.membership
    at = group.last_answer_at
    group.kept(mine._replace(generation=mine.generation - 1), at + 50)
    assert group.last_answer_at == at
    group.kept(mine, at - 50)
    assert group.last_answer_at == at
    group.kept(mine, at + 50)
    assert group.last_answer_at == at + 50 and not group.silent


async def test_a_session_that_a_thread_has_kept_is_not_lost_by_who_held_the_loop(world: World) -> None:
    """As the event's handler blocks for six sessions, the thread asks for one after the other."""
    loop, blocked = asyncio.get_running_loop(), list[str]()

    async def before(payment: Payment) -> None:
        if payment.amount != 7 or blocked:
            return
        blocked.append(payment.id)
        [worker] = world.workers.values()
        for _ in range(12):
            loop.advance(5.0)  # type: ignore[attr-defined]
            group, membership = worker.engine.group, worker.engine.membership
            assert group is not None and membership is not None
            group.kept(membership, world.clock.monotonic())
            # The group's own clock is that of this loop: to it the member was never silent.
            world.cluster.groups.heartbeat(membership)

    world.work.before = before
    worker = world.start()
    await world.until_running(worker)
    world.pay_many(10, trouble=False)
    world.pay("a1", 7, id="blocks")
    world.pay_many(10, trouble=False)
    await world.drained(within_s=300)
    assert blocked and world.work.handled.count("blocks") == 1
    assert worker.engine.stats["rebalances"] == 1
    world.check()


async def test_a_thread_keeps_nothing_that_the_loop_is_about_to_give_up(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    group = worker.engine.group
    assert group is not None and group.to_keep is not None
    before = group.membership
    group.request_rejoin()
    assert group.to_keep is None
    await world.until(lambda: group.to_keep is not None)
    assert group.to_keep is not before
    group.stop()
    assert group.to_keep is None


async def test_a_thread_keeps_the_session_while_work_is_given_up(world: World) -> None:
    """As the loop itself does: an event that holds it then would cost what is to be committed."""
    first = world.start("w1")
    await world.until_running(first)
    group = first.engine.group
    assert group is not None
    mine, kept = group.membership, list[Membership | None]()

    async def look() -> None:
        kept.append(group.to_keep)

    first.failpoints.hooks["revoke.begin"] = first.failpoints.hooks["revoke.end"] = look
    world.start("w2")
    await world.until(lambda: len(kept) >= 2 and group.to_keep is not None)
    assert kept[:2] == [mine, mine] and group.to_keep is not mine
