"""Pipelines: what can be wrong is found where they are declared; what is right becomes a plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

import msgspec
import orjson
import pytest

from semel import Dedup, Pipeline, Retry, Table, Topic, content_hash, header
from semel.errors import DeclarationError
from semel.plan import AgentKind, AgentPlan, Plan

DAY = timedelta(days=1)
SOURCE = Topic("payments")


@dataclass
class Payment:
    id: str
    amount: int

    @property
    def day(self) -> str:
        return self.id[:8]


def settle(event: Any) -> None: ...


def declared(**changed: Any) -> Pipeline:
    return Pipeline(**{"name": "p", "source": SOURCE, "agent": settle, **changed})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": "a b"}, "pipeline name 'a b' is not possible"),
        ({"name": "x" * 240}, "keeps its state in topics"),
        ({"source": "payments"}, "give a semel.Topic"),
        ({"sink": "settled"}, "give a semel.Topic, or leave it out"),
        ({"sink": [Topic("a"), Topic("b")]}, r"has one sink.*several topics.*Output\(value, topic=other\)"),
        ({"source": [Topic("a"), Topic("b")]}, r"has one source.*a second Pipeline.*several sources.*semel\.App"),
        ({"source": (Topic("a"),)}, r"has one source"),
        ({"agent": [print, repr]}, r"has one agent.*a second Pipeline.*several agents.*semel\.App"),
        ({"sink": SOURCE}, "its results would be its events again"),
        ({"sink": Topic("p.dlq")}, "sink 'p.dlq' is one of its own internal topics"),
        ({"dead_letters": "p.dead"}, "give a semel.Topic, or leave it out for 'p.dlq'"),
        ({"dead_letters": SOURCE}, "its source: what cannot be handled would come in again"),
        ({"dead_letters": Topic("s"), "sink": Topic("s")}, "its sink"),
        ({"dead_letters": Topic("p-t-changelog"), "tables": [Table("t")]}, "one of its own internal topics"),
        ({"dead_letters": Topic("__transaction_state")}, "which no client may write to"),
        ({"dead_letters": Topic("d", configs={"cleanup.policy": "compact"})}, "leave cleanup.policy out"),
        ({"tables": 5}, "give a list of semel.Tables"),
        ({"sink": Topic("__consumer_offsets")}, "which no client may write to"),
        ({"sink": Topic("p-dedup-changelog")}, "internal topics"),
        ({"source": Topic("p-positions")}, "source 'p-positions' is one of its own internal topics"),
        ({"sink": Topic("p-t-changelog"), "tables": [Table("t")]}, "internal topics"),
        ({"agent": None}, "cannot be called"),
        ({"agent": lambda: None}, "does not take that"),
        ({"dedup": "id"}, "give a semel.Dedup"),
        ({"retry": 5}, "give a semel.Retry"),
        ({"tables": ["t"]}, "'t' in tables= is no semel.Table"),
        ({"tables": [Table("t"), Table("t")]}, "stands twice"),
        ({"start": "now"}, "'earliest' or 'latest'"),
        ({"concurrency": 0}, "1 to 10000"),
        ({"concurrency": 2.5}, "1 to 10000"),
        ({"partition_by": "id"}, "partition_by is not there yet"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(DeclarationError, match=why):
        declared(**changed)


@pytest.mark.parametrize(
    "rule",
    [
        Dedup("idd", window=DAY),
        Dedup(content_hash("id", "amout"), window=DAY),
        Dedup("id", window=DAY, time="at"),
        Dedup("id", window=DAY, compare=["amount", "sent_at"]),
    ],
)
def test_a_dedup_field_that_no_event_has_is_refused(rule: Dedup) -> None:
    with pytest.raises(DeclarationError, match="Payment has id, amount"):
        declared(source=Topic("payments", value=Payment), dedup=rule)
    declared(dedup=rule)


def test_a_dedup_field_with_a_typing_error_is_told_what_is_near() -> None:
    with pytest.raises(DeclarationError, match="did you mean 'amount'"):
        declared(source=Topic("payments", value=Payment), dedup=Dedup(content_hash("ammount"), window=DAY))


class Row(TypedDict):
    id: str


class Struct(msgspec.Struct, tag=True):
    id: str


class Other(msgspec.Struct, tag=True):
    other: str


@dataclass
class Opened:
    id: str


@dataclass
class Closed:
    id: str
    why: str


@pytest.mark.parametrize("value", [Row, Struct, Struct | Other, Opened | Closed, Opened | Closed | None, Struct | None])
def test_a_dedup_field_with_a_typing_error_is_found_in_every_kind_of_class(value: Any) -> None:
    source = Topic("events", value=value)
    for rule in (
        Dedup("idd", window=DAY),
        Dedup("id", window=DAY, time="att"),
        Dedup("id", window=DAY, compare=["idd"]),
    ):
        with pytest.raises(DeclarationError, match=r"Dedup names field '(idd|att)', and .* has .*id"):
            declared(source=source, dedup=rule)
    declared(source=source, dedup=Dedup("id", window=DAY))


@pytest.mark.parametrize("value", [str, bytes, int, float])
def test_a_dedup_field_of_what_has_no_fields_is_refused(value: Any) -> None:
    with pytest.raises(DeclarationError, match="has no fields"):
        declared(source=Topic("events", value=value), dedup=Dedup("id", window=DAY))
    declared(source=Topic("events", value=value), dedup=Dedup(lambda value: value, window=DAY))


def test_a_field_that_some_classes_of_a_union_have_may_be_a_dedup_field() -> None:
    declared(source=Topic("events", value=Opened | Closed), dedup=Dedup("id", window=DAY, compare="why"))


def test_dedup_may_use_fields_properties_headers_and_callables() -> None:
    for rule in (
        Dedup("id", window=DAY, compare="amount"),
        Dedup("day", window=DAY),
        Dedup(header("x"), window=DAY),
        Dedup(lambda p: p.idd, window=DAY),
    ):
        assert declared(source=Topic("payments", value=Payment), dedup=rule).dedup is rule


def at(payment: Any) -> int:
    return payment["at"]


def test_an_event_has_one_time_whether_its_topic_or_its_dedup_rule_says_it() -> None:
    for of_topic, of_rule in ((at, None), (None, at), (at, at)):
        source = Topic("payments", time=of_topic)
        pipeline = declared(source=source, dedup=Dedup("id", window=DAY, time=of_rule))
        [agent] = pipeline.plan().agents
        assert agent.event_time(source) is at and agent.dedup is not None and agent.dedup.time is at
        assert orjson.loads(pipeline.plan().shape())["dedup"]["time"] == "callable"
    [agent] = declared(source=source).plan().agents
    assert agent.event_time(source) is at
    [agent] = declared().plan().agents
    assert agent.event_time(SOURCE) is None


def test_two_rules_for_one_event_time_are_refused_by_both_names() -> None:
    with pytest.raises(DeclarationError, match=r"Topic\('payments', time='at'\) and Dedup\(time=at\) are two rules"):
        declared(source=Topic("payments", time="at"), dedup=Dedup("id", window=DAY, time=at))


def test_a_table_belongs_to_one_pipeline() -> None:
    table = Table("t")
    declared(tables=[table])
    declared(tables=[table])
    with pytest.raises(DeclarationError, match="'p' and 'q'; a table belongs to one pipeline"):
        declared(name="q", tables=[table])


def test_a_pipeline_that_is_refused_takes_no_table() -> None:
    table = Table("t")
    with pytest.raises(DeclarationError):
        declared(name="q", tables=[table], start="now")
    assert declared(tables=[table]).tables == (table,)


unlisted = Table("unlisted", value=int, default=int)
renamed = Table("unlisted", value=int, default=int)


def counts(event: Any) -> None:
    unlisted[event] += 1


def counts_some(event: Any) -> None:
    if event:
        unlisted[event] += 1


def counts_by_another(event: Any) -> None:
    counts(event)


@pytest.mark.parametrize("agent", [counts, counts_by_another])
def test_a_table_that_is_used_and_not_listed_is_refused_with_the_line(agent: Any) -> None:
    line = counts.__code__.co_firstlineno + 1
    with pytest.raises(DeclarationError, match=rf"uses table 'unlisted' \(.*test_pipeline.py:{line}\), which is not in its "
                                               r"tables=.*; list it: tables=\[t, unlisted\]"):  # fmt: skip
        declared(agent=agent, tables=[Table("t")])
    # The name is what counts: a module may have been run twice.
    declared(name="q", agent=agent, tables=[renamed])


def test_a_table_that_is_another_pipelines_is_refused_as_such() -> None:
    of_r = Table("of_r", value=int)

    def writes(event: Any) -> None:
        of_r[event] = 1

    declared(name="r", tables=[of_r])
    with pytest.raises(
        DeclarationError, match=r"belongs to pipeline 'r', which alone commits its rows: declare a second"
    ):
        declared(agent=writes)
    assert declared(name="r", agent=writes, tables=[of_r]).tables == (of_r,)


def test_a_table_that_some_events_may_not_come_to_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = declared(agent=counts_some)
    assert "agent 'counts_some' names table 'unlisted'" in caplog.text and "list it: tables=[unlisted]" in caplog.text
    assert pipeline.tables == ()
    caplog.clear()
    declared(name="q", agent=counts_some, tables=[renamed])
    assert caplog.text == ""


def test_one_table_need_not_be_a_list() -> None:
    table = Table("t")
    assert declared(tables=table).tables == (table,)


def test_a_plan_says_what_a_worker_runs() -> None:
    async def agent(stream: Any) -> Any:
        async for event in stream:
            yield event

    keyed, merged, sink = Table("keyed", value=int), Table("merged", value=int, merge=max), Topic("settled")
    rule, retry = Dedup("id", window=DAY), Retry(2)
    pipeline = declared(agent=agent, dedup=rule, tables=[keyed, merged], sink=sink, retry=retry, start="latest")
    plan = pipeline.plan()
    assert plan.agents == [AgentPlan("agent", (SOURCE,), AgentKind.STREAM, agent, rule, sink, retry, 64, alone=True)]
    assert [(t.name, t.keyed, t.merge) for t in plan.tables] == [("keyed", True, None), ("merged", False, max)]
    assert (plan.app, plan.outputs, plan.start, plan.dedup) == ("p", [sink], "latest", rule)
    assert plan.sources == {"payments": SOURCE}
    assert repr(pipeline) == "Pipeline('p')"


def test_the_names_on_kafka_are_those_of_the_contract() -> None:
    plan = declared(name="payments", source=Topic("in"), dedup=Dedup("id", window=DAY), tables=[Table("t")]).plan()
    assert plan.logs == [
        "payments-t-changelog",
        "payments-dedup-changelog",
        "payments-parked",
        "payments-timers",
        "payments-positions",
    ]
    assert plan.dead_letter_topic == "payments.dlq"
    assert declared().plan().logs == ["p-parked", "p-timers", "p-positions"]
    assert set(plan.logs) < set(declared(name="payments", source=Topic("in"), tables=[Table("t")]).plan_names())


def test_the_shape_is_canonical_and_tells_what_state_depends_on() -> None:
    def shape(**changed: Any) -> str:
        return declared(**changed).plan().shape()

    assert orjson.loads(shape()) == {"tables": {}, "dedup": None}
    both = [Table("a", value=int), Table("b", value=str)]
    assert shape(tables=both) == shape(tables=[Table("b", value=str), Table("a", value=int)])
    assert shape(tables=both) != shape(tables=[Table("a", value=int), Table("b", value=int)])
    assert shape(dedup=Dedup("id", window=DAY)) != shape(dedup=Dedup("id", window=2 * DAY))
    assert shape(sink=Topic("s"), retry=Retry(1)) == shape()
    timed = orjson.loads(shape(source=Topic("payments", time="at")))
    assert timed == {"tables": {}, "dedup": None, "time": {"payments": "at"}}


def test_a_plan_without_agents_has_no_dedup_and_no_sources() -> None:
    assert Plan("app").dedup is None
    assert Plan("app").sources == {}


def test_what_only_fausts_stream_has_is_refused_where_the_agent_is_declared() -> None:
    async def hourly(stream):
        async for batch in stream.take(100, within=3600):
            yield batch

    with pytest.raises(DeclarationError, match=r"take\(\).*batches\(\)"):
        Pipeline("pay", source=Topic("payments"), agent=hourly, sink=Topic("out"))


async def iterates_and_never_yields(events: Any) -> None:
    async for event in events:
        str(event)


def handed_on(run: Any) -> Any:
    @functools.wraps(run)
    def wrapper(events: Any) -> Any:
        return run(events)

    return wrapper


decorated_otherwise = handed_on(iterates_and_never_yields)
_made: dict[str, Any] = {}
exec("def without_source(event) -> None: str(event)", _made)


async def only_hands_its_stream_on(events: Any) -> None:
    await iterates_and_never_yields(events)


async def gives_back_nothing(event: dict[str, Any]) -> None:
    str(event)


def has_no_result(event: dict[str, Any]) -> None:
    if not event:
        return
    str(event)


async def filters(events: Any) -> Any:
    async for event in events:
        if event:
            yield event


def always_raises(event: dict[str, Any]) -> None:
    raise ValueError(event)


def may_return(event: dict[str, Any]) -> Any:
    if not event:
        return None
    return event


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (decorated_otherwise, "never yields a result, so nothing goes to its sink 'out'; yield results inside the loop"),
        (gives_back_nothing, "never returns a result, so nothing goes to its sink 'out'"),
        (has_no_result, "never returns a result"), (_made["without_source"], "never returns a result"),
        (filters, ""), (always_raises, ""), (may_return, ""), (lambda event: event, ""), (str, ""),
    ],
)  # fmt: skip
def test_a_sink_that_no_result_can_come_to_is_said(agent: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    Pipeline("p", source=Topic("in"), agent=agent, sink=Topic("out"))
    assert [r.levelname for r in caplog.records] == (["WARNING"] if said else [])
    assert said in caplog.text
    caplog.clear()
    Pipeline("q", source=Topic("in"), agent=agent)
    assert caplog.text == ""


@pytest.mark.parametrize("agent", [iterates_and_never_yields, functools.partial(only_hands_its_stream_on)])
def test_an_agent_of_the_stream_that_cannot_yield_has_no_sink(agent: Any) -> None:
    for kind in (None, "stream") if agent is iterates_and_never_yields else ("stream",):
        with pytest.raises(DeclarationError, match=r"has no yield, so every event would count as done and nothing could come to "
                                                   r"sink 'out'; yield results inside the loop, or declare"):  # fmt: skip
            Pipeline("p", source=Topic("in"), agent=agent, sink=Topic("out"), kind=kind)
        Pipeline("p", source=Topic("in"), agent=agent, kind=kind)


def test_a_program_is_its_agents_tables_and_dedup_rule_and_not_what_their_code_does() -> None:
    def program(agent: Any = settle, **changed: Any) -> str:
        return declared(agent=agent, **changed).plan().program

    def settle_otherwise(event: Any) -> Any:
        return event

    settle_otherwise.__name__ = "settle"
    assert program() == program() == program(settle_otherwise)
    assert program().startswith("settle (")
    others = [
        program(lambda event: None),
        program(dedup=Dedup("id", window=DAY)),
        program(dedup=Dedup("id", window=2 * DAY)),
        program(tables=[Table("t")]),
    ]
    assert len({program(), *others}) == 5


def test_the_topic_of_dead_letters_is_the_users_to_name() -> None:
    assert declared().plan().dead_letter_topic == "p.dlq"
    plan = declared(dead_letters=Topic("dlq.payments")).plan()
    assert plan.dead_letter_topic == "dlq.payments"
    assert "dlq.payments" in plan.own_topics and "p.dlq" not in plan.own_topics
    assert declared(dead_letters=Topic("dlq.payments"), sink=Topic("p.dlq")).plan().outputs[0].name == "p.dlq"
