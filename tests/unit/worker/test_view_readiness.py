"""What a worker says of itself while it takes its tasks over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semel.state.task import TaskState
from semel.web.view import NotOwned, Restoring
from semel.worker.view import EngineView
from tests.unit.harness import APP, Worker, World


def looks(worker: Worker, *, most: int = 20_000) -> Iterator[EngineView]:
    """Its view again and again until all its tasks run; whoever iterates lets a moment pass between."""
    view = EngineView(worker.engine)
    for _ in range(most):
        yield view
        tasks = worker.engine.tasks
        if len(tasks) == 2 and all(task.state is TaskState.RUNNING for task in tasks.values()):
            return
    raise AssertionError(f"it never ran: {worker.world.state()}")


async def started_without_its_disk(world: World) -> Worker:
    """A worker that has everything to restore, over a network on which that takes a while."""
    worker = world.start()
    world.pay("a1", 10, id="first")
    world.pay_many(50)
    await world.drained()
    await worker.stop()
    world.lose_store(worker.name)
    world.slow_network(0.05)
    return world.start()


async def test_a_worker_is_not_ready_before_each_of_its_tasks_runs(world: World) -> None:
    worker = await started_without_its_disk(world)
    said: set[str] = set()
    for view in looks(worker):
        ready, what = view.readiness()
        said |= what.keys()
        assert not ready or {p: t.state for p, t in worker.engine.tasks.items()} == dict.fromkeys(
            (0, 1), TaskState.RUNNING
        )
        await world.clock.sleep(0.001)
    assert view.readiness() == (True, {"tasks": [0, 1]})
    assert said >= {"group", "restoring"}


async def test_a_known_id_is_never_called_unknown_while_its_marks_are_restored(world: World) -> None:
    worker = await started_without_its_disk(world)
    answers = 0
    for view in looks(worker):
        try:
            assert view.dedup(APP, ["first"])
        except (Restoring, NotOwned):
            answers += 1
        await world.clock.sleep(0.001)
    assert answers
    [known] = view.dedup(APP, ["first"])
    assert known is not None and known["verdict"] == "known"
    assert view.dedup(APP, ["nobody's"]) == []


async def test_an_id_is_not_called_unknown_by_a_worker_that_is_not_assigned_yet(world: World) -> None:
    worker = world.start()
    with pytest.raises(NotOwned):
        EngineView(worker.engine).dedup(APP, ["first"])
    await world.until_running(worker)
