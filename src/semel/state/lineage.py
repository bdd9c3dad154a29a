"""Lineage: the header that says which event an output comes from, so that anybody can hold the two against each other.

`semel.lineage: app/topic/partition/offset/step/id`: the app that wrote it, the event's position, the number of the output
among those of its event, from 0, and the dedup id (empty without dedup; the rest of the value, whatever bytes it has). Where
an app has several agents, its name is followed by `:` and the agent's. What an app sends without an event says `app/`.
Those that are sent later (`Output(at=)`) are numbered apart, from `+0`; of them, those with a name from `~0`: some of these are
never there.
One header instead of three: it costs half as much to read, and less to write and to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HEADER = "semel.lineage"


class Lineage(NamedTuple):
    """Where an output comes from. `topic` is empty, and the numbers -1, for what was sent without an event. `later`: it was not
    sent with its event; `named`: and it had a name."""

    app: str
    agent: str
    topic: str
    partition: int
    offset: int
    step: int
    id: bytes
    later: bool = False
    named: bool = False


def prefix(app: str, agent: str, topic: str, partition: int) -> bytes:
    """What is the same for all events of a partition. `agent`: empty where the app has one only."""
    writer = f"{app}:{signed(agent)}" if agent else app
    return f"{writer}/{topic}/{partition}/".encode()


def signed(agent: str) -> str:
    """An agent's name as it stands in the header."""
    return agent.replace("/", "_")


def sent(app: str) -> bytes:
    """The value for what an app sends without an event."""
    return f"{app}/".encode()


def of(headers: Sequence[tuple[str, bytes | None]]) -> bytes | None:
    """The header's value; None where there is none."""
    if not headers:
        return None
    # It is put last, and what is put after it by others is rare.
    name, value = headers[-1]
    if name == HEADER:
        return value
    return next((value for name, value in reversed(headers) if name == HEADER), None)


def parse(value: bytes) -> Lineage | None:
    """None for what this version did not write."""
    parts = value.split(b"/", 5)
    try:
        app, _, agent = parts[0].decode().partition(":")
        if len(parts) == 2 and not parts[1]:
            return Lineage(app, agent, "", -1, -1, -1, b"")
        _, topic, partition, offset, step, id = parts
        kind, number = (step[:1], step[1:]) if step[:1] in (b"+", b"~") else (b"", step)
        return Lineage(
            app, agent, topic.decode(), int(partition), int(offset), int(number), id, bool(kind), kind == b"~"
        )
    except ValueError:
        return None
