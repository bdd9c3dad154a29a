"""What Faust takes where an app is declared, name by name: it works, or is refused with what to do instead."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import faust as stock
import pytest
from faust.agents.agent import Agent as StockAgent
from faust.tables.base import Collection

import semel as faust
from semel.config import Settings
from semel.errors import DeclarationError
from semel.faust_.app import App
from semel.faust_.arguments import AGENT, PAGE, SIGNALS, STREAM, TABLE, TOPIC
from semel.faust_.rules import Does
from semel.faust_.settings import SETTINGS
from tests.unit.faust_.harness import BROKER, Stage


def an_app(name: str = "shop", **options: Any) -> App:
    return App(name, broker=BROKER, autodiscover=False, **options)


def arguments(*of: Callable[..., Any]) -> set[str]:
    return {
        name
        for function in of
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "app", "fun") and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def test_every_argument_that_faust_takes_is_in_a_table() -> None:
    assert set(TOPIC) == arguments(stock.App.topic)
    assert set(TABLE) == arguments(Collection.__init__)
    assert set(AGENT) == arguments(stock.App.agent, StockAgent.__init__) - {"on_error"}  # the app's own
    assert set(PAGE) == arguments(stock.App.page)


def test_every_method_of_a_stream_is_in_a_table() -> None:
    own = {n for cls in stock.Stream.__mro__ if cls.__module__ in ("faust.streams", "faust.joins") for n in vars(cls)}
    service = set(dir(stock.Service))
    methods = {n for n in own - service if not n.startswith("_") and callable(getattr(stock.Stream, n))}
    assert methods - set(STREAM) == set()


def test_every_signal_of_an_app_is_in_a_table() -> None:
    signals = {n for n in vars(an_app()) if n.startswith("on_") and hasattr(getattr(an_app(), n), "connect")}
    assert signals == set(SIGNALS)


async def process(stream: Any) -> None:
    async for _ in stream:
        pass


class Mine(stock.Schema):
    pass


async def nothing(*_: Any) -> None:
    return


REFUSED: dict[str, tuple[dict[str, Any], Callable[[App, dict[str, Any]], Any]]] = {
    "topic": (
        {"pattern": "x.*", "schema": Mine(), "key_type": dict, "value_type": set, "acks": False},
        lambda app, given: app.topic(**given),
    ),
    "Table": (
        {
            "schema": Mine(),
            "key_type": list,
            "value_type": tuple,
            "window": stock.TumblingWindow(timedelta(minutes=1)),
            "changelog_topic": "elsewhere",
            "on_recover": nothing,
            "on_changelog_event": nothing,
            "extra_topic_configs": {"retention.ms": 1},
            "recover_callbacks": {nothing},
            "options": {"max_open_files": 1},
            "use_partitioner": True,
            "on_window_close": nothing,
            "is_global": True,
        },
        lambda app, given: app.Table("rows", **given),
    ),
    "agent": (
        {"concurrency": 4, "isolated_partitions": True, "schema": Mine(), "key_type": dict, "value_type": set},
        lambda app, given: (app.agent("orders", **given)(process), app.plan()),
    ),
    "page": ({"cors_options": {"*": {}}}, lambda app, given: app.page("/x/", **given)),
}


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, (given, _) in REFUSED.items() for name in given])
def test_an_argument_that_does_not_run_is_refused_with_what_to_do_instead(of: str, name: str) -> None:
    given, declare = REFUSED[of]
    rules = {"topic": TOPIC, "Table": TABLE, "agent": AGENT, "page": PAGE}[of]
    with pytest.raises(DeclarationError, match=name) as refused:
        declare(an_app(), {name: given[name]})
    assert rules[name].message in str(refused.value)


def test_every_refusal_of_an_argument_is_tried() -> None:
    for of, rules in {"topic": TOPIC, "Table": TABLE, "agent": AGENT, "page": PAGE}.items():
        assert {name for name, rule in rules.items() if rule.does is Does.REFUSED} == set(REFUSED[of][0])


@pytest.mark.parametrize("kind", [None, int, str, bytes, dict, list, faust.Record])
def test_a_type_that_faust_reads_is_taken(kind: Any) -> None:
    assert an_app().topic("orders", value_type=kind).value_type is kind


def test_routes_to_the_owner_of_a_key_are_refused_where_they_are_declared() -> None:
    app = an_app()
    table = app.Table("rows")
    with pytest.raises(DeclarationError, match="GET /tables/rows"):
        app.table_route(table=table, match_info="key")
    with pytest.raises(DeclarationError, match="topic_route"):
        app.topic_route(app.topic("orders"), match_info="key")
    with pytest.raises(DeclarationError, match="semel reset"):
        table.reset_state()


@pytest.mark.parametrize("name", [name for name, rule in SIGNALS.items() if rule.does is Does.REFUSED])
def test_who_waits_for_a_signal_that_never_comes_is_refused_at_start(name: str) -> None:
    app = an_app()
    getattr(app, name).connect(nothing)
    with pytest.raises(DeclarationError, match=name):
        app.plan()
    # Handlers are kept by the id of their app, which another app may get.
    getattr(app, name).disconnect(nothing)
    app.plan()


@contextmanager
def heard_by(app: Any) -> Generator[list[Any]]:
    """What the signals of configuration say to handlers that are connected now and change something themselves."""
    heard: list[Any] = []

    def before(app: Any, **_: Any) -> None:
        heard.append("before")
        app.config_from_object({"topic_partitions": 7})

    def configured(app: Any, conf: Any, **_: Any) -> None:
        heard.append(app.conf.topic_partitions)
        conf.web_port = 7070

    def after(app: Any, **_: Any) -> None:
        heard.append(app.conf.web_port)

    handlers = {"on_before_configured": before, "on_configured": configured, "on_after_configured": after}
    for name, handler in handlers.items():
        getattr(app, name).connect(handler)
    yield heard
    # Handlers are kept by the id of their app, which another app may get.
    for name, handler in handlers.items():
        getattr(app, name).disconnect(handler)


@pytest.mark.filterwarnings("ignore::faust.exceptions.AlreadyConfiguredWarning")
async def test_the_signals_of_configuration_reach_who_connects_after_the_declaration(stage: Stage) -> None:
    stage.topic("orders")
    app = stage.app()
    with heard_by(app) as heard:

        @app.agent(app.topic("orders"))
        async def process(stream: Any) -> None:
            async for _ in stream:
                pass

        await stage.running(await stage.start(app))
    assert heard == ["before", 7, 7070]
    assert app.semel_settings.web_port == 7070


@pytest.mark.filterwarnings("ignore::faust.exceptions.AlreadyConfiguredWarning")
def test_the_signals_of_configuration_come_again_where_a_command_gives_other_settings() -> None:
    app = an_app()
    with heard_by(app) as heard:
        app.use(Settings.load(web_port=6161))
        app.finalize()
        assert heard == ["before", 7, 7070]
        app.topic("orders")
        app.use(Settings.load(web_port=6262))
    assert heard == ["before", 7, 7070] * 2
    assert app._settings_at_start().web_port == 7070


def test_a_sensor_that_would_see_nothing_is_refused_at_start() -> None:
    app = an_app()
    app.sensors.add(stock.Sensor())
    with pytest.raises(DeclarationError, match="/metrics"):
        app.plan()


# -- streams


def take(stream: Any) -> Any:
    return stream.take(10, within=1)


@pytest.mark.parametrize("name", [name for name, rule in STREAM.items() if rule.does is Does.REFUSED])
def test_what_a_stream_does_not_do_is_refused_at_start_where_the_code_shows_it(name: str, tmp_path: Path) -> None:
    app, file = an_app(), tmp_path / "agents.py"
    code = f"async def process(stream):\n    async for x in stream.filter(bool).{name}(1):\n        pass\n"
    scope: dict[str, Any] = {"__name__": __name__}
    file.write_text(code)
    exec(compile(code, file, "exec"), scope)
    app.agent(app.topic("orders"))(scope["process"])
    with pytest.raises(DeclarationError, match=name):
        app.plan()


async def test_what_only_the_running_code_shows_ends_the_worker_before_an_event_is_taken(stage: Stage) -> None:
    stage.topic("orders")
    app = stage.app()

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for _ in take(stream):
            pass

    stage.send("orders", 1)
    await stage.start(app)
    with pytest.raises(DeclarationError, match="batches"):
        await stage.until(lambda: False)
    assert stage.read("shop.dlq") == []


async def test_a_table_of_another_number_of_partitions_than_the_source_is_refused_at_start(stage: Stage) -> None:
    stage.topic("orders", 2)
    app = stage.app()
    app.Table("rows", partitions=3)

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        async for _ in stream:
            pass

    await stage.start(app)
    with pytest.raises(DeclarationError, match="partitions=3"):
        await stage.until(lambda: False)


# -- order


async def test_tasks_and_services_have_started_before_the_first_event_and_an_agents_code_begins_once(
    stage: Stage,
) -> None:
    stage.topic("orders")
    app = stage.app()
    order: list[str] = []

    @app.task
    async def prepare() -> None:
        order.append("task")

    @app.service
    class Side(stock.Service):
        async def on_start(self) -> None:
            await asyncio.sleep(1)
            order.append("service")

    @app.agent(app.topic("orders", value_type=int))
    async def process(stream: Any) -> None:
        order.append("body")
        async for value in stream:
            order.append(f"event {value}")

    stage.send("orders", 1, 2)
    await stage.start(app)
    await stage.done(app, 2)
    assert sorted(order[:3]) == ["body", "service", "task"]
    assert order[3:] == ["event 1", "event 2"]


def test_every_name_of_the_tables_is_in_the_documentation_with_what_becomes_of_it() -> None:
    page = (Path(__file__).parents[3] / "docs" / "faust.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for rules in (SETTINGS, TOPIC, TABLE, AGENT, PAGE, STREAM, SIGNALS):
        for name, rule in rules.items():
            assert any(f"`{name}`" in row and row.rstrip(" |").endswith(rule.message) for row in rows), name
