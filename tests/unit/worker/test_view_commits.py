"""What the views show while an epoch is open: what is committed, and nothing of the epoch before all of it is."""

from __future__ import annotations

from typing import Any

import pytest

from semel.port import TP
from semel.worker.view import EngineView
from tests.unit.harness import APP, World


def shown(view: EngineView, partition: int) -> dict[str, Any]:
    row = view.get("balances", "a1", partition)
    page = view.scan("balances", partition)
    known = view.dedup(APP, ["second"])
    [pipeline] = view.pipelines()
    [at] = [task["position"]["payments"] for task in pipeline["tasks"] if task["partition"] == partition]
    return {
        "row": None if row is None else row.value,
        "rows": {found.key: found.value for found in page.rows},
        "second is known": known != [],
        "position": at,
        "done": pipeline["counts"]["in"],
        "results": pipeline["outputs"],
    }


@pytest.mark.parametrize("point", ["barrier.before_seal", "commit.after_produce", "commit.after_offsets"])
async def test_a_view_shows_nothing_of_an_epoch_that_is_not_committed(world: World, point: str) -> None:
    worker = world.start()
    world.pay("a1", 10, id="first")
    await world.drained()
    partition = world.place("a1").partition
    view = EngineView(worker.engine)
    before = {"row": 10, "rows": {"a1": 10}, "second is known": False, "position": 1, "done": 1,
              "results": {"settlements": 1}}  # fmt: skip
    assert shown(view, partition) == before
    reached, go = worker.hold_at(point)
    world.pay("a1", 5, id="second")
    await reached.wait()
    # Handled, and (but for the first point) written, in a transaction that is open.
    assert world.work.handled == ["first", "second"]
    open_ones = world.cluster.log(TP(f"{APP}-balances-changelog", partition)).open_transactions()
    assert bool(open_ones) == (point != "barrier.before_seal")
    assert shown(view, partition) == before
    go.set()
    await world.drained()
    after = shown(view, partition)
    assert (after["row"], after["rows"], after["second is known"], after["done"]) == (15, {"a1": 15}, True, 2)
    assert after["results"] == {"settlements": 2}
    world.check()


async def test_a_view_never_shows_an_epoch_that_is_dropped(world: World) -> None:
    first = world.start()
    world.pay("a1", 10, id="first")
    await world.drained()
    partition = world.place("a1").partition
    reached = first.kill_at("commit.after_offsets")
    world.pay("a1", 5, id="second")
    await reached.wait()
    await first.gone()
    # The one who comes after it finds neither the row nor the id, until it has done the event itself.
    second = world.start()
    held, go = second.hold_at("barrier.before_seal")
    await held.wait()
    found = shown(EngineView(second.engine), partition)
    assert (found["row"], found["second is known"], found["done"]) == (10, False, 1)
    go.set()
    await world.drained()
    assert shown(EngineView(second.engine), partition)["row"] == 15
    world.check()
