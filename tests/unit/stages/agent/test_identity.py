"""Which event the one in hand is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from semel import Dedup, Event, Topic
from semel.dedup import payload_hash
from semel.event import Attempt, EventIdentity
from semel.plan import AgentKind, AgentPlan
from semel.stages.agent.identity import EventIdentifier
from semel.state import replay
from semel.state.task import Task

WEEK = timedelta(days=7)


class Given(NamedTuple):
    offset: int = 7
    timestamp: int = 123
    key: bytes | None = b"k"
    value: bytes | None = b'{"id":"o1","sent":5}'
    headers: Sequence[tuple[str, bytes | None]] = ()


GIVEN = Given()


def identity(
    rule: Dedup | None,
    record: Given = GIVEN,
    *,
    id: bytes | None = b"o1",
    time: str | None = None,
    alone: bool = True,
    agents: int = 1,
) -> EventIdentity:
    task = Task(3)
    task.topics["orders"] = ("t1", 4)
    cursors: dict[Any, Any] = {("orders", f"agent {n}"): None for n in range(agents)}
    task.cursors = cursors
    source = Topic("orders", time=time)
    plan = AgentPlan("agent 0", (source,), AgentKind.FUNCTION, lambda value: None, dedup=rule, alone=alone)
    event = Event({"id": "o1", "sent": 5}, record, "orders", 3)
    return EventIdentifier("app", plan).identity(event, task, id, Attempt(1))


def test_an_event_is_its_id_its_place_its_payload_and_its_time() -> None:
    found = identity(Dedup("id", window=WEEK))
    assert found[:8] == ("app", "", "orders", "t1", 3, 7, b"o1", b"")
    assert found.payload == payload_hash(Given().value or b"").to_bytes(8, "big")
    assert (found.at_ms, found.window_ms) == (123, 604_800_000)
    assert identity(Dedup("id", window=WEEK, compare="id")).payload != found.payload


def test_its_time_is_what_its_dedup_rule_takes_for_it() -> None:
    assert identity(Dedup("id", window=WEEK, time="sent")).at_ms == 5
    assert identity(Dedup("id", window=WEEK), time="sent").at_ms == 5


def test_an_id_that_two_events_may_have_names_neither() -> None:
    for rule in (None, Dedup("id", window=WEEK, conflict="pass"), Dedup("id", window=WEEK, late="pass")):
        assert identity(rule, id=None if rule is None else b"o1").id is None
    passing = Dedup("id", window=WEEK, missing="pass")
    assert identity(passing, id=None).id is None
    assert identity(passing).id == b"o1"
    # Without a time nobody can tell whether its window is over.
    assert (identity(passing, Given(timestamp=-1)).id, identity(passing, time="gone").id) == (None, None)


def test_a_replay_is_the_same_event_and_an_edited_one_is_another() -> None:
    rule = Dedup("id", window=WEEK)
    again: list[tuple[str, bytes | None]] = [(replay.REVISION, b"1")]
    assert identity(rule, Given(headers=again)).edition == b""
    edited = [
        identity(rule, Given(headers=[(replay.REVISION, n), (replay.EDITED, b"h")])).edition for n in (b"1", b"2")
    ]
    # Replayed once more as it is, it is the same edition.
    assert edited[0] == edited[1] != b""
    assert (
        identity(rule, Given(value=b"{}", headers=[(replay.REVISION, b"1"), (replay.EDITED, b"h")])).edition
        != edited[0]
    )


def test_an_agent_is_named_where_there_may_be_several_whether_there_are_or_not() -> None:
    assert [identity(None, alone=False, agents=n).agent for n in (1, 2)] == ["agent 0", "agent 0"]
    assert identity(None).agent == ""
