"""semel.App as declared: settings, refusals, and the plan that comes of it. No broker."""

from __future__ import annotations

import gc
import math
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import semel
import semel as faust
from semel.errors import ConfigError, DeclarationError, OutsideEvent
from semel.faust_.app import App
from semel.faust_.stream import Stream
from semel.plan import AgentKind
from semel.state.event_context import EventContext


def an_app(name: str = "shop", **options: object) -> App:
    return App(name, broker="kafka://127.0.0.1:29999", **options)


def test_an_app_is_a_faust_app() -> None:
    import faust as real

    assert isinstance(an_app(), real.App)


def test_names_semel_does_not_define_are_fausts() -> None:
    import faust as real

    assert faust.Record is real.Record
    assert faust.App is App
    assert faust.Table is semel.Table


def test_a_name_neither_has_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="semel has no 'Nonsense'"):
        _ = faust.Nonsense


def test_any_processing_guarantee_is_accepted_and_fausts_transactions_never_appear() -> None:
    app = an_app(processing_guarantee="exactly_once")

    assert not app.in_transaction
    assert str(app.conf.processing_guarantee).endswith("AT_LEAST_ONCE")


def test_an_in_memory_store_is_refused() -> None:
    with pytest.raises(DeclarationError, match="memory"):
        an_app(store="memory://")
    with pytest.raises(DeclarationError, match="memory"):
        an_app().Table("seen", store="memory://")


def test_a_reserved_table_name_is_refused() -> None:
    with pytest.raises(DeclarationError, match="reserved"):
        an_app().Table("positions")


def test_windowed_tables_are_refused_where_they_are_declared() -> None:
    with pytest.raises(DeclarationError, match="windowed"):
        an_app().Table("clicks", default=int).tumbling(timedelta(minutes=1))


def test_settings_may_be_given_as_keywords_and_are_checked() -> None:
    assert an_app(session_timeout_ms=6000).semel_settings.session_timeout_ms == 6000
    with pytest.raises(ConfigError, match="session_timeout_ms"):
        an_app(session_timeout_ms=6000, transaction_timeout_ms=9000)


def test_datadir_is_the_state_directory(tmp_path: Path) -> None:
    assert an_app(datadir=str(tmp_path)).semel_settings.state_dir == tmp_path


def test_an_agent_on_a_topic_becomes_part_of_the_plan() -> None:
    app = an_app()
    orders = app.topic("orders", value_serializer="json")
    totals = app.Table("totals", default=int)

    @app.agent(orders)
    async def process(stream):
        async for order in stream:
            totals[order["id"]] += 1

    plan = app.plan()

    assert [a.sources[0].name for a in plan.agents] == ["orders"]
    assert plan.agents[0].kind is AgentKind.STREAM
    assert [(t.name, t.keyed) for t in plan.tables] == [("totals", False)]
    assert plan.logs == ["shop-totals-changelog", "shop-parked", "shop-timers", "shop-positions"]


def test_two_agents_may_read_one_topic() -> None:
    app = an_app()
    orders = app.topic("orders")

    @app.agent(orders, name="one")
    async def one(stream):
        async for _ in stream:
            pass

    @app.agent(orders, name="two")
    async def two(stream):
        async for _ in stream:
            pass

    assert {a.name for a in app.plan().agents} == {"one", "two"}
    assert list(app.plan().sources) == ["orders"]


def test_an_agent_with_concurrency_is_refused_and_told_what_to_do() -> None:
    app = an_app()

    @app.agent(app.topic("orders"), concurrency=4)
    async def process(stream):
        async for _ in stream:
            pass

    with pytest.raises(DeclarationError, match="run more workers"):
        app.plan()


def test_a_records_codec_checks_what_it_reads() -> None:
    class Order(faust.Record):
        id: str
        amount: int

    app = an_app()

    @app.agent(app.topic("orders", value_type=Order))
    async def process(stream):
        async for _ in stream:
            pass

    codec = app.plan().agents[0].sources[0].value

    assert codec.decode(b'{"id":"a","amount":3}').amount == 3
    with pytest.raises(semel.SemelError):
        codec.decode(b"{broken")


class Trade(faust.Record):
    id: str
    at: datetime | None = None
    paid: Decimal | None = None
    tags: set[str] | None = None
    place: tuple[int, str] | None = None
    n: float = 0.0
    note: Any = None
    raw: bytes | None = None


TABLES = [
    (None, {"a": math.nan}), (None, math.inf), (None, datetime(2026, 1, 1)), (None, [(1, 2)]), (None, {"a": UUID(int=1)}),
    (None, {"a": b"x"}), (int, "1"), (int, 1.5), (float, math.nan), (Trade, Trade("t", n=math.nan)),
    (Trade, Trade("t", note=(1, 2))), (Trade, Trade("t", note=datetime(2026, 1, 1))), (Trade, Trade("t", raw=b"x")),
    (Trade, Trade("t", place=(math.nan, "x"))),
]  # fmt: skip


@pytest.mark.parametrize(("typ", "value"), TABLES, ids=repr)
def test_a_table_refuses_a_value_that_would_be_read_back_as_another(typ: object, value: object) -> None:
    plan = an_app().Table("t", value_type=typ).plan()
    with pytest.raises(TypeError):
        plan.value.encode(value)


@pytest.mark.parametrize(
    ("typ", "value"),
    [(None, {"id": 2**70, "n": [1, None, 2.5]}), (None, 2**64), (int, 5), (str, "a"), (list, [1, "a"]), (dict, {"a": 1}),
     (Trade, Trade("t")), (None, {"a": {"b": []}})],
)  # fmt: skip
def test_a_table_reads_back_what_it_was_given(typ: object, value: object) -> None:
    plan = an_app().Table("t", value_type=typ).plan()
    again = plan.value.decode(plan.value.encode(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    "row",
    [Trade("t", at=datetime(2026, 1, 1, 5)), Trade("t", paid=Decimal("1.50")), Trade("t", tags={"b", "a"}),
     Trade("t", place=(1, "x"))],
    ids=repr,
)  # fmt: skip
def test_a_field_of_a_record_that_is_not_coerced_is_stored_and_read_as_faust_does(row: Trade) -> None:
    codec = an_app().Table("t", value_type=Trade).plan().value
    raw = codec.encode(row)
    again = codec.decode(raw)
    assert again.to_representation() == Trade.loads(row.dumps(serializer="json"), serializer="json").to_representation()
    assert codec.encode(again) == raw


def test_json_keys_of_a_table_are_never_one_row() -> None:
    plain = an_app().Table("t").plan().key
    kinds = [1, "1", 1.0, True, "true", None, "null", (1, 2), "[1,2]"]
    assert len({plain.encode(k) for k in kinds}) == len(kinds)


async def test_a_table_written_outside_an_event_is_refused() -> None:
    totals = an_app().Table("totals", default=int)

    with pytest.raises(OutsideEvent, match="inside an agent"):
        totals["a"] = 1


def test_what_a_stream_cannot_do_yet_is_refused_where_it_is_asked_for() -> None:
    app = an_app()

    @app.agent(app.topic("orders"))
    async def process(stream):
        async for _ in stream:
            pass

    stream = process.stream()
    stream.runner = object()  # as bound by the engine

    for refused in (lambda: stream.take(10, within=1), lambda: stream.group_by(len), lambda: stream.through("x")):
        with pytest.raises(DeclarationError, match="does not run on semel yet"):
            refused()


async def test_asking_an_agent_is_refused() -> None:
    app = an_app()

    @app.agent(app.topic("orders"))
    async def process(stream):
        async for _ in stream:
            pass

    with pytest.raises(DeclarationError, match="cast"):
        await process.ask("x")
    # They would wait for replies as well.
    for waiting in (process.join, process.kvjoin):
        with pytest.raises(DeclarationError, match="nobody reads the replies"):
            await waiting([("k", "x")])
    for waiting in (process.map, process.kvmap):
        with pytest.raises(DeclarationError, match="nobody reads the replies"):
            async for _ in waiting([("k", "x")]):
                pass


def test_a_stream_of_a_topic_outside_an_agent_is_refused_instead_of_staying_silent() -> None:
    app = an_app()

    with pytest.raises(DeclarationError, match=r"@app.agent"):
        aiter(app.stream(app.topic("orders")))


def test_set_and_global_tables_are_refused_where_they_are_declared() -> None:
    app = an_app()

    with pytest.raises(DeclarationError, match="set tables"):
        app.SetTable("seen")
    with pytest.raises(DeclarationError, match="global tables"):
        app.GlobalTable("seen")


def test_without_an_assignment_no_worker_is_the_leader() -> None:
    assert not an_app().is_leader()


async def test_the_streams_of_attempts_that_failed_are_not_kept() -> None:
    app = an_app()

    @app.agent(app.topic("clicks"))
    async def count(clicks: object) -> None: ...

    def streams() -> int:
        gc.collect()
        return sum(isinstance(found, Stream) for found in gc.get_objects())

    agent, before = app.agents["tests.unit.faust_.test_app.count"], streams()
    running = agent._make_stream(EventContext())
    for _ in range(50):
        running = agent._make_stream(EventContext())
    assert isinstance(running, Stream)
    assert streams() - before <= 2
    assert len(agent.beacon.children) <= 2
