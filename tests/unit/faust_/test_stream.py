"""What an agent's stream gives, and what becomes of each event."""

from __future__ import annotations

from typing import Any

import semel
from tests.unit.faust_.harness import Stage


async def test_what_filter_does_not_want_is_done_without_a_result(stage: Stage) -> None:
    stage.topic("numbers")
    app = stage.app()
    out = app.topic("even")

    @app.agent(app.topic("numbers", value_type=int))
    async def even(stream: Any) -> None:
        async for number in stream.filter(lambda n: n % 2 == 0):
            await out.send(value=number)

    stage.send("numbers", *range(6))
    await stage.start(app)
    await stage.done(app, 6)
    assert stage.read("even") == [0, 2, 4]
    assert stage.counts(app)["filtered"] == 3
    assert stage.read("shop.dlq") == []


async def test_a_tombstone_is_none_where_faust_gives_none(stage: Stage) -> None:
    class Order(semel.Record):  # type: ignore[name-defined,misc]
        id: str

    for name in ("plain", "typed", "model", "empty"):
        stage.topic(name)
        stage.send(name, None)
    app = stage.app()
    seen: list[tuple[str, Any]] = []

    def agent(name: str, **given: Any) -> None:
        async def process(stream: Any) -> None:
            async for _, value in stream.items():
                seen.append((name, value))

        app.agent(app.topic(name, **given), name=name)(process)

    agent("plain")
    agent("typed", value_type=int)
    agent("model", value_type=Order)
    agent("empty", value_type=Order, allow_empty=True)
    await stage.start(app)
    await stage.done(app, 4)
    assert sorted(seen) == [("empty", None), ("plain", None), ("typed", None)]
    [letter] = [r for records in stage.cluster.committed("shop.dlq") for r in records]
    assert dict(letter.headers)["semel.topic"] == b"model"
