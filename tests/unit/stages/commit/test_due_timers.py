"""Due timers: what is due joins the epoch; what its topic does not take stays pending, and holds up nobody else (rule 25)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from semel.memory.faults import Call, Fault, refuse
from semel.port import TP
from semel.worker.metrics import exposition
from tests.unit.harness import APP, Worker, World


def reminded(world: World) -> list[str]:
    if "reminders" not in world.cluster.topics():
        return []
    logs = world.cluster.committed("reminders")
    return sorted(orjson.loads(r.value or b"")["id"] for records in logs for r in records)


def pending(world: World) -> int:
    return sum(at.timers for at in world.committed_positions().values())


async def set_all(world: World, count: int, remind_ms: int, **more: Any) -> Worker:
    worker = world.start()
    for n in range(count):
        world.pay(f"a{n % 5}", 1, id=f"p{n:03}", remind_ms=remind_ms, **more)
    await world.drained()
    assert pending(world) == count
    return worker


async def restarted(worker: Worker, world: World) -> Worker:
    worker.kill()
    await worker.gone()
    again = world.start()
    await world.until_running(again)
    return again


def ids(count: int) -> list[str]:
    return [f"p{n:03}" for n in range(count)]


async def test_one_that_its_topic_does_not_take_stays_pending_and_holds_up_no_other(world: World) -> None:
    """Somebody lowers what the topic takes while one is pending."""
    worker = await set_all(world, 8, 20_000)
    world.pay("b" * 500, 1, id="large", remind_ms=20_000)
    await world.drained()
    await restarted(worker, world)
    world.cluster.alter_topic("reminders", {"max.message.bytes": "500"})
    again = [*world.workers.values()][-1]
    again.engine._read_topics_anew()
    again.engine.start_over()
    await world.until(lambda: reminded(world) == ids(8), within_s=40)
    await world.until(lambda: bool(again.engine.timers.held_up), within_s=5)
    [why] = again.engine.timers.held_up.values()
    assert "max.message.bytes" in why
    world.pay("a1", 5)
    await world.drained()
    world.cluster.alter_topic("reminders", {"max.message.bytes": "100000"})
    again.engine._read_topics_anew()
    again.engine.start_over()
    await world.until(lambda: reminded(world) == sorted(["large", *ids(8)]), within_s=40)
    assert pending(world) == 0
    assert again.engine.timers.held_up == {}


@pytest.mark.parametrize("code", [10, 87])
async def test_one_that_the_broker_refuses_is_found_and_costs_neither_events_nor_others(
    world: World, code: int
) -> None:
    worker = await set_all(world, 8, 3_000)

    def script(call: Call) -> Fault | None:
        if call.api == "Produce" and refusing:
            for tp, data in call.args["batches"].items():
                if tp.topic == "reminders" and b'"p003"' in data:
                    return refuse(code)
        return None

    refusing = True
    world.cluster.faults.script(script)
    for _ in range(40):
        world.pay(amount=2)
    await world.until(lambda: reminded(world) == [i for i in ids(8) if i != "p003"], within_s=60)
    await world.drained()
    assert worker.engine.paused_by == ""
    assert [*worker.engine.timers.held_up.values()] != []
    refusing = False
    await world.until(lambda: reminded(world) == ids(8), within_s=60)
    world.check()


async def test_a_topic_that_no_event_names_after_a_restart_is_sent_to_all_the_same(world: World) -> None:
    worker = await set_all(world, 6, 5_000)
    again = await restarted(worker, world)
    assert "reminders" not in again.engine.topics.destinations
    await world.until(lambda: reminded(world) == ids(6), within_s=20)
    # An event that names it brings its types.
    world.pay("a1", 1, id="later", remind_ms=100)
    await world.until(lambda: "later" in reminded(world), within_s=20)
    assert again.engine.topics.destinations["reminders"].named


async def test_what_is_due_at_once_takes_as_many_epochs_as_it_needs(tmp_path: Path) -> None:
    # A sixteenth of it is one epoch's.
    world = World(tmp_path, memory_budget_bytes=1 << 20)
    try:
        worker = await set_all(world, 600, 10_000)
        before = worker.engine.stats["commits"]
        await world.until(lambda: reminded(world) == ids(600), within_s=60)
        assert worker.engine.stats["commits"] - before >= 3
    finally:
        await world.close()


async def test_lateness_and_what_is_pending_are_exported(world: World) -> None:
    worker = await set_all(world, 10, 5_000)
    assert 'semel_timers_pending{partition="0",pipeline="payments"} ' in exposition(worker.engine).decode()
    await world.until(lambda: reminded(world) == ids(10), within_s=20)
    await world.until(lambda: worker.engine.timers.lateness.sum > 0 or sum(worker.engine.timers.lateness.counts) == 10)
    assert sum(worker.engine.timers.lateness.counts) == 10
    said = exposition(worker.engine).decode()
    assert 'semel_timers_lateness_seconds_count{pipeline="payments"} 10.0' in said
    sent = [line for line in said.splitlines() if line.startswith("semel_timers_sent_total{")]
    assert sum(float(line.split()[-1]) for line in sent) == 10
    # No later than an idle worker commits.
    assert worker.engine.timers.lateness.sum / 10 < 0.1


async def test_a_clock_that_is_set_forward_is_seen_within_a_second(world: World) -> None:
    await set_all(world, 4, 3_600_000)
    world.clock.jump(3_600)
    began = world.clock.monotonic()
    await world.until(lambda: reminded(world) == ids(4), within_s=5)
    assert world.clock.monotonic() - began < 1.2


async def test_the_log_of_timers_is_empty_again_when_all_are_sent(world: World) -> None:
    worker = await set_all(world, 20, 2_000)
    await world.until(lambda: reminded(world) == ids(20), within_s=20)
    await worker.stop()
    for p in range(world.partitions):
        rows: dict[bytes, bytes | None] = {}
        for record in world.cluster.committed(f"{APP}-timers")[p]:
            rows[record.key or b""] = record.value
        assert not any(rows.values())
    assert world.cluster.log(TP(f"{APP}-timers", 0)).end > 0
