"""Agents that end oddly or fail on purpose, for as long as they are told to; oddly never so often that an event is given up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel import Pipeline, Retry, Topic
from semel.errors import OutsideEvent
from semel.stages.agent import handler_faults
from semel.stages.agent.handler_faults import DOWN_ON_PURPOSE, Done, HandlerFaults, done, order
from semel.state.event_context import EventContext
from tests.unit.harness import APP, Payment, Worker, World, committed_values, payments_pipeline

STYLES = ["stream", "coroutine", "batches", "function"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_faults, "BLOCKS_S", (0.001,))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "odd"
    order(made, 0.0)
    return made


def start(world: World, file: Path) -> Worker:
    """A worker as `open_engine` makes one."""
    odd = HandlerFaults(file)
    plan: Callable[[], Any] = world.pipeline.plan
    world.plan = lambda: odd.around(plan())
    worker = world.start()
    worker.engine.each_slot(odd.inject)
    return worker


def dead(world: World) -> list[str]:
    letters = [r for p in range(world.partitions) for r in committed_values(world.cluster, f"{APP}.dlq", p)]
    return [(dict(r.headers)["semel.error"] or b"").decode() for r in letters]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(4))
async def test_every_odd_attempt_is_undone_and_tried_again(world: World, file: Path, style: str, seed: int) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = start(world, file)
    await world.until_running(worker)
    order(file, 0.5, seed)
    for _ in range(12):
        # A batch is one attempt.
        world.pay_many(15, trouble=False)
        await world.drained()
    world.check()
    assert not worker.over
    assert not dead(world)
    did = done(file)
    assert min(did.ended, did.held, did.outlived) > 0
    assert (did.swallowed > 0) <= (style in ("stream", "batches"))


async def test_errors_are_swallowed_around_a_streaming_agent_s_loop(world: World, file: Path) -> None:
    worker = start(world, file)
    await world.until_running(worker)
    for seed in range(6):
        order(file, 0.3, seed)
        world.pay_many(40, trouble=False)
        await world.drained()
    world.check()
    assert done(file).swallowed > 0
    assert not worker.over


async def test_without_an_order_nothing_is_odd(world: World, file: Path) -> None:
    worker = start(world, file)
    await world.until_running(worker)
    world.pay_many(100)
    await world.drained()
    world.check()
    order(file, 1.0)
    order(file, 0.0)
    world.pay_many(100)
    await world.drained()
    world.check()
    assert done(file) == Done()


@pytest.mark.parametrize(
    "retry", [Retry(attempts=2), Retry(attempts=5, transient=(OSError,)), Retry(attempts=5, fatal=(BaseException,))]
)
async def test_an_event_that_would_not_be_tried_again_does_not_fail_by_it(
    world: World, file: Path, retry: Retry
) -> None:
    async def settle(payments: Any) -> Any:
        async for payment in payments:
            yield {"id": payment.id}

    world.pipeline = Pipeline(
        APP, source=Topic("payments", key=str, value=Payment), agent=settle, sink=Topic("settlements", value=dict), retry=retry
    )  # fmt: skip
    worker = start(world, file)
    await world.until_running(worker)
    order(file, 1.0, 5)
    world.pay_many(100, trouble=False)
    await world.drained()
    assert not dead(world)
    assert done(file).held > 0
    if retry.attempts == 2:
        assert done(file).ended == 0


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", ["events", "keys"])
async def test_events_whose_dependency_is_down_fail_for_as_long_as_it_is(
    world: World, file: Path, style: str, mode: handler_faults.Mode
) -> None:
    world.pipeline = payments_pipeline(world.work, style=style)
    worker = start(world, file)
    await world.until_running(worker)
    order(file, 0.3, 1, mode)
    sent = [world.pay(f"a{n % 8}", 1) for n in range(80)]
    await world.clock.sleep(2)
    order(file, 0.0)
    await world.drained()
    letters = [r for p in range(world.partitions) for r in committed_values(world.cluster, f"{APP}.dlq", p)]
    failed = [r for r in letters if dict(r.headers)["semel.reason"] == b"failed"]
    assert done(file) == Done(down=done(file).down) and done(file).down > len(failed) > 0
    assert all(DOWN_ON_PURPOSE.encode() in (dict(r.headers)["semel.error"] or b"") for r in failed)
    if mode == "keys":
        assert {r.key for r in failed} < {event["account"].encode() for event in sent}
    assert len(committed_values(world.cluster, "settlements", 0)) + len(
        committed_values(world.cluster, "settlements", 1)
    ) == len(sent) - len(failed)
    assert not worker.over


async def test_a_late_write_that_is_let_through_would_be_missed(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine without its guard: rows go, which the check of every row sees."""
    worker = start(world, file)
    await world.until_running(worker)
    guarded = EventContext.rows

    def unguarded(context: EventContext, name: str) -> Any:
        try:
            return guarded(context, name)
        except OutsideEvent:
            return context.tables[name]

    monkeypatch.setattr(EventContext, "rows", unguarded)
    order(file, 0.3, 1)
    world.pay_many(100, trouble=False)
    await world.clock.sleep(20)
    with pytest.raises(AssertionError):
        world.check()


def test_orders_and_counts_outlive_the_process_that_had_them(file: Path) -> None:
    order(file, 0.5, 7)
    HandlerFaults(file)._count("swallowed")
    HandlerFaults(file)._count("ended")
    order(file, 0.0)
    assert done(file) == Done(ended=1, swallowed=1)
