"""Plan: what one worker runs, whatever it was declared as. A `Pipeline` and a `semel.App` both become one.

It also owns the names of everything an app keeps on Kafka.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import orjson

from semel.codec import Codec
from semel.dedup import Dedup
from semel.event_time import EventTime, noted
from semel.rate_limit import RateLimit
from semel.retry import Retry
from semel.topic import Topic

Start = Literal["earliest", "latest"]


class AgentKind(Enum):
    STREAM = "takes the stream"
    FUNCTION = "takes one event"
    COROUTINE = "takes one event, awaits"


@dataclass(frozen=True, slots=True)
class TablePlan:
    """`keyed`: a row belongs to the partition its key hashes to; else where the event is.

    `shape` names its types, `structure` says what they look like, as far as it is known. `kind_of`: of keys whose kinds could
    have the same bytes; the first that is written to a partition holds for it.
    """

    name: str
    key: Codec[Any]
    value: Codec[Any]
    keyed: bool = True
    merge: Callable[[Any, Any], Any] | None = None
    shape: dict[str, Any] = field(default_factory=dict[str, Any])
    structure: dict[str, Any] = field(default_factory=dict[str, Any])
    migrate: Callable[[Any], Any] | None = None
    kind_of: Callable[[Any], str] | None = None


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One consumer of the app's source topics. `slots`: so many runs of its code may have an event in hand at a time;
    `by_key`: events of several keys of a partition, else those of several partitions. `in_threads`: each run has a thread.
    `timeout_s`: for how long one event may be in hand. `alone`: there can be no other of its app, so that its function may be
    renamed."""

    name: str
    sources: tuple[Topic, ...]
    kind: AgentKind
    run: Callable[..., Any]
    dedup: Dedup | None = None
    sink: Topic | None = None
    retry: Retry = Retry()  # noqa: RUF009  (frozen)
    slots: int = 1
    by_key: bool = False
    in_threads: bool = False
    rate_limit: RateLimit | None = None
    timeout_s: float | None = None
    alone: bool = False

    @property
    def state_name(self) -> str:
        """Under which its parked events are kept, and the effects of its events known."""
        return "" if self.alone else self.name

    def event_time(self, topic: Topic) -> EventTime | None:
        """What gives the time of events of a source: what it declares, or the dedup rule for it; None: their timestamps."""
        return topic.time if topic.time is not None or self.dedup is None else self.dedup.time


@dataclass(slots=True)
class Plan:
    app: str
    agents: list[AgentPlan] = field(default_factory=list[AgentPlan])
    tables: list[TablePlan] = field(default_factory=list[TablePlan])
    outputs: list[Topic] = field(default_factory=list[Topic])
    # Topics first named by an `Output`: nothing but the events that name them depends on them.
    named: list[Topic] = field(default_factory=list[Topic])
    # Topics that pending timers send to, and that no event has named since: of what types they are nobody has said.
    unnamed: list[Topic] = field(default_factory=list[Topic])
    start: Start = "earliest"
    internal_sources: set[str] = field(default_factory=set[str])
    # Where dead letters go; None: `{app}.dlq`.
    dead_letters: Topic | None = None

    @property
    def dedup(self) -> Dedup | None:
        for agent in self.agents:
            if agent.dedup is not None:
                return agent.dedup
        return None

    @property
    def sources(self) -> dict[str, Topic]:
        return {topic.name: topic for agent in self.agents for topic in agent.sources}

    @property
    def sinks(self) -> frozenset[str]:
        """The topics that agents' results go to, where these name no other."""
        return frozenset(agent.sink.name for agent in self.agents if agent.sink is not None)

    @property
    def slots(self) -> list[str]:
        """The agent of each slot that there may be."""
        return [agent.name for agent in self.agents for _ in range(agent.slots)]

    @property
    def may_grow(self) -> bool:
        """Whether its sources may get more partitions: nothing that it keeps belongs to where a key was before."""
        return not self.tables and self.dedup is None

    @property
    def readers(self) -> frozenset[str]:
        """Who takes events in: source topics, and by whom where there are several agents."""
        if len(self.agents) == 1:
            return frozenset(self.sources)
        return frozenset(f"{topic.name} by {agent.name}" for agent in self.agents for topic in agent.sources)

    # -- names on Kafka

    def transactional_id(self, instance: str) -> str:
        """No two apps share one: what comes after the last dash is the instance, whose own dashes are slashes here."""
        return f"{self.app}-{instance.replace('-', '/')}"

    def is_writer(self, transactional_id: str) -> bool:
        """Whether a writer of this app has that id."""
        return transactional_id.rpartition("-")[0] == self.app

    @property
    def positions_topic(self) -> str:
        return f"{self.app}-positions"

    @property
    def dead_letter_topic(self) -> str:
        return self.default_dead_letter_topic if self.dead_letters is None else self.dead_letters.name

    @property
    def default_dead_letter_topic(self) -> str:
        return f"{self.app}.dlq"

    @property
    def audit_topic(self) -> str:
        """Who did what with which dead letters."""
        return f"{self.app}-audit"

    @property
    def dead_letter_writer(self) -> str:
        """The transactional id of who acts on dead letters: no worker's, whose instance has a name."""
        return f"{self.app}-dlq-"

    def letters_of(self, recorded: tuple[str, ...]) -> tuple[str, ...]:
        """The topics that dead letters were to go to, as a position record has them: it notes none where that was the default."""
        return recorded or (self.default_dead_letter_topic,)

    @property
    def marks_topic(self) -> str:
        return f"{self.app}-dedup-changelog"

    @property
    def parked_topic(self) -> str:
        return f"{self.app}-parked"

    @property
    def timers_topic(self) -> str:
        return f"{self.app}-timers"

    def changelog(self, table: str) -> str:
        return f"{self.app}-{table}-changelog"

    def others_of(self, log: str) -> list[str]:
        """Other apps that could have a log of that name: those whose name ends before another dash in it."""
        parts = log.removesuffix("-changelog").split("-")
        apps = ["-".join(parts[:n]) for n in range(1, len(parts))]
        return [app for app in apps if app and app != self.app]

    @property
    def state_logs(self) -> list[str]:
        """The topics that hold rows, marks, parked events and timers."""
        marks = [self.marks_topic] if self.dedup else []
        of_events = [self.parked_topic, self.timers_topic] if self.sources else []
        return [*(self.changelog(t.name) for t in self.tables), *marks, *of_events]

    @property
    def logs(self) -> list[str]:
        """The topics that hold state, positions last."""
        return [*self.state_logs, self.positions_topic]

    @property
    def own_topics(self) -> frozenset[str]:
        """What the engine writes for itself; nobody else may."""
        return frozenset((*self.logs, self.marks_topic, self.dead_letter_topic, self.audit_topic))

    @property
    def used_topics(self) -> frozenset[str]:
        """What it reads and writes, as far as it is declared: what somebody else puts there passes for an event or a result."""
        return self.own_topics | self.sources.keys() | {topic.name for topic in self.outputs}

    def shape(self) -> str:
        """What stored state depends on, as canonical JSON (protocol rule 24)."""
        dedup = self.dedup
        shape = {"tables": {t.name: t.shape for t in self.tables}, "dedup": dedup.shape() if dedup else None}
        times = {name: noted(topic.time) for name, topic in self.sources.items() if topic.time is not None}
        if times and dedup is None:
            shape["time"] = times
        return orjson.dumps(shape, option=orjson.OPT_SORT_KEYS).decode()

    @property
    def program(self) -> str:
        """What tells one declaration from another in the group, in one line: the agents' names, and a fingerprint of them and
        of what stored state depends on. What the agents' code does has no part in it."""
        names = ", ".join(sorted(agent.name for agent in self.agents))
        return f"{names:.160} ({hashlib.sha256(f'{names} {self.shape()}'.encode()).hexdigest()[:8]})"

    def types(self) -> str:
        """What stored state looks like, as canonical JSON: of tables their types, of a dedup rule its functions."""
        tables = {t.name: t.structure for t in self.tables if t.structure}
        reader = next((agent for agent in self.agents if agent.dedup is not None), None)
        rule = reader.dedup if reader is not None else None
        code = rule.code(reader.sources[0].value.structure) if rule is not None and reader is not None else {}
        return orjson.dumps({"tables": tables, "dedup": code}, option=orjson.OPT_SORT_KEYS).decode()
