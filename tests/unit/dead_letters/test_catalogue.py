from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from semel.dead_letters import catalogue as module
from semel.dead_letters.catalogue import Catalogue, PacedOperator
from semel.dead_letters.decisions import Selection
from semel.dead_letters.operator import Why
from semel.dead_letters.reading import NoLetters
from semel.memory.broker import MemoryBroker
from semel.port import TP
from tests.unit.dead_letters.shelf import GROUP, LETTERS, Shelf


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


class Paces:
    """Counts the steps; each lets others run."""

    def __init__(self) -> None:
        self.steps = 0
        self.at_step: dict[int, asyncio.Event] = {}

    async def __call__(self, seconds: float) -> None:
        assert 0 <= seconds <= module.STEP_S_MAX
        self.steps += 1
        await asyncio.sleep(0)


@pytest.fixture
def pace() -> Paces:
    return Paces()


@pytest.fixture
async def catalogue(shelf: Shelf, pace: Paces) -> AsyncIterator[Catalogue]:
    broker = shelf.connection()
    await broker.start()
    made = Catalogue(broker, shelf.clock, shelf.plan, shelf.settings, pace)
    yield made
    await made.close()
    await broker.close()


async def operator(shelf: Shelf, pace: Paces, catalogue: Catalogue | None = None) -> PacedOperator:
    broker = shelf.connection()
    await broker.start()
    index = None if catalogue is None else catalogue.index
    made = PacedOperator(broker, shelf.clock, shelf.plan, shelf.settings, pace, index)
    await made.open()
    return made


async def test_only_what_came_since_is_read_again(shelf: Shelf, catalogue: Catalogue, pace: Paces) -> None:
    for number in range(400):
        shelf.put(number % 2)
    progress = await catalogue.refresh()
    assert (progress.complete, progress.done, progress.total, catalogue.index.letters) == (True, 400, 400, 400)
    assert pace.steps >= 8, "in steps"
    shelf.put()
    before = pace.steps
    progress = await catalogue.refresh()
    assert (progress.total, catalogue.index.letters) == (1, 401)
    assert pace.steps == before + 1


async def test_what_is_done_elsewhere_is_seen(shelf: Shelf, catalogue: Catalogue, pace: Paces) -> None:
    places = [shelf.put() for _ in range(3)]
    await catalogue.refresh()
    by = await operator(shelf, pace)
    await by.mark_all("drop", Selection(at=(0, 1)), Why("ada", "a test"))
    await catalogue.refresh()
    assert catalogue.index.open == 2
    document = await catalogue.document(TP(LETTERS, 0), 1)
    assert (document["position"], document["state"]) == (places[1], "drop")
    assert [(e["action"], e["by"], e["reason"], e["letters"]) for e in document["history"]] == [
        ("drop", "ada", "a test", 1)
    ]
    entries, more = await catalogue.entries(None)
    assert [(e["action"], e["groups"]) for e in entries] == [("drop", {GROUP: 1})]
    assert more is None


async def test_the_audit_is_paged_from_its_end(shelf: Shelf, catalogue: Catalogue, pace: Paces, monkeypatch) -> None:
    monkeypatch.setattr(module, "AUDIT_ENTRIES", 3)
    for _ in range(8):
        shelf.put()
    by = await operator(shelf, pace)
    for offset in range(8):
        await by.mark_all("drop", Selection(at=(0, offset)), Why("ada", f"n{offset}"))
    await catalogue.refresh()
    seen: list[str] = []
    before = None
    while True:
        entries, before = await catalogue.entries(before)
        seen += [entry["reason"] for entry in entries]
        if before is None:
            break
    assert seen == [f"n{offset}" for offset in reversed(range(8))]


async def test_letters_of_a_group_come_in_pages_with_key_and_error(shelf: Shelf, catalogue: Catalogue) -> None:
    for number in range(7):
        shelf.put(number % 2, at_ms=1_000 + number, key=b"k%d" % number, error=f"no {number}")
        shelf.put(number % 2, group="other")
    await catalogue.refresh()
    rows, after = await catalogue.rows(GROUP, 4, done=False, upto=None)
    assert [row["key"] for row in rows] == ["k6", "k5", "k4", "k3"]
    assert rows[0]["error"] == "no 6" and rows[0]["state"] == "open" and rows[0]["fingerprint"] == GROUP
    rows, after = await catalogue.rows(GROUP, 4, done=False, upto=after)
    assert ([row["key"] for row in rows], after) == (["k2", "k1", "k0"], None)


async def test_a_search_goes_through_everything_a_part_at_a_time(
    shelf: Shelf, catalogue: Catalogue, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_WINDOW", 10)
    monkeypatch.setattr(module, "SEARCHED_OFFSETS", 40)
    for number in range(200):
        shelf.put(number % 2, trace="at needle" if number in (3, 150) else "at hay", key=b"key-%d" % number)
    await catalogue.refresh()
    found, upto, questions = [], None, 0
    while True:
        rows, passed, upto = await catalogue.search("needle", 50, upto)
        found += rows
        questions += 1
        assert passed <= 40
        if upto is None:
            break
    assert ([row["key"] for row in found], questions) == (["key-150", "key-3"], 5)
    rows, _, _ = await catalogue.search("key-77", 50, {0: 200, 1: 200})
    assert [row["key"] for row in rows] == []
    rows, _, _ = await catalogue.search("key-199", 50, None)
    assert [row["key"] for row in rows] == ["key-199"]


async def test_a_topic_that_is_made_anew_is_read_anew(shelf: Shelf, catalogue: Catalogue) -> None:
    shelf.put()
    await catalogue.refresh()
    assert catalogue.index.letters == 1
    broker: MemoryBroker = shelf.connection()
    await broker.start()
    await broker.delete_topics([(await broker.topics([LETTERS]))[LETTERS]])
    with pytest.raises(NoLetters):
        await catalogue.refresh()
    shelf.cluster.create_topic(LETTERS, 2)
    await catalogue.refresh()
    assert catalogue.index.letters == 0
    shelf.put()
    await catalogue.refresh()
    assert catalogue.index.letters == 1


async def test_a_refresh_that_takes_long_goes_on_while_others_ask(
    shelf: Shelf, catalogue: Catalogue, monkeypatch
) -> None:
    for _ in range(300):
        shelf.put()
    progress = await catalogue.refresh(patience_s=0)
    assert not progress.complete
    async with asyncio.timeout(10):
        while not (await catalogue.refresh(patience_s=0.01)).complete:
            pass
    assert catalogue.index.letters == 300


async def test_a_group_is_found_without_reading_everything(shelf: Shelf, catalogue: Catalogue, pace: Paces) -> None:
    for number in range(3_000):
        shelf.put(group="rare" if number in (5, 6, 2_500) else GROUP)
    await catalogue.refresh()
    by = await operator(shelf, pace, catalogue)
    before = pace.steps
    done = await by.mark_all("drop", Selection(group="rare"), Why("ada"))
    assert done.letters == 3
    assert pace.steps - before < 10
    assert [t.offsets for t in shelf.audited()[-1].letters] == ["5-6,2500"]
    await catalogue.refresh()
    assert [(g["fingerprint"], g["count"]) for g in catalogue.index.groups("done")] == [("rare", 3)]


async def test_a_commit_is_finished_though_it_is_cancelled(shelf: Shelf, pace: Paces) -> None:
    shelf.put()
    by = await operator(shelf, pace)
    acting = asyncio.create_task(by.mark_all("drop", Selection(), Why("ada")))
    while by.logs and not acting.done():
        await asyncio.sleep(0)
        if any(task.get_coro().__qualname__ == "Operator.commit" for task in asyncio.all_tasks()):  # type: ignore[union-attr]
            break
    acting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acting
    assert [entry.action for entry in shelf.audited()] == ["drop"]
