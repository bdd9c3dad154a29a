"""Results: what an agent yields or returns becomes an output in the write set of its event (protocol rule 2)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from semel.errors import AmbiguousResult, OutputRefused, OutsideEvent, StaleIncarnation
from semel.output import CANCEL, Output
from semel.port import NO_TIMESTAMP, Record
from semel.stages.sink.destination import Destination
from semel.state.event_context import EventContext
from semel.state.timers import DelayedOutput, TimerPlace, name_row
from semel.topic import Topic


class Results:
    """One agent's. `sink`: where results go that name no topic. `destination`: of the topics that are known, the one so named;
    `open_destination`: gets to know another."""

    __slots__ = ("_agent", "_app", "_destination", "_open_destination", "sink")

    def __init__(
        self,
        app: str,
        agent: str,
        destination: Callable[[str], Destination | None],
        open_destination: Callable[[Topic], Awaitable[Destination]],
    ) -> None:
        self._app = app
        self._agent = agent
        self._destination = destination
        self._open_destination = open_destination
        self.sink: Destination | None = None

    def emit(self, context: EventContext, result: Any) -> Awaitable[None] | None:
        """A result of the event in hand; None is none. OutputRefused where its topic would not take it.

        An answer is to be awaited: the result names a topic that is not known yet.
        """
        if result is None:
            return None
        if not context.alive:
            raise StaleIncarnation("the event's epoch is over")
        if not context.holding:
            raise OutsideEvent("a result was yielded where no event is in hand; yield inside the loop over the stream")
        destination, record = self.sink, context.record
        if type(result) is Output:
            if result.of is not None:
                record = context.record_of(result.of)
            if result.value is CANCEL and result.name is not None:
                context.cancel_timer(_name_row(result.name, self._one(record)))
                return None
            if result.topic is not None:
                destination = self._destination(result.topic.name)
                if destination is None or not destination.named:
                    return self._open_and_emit(context, result, result.topic)
        if destination is None:
            raise OutputRefused(f"agent {self._agent!r} {_without_sink(result, self._app)}")
        if record is None:
            record = self._one(record)
        if type(result) is Output and result.at is not None:
            _send_later(context, destination, result, record)
            return None
        out = destination.record(result, record, context.task.partition, context.wall_ms, context.lineage(record))
        context.emit(out, record)
        return None

    def _one(self, record: Record | None) -> Record:
        if record is None:
            raise AmbiguousResult(
                f"agent {self._agent!r} yielded a result of a batch where its loop over the batch is at no event; yield it in "
                "the loop, or say whose it is: Output(value, of=event), with a value of the batch or one of batch.events"
            )
        return record

    async def _open_and_emit(self, context: EventContext, result: Any, topic: Topic) -> None:
        await self._open_destination(topic)
        self.emit(context, result)


def _send_later(context: EventContext, destination: Destination, result: Output, record: Record) -> None:
    """It is what it would be if it were sent when it is due."""
    task, cursor, offset = context.task, context.unit.cursor, record.offset
    due_ms = result.due_ms(record.timestamp if record.timestamp != NO_TIMESTAMP else context.wall_ms)
    if due_ms >= 1 << 63:
        raise OutputRefused(f"output to {destination.topic.name!r}: at={result.at!r} is beyond all time")
    name, named = (_name_row(result.name, record), True) if result.name is not None else (b"", False)
    step = context.next_timer(offset, named=named)
    out = destination.record(
        result,
        record,
        task.partition,
        max(context.wall_ms, due_ms),
        context.lineage_later(record, step, named=named),
        stamp_ms=due_ms,
    )
    place = TimerPlace(due_ms, cursor.tp.topic, cursor.agent.name, offset, step, named)
    context.set_timer(
        place,
        DelayedOutput(
            out.tp.topic, due_ms if out.timestamp is None else out.timestamp, out.key, out.value, out.headers, name
        ),
    )


def _name_row(name: str, record: Record) -> bytes:
    """Of the event's key, and not the output's: events of one key are handled in their order, in one partition."""
    if record.key is None:
        raise OutputRefused(
            f"a timer with the name {name!r} belongs to the key of its event, and this event has none; give its record a key, or "
            "leave name= out"
        )
    return name_row(record.key, name)


def _without_sink(result: Any, app: str) -> str:
    """What is wrong with a result that there is no topic for."""
    value = result.value if type(result) is Output else result
    if inspect.iscoroutine(value):
        value.close()
        return (
            f"returned the coroutine {value.__name__!r}, and nobody awaits it: declare the agent with async def, and await what "
            "it calls"
        )
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return (
            f"returned the generator {value.__name__!r}, and nobody iterates over it: for several results of one event, let the "
            "agent take the stream and yield them"
        )
    return (
        f"returned a result, and {app!r} has no sink; give the pipeline a sink=Topic(...), or the result a topic: "
        "Output(value, topic=...)"
    )
