"""Pipeline: source -> dedup -> agent -> sink, declared and checked. No I/O happens here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from semel.callables.kind import Kind, asked_of_stream, cannot_yield, check_results, gives_nothing, kind_of
from semel.callables.shape import FAUSTS
from semel.callables.takes import check_takes
from semel.callables.uses import first_of_each, uses
from semel.codec import accepted_classes, check_fields
from semel.dedup import Dedup
from semel.errors import DeclarationError
from semel.event_time import EventTime
from semel.functions import called
from semel.plan import AgentKind, AgentPlan, Plan, Start, TablePlan
from semel.rate_limit import RateLimit
from semel.retry import Retry
from semel.table import Table
from semel.topic import KAFKAS_OWN, Topic, checked_name, is_whole

log = logging.getLogger("semel.pipeline")

# What an agent does with a table beside `[]` and `in`.
TABLE_METHODS = frozenset(("get", "get_many", "pop", "setdefault", "update"))
# A worker's partitions whose handlers may wait at a time; a plain function does not let go of the event loop.
PARTITIONS_AT_ONCE = 64
MOST_AT_ONCE = 10_000
MOST_THREADS = 1_000
LEAST_TIMEOUT = timedelta(milliseconds=10)


class Pipeline:
    """A stream of events, each taking effect exactly once per dedup key.

    `source`: the topic read; it must exist. `agent`: an `async for` agent over the stream, or a function of one event.
    `dedup`: how an event is known again; without it, every record counts once by its position. `tables`: the tables the
    agent uses. `sink`: where results go by default. `dead_letters`: the topic for what cannot be handled, `{name}.dlq` unless
    given; bytes go there as they came, whatever its types. `retry`: what happens when the agent raises. `start`: "earliest"
    or "latest", where a group that has never committed begins. `concurrency`: how many keys a worker handles at a time, over its
    partitions and within one; 1: events of one partition one after the other, several partitions side by side. `threads`: as
    `concurrency`, of a plain function, which runs in as many threads beside the event loop and may block. `rate_limit`: how
    many events its agent is given in a span of time, by all workers together. `kind`: whether the agent takes the "stream" or
    one "event" at a time, where its function does not show that.

    `timeout`: for how long an event may be in hand, and up to an eighth more; then its handler is cancelled, and that is a failed
    attempt. A batch is one event here.

    DeclarationError where the parts do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        source: Topic,
        agent: Callable[..., Any],
        dedup: Dedup | None = None,
        tables: Iterable[Table] = (),
        sink: Topic | None = None,
        dead_letters: Topic | None = None,
        partition_by: Any = None,
        retry: Retry = Retry(),  # noqa: B008  (frozen)
        concurrency: int = 1,
        threads: int | None = None,
        rate_limit: RateLimit | None = None,
        timeout: timedelta | None = None,
        start: Start = "earliest",
        kind: Kind | None = None,
    ) -> None:
        self.name = checked_name(name, "pipeline")
        _check_one_each(name, source, agent, sink)
        self.source = source
        self.agent = agent
        self.dedup = dedup
        if not isinstance(tables, (Table, Iterable)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(f"pipeline {self.name!r}: tables={tables!r}; give a list of semel.Tables")
        self.tables = (tables,) if isinstance(tables, Table) else tuple(tables)
        self.sink = sink
        self.dead_letters = dead_letters
        self.retry = retry
        self.start: Start = start
        self.concurrency = concurrency
        self.threads = threads
        self.rate_limit = rate_limit
        self.timeout = timeout
        self.kind = kind_of(agent, kind)
        self._check(partition_by)
        for table in self.tables:
            table.belong_to(self.name)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r})"

    def _check(self, partition_by: Any) -> None:
        if not isinstance(self.source, Topic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(f"pipeline {self.name!r}: source is {self.source!r}; give a semel.Topic")
        if self.sink is not None and not isinstance(self.sink, Topic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(
                f"pipeline {self.name!r}: sink is {self.sink!r}; give a semel.Topic, or leave it out"
            )
        if self.dead_letters is not None and not isinstance(self.dead_letters, Topic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(
                f"pipeline {self.name!r}: dead_letters is {self.dead_letters!r}; give a semel.Topic, or leave it out for "
                f"{Plan(self.name).dead_letter_topic!r}"
            )
        if self.sink is not None and self.sink.name == self.source.name:
            raise DeclarationError(
                f"pipeline {self.name!r} reads and writes topic {self.source.name!r}: its results would be its events "
                "again"
            )
        if self.start not in ("earliest", "latest"):
            raise DeclarationError(f"pipeline {self.name!r}: start={self.start!r}; it takes 'earliest' or 'latest'")
        for given, value, kind in (("dedup", self.dedup, Dedup), ("retry", self.retry, Retry)):
            if value is not None and not isinstance(value, kind):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DeclarationError(f"pipeline {self.name!r}: {given} is {value!r}; give a semel.{kind.__name__}")
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(
                f"pipeline {self.name!r}: rate_limit is {self.rate_limit!r}; give a semel.RateLimit, as RateLimit(100) for a "
                "hundred events a second"
            )
        for table in self.tables:
            if not isinstance(table, Table):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DeclarationError(f"pipeline {self.name!r}: {table!r} in tables= is no semel.Table")
        names = [t.name for t in self.tables]
        if len(set(names)) != len(names):
            raise DeclarationError(f"pipeline {self.name!r}: a table stands twice in tables={names}")
        self._check_topics()
        if self.dedup is not None:
            self._check_dedup(self.dedup)
        self._check_stream()
        check_takes(self.agent, self.kind, self.source)
        accepted = accepted_classes(self.sink.value) if self.sink is not None else None
        check_results(self.agent, self.kind, accepted, self.sink.name if self.sink is not None else None)
        if self.sink is not None and cannot_yield(self.agent, self.kind):
            raise DeclarationError(
                f"pipeline {self.name!r}: agent {called(self.agent)!r} takes the stream and has no yield, so every event would "
                f"count as done and nothing could come to sink {self.sink.name!r}; yield results inside the loop, or declare the "
                "pipeline without sink="
            )
        if self.sink is not None and gives_nothing(self.agent, self.kind):
            way = "yields a result" if self.kind is AgentKind.STREAM else "returns a result"
            log.warning(
                "pipeline %r: agent %r never %s, so nothing goes to its sink %r; %s, or declare the pipeline without sink=",
                self.name, getattr(self.agent, "__name__", self.agent), way, self.sink.name,
                "yield results inside the loop" if self.kind is AgentKind.STREAM else "return one",
            )  # fmt: skip
        self._check_tables(set(names))
        if partition_by is not None:
            raise DeclarationError(
                f"pipeline {self.name!r}: partition_by is not there yet; key the source topic by it where it is "
                "produced"
            )
        self._check_concurrency()
        self._check_threads()
        self._check_timeout()

    def _check_concurrency(self) -> None:
        given, name = self.concurrency, self.name
        if not is_whole(given) or not 1 <= given <= MOST_AT_ONCE:
            raise DeclarationError(
                f"pipeline {name!r}: concurrency={given!r}; give how many keys are handled at a time, 1 to {MOST_AT_ONCE}"
            )
        if given == 1:
            return
        if self.kind is AgentKind.FUNCTION:
            raise DeclarationError(
                f"pipeline {name!r}: concurrency={given}, and its agent is a plain function, which holds the event loop until it "
                f"returns; give threads={given} instead, or declare it with async def"
            )
        if self.kind is AgentKind.STREAM and "batches" in asked_of_stream(self.agent):
            raise DeclarationError(
                f"pipeline {name!r}: concurrency={given}, and its agent takes batches(), each of which is one unit of work; "
                "iterate over the stream, or leave concurrency out and await a batch's calls side by side (asyncio.gather)"
            )

    def _check_threads(self) -> None:
        given, name = self.threads, self.name
        if given is None:
            return
        if not is_whole(given) or not 1 <= given <= MOST_THREADS:
            raise DeclarationError(
                f"pipeline {name!r}: threads={given!r}; give how many events are handled at a time, 1 to {MOST_THREADS}"
            )
        if self.kind is not AgentKind.FUNCTION:
            raise DeclarationError(
                f"pipeline {name!r}: threads={given}, and its agent runs on the event loop; threads are for a plain function of "
                "one event (def): use concurrency= for this one, and `await asyncio.to_thread(...)` for what blocks in it"
            )

    def _check_timeout(self) -> None:
        given, name = self.timeout, self.name
        if given is None:
            return
        if not isinstance(given, timedelta) or given < LEAST_TIMEOUT:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(
                f"pipeline {name!r}: timeout={given!r}; give a timedelta of 10 ms or more, as timeout=timedelta(seconds=30)"
            )
        if self.kind is AgentKind.FUNCTION and self.threads is None:
            raise DeclarationError(
                f"pipeline {name!r}: timeout={given}, and its agent is a plain function, which holds the event loop until it "
                "returns, so that nobody could end it; give threads= as well, or declare it with async def"
            )

    def _check_stream(self) -> None:
        missing = sorted(asked_of_stream(self.agent) & FAUSTS) if self.kind is AgentKind.STREAM else []
        if missing:
            raise DeclarationError(
                f"pipeline {self.name!r}: its agent asks for stream.{missing[0]}(), which only Faust has so far; iterate "
                "over the stream, or over its events(), batches(), items(), filter(...) or enumerate()"
            )

    def _check_tables(self, listed: set[str]) -> None:
        """DeclarationError for a table that the agent's code uses whatever its events are, and that is not listed; a warning
        for one that it names elsewhere, which may be for another pipeline's events."""
        for use in first_of_each(uses(self.agent, Table, TABLE_METHODS)):
            table: Table = use.object
            if table.name in listed:
                continue
            if table.owner not in (None, self.name):
                whose = (
                    f"it belongs to pipeline {table.owner!r}, which alone commits its rows: declare a second Table for this "
                    f"pipeline, or have {table.owner!r} send through a topic what is to be known here"
                )
            else:
                whose = f"list it: tables=[{', '.join(sorted(listed | {table.name}))}]"
            agent = called(self.agent)
            if use.certain:
                raise DeclarationError(
                    f"pipeline {self.name!r}: agent {agent!r} uses table {table.name!r} ({use.where}), which is not in its "
                    f"tables=, so that every event that comes there fails; {whose}"
                )
            log.warning(
                "pipeline %r: agent %r names table %r (%s), which is not in its tables=; an event that comes to use it fails. "
                "Where that may be, %s", self.name, agent, table.name, use.where, whose,
            )  # fmt: skip

    def _check_topics(self) -> None:
        internal = self.plan_names()
        for name in internal:
            checked_name(name, f"pipeline {self.name!r} keeps its state in topics, and the")
        for what, topic in (("sink", self.sink), ("dead_letters", self.dead_letters)):
            if topic is not None and topic.name in KAFKAS_OWN:
                raise DeclarationError(
                    f"pipeline {self.name!r}: {what} {topic.name!r} is a topic of the brokers' own, which no client may write "
                    "to; choose another"
                )
        self._check_dead_letters()
        for what, topic in (("source", self.source), ("sink", self.sink)):
            if topic is not None and topic.name in internal:
                raise DeclarationError(
                    f"pipeline {self.name!r}: {what} {topic.name!r} is one of its own internal topics"
                )

    def _check_dead_letters(self) -> None:
        topic, plan = self.dead_letters, Plan(self.name)
        if topic is None:
            return
        used = dict.fromkeys(self._state_names(), "one of its own internal topics")
        used |= {self.source.name: "its source: what cannot be handled would come in again"}
        if self.sink is not None:
            used[self.sink.name] = "its sink: whoever reads results would read dead letters"
        if topic.name in used:
            raise DeclarationError(
                f"pipeline {self.name!r}: dead_letters {topic.name!r} is {used[topic.name]}; choose another, or leave it out "
                f"for {plan.dead_letter_topic!r}"
            )
        if "compact" in topic.configs.get("cleanup.policy", ""):
            raise DeclarationError(
                f"pipeline {self.name!r}: dead_letters {topic.name!r} is to be compacted: a dead letter would take away the "
                "earlier ones of its key; leave cleanup.policy out"
            )

    def _check_dedup(self, rule: Dedup) -> None:
        source = self.source
        check_fields(rule.fields(), source.value, f"pipeline {self.name!r}: Dedup names")
        if rule.time is not None and source.time is not None and rule.time != source.time:
            raise DeclarationError(
                f"pipeline {self.name!r}: Topic({source.name!r}, time={_text(source.time)}) and Dedup(time={_text(rule.time)}) "
                "are two rules for one event time; leave out one of them"
            )

    def plan_names(self) -> tuple[str, ...]:
        return (*self._state_names(), Plan(self.name, dead_letters=self.dead_letters).dead_letter_topic)

    def _state_names(self) -> tuple[str, ...]:
        plan = Plan(self.name)
        changelogs = (plan.changelog(t.name) for t in self.tables)
        return (plan.positions_topic, plan.marks_topic, plan.parked_topic, plan.timers_topic, *changelogs)

    @property
    def _slots(self) -> int:
        if self.threads is not None:
            return self.threads
        if self.concurrency > 1:
            return self.concurrency
        return 1 if self.kind is AgentKind.FUNCTION else PARTITIONS_AT_ONCE

    def plan(self) -> Plan:
        return Plan(
            self.name,
            agents=[
                AgentPlan(
                    name=getattr(self.agent, "__name__", self.name),
                    sources=(self.source,),
                    kind=self.kind,
                    run=self.agent,
                    dedup=self.dedup and self.dedup.with_time(self.source.time),
                    sink=self.sink,
                    retry=self.retry,
                    slots=self._slots,
                    by_key=self.concurrency > 1 or self.threads is not None,
                    in_threads=self.threads is not None,
                    rate_limit=self.rate_limit,
                    alone=True,
                    timeout_s=self.timeout.total_seconds() if self.timeout is not None else None,
                )
            ],
            tables=[table_plan(t) for t in self.tables],
            outputs=[self.sink] if self.sink is not None else [],
            start=self.start,
            dead_letters=self.dead_letters,
        )


def _check_one_each(name: str, *given: Any) -> None:
    ways = {
        "source": "declare a second Pipeline, or, where several sources are to share tables, a semel.App",
        "agent": "declare a second Pipeline with the same source, or, where several agents are to share tables, a semel.App",
        "sink": "where results go to several topics, give those of the others theirs: Output(value, topic=other)",
    }
    for what, value in zip(ways, given, strict=True):
        if isinstance(value, (list, tuple, set, frozenset, dict)):
            raise DeclarationError(
                f"pipeline {name!r}: {what} is {value!r:.200}, and a pipeline has one {what}; {ways[what]}"
            )


def _text(time: EventTime) -> str:
    return repr(time) if isinstance(time, str) else called(time)


def table_plan(table: Table) -> TablePlan:
    return TablePlan(
        table.name,
        table.key,
        table.value,
        keyed=table.merge is None,
        merge=table.merge,
        shape=table.shape(),
        structure=table.structure(),
        migrate=table.migrate,
    )
