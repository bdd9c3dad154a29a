"""The event in hand, as `stream.events()` and `current_event()` give it."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from semel import Event, Output, current_event
from semel.state.event_context import EventContext, current_context


class Given(NamedTuple):
    offset: int = 7
    timestamp: int = 123
    key: bytes | None = b"k"
    value: bytes | None = b"v"
    headers: Sequence[tuple[str, bytes | None]] = (("a", b"1"), ("b", None))


EVENT = Event({"n": 1}, Given(), "payments", 3)


@pytest.fixture(autouse=True)
def nothing_in_hand() -> Iterator[None]:
    token = current_context.set(None)
    yield
    current_context.reset(token)


def test_an_event_is_its_record_with_its_value_and_its_position() -> None:
    event = EVENT
    assert (event.value, event.key, event.timestamp) == ({"n": 1}, b"k", 123)
    assert (event.topic, event.partition, event.offset) == ("payments", 3, 7)
    assert event.headers == {"a": b"1", "b": None}
    assert repr(event) == "Event(payments[3]@7, {'n': 1})"
    assert len(repr(Event("x" * 1000, Given(), "t", 0))) < 120


def test_headers_of_one_name_are_all_there() -> None:
    headers = Event({}, Given(headers=(("h", None), ("h", b"2"), ("e", b""))), "payments", 3).headers
    assert headers == {"h": b"2", "e": b""}
    assert headers.all("h") == [None, b"2"]
    assert headers.pairs == (("h", None), ("h", b"2"), ("e", b""))
    assert Output(1, headers=headers).header_list() == [("h", None), ("h", b"2"), ("e", b"")]


def test_there_is_a_current_event_only_while_it_is_handled_and_only_for_its_own_code() -> None:
    assert current_event() is None
    context = EventContext(current=lambda: EVENT)
    current_context.set(context)
    assert current_event() is None
    context.begin()
    assert current_event() is EVENT
    started_by_its_handler = contextvars.copy_context()
    assert started_by_its_handler.run(current_event) is EVENT
    context.holding = False
    assert current_event() is None
    context.begin()
    assert current_event() is EVENT
    assert started_by_its_handler.run(current_event) is None
