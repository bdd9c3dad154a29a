"""Faust's Stream over a runner of the engine: `async for`, `events()`, `batches()`, at batch speed."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
# pyright: reportMissingTypeStubs=false, reportMissingTypeArgument=false, reportPrivateUsage=false
from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any, NoReturn, cast

import faust
import faust.streams
from faust.events import Event as FaustEvent
from faust.exceptions import Skip
from faust.types import TP as FaustTP
from faust.types import TopicT
from faust.types.tuples import ConsumerMessage

from semel.errors import DeclarationError
from semel.faust_.arguments import STREAM
from semel.faust_.rules import Does
from semel.stages.agent.runner import AgentRunner
from semel.stages.agent.stream import Batch, EventStream


class LazyEvent(FaustEvent):
    """Faust's Event over a record, made only when somebody looks at it."""

    def __init__(self, app: Any, runner: AgentRunner, value: Any) -> None:
        context, taken = runner.context, runner.unit
        assert taken is not None
        record, tp = context.record, taken.cursor.tp
        message = ConsumerMessage(
            tp.topic, tp.partition, record.offset, record.timestamp / 1000, 0, record.headers, record.key, record.value,
            None, len(record.key or b""), len(record.value or b""), FaustTP(*tp),
        )  # fmt: skip
        super().__init__(app, runner.event(value, record, tp).key, value, dict(record.headers), message)
        self.acked = True

    async def __aexit__(self, *_: Any) -> None:
        return

    def ack(self) -> bool:
        """Nothing is acknowledged one by one; the epoch's transaction does it."""
        return True


class Stream(faust.Stream):
    """A stock Stream where its channel is not a topic; else one fed by a runner of the engine."""

    runner: AgentRunner | None = None
    # Of the run that the stream was made for; set with the runner.
    context: Any = None
    _value: Any = None
    _held: Any = None

    # -- iterating

    def __aiter__(self) -> AsyncIterator[Any]:
        if self.runner is None:
            if isinstance(self.channel, TopicT):
                raise DeclarationError(
                    f"app.stream() of topic {self.channel!s} outside an agent gets no events on semel; make it an agent: "
                    "@app.agent(topic)"
                )
            return super().__aiter__()
        return self._processed() if self._processors else self._values(self.runner)

    async def _values(self, runner: AgentRunner) -> AsyncIterator[Any]:
        self._follow(runner)
        await self._begin()
        async for value in EventStream(runner, self.context):
            yield value

    async def _processed(self) -> AsyncIterator[Any]:
        runner = self.runner
        assert runner is not None
        self._follow(runner)
        await self._begin()
        async for value in EventStream(runner, self.context):
            try:
                for process in self._processors:
                    value = process(value)
                    if inspect.isawaitable(value):
                        value = await value
            except Skip:
                # `stream.filter()` does not want it: asking for the next one is what ends an event.
                continue
            self._held = (runner.context.record, value)
            yield value

    async def events(self) -> AsyncIterator[Any]:
        runner = self.runner
        if runner is None:
            async for event in super().events():
                yield event
            return
        async for value in self:
            yield LazyEvent(self.app, runner, value)

    async def items(self) -> AsyncIterator[tuple[Any, Any]]:
        async for event in self.events():
            yield event.key, event.value

    def batches(self) -> AsyncIterator[Batch]:
        """The events as batches of one partition, each a unit of work."""
        if self.runner is None:
            raise DeclarationError("batches() needs a stream of a topic; this one reads an in-memory channel")
        self._follow(self.runner)
        return self._batches(self.runner)

    async def _batches(self, runner: AgentRunner) -> AsyncIterator[Batch]:
        await self._begin()
        async for batch in EventStream(runner, self.context).batches():
            yield batch

    async def _begin(self) -> None:
        """Faust's tasks and services start before events are handled."""
        await cast("Any", self.app).may_begin.wait()

    # -- the current event

    def _follow(self, runner: AgentRunner) -> None:
        # Faust keeps a weak reference there and calls it; any callable does.
        faust.streams._current_event.set(self._event_in_hand)  # pyright: ignore[reportArgumentType]

    def _event_in_hand(self) -> Any:
        runner = self.runner
        if runner is None or not runner.context.holding:
            return None
        held = self._held
        if held is not None and held[0] is runner.context.record:
            return LazyEvent(self.app, runner, held[1])
        event = runner.event_in_hand()
        return None if event is None else LazyEvent(self.app, runner, event.value)

    @property
    def current_event(self) -> Any:
        return self._held if self.runner is None else self._event_in_hand()

    @current_event.setter
    def current_event(self, event: Any) -> None:
        self._held = event

    # -- not there yet: refused at start where the agent's code shows it, else here, with the worker

    def _refuse(self, what: str) -> NoReturn:
        refused = DeclarationError(f"stream.{what}() does not run on semel yet: {STREAM[what].message}")
        engine = cast("Any", self.app).engine
        if engine is not None:
            engine.fail(refused)
        raise refused


def _refusing(name: str) -> Any:
    stock = getattr(faust.Stream, name)

    def method(self: Stream, *args: Any, **kwargs: Any) -> Any:
        return stock(self, *args, **kwargs) if self.runner is None else self._refuse(name)

    method.__name__, method.__doc__ = name, f"Refused on a topic: {STREAM[name].message}."
    return method


for _name, _rule in STREAM.items():
    if _rule.does is Does.REFUSED:
        setattr(Stream, _name, _refusing(_name))
