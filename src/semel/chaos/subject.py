"""What is tortured: a `Pipeline`, or a `semel.App` with one agent that reads one topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semel.dedup import Dedup
from semel.errors import ConfigError
from semel.event_time import EventTime
from semel.pipeline import Pipeline
from semel.plan import Plan
from semel.topic import Topic

if TYPE_CHECKING:
    from semel.faust_.app import App


@dataclass(frozen=True, slots=True)
class Subject:
    """`source` is the topic that is fed."""

    plan: Plan
    source: Topic

    @property
    def name(self) -> str:
        return self.plan.app

    @property
    def dedup(self) -> Dedup | None:
        return self.plan.dedup

    @property
    def event_time(self) -> EventTime | None:
        [agent] = self.plan.agents
        return agent.event_time(self.source)


def subject(target: str, loaded: Pipeline | App) -> Subject:
    """ConfigError for an App that a run could not feed, or of which it could not say when it is done."""
    plan = loaded.plan()
    if isinstance(loaded, Pipeline):
        return Subject(plan, loaded.source)
    agents, sources = sorted(agent.name for agent in plan.agents), sorted(plan.sources)
    if len(agents) != 1:
        why = (
            f"the agents of app {plan.app!r} that read topics are {', '.join(agents) or 'none'}; semel chaos takes an App "
            "with one, since the running counts of several are one sum, in which an event that one of them lost is not "
            "seen. Put the others into apps of their own"
        )
    elif len(sources) != 1:
        why = (
            f"app {plan.app!r} reads {', '.join(sources)}; semel chaos feeds one topic, and is done when that is read to "
            "its end. Give each topic an agent in an app of its own"
        )
    elif sources[0] in plan.internal_sources:
        why = (
            f"the agent of app {plan.app!r} reads a topic of its own, {sources[0]!r}; declare the topic that it is to read "
            "by app.topic(...)"
        )
    else:
        return Subject(plan, plan.sources[sources[0]])
    raise ConfigError(f"{target}: {why}")
