"""The position record: what is written is read back, and every agent goes on exactly where it was.

A failure prints a minimal example and a seed (`--hypothesis-seed`) that repeats the run.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel.errors import RecoveryError
from semel.plan import AgentKind, AgentPlan
from semel.port import TP
from semel.state import positions
from semel.state.positions import COUNTS, VERSION, Position, Sink, StreamTime, TopicPosition, Windows
from semel.state.task import Cursor, Task
from semel.topic import Topic

offsets = st.integers(0, 2**63 - 1)
times = st.integers(-(2**62), 2**62)
names = st.text(min_size=1, max_size=20)
topic_positions = st.builds(
    TopicPosition,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    partitions=st.integers(1, 1000),
    next=offsets,
    cursors=st.dictionaries(names, offsets, max_size=3),
    done=st.lists(st.tuples(offsets, offsets), max_size=3).map(tuple),
    first=st.integers(-1, 2**63 - 1),
    born=st.integers(0, 1000),
    former=st.dictionaries(names, offsets, max_size=2),
    hashed_from=offsets,
    windows=st.none() | st.builds(Windows, offsets, st.integers(1, 2**53), st.integers(1, 2**53)),
)
recorded = st.builds(
    Position,
    topics=st.dictionaries(names, topic_positions, max_size=3),
    stream_time=st.builds(StreamTime, st.none() | times, st.lists(times, max_size=2).map(tuple)),
    counts=st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 2**53)),
    generation=st.integers(-1, 2**31 - 1),
    writer=names,
    epoch=st.integers(0, 2**53),
    at_ms=st.integers(0, 2**53),
    shape=st.text(max_size=40),
    logs=st.dictionaries(names, st.text("0123456789abcdef", min_size=32, max_size=32), max_size=3),
    readers=st.lists(names, max_size=3).map(tuple),
    passed=st.lists(st.sampled_from(["missing", "conflict", "late"]), unique=True).map(tuple),
    outputs=st.dictionaries(names, st.integers(0, 2**53), max_size=2),
    sinks=st.dictionaries(names, st.builds(Sink, names, st.integers(1, 1000), st.integers(1, 1000)), max_size=2),
    types=st.text(max_size=40),
    migrating=st.dictionaries(names, st.tuples(st.text("0123456789abcdef"), names), max_size=2),
    left=st.dictionaries(names, topic_positions, max_size=2),
    claims=st.dictionaries(names, st.integers(0, 2**53), max_size=2),
    kinds=st.dictionaries(names, names, max_size=2),
)


@settings(print_blob=True)
@given(recorded)
def test_a_position_is_read_back_as_it_was_written(position: Position) -> None:
    assert positions.decode(position.encode(), "here") == position
    assert positions.from_json(position.to_json() | {"a field of": "a later version"}) == position


@settings(print_blob=True)
@given(recorded, st.integers(-(2**53), 2**53) | st.none() | st.text())
def test_a_record_of_another_version_is_refused_by_name(position: Position, version: Any) -> None:
    found = position.to_json() | {"v": version}
    if version != VERSION:
        with pytest.raises(RecoveryError, match=r"position record in p-positions\[3\]@7 .* `semel reset`"):
            positions.decode(orjson.dumps(found), "p-positions[3]@7")


FIRST_FIELDS = ("topics", "stream_time", "pending", "counts", "generation", "writer", "epoch", "at")


@settings(print_blob=True)
@given(recorded, st.data())
def test_a_record_that_lacks_a_field_is_refused(position: Position, data: st.DataObject) -> None:
    found = position.to_json()
    # What came later may be absent: a record from before it has none.
    del found[data.draw(st.sampled_from(FIRST_FIELDS))]
    with pytest.raises(RecoveryError):
        positions.decode(orjson.dumps(found), "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(print_blob=True)
@given(json_values | st.fixed_dictionaries({"v": st.just(VERSION), "topics": json_values}), st.binary(max_size=20))
def test_what_is_no_position_is_refused_and_never_believed(found: Any, raw: bytes) -> None:
    for record in (orjson.dumps(found), raw):
        with pytest.raises(RecoveryError):
            positions.decode(record, "here")


def agent_named(name: str) -> AgentPlan:
    return AgentPlan(name, (Topic("in"),), AgentKind.FUNCTION, print)


@settings(print_blob=True)
@given(
    st.dictionaries(st.sampled_from(["one", "two"]), st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1),
    st.integers(1, 3),
)
def test_agents_that_share_a_topic_go_on_each_where_it_was(topics: dict[str, list[int]], agents: int) -> None:
    """`next` is what all have reached; who is further is told apart."""

    def task() -> Task:
        made = Task(4)
        made.topics = {name: (f"id of {name}", 8) for name in topics}
        for name in topics:
            for n in range(agents):
                made.cursors[name, f"agent-{n}"] = Cursor(made, TP(name, 4), agent_named(f"agent-{n}"))
        return made

    before = task()
    for (name, agent), cursor in before.cursors.items():
        cursor.seek(topics[name][int(agent[-1])])
    position = before.position(7, "app-1", 3, 1000)
    for name, at in topics.items():
        reached = at[:agents]
        assert position.topics[name].next == min(reached)
        assert position.topics[name].cursors == {f"agent-{n}": o for n, o in enumerate(reached) if o > min(reached)}

    after = task()
    after.committed = positions.decode(position.encode(), "here")
    after.open_anew()
    assert {at: c.position for at, c in after.cursors.items()} == {at: c.position for at, c in before.cursors.items()}


def test_stream_time_counts_and_authorship_travel_with_the_position() -> None:
    task = Task(0)
    task.stream = StreamTime(5, (100, 101))
    task.counts["in"] = 3
    task.shape, task.types = "{}", '{"tables":{}}'
    written = task.position(7, "app-1", 3, 1000, {"rows": "an id"})
    task.stream = StreamTime(6)
    task.counts["in"] = 4
    read = positions.decode(written.encode(), "here")
    assert (read.stream_time, read.counts["in"], read.shape) == (StreamTime(5, (100, 101)), 3, "{}")
    assert (read.types, read.logs) == ('{"tables":{}}', {"rows": "an id"})
    assert (read.generation, read.writer, read.epoch, read.at_ms) == (7, "app-1", 3, 1000)
    assert positions.moved(read, epoch=4).epoch == 4
    task.committed = read
    task.open_anew()
    assert (task.stream, task.counts["in"]) == (StreamTime(5, (100, 101)), 3)
