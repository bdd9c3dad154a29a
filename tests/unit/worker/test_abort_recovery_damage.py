"""A local copy of the state that is damaged: it is made anew from the changelogs, whoever meets the damage, and nothing lies."""

from __future__ import annotations

from typing import Any

import pytest

from semel.state.parked import ParkedLog
from semel.state.store import StoreError
from semel.web.view import Restoring
from semel.worker.metrics import exposition
from semel.worker.view import EngineView
from tests.unit.harness import APP, Worker, World
from tests.unit.payments import declared
from tests.unit.rot import damage

ANEW = "thrown away and made anew from the changelogs"


async def damaged(world: World, family: str) -> Worker:
    """A worker that comes back to a store whose blocks of this family changed meanwhile."""
    sent = world.pay_many(200)
    worker = world.start()
    await world.drained()
    await worker.stop()
    for event in sent:
        # Known ids all over the marks, rows all over the tables.
        world.write(event, event["account"])
    assert damage(world.path / "w1" / "db", family)
    return world.start()


@pytest.mark.parametrize("family", ["rows", "marks", "meta"])
async def test_a_damaged_block_costs_a_restore_and_no_event(
    world: World, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await damaged(world, family)
    world.pay_many(200)
    await world.drained()
    world.check()
    assert worker.engine.stats["rebuilds"] == 1
    assert ANEW in caplog.text
    assert worker.engine.paused_by == ""


async def test_a_store_that_is_found_damaged_at_the_start_counts_as_made_anew(world: World) -> None:
    world.pay_many(50)
    worker = world.start()
    await world.drained()
    await worker.stop()
    [manifest] = (world.path / "w1" / "db").glob("MANIFEST-*")
    manifest.write_bytes(manifest.read_bytes()[:20])
    worker = world.start()
    world.pay_many(50)
    await world.drained()
    world.check()
    assert worker.engine.stats["rebuilds"] == 1
    assert "semel_store_rebuilds_total" in exposition(worker.engine).decode()


async def test_a_damaged_store_is_mended_for_good(world: World) -> None:
    await damaged(world, "rows")
    world.pay_many(100)
    await world.drained()
    [worker] = world.workers.values()
    await worker.stop()
    again = world.start()
    world.pay_many(100)
    await world.drained()
    world.check()
    assert again.engine.stats["rebuilds"] == 0


@pytest.mark.parametrize(
    ("family", "ask"),
    [
        ("rows", lambda v: [v.count("balances", p, None, 1000) for p in range(2)]),
        ("rows", lambda v: [v.scan("balances", p, limit=1000) for p in range(2)]),
        ("rows", lambda v: [v.get("balances", f"a{n}", p) for p in range(2) for n in range(8)]),
        ("marks", lambda v: v.dedup(APP, ["p1"])),
    ],
    ids=["count", "scan", "row", "dedup"],
)
async def test_a_view_that_meets_the_damage_answers_no_part_of_the_truth_and_has_it_mended(
    world: World, family: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is parked; to look for it would meet the damage before the view does.
    monkeypatch.setattr(ParkedLog, "load", lambda log, now, wall_ms: setattr(log, "loaded", True))
    world.pay_many(200)
    worker = world.start()
    await world.drained()
    await worker.stop()
    assert damage(world.path / "w1" / "db", family)
    worker = world.start()
    await world.until_running(worker)
    view = EngineView(worker.engine)
    with pytest.raises(Restoring):
        ask(view)
    assert not view.readiness()[0]
    await world.until(lambda: worker.engine.stats["rebuilds"] == 1 and worker.engine.restored)
    ask(view)
    world.check()


async def test_a_write_that_meets_the_damage_is_done_again_on_a_copy_that_is_new(world: World) -> None:
    worker = world.start()
    world.pay_many(50)
    await world.drained()
    write = worker.store.write

    def compaction_failed(batch: Any) -> None:
        worker.store.write = write
        raise StoreError("RocksDB could not write: Corruption: block checksum mismatch", damaged=True)

    worker.store.write = compaction_failed
    world.pay_many(50)
    await world.drained()
    world.check()
    assert worker.engine.stats["rebuilds"] == 1


async def test_tables_keep_their_own_rows_when_a_store_made_anew_numbers_them_otherwise(world: World) -> None:
    """Numbers go to tables as they come: `balances` before `accounts` here, and by name where both are new at once."""
    world.pipeline = declared()
    world.pay("a1", 10)
    worker = world.start()
    await world.drained()
    await worker.stop()
    world.pipeline = declared(extra="accounts")
    worker = world.start()
    world.pay("a1", 5)
    await world.drained()
    write = worker.store.write

    def damaged_once(batch: Any) -> None:
        worker.store.write = write
        raise StoreError("Corruption", damaged=True)

    worker.store.write = damaged_once
    world.pay("a1", 1)
    await world.drained()
    assert worker.engine.stats["rebuilds"] == 1
    await worker.stop()
    worker = world.start()
    await world.until_running(worker)
    tasks = worker.engine.tasks.values()
    assert {int(v) for t in tasks for _, v in t.tables["balances"].scan()} == {16}
    assert {int(v) for t in tasks for _, v in t.tables["accounts"].scan()} == {2}
