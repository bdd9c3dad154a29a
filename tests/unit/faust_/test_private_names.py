"""The private names of Faust that semel overrides or calls, pinned: a release that changes one must turn this red."""

from __future__ import annotations

import inspect
from typing import Any

import faust
import faust.streams
import faust.transport.base
import faust.transport.consumer
import pytest
from faust.agents.agent import Agent
from faust.app.base import App, BootStrategy
from faust.streams import Stream
from faust.tables.manager import TableManager
from faust.tables.table import Table
from faust.topics import Topic
from faust.transport.drivers import TRANSPORTS
from mode import Service

CALLED: list[tuple[Any, str, list[str]]] = [
    (Agent, "_reply", ["self", "key", "value", "reply_to", "correlation_id"]),
    (Agent, "_delegate_to_sinks", ["self", "value"]),
    (Agent, "_maybe_unwrap_reply_request", ["self", "value"]),
    (Topic, "prepare_key", ["self", "key", "key_serializer", "schema", "headers"]),
    (Topic, "prepare_value", ["self", "value", "value_serializer", "schema", "headers"]),
    (BootStrategy, "_should_enable_web", ["self"]),
]
OVERRIDDEN: list[tuple[Any, str]] = [
    (Agent, "on_start"),
    (Agent, "on_stop"),
    (Agent, "cancel"),
    (App, "on_stop"),
    (BootStrategy, "web_server"),
    (Stream, "__aiter__"),
    (Stream, "events"),
    (Stream, "items"),
    (Stream, "take"),
    (Stream, "take_events"),
    (Stream, "noack_take"),
    (Stream, "group_by"),
    (Stream, "through"),
    (Table, "__getitem__"),
    (Table, "__setitem__"),
    (Table, "__delitem__"),
    (Table, "tumbling"),
    (Table, "hopping"),
    (TableManager, "add"),
    (TableManager, "on_start"),
    (TableManager, "on_stop"),
    (TableManager, "wait_until_recovery_completed"),
    (Topic, "send"),
    (Topic, "send_soon"),
    (Topic, "declare"),
    (Topic, "maybe_declare"),
    (faust.transport.consumer.Consumer, "assignment"),
    (faust.transport.consumer.Consumer, "commit"),
    (faust.transport.consumer.Consumer, "force_commit"),
    (faust.transport.consumer.Consumer, "wait_empty"),
    (faust.transport.consumer.Consumer, "_commit_handler"),
    (faust.transport.consumer.Consumer, "_commit_livelock_detector"),
    (faust.transport.consumer.Consumer, "verify_event_path"),
]


@pytest.mark.parametrize(("owner", "name", "parameters"), CALLED, ids=lambda x: getattr(x, "__name__", None))
def test_a_private_method_that_is_called_takes_what_it_took(owner: Any, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


@pytest.mark.parametrize(("owner", "name"), OVERRIDDEN, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_method_that_is_overridden_is_still_there(owner: Any, name: str) -> None:
    assert callable(getattr(owner, name)) or hasattr(owner, name)


def test_an_app_that_has_crashed_has_an_event_that_says_so() -> None:
    source = inspect.getsource(Service)

    assert "self._crashed.set()" in source and "self.crash_reason = reason" in source


def test_a_transport_names_its_consumer_and_producer_as_classes() -> None:
    assert isinstance(faust.transport.base.Transport.Consumer, type)
    assert isinstance(faust.transport.base.Transport.Producer, type)


def test_transports_are_found_by_url_scheme() -> None:
    import semel.faust_.transport as ours

    assert TRANSPORTS.aliases["semel"].endswith(":Transport")
    assert ours.Transport.Consumer.__module__ == ours.__name__


def test_the_current_event_is_looked_up_by_calling_what_is_kept() -> None:
    class Kept:
        def __call__(self) -> str:
            return "the event"

    token = faust.streams._current_event.set(Kept())
    try:
        assert faust.streams.current_event() == "the event"
    finally:
        faust.streams._current_event.reset(token)


def test_streams_keep_their_processors_in_a_list() -> None:
    assert "self._processors" in inspect.getsource(Stream.__init__)


def test_the_table_manager_has_the_events_that_start_up_waits_for() -> None:
    source = inspect.getsource(TableManager.__init__)

    assert all(name in source for name in ("_tables_finalized", "_tables_registered", "_recovery_started"))


def test_settings_take_the_classes_that_are_replaced() -> None:
    names = set(faust.Settings.SETTINGS)

    assert {"Agent", "Stream", "Table", "TableManager", "Topic"} <= names
