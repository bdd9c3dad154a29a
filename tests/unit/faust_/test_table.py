"""A Faust table, read and written: what an event sees, and what everybody else does."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from aiohttp.test_utils import make_mocked_request

from semel.errors import DeclarationError, HandlingError, OutsideEvent, StateNotReady
from semel.faust_.app import App, own_pages
from semel.port import TP
from semel.state.task import TaskState
from semel.worker.view import EngineView
from tests.unit.faust_.harness import Stage


async def test_reads_of_a_missing_row_give_what_fausts_do(stage: Stage) -> None:
    stage.topic("orders")
    app = stage.app()
    ints, plain = app.Table("ints", default=int), app.Table("plain")
    found: dict[str, Any] = {}

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for _ in stream:
            found["get"] = (ints.get("a"), ints.get("a", 5), plain.get("a"), plain.get("a", 5))
            found["pop"] = (ints.pop("a", 7), plain.pop("a", 7))
            found["setdefault"] = (ints.setdefault("b", 9), plain.setdefault("b", 9))
            found["in"] = ("a" in ints, "b" in ints, "b" in plain)
            ints["c"] = 3
            found["popped"] = (ints.pop("c", 7), "c" in ints)
            try:
                plain.pop("a")
            except KeyError:
                found["raised"] = True

    stage.send("orders", 1)
    await stage.start(app)
    await stage.done(app, 1)
    assert found == {
        "get": (0, 0, None, 5),
        "pop": (0, 7),
        "setdefault": (0, 9),
        "in": (False, False, True),
        "popped": (3, False),
        "raised": True,
    }
    assert dict(ints.items()) == {}
    assert dict(plain.items()) == {"b": 9}


async def test_rows_on_their_way_here_are_never_read_as_defaults_outside_an_event(stage: Stage) -> None:
    stage.topic("orders", 2)
    app = stage.app()
    totals = app.Table("totals", default=int)

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for event in stream.events():
            totals[event.key.decode()] += event.value

    with pytest.raises(StateNotReady, match="no partitions so far"):
        totals["a"]
    stage.send("orders", 3, key="a", partition=1)
    await stage.running(await stage.start(app))
    await stage.done(app, 1)
    assert (totals["a"], totals["b"], len(totals)) == (3, 0, 1)
    app.engine.tasks[1].state = TaskState.RESTORING
    for read in (lambda: totals["a"], lambda: totals.get("a"), lambda: "a" in totals, lambda: len(totals), totals.keys):
        with pytest.raises(StateNotReady, match="partition 1"):
            read()
    app.engine.tasks[1].state = TaskState.RUNNING
    assert totals["a"] == 3


async def test_a_timer_waits_for_state_and_a_page_answers_503(stage: Stage) -> None:
    stage.topic("orders")
    app = stage.app(web_enabled=False)
    totals = app.Table("totals", default=int)
    ticks: list[int] = []

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for value in stream:
            totals["a"] += value

    @app.timer(0.5)
    async def tick() -> None:
        ticks.append(totals["a"])

    @app.page("/total/")
    async def total(web: Any, request: Any) -> Any:
        return web.json({"a": totals["a"]})

    await stage.running(await stage.start(app))
    stage.send("orders", 3)
    await stage.done(app, 1)
    await stage.until(lambda: ticks and ticks[-1] == 3)
    app.engine.tasks[0].state = TaskState.RESTORING
    at = len(ticks)
    await stage.clock.sleep(3)
    assert len(ticks) <= at + 1
    [handler] = [handler for method, path, handler in own_pages(app) if (method, path) == ("GET", "/total/")]
    answer = await handler(make_mocked_request("GET", "/total/"))
    assert answer.status == 503
    app.engine.tasks[0].state = TaskState.RUNNING
    app.engine._brought_up.set()
    await stage.until(lambda: len(ticks) > at + 1)
    assert set(ticks[1:]) <= {0, 3}
    assert (await handler(make_mocked_request("GET", "/total/"))).status == 200


# -- kinds of keys


def counting(stage: Stage) -> tuple[App, Any]:
    """An app that adds up the values by key, as bytes where the event has one; a value below 0 fails once it is written."""
    app = stage.app()
    totals = app.Table("totals", default=int)

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for key, value in stream.items():
            totals[key] += value
            if value < 0:
                raise ValueError("not a value")
            if value > 99:
                totals[7] = value

    return app, totals


def dead(stage: Stage) -> list[str]:
    if "shop.dlq" not in stage.cluster.topics():
        return []
    return [dict(r.headers)["semel.error"].decode() for records in stage.cluster.committed("shop.dlq") for r in records]


async def test_a_view_that_looks_for_a_row_decides_nothing_about_the_keys_of_a_table(stage: Stage) -> None:
    stage.topic("orders")
    app, totals = counting(stage)
    await stage.start(app)
    await stage.running(app)
    view = EngineView(app.engine)
    assert view.get("totals", view.key("totals", "7"), 0) is None
    assert not view.scan("totals", 0, start="1").rows
    stage.send("orders", 1, 2, key="7")
    await stage.done(app, 2)
    assert dead(stage) == []
    assert totals[b"7"] == 3


async def test_an_event_that_fails_decides_nothing_about_the_keys_of_a_table(stage: Stage) -> None:
    stage.topic("orders")
    app, totals = counting(stage)
    stage.send("orders", -1)
    stage.send("orders", 1, 2, key="7")
    await stage.start(app)
    await stage.done(app, 3)
    assert len(dead(stage)) == 1
    assert totals[b"7"] == 3


async def test_the_row_of_records_without_a_key_keeps_no_other_key_out_of_a_table(stage: Stage) -> None:
    stage.topic("orders")
    app, totals = counting(stage)
    stage.send("orders", 5)
    stage.send("orders", 1, 2, key="7")
    stage.send("orders", 6)
    stage.send("orders", 1, key="null")
    await stage.start(app)
    await stage.done(app, 5)
    assert ["the row of the key None" in why for why in dead(stage)] == [True]
    assert (totals[None], totals[b"7"]) == (11, 3)


async def test_beside_the_row_of_records_without_a_key_an_event_that_fails_decides_nothing(stage: Stage) -> None:
    stage.topic("orders")
    app, totals = counting(stage)
    stage.send("orders", 5)
    stage.send("orders", -1, key="7")
    stage.send("orders", 100)
    await stage.start(app)
    await stage.done(app, 3)
    # When it is tried again the table has rows, and its key is of another kind than theirs.
    assert ["another kind" in why for why in dead(stage)] == [True]
    assert (totals[None], totals[7]) == (105, 100)


async def test_the_first_row_decides_about_the_keys_of_a_table_also_for_the_next_process(stage: Stage) -> None:
    stage.topic("orders")
    app, _ = counting(stage)
    stage.send("orders", 1, key="7")
    stage.send("orders", 100)
    await stage.start(app)
    await stage.done(app, 2)
    await app.stop()
    stage.apps.clear()
    stage.send("orders", 100)
    stage.send("orders", 2, key="7")
    app, totals = counting(stage)
    await stage.start(app, "w2")
    await stage.done(app, 4)
    assert len(dead(stage)) == 2
    assert all("of another kind than those of its rows (bytes)" in why for why in dead(stage))
    assert totals[b"7"] == 3


@pytest.mark.parametrize("pair", [(1, b"1"), ("a", b'"a"'), (UUID(int=1), str(UUID(int=1))), (b"1", 1)], ids=repr)
async def test_two_keys_of_a_table_are_never_one_row(stage: Stage, pair: tuple[object, object]) -> None:
    stage.topic("orders")
    app = stage.app()
    table = app.Table("t", default=int)
    refused: list[str] = []

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for _ in stream:
            table[pair[0]] += 1
            for use in (lambda: table[pair[1]], lambda: table.__setitem__(pair[1], 5)):
                try:
                    use()
                except HandlingError as exc:
                    refused.append(str(exc))

    stage.send("orders", 1, 2)
    await stage.start(app)
    await stage.done(app, 2)
    assert table[pair[0]] == 2
    assert len([why for why in refused if "another kind" in why]) == 4


@pytest.mark.parametrize("key_type", [str, None])
async def test_a_row_is_asked_for_by_its_text_whether_its_key_is_text_or_bytes(stage: Stage, key_type: Any) -> None:
    stage.topic("orders")
    app = stage.app()
    totals = app.Table("totals", default=int)

    @app.agent(app.topic("orders", key_type=key_type, value_type=int))
    async def count(stream: Any) -> None:
        async for account, amount in stream.items():
            totals[account] += amount

    stage.send("orders", 1, 2, key="k1")
    stage.send("orders", 4, key="7")
    await stage.start(app)
    await stage.done(app, 3)
    view = EngineView(app.engine)
    for text in ("k1", '"k1"'):
        row = view.get("totals", view.key("totals", text), 0)
        assert row is not None
        assert (row.value, row.key) == (3, "k1")
    assert [row.key for row in view.scan("totals", 0, prefix="k").rows] == ["k1"]
    assert {row.value for row in view.scan("totals", 0, start="a").rows} == {3}
    assert len(view.scan("totals", 0).rows) == 2
    mine: Any = ("k1", "7") if key_type else (b"k1", b"7")
    assert dict(totals.items()) == {mine[0]: 3, mine[1]: 4}


async def test_what_faust_says_of_a_table_is_said_or_refused_with_true_words(stage: Stage) -> None:
    stage.topic("orders", 2)
    app = stage.app()
    totals = app.Table("totals", default=int)
    found: list[Any] = []

    @app.agent(app.topic("orders", value_type=int))
    async def count(stream: Any) -> None:
        async for _ in stream:
            found.append(totals.partition_for_key("anything"))

    stage.send("orders", 1, partition=1)
    await stage.start(app)
    await stage.done(app, 1)
    assert found == [1]
    assert dead(stage) == []
    assert totals.changelog_topic_name == "shop-totals-changelog"
    assert totals.changelog_topic_name in stage.cluster.topics()
    assert totals.info()["name"] == "totals"
    assert repr(totals) and totals.label and totals.clone().name == "totals"
    with pytest.raises(OutsideEvent, match="asked for a row's partition where no event is in hand"):
        totals.partition_for_key("a")
    for ask in (
        lambda: totals.changelog_topic, lambda: totals.data, lambda: totals.send_changelog(0, "a", 1),
        lambda: totals.persisted_offset(TP("t", 0)),
    ):  # fmt: skip
        with pytest.raises(DeclarationError, match="written by the engine, with the event's position"):
            ask()


async def test_a_default_that_nobody_would_await_is_refused(stage: Stage) -> None:
    async def made() -> int:
        return 0

    with pytest.raises(DeclarationError, match="table 'sums': default=made is declared with async def"):
        stage.app().Table("sums", default=made)
