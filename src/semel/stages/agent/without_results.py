"""Without results: agents that have a sink and give it nothing. Each event counts as done, and what they were declared for is
not there: a loop that never yields, that returns before it does, or that sorts everything out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from semel.stages.agent.slots import AgentSlots

log = logging.getLogger("semel.agent")

# So many events without a single result are said. One in a thousand is rare for what sorts events out, and a thousand events
# are done within a second where they come fast, and within minutes elsewhere.
EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class WithoutResult:
    """`events`: done on this worker since it started, none of which had a result; `sink`: where results would go."""

    agent: str
    events: int
    sink: str


class AgentsWithoutResults:
    """Of one worker. `look` is called after commits: nothing is asked for where events are handled."""

    def __init__(self, agents: Sequence[AgentSlots]) -> None:
        self._agents = agents
        # Of whose first events it is not known yet.
        self._first = [*agents]

    def now(self) -> list[WithoutResult]:
        """Those of which that is so, with their numbers by now."""
        return [silent for agent in self._agents if (silent := _without_result(agent)) is not None]

    def look(self) -> None:
        """Say it, once of each agent, and of its first events only: results may be rare."""
        for agent in [a for a in self._first if a.completion.succeeded >= EVENTS]:
            self._first.remove(agent)
            if (silent := _without_result(agent)) is not None:
                log.warning(
                    "agent %s has handled %d events and none of them had a result, so nothing has come to its sink %r. Does it "
                    "yield, or return, what it makes, and before it leaves its loop? Where none is meant, declare the pipeline "
                    "without sink=. Said once; /pipelines (without_results) says so while it lasts",
                    silent.agent, silent.events, silent.sink,
                )  # fmt: skip


def _without_result(agent: AgentSlots) -> WithoutResult | None:
    done, sink = agent.completion, agent.plan.sink
    if sink is None or done.succeeded < EVENTS or done.without_result < done.succeeded:
        return None
    return WithoutResult(agent.plan.name, done.succeeded, sink.name)
