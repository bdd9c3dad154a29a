"""Stream: what a streaming agent iterates over: values, events with their metadata, or batches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from semel.callables.read_ahead import reads_ahead
from semel.event import Event
from semel.port import TP, Record
from semel.stages.agent.iteration import asked_elsewhere, enter
from semel.stages.agent.runner import AgentRunner
from semel.stages.agent.turns import TURN_S
from semel.state.event_context import EventContext

Pairs = Sequence[tuple[Any, Record]]


class Batch(Sequence[Any]):
    """Fresh events of one partition, handled as one: its write set is one, and a failure undoes all of it.

    A result is that of the event which a loop over the batch is at. Where no loop is at one, nobody knows whose it is, and
    it is refused; `Output(value, of=...)` says it: one of the batch's values, of its `events` or of its `records`.
    """

    __slots__ = ("_context", "_event", "_make_event", "_tp", "_values", "records")

    def __init__(
        self, context: EventContext, tp: TP, make_event: Callable[[Any, Record, TP], Event], pairs: Pairs
    ) -> None:
        self._context = context
        self._event = context.event
        self._tp = tp
        self._make_event = make_event
        self._values = [value for value, _ in pairs]
        self.records = [record for _, record in pairs]
        context.record = self.records[0] if len(pairs) == 1 else None

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __iter__(self) -> Iterator[Any]:
        # What reads several events before it gives something is at none of them.
        return iter(self._values) if reads_ahead(sys._getframe(1)) else self._one_by_one()  # pyright: ignore[reportPrivateUsage]

    def _one_by_one(self) -> Iterator[Any]:
        context, number = self._context, self._event
        # Where one loop runs inside another, the outer one goes on from where it was.
        before = context.record if context.event == number else None
        try:
            for value, record in zip(self._values, self.records, strict=True):
                # A batch that was kept may be looked at again when another one is in hand.
                if context.event == number:
                    context.record = record
                yield value
        finally:
            if context.event == number:
                context.record = before

    @property
    def events(self) -> list[Event]:
        """The events with key, headers, timestamp and position."""
        return [self._make_event(v, r, self._tp) for v, r in zip(self._values, self.records, strict=True)]


class EventStream:
    """The stream a plain semel agent receives. Asking for the next event finishes the one before.

    It belongs to the run it was made for: where that is over, iterating raises StaleIncarnation. An error of the engine that
    comes out of it has been counted as a failed attempt before, whatever the agent does with it (protocol rule 5).
    """

    def __init__(self, runner: AgentRunner, context: EventContext) -> None:
        self._runner = runner
        self._context = context

    async def __aiter__(self) -> AsyncIterator[Any]:
        runner, context = self._runner, self._context
        epoch, monotonic = runner.services.epoch, runner.services.clock.monotonic
        begin, finish, usage = context.begin, runner.finish, runner.turns.usage
        await enter(runner, context)
        while True:
            unit = await runner.next_unit(context)
            turn_ends = monotonic() + TURN_S
            try:
                for value in runner.admit(unit, context):
                    # As `AgentRunner.begin`, without its call: it is once an event.
                    if runner.context is not context or runner.closed:
                        runner.check_run(context)
                    begin()
                    if usage.stepped_at is None:
                        runner.begun_elsewhere(context)
                    yield value
                    if usage.stepped_at is None:
                        asked_elsewhere(runner, context)
                    finish(context)
                    if monotonic() > turn_ends or epoch.closed:
                        turn_ends = await runner.pause(context, turn_ends)
                runner.end_unit(context)
            except Exception as exc:
                runner.failed_unheard(exc, context)
                raise
            await runner.turns.let_go()

    async def events(self) -> AsyncIterator[Event]:
        """The same events with key, headers, timestamp and position."""
        async for value in self:
            unit = self._runner.unit
            assert unit is not None
            yield self._runner.event(value, self._context.record, unit.cursor.tp)

    async def items(self) -> AsyncIterator[tuple[Any, Any]]:
        """Keys and values."""
        async for event in self.events():
            yield event.key, event.value

    async def enumerate(self, start: int = 0) -> AsyncIterator[tuple[int, Any]]:
        """The values, counted since this run of the agent began: no state."""
        number = start
        async for value in self:
            yield number, value
            number += 1

    async def filter(self, wanted: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """The values that `wanted` holds for, awaited where it is to be; the others are done without a result."""
        async for value in self:
            holds = wanted(value)
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                yield value

    async def batches(self) -> AsyncIterator[Batch]:
        """The events as `Batch`es, each a unit of work."""
        runner, context = self._runner, self._context
        await enter(runner, context)
        while True:
            unit = await runner.next_unit(context)
            try:
                pairs = runner.admit_batch(unit, context)
                runner.begin(context)
                if pairs:
                    yield Batch(context, unit.cursor.tp, runner.event, pairs)
                    if runner.turns.usage.stepped_at is None:
                        asked_elsewhere(runner, context)
                runner.complete(context)
                runner.end_unit(context)
            except Exception as exc:
                runner.failed_unheard(exc, context)
                raise
            await runner.turns.let_go()
