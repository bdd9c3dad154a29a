"""Faust's Agent, run by a runner of the engine instead of actors and a supervisor.

A failing event is the engine's business (undo, retry, dead letter), so the agent itself never crashes; its actors,
queues and restarts have no part in it. An agent on an in-memory channel stays stock Faust.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false, reportMissingTypeStubs=false
# pyright: reportMissingTypeArgument=false, reportPrivateUsage=false
from __future__ import annotations

from typing import Any

import faust
from faust.agents.models import ReqRepRequest
from faust.types import TopicT

from semel.callables.kind import asked_of_stream
from semel.errors import DeclarationError
from semel.faust_.arguments import AGENT, STREAM, check
from semel.faust_.codec import source_of
from semel.faust_.rules import Does
from semel.plan import AgentKind, AgentPlan
from semel.stages.agent.runner import AgentRunner
from semel.state.event_context import EventContext


class Agent(faust.Agent):
    """`bind` gives it its runner when the engine is built."""

    runner: AgentRunner | None = None

    def __init__(self, fun: Any, *, app: Any, **given: Any) -> None:
        self._given = given
        super().__init__(fun, app=app, **given)

    @property
    def on_topic(self) -> bool:
        return isinstance(self.channel, TopicT)

    def plan(self) -> AgentPlan:
        """DeclarationError for what the engine does not run."""
        check(AGENT, f"agent {self.name!r}", self._given)
        for method in sorted(asked_of_stream(self.fun)):
            rule = STREAM.get(method)
            if rule is not None and rule.does is Does.REFUSED:
                raise DeclarationError(
                    f"agent {self.name!r}: stream.{method}() does not run on semel yet: {rule.message}"
                )
        channel: Any = self.channel
        if channel.pattern is not None or not channel.topics:
            raise DeclarationError(f"agent {self.name!r} subscribes by pattern; name its topics")
        return AgentPlan(
            name=self.name,
            sources=tuple(source_of(self.app, channel, name) for name in channel.topics),
            kind=AgentKind.STREAM,
            run=self.fun,
        )

    def bind(self, runner: AgentRunner) -> None:
        self.runner = runner
        runner.make_stream = self._make_stream
        runner.on_result = self._deliver

    def _make_stream(self, context: EventContext) -> Any:
        stream: Any = self.stream()
        # The tree of services keeps what was made under it for good, and every failed attempt makes a stream; this one is
        # never started, nor stopped.
        stream.beacon.detach(self.beacon)
        stream.runner, stream.context = self.runner, context
        stream.add_processor(self._maybe_unwrap_reply_request)
        return stream

    async def _deliver(self, value: Any) -> None:
        """A yielded value goes to who asked for it and to the agent's sinks, all within the event's write set."""
        runner = self.runner
        event = runner.event_in_hand() if runner is not None else None
        if event is not None:
            request = event.value
            if isinstance(request, ReqRepRequest):
                await self._reply(event.record.key, value, request.reply_to, request.correlation_id)
            elif reply_to := event.headers.get("Faust-Ag-ReplyTo"):
                correlation = event.headers.get("Faust-Ag-CorrelationId") or b""
                await self._reply(event.record.key, value, reply_to.decode(), correlation.decode())
        await self._delegate_to_sinks(value)

    async def ask(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: replies are not read on semel yet, so the answer would never come."""
        raise self._nobody_replies("ask")

    async def join(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `ask`."""
        raise self._nobody_replies("join")

    async def kvjoin(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `ask`."""
        raise self._nobody_replies("kvjoin")

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `ask`."""
        raise self._nobody_replies("map")

    def kvmap(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as `ask`."""
        raise self._nobody_replies("kvmap")

    def _nobody_replies(self, what: str) -> DeclarationError:
        return DeclarationError(
            f"agent {self.name!r}: {what}() does not run on semel yet, nobody reads the replies; use cast() or send(), and "
            "read the answer from a topic or a table"
        )

    # -- the service: runners run elsewhere, there is nothing to supervise

    async def on_start(self) -> None:
        if not self.on_topic:
            await super().on_start()

    async def on_stop(self) -> None:
        if not self.on_topic:
            await super().on_stop()

    def cancel(self) -> None:
        if not self.on_topic:
            super().cancel()
