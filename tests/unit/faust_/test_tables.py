"""A Faust table, read and written: what an event sees, and what everybody else does."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from semel.errors import StateNotReady
from semel.faust_.app import own_pages
from semel.runtime.task import TaskState
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
    await stage.until(lambda: len(ticks) > at + 1)
    assert set(ticks[1:]) <= {0, 3}
    assert (await handler(make_mocked_request("GET", "/total/"))).status == 200
