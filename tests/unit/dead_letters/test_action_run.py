from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from semel.dead_letters.action_run import ActionRun, ActionRuns, Asked, Busy
from semel.dead_letters.catalogue import PacedOperator
from semel.dead_letters.decisions import Selection
from semel.dead_letters.operator import Operator, Why
from semel.port import TP
from tests.unit.dead_letters.shelf import GROUP, Shelf

ADA = Why("ada", "mended")


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def runs(shelf: Shelf) -> AsyncIterator[ActionRuns]:
    async def make() -> Operator:
        async def pace(seconds: float) -> None:
            await asyncio.sleep(0)

        broker = shelf.connection()
        await broker.start()
        return PacedOperator(broker, shelf.clock, shelf.plan, shelf.settings, pace)

    made = ActionRuns(make, shelf.clock)
    yield made
    await made.close()


def asked(action="replay", selection: Selection | None = None, **more) -> Asked:
    return Asked(action, selection or Selection(), ADA, more.pop("rate", 100_000.0), more.pop("wait_s", 0.0), **more)


async def until(run: ActionRun, holds: Callable[[dict], bool] = lambda said: said["state"] != "running") -> dict:
    async with asyncio.timeout(20):
        while not holds(run.to_json()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return run.to_json()


def replayed(shelf: Shelf) -> int:
    return sum(
        len(entry.records)
        for p in range(2)
        for entry in shelf.cluster.find(TP("payments", p))._entries
        if entry.outcome == "committed" and not entry.control
    )


async def test_letters_are_replayed_and_it_is_said_how_many(shelf: Shelf, runs: ActionRuns) -> None:
    for number in range(30):
        shelf.put(number % 2)
    said = await until(runs.begin(asked(keep_going=True)))
    assert (said["state"], said["letters"], said["by"], said["reason"]) == ("done", 30, "ada", "mended")
    assert replayed(shelf) == 30
    assert {(e.action, e.by) for e in shelf.audited()} == {("replay", "ada")}
    again = await until(runs.begin(asked()))
    assert (again["state"], "nothing to do" in again["error"]) == ("failed", True)
    assert [run.asked.action for run in runs.all()] == ["replay", "replay"]


async def test_one_that_is_told_to_stop_has_done_what_the_audit_says_and_no_more(
    shelf: Shelf, runs: ActionRuns
) -> None:
    for _ in range(600):
        shelf.put()
    run = runs.begin(asked(rate=100.0, keep_going=True))
    await until(run, lambda said: said["letters"] >= 100)
    with pytest.raises(Busy, match=run.id):
        runs.begin(asked())
    run.stop()
    said = await until(run)
    assert said["state"] == "stopped"
    told = sum(entry.count for entry in shelf.audited())
    assert 100 <= told < 600
    assert replayed(shelf) == told
    # Who goes on begins where it stopped.
    assert (await until(runs.begin(asked(keep_going=True))))["letters"] == 600 - told
    assert replayed(shelf) == 600


async def test_it_stops_by_itself_where_nobody_takes_what_it_replays(shelf: Shelf, runs: ActionRuns) -> None:
    for _ in range(50):
        shelf.put()
    said = await until(runs.begin(asked(wait_s=0.1)))
    assert (said["state"], said["letters"]) == ("stopped", 20)
    assert "no worker of" in said["stopped"]


async def test_one_that_is_stopped_before_it_began_is_stopped(shelf: Shelf, runs: ActionRuns) -> None:
    shelf.put()
    run = runs.begin(asked())
    run.stop()
    assert (await until(run))["state"] == "stopped"
    runs.begin(asked("drop"))


async def test_an_edit_is_of_one_letter_and_of_its_own_event(shelf: Shelf, runs: ActionRuns) -> None:
    shelf.put(value=b'{"id": "p", "account": "a", "amount": "x"}')
    at = Selection(at=(0, 0))
    value = b'{"id":"p","account":"a","amount":7}'
    wrong = await until(runs.begin(asked("edit", at, value=b'{"id": 1}')))
    assert (wrong["state"], "not what the topic declares" in wrong["error"]) == ("failed", True)
    said = await until(runs.begin(asked("edit", at, value=value)))
    assert (said["state"], said["letters"], said["letter"]) == ("done", 1, "0@0")
    [entry] = shelf.audited()
    assert entry.action == "edit" and set(entry.more) == {"before", "after", "dedup_id", "hold"}
    again = await until(runs.begin(asked("edit", at, value=value)))
    assert (again["state"], "done with the letter since" in again["error"]) == ("failed", True)


async def test_an_edit_that_would_be_another_event_is_refused_unless_it_is_meant(
    shelf: Shelf, runs: ActionRuns
) -> None:
    shelf.put(value=b'{"id": "p", "account": "a", "amount": 1}')
    other = b'{"id":"q","account":"a","amount":1}'
    refused = await until(runs.begin(asked("edit", Selection(at=(0, 0)), value=other)))
    assert "another event" in refused["error"]
    meant = await until(runs.begin(asked("edit", Selection(at=(0, 0)), value=other, new_id=True, hold=True)))
    assert (meant["state"], meant["letters"]) == ("done", 1)
    assert replayed(shelf) == 0, "it is held"


async def test_groups_are_dropped_and_archived(shelf: Shelf, runs: ActionRuns) -> None:
    for _ in range(3):
        shelf.put()
        shelf.put(group="other")
    dropped = await until(runs.begin(asked("drop", Selection(group=GROUP))))
    hidden = await until(runs.begin(asked("archive", Selection(group="other"))))
    assert (dropped["state"], dropped["letters"], hidden["state"]) == ("done", 3, "done")
    assert [(e.action, dict(e.groups)) for e in shelf.audited()] == [("drop", {GROUP: 3}), ("archive", {"other": 3})]
    gone = await until(runs.begin(asked("archive", Selection(group="unknown"))))
    assert (gone["state"], "no letter of the group" in gone["error"]) == ("failed", True)


async def test_who_acts_elsewhere_ends_it(shelf: Shelf, runs: ActionRuns) -> None:
    for _ in range(300):
        shelf.put()
    run = runs.begin(asked(rate=50.0, keep_going=True))
    await until(run, lambda said: said["letters"] >= 40)
    broker = shelf.connection()
    await broker.start()
    other = Operator(broker, shelf.clock, shelf.plan, shelf.settings)
    await other.open()
    said = await until(run)
    assert (said["state"], "another `semel dlq`" in said["error"]) == ("failed", True)
