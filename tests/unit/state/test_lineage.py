"""Outputs say which event they come from: whoever reads the header alone finds the event."""

from __future__ import annotations

from typing import Any

import pytest

from semel import Topic
from semel.errors import OutputRefused
from semel.memory.batch import MemoryRecord
from semel.output import Output
from semel.port import TP
from semel.stages.sink.destination import Destination, ProducerRecord, TopicLimits
from semel.state import lineage
from semel.state.event_context import EventContext, OutputNumbers
from semel.state.lineage import HEADER, Lineage

NOW = 1_700_000_000_000


def sink(max_bytes: int = 1 << 20) -> Destination:
    return Destination(Topic("out", key=str, value=dict), 4, TopicLimits(max_bytes, None, None, False))


def hand_at(offset: int, id: Any = b"p17", origin: bytes | None = b"payments/src/3/") -> EventContext:
    context = EventContext()
    context.origin, context.id, context.record = origin, id, MemoryRecord(NOW, b"k", b"{}", (), offset)
    return context


def step_of(context: EventContext, record: Any = None) -> tuple[int, int]:
    found = lineage.parse((context.lineage(record or context.record) or ("", b""))[1])
    assert found is not None
    return found.offset, found.step


@pytest.mark.parametrize("id", [b"", b"p17", b"a/b/c", b"\x00j{\xff}", b"/"])
def test_what_was_written_is_read_back_whatever_the_id_is(id: bytes) -> None:
    origin = lineage.prefix("pay.ments", "", "src-1", 3)
    assert lineage.parse(b"%b%d/%d/%b" % (origin, 42, 1, id)) == Lineage("pay.ments", "", "src-1", 3, 42, 1, id)


@pytest.mark.parametrize("named", [False, True])
def test_outputs_that_are_sent_later_are_numbered_apart_and_those_with_a_name_apart_from_these(named: bool) -> None:
    context = hand_at(42)
    _, said = context.lineage_later(context.record, 3, named=named) or ("", b"")
    assert said == b"payments/src/3/42/%b3/p17" % (b"~" if named else b"+")
    assert lineage.parse(said) == Lineage("payments", "", "src", 3, 42, 3, b"p17", later=True, named=named)


def test_the_agent_is_named_where_there_are_several() -> None:
    value = lineage.prefix("app", "mod/agent", "src", 0) + b"7/0/"
    assert lineage.parse(value) == Lineage("app", "mod_agent", "src", 0, 7, 0, b"")


def test_what_is_sent_without_an_event_says_whose_it_is() -> None:
    found = lineage.parse(lineage.sent("app"))
    assert found is not None
    assert (found.app, found.topic, found.offset) == ("app", "", -1)


@pytest.mark.parametrize(
    "value", [b"", b"x", b"a/b", b"a/b/c", b"a/b/1/x/0/", b"a/b/1/2/", b"a/b/1/2/~/", b"\xff/b/1/2/0/"]
)
def test_what_is_no_lineage_is_none(value: bytes) -> None:
    assert lineage.parse(value) is None


def test_the_header_is_found_wherever_it_stands() -> None:
    assert lineage.of([(HEADER, b"1"), ("trace", b"2")]) == b"1"
    assert lineage.of([("trace", b"2"), (HEADER, b"1")]) == b"1"
    assert lineage.of([("trace", b"2")]) is None
    assert lineage.of(()) is None


def test_an_output_keeps_its_sources_headers_and_replaces_its_lineage_by_its_own() -> None:
    source = MemoryRecord(NOW, b"k", b"{}", (("trace", b"t"), (HEADER, b"upstream/x/0/1/0/")), 42)
    context = hand_at(42)
    out = sink().record({}, source, 3, NOW, context.lineage(context.record))
    assert list(out.headers) == [("trace", b"t"), (HEADER, b"payments/src/3/42/0/p17")]
    given = sink().record(
        Output({}, headers={"a": b"1", HEADER: b"made up"}), source, 3, NOW, context.lineage(context.record)
    )
    assert list(given.headers) == [("a", b"1"), (HEADER, b"payments/src/3/42/0/p17")]


def test_without_lineage_headers_stay_as_they_are() -> None:
    source = MemoryRecord(NOW, b"k", b"{}", (("trace", b"t"),), 42)
    assert hand_at(42, origin=None).lineage(hand_at(42).record) is None
    assert sink().record({}, source, 3, NOW, None).headers == (("trace", b"t"),)


def test_the_size_of_an_output_includes_its_lineage() -> None:
    source = MemoryRecord(NOW, b"k", b"{}", (), 42)
    context = hand_at(42, id=b"i" * 200)
    header = context.lineage(context.record)
    assert sink(300).record({}, source, 3, NOW, None)
    with pytest.raises(OutputRefused, match=r"max.message.bytes=300"):
        sink(300).record({}, source, 3, NOW, header)


def out_of(offset: int, step: int) -> ProducerRecord:
    return ProducerRecord(TP("out", 0), None, b"%d" % offset, b"%d" % step, ())


def test_steps_number_the_outputs_of_an_event_and_refused_ones_leave_no_gap() -> None:
    context = hand_at(42)
    assert step_of(context) == (42, 0)
    context.emit(out_of(42, 0), context.record)
    assert step_of(context) == (42, 1)
    assert step_of(context) == (42, 1)
    context.emit(out_of(42, 1), context.record)
    assert step_of(context) == (42, 2)


def test_a_batchs_outputs_stand_in_the_order_of_their_events_however_the_batch_is_read() -> None:
    context = hand_at(1)
    context.steps = OutputNumbers({1: b"a", 3: b"c", 9: None})
    said: list[tuple[int, int]] = []
    for offset in (1, 1, 3, 9, 1, 3):
        record = MemoryRecord(NOW, b"k", b"{}", (), offset)
        said.append(step_of(context, record))
        context.emit(out_of(*said[-1]), record)
    assert said == [(1, 0), (1, 1), (3, 0), (9, 0), (1, 2), (3, 1)]
    assert context.steps.in_order(context.writes.outputs) == [out_of(*step) for step in sorted(said)]
    assert len(context.steps.counts) == 3
