"""What kind of agent a callable is, told from its code before it ever runs."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import faust
import pytest

from semel import Output, Pipeline, Topic
from semel import agent as agents
from semel.agent import kind_of
from semel.errors import DeclarationError
from semel.plan import AgentKind

STREAM, FUNCTION, COROUTINE = AgentKind.STREAM, AgentKind.FUNCTION, AgentKind.COROUTINE
db = SimpleNamespace()


class StreamStarted: ...


async def generator(stream):
    async for event in stream:
        yield event


async def loop(stream):
    async for event in stream:
        db.note(event)


async def batches(stream):
    async for batch in stream.batches():
        db.note(batch)


async def take_with_arguments(stream):
    async for batch in stream.take(int("10"), within=max(1, 2)):
        db.note(batch)


async def chained(stream):
    async for event in stream.filter(lambda e: e > db.limit).events():
        db.note(event)


async def named_again(stream):
    stream = stream.events()
    async for event in stream:
        db.note(event)


async def under_another_name(stream):
    first, events = 0, stream.events()
    async for event in events:
        db.note(event, first)


async def after_other_work(stream):
    await db.connect()
    total = sum(i for i in range(3))
    try:
        with db.lock as held:
            db.note(held)
    finally:
        total += 1
    async for event in stream:
        db.note(event, total)


async def comprehension(stream):
    db.note([event async for event in stream])


async def caught_by_a_closure(stream):
    def first():
        return stream

    async for event in stream:
        db.note(event, first)


async def annotated(stream: faust.Stream[int]) -> None:
    await db.consume(stream)


async def annotated_as_an_iterator(events: AsyncIterator[int]) -> None:
    await db.consume(events)


def plain(event):
    return event


async def one(event):
    return await db.save(event)


async def rows_of_the_event(event):
    async for row in db.query(event.id):
        db.note(row)


async def rows_of_the_whole_event(event):
    async for row in db.query(event):
        db.note(row)


async def rows_kept_in_the_event(event):
    async for row in event.rows:
        db.note(row)


async def loops_over_something_else(event):
    other = db.open()
    async for row in other.rows(event):
        db.note(row, event)


async def chooses(event):
    async for row in event.a() if event else db.b():
        db.note(row)


async def about_streams(event: StreamStarted) -> None:
    await db.save(event)


class Agent:
    async def over_stream(self, stream):
        async for event in stream:
            db.note(event)

    async def over_event(self, event):
        async for row in self.rows(event):
            db.note(row)

    def rows(self, event): ...

    @classmethod
    async def of_class(cls, stream):
        async for event in stream:
            db.note(event)

    @staticmethod
    def static(event):
        return event


class CallableStream:
    async def __call__(self, stream):
        async for event in stream:
            db.note(event)


class CallableGenerator:
    async def __call__(self, stream):
        async for event in stream:
            yield event


class CallableEvent:
    def __call__(self, event):
        return event


class Made:
    """Instances are made of events."""

    def __init__(self, event): ...

    async def __call__(self, stream):
        async for event in stream:
            db.note(event)


def passing(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        return f(*args, **kwargs)

    return wrapper


def awaiting(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    async def wrapper(event):
        found = f(event)
        return await found if hasattr(found, "__await__") else found

    return wrapper


def per_event(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    async def wrapper(stream):
        async for event in stream:
            yield f(event)

    return wrapper


async def with_context(context, stream):
    async for event in stream:
        db.note(context, event)


async def context_is_iterated(stream, event):
    async for row in stream:
        db.note(row, event)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (generator, STREAM),
        (loop, STREAM),
        (batches, STREAM),
        (take_with_arguments, STREAM),
        (chained, STREAM),
        (named_again, STREAM),
        (under_another_name, STREAM),
        (after_other_work, STREAM),
        (comprehension, STREAM),
        (caught_by_a_closure, STREAM),
        (annotated, STREAM),
        (annotated_as_an_iterator, STREAM),
        (plain, FUNCTION),
        (lambda event: event, FUNCTION),
        (lambda event, *, factor=2: event * factor, FUNCTION),
        (print, FUNCTION),
        (dict, FUNCTION),
        (one, COROUTINE),
        (rows_of_the_event, COROUTINE),
        (rows_of_the_whole_event, COROUTINE),
        (rows_kept_in_the_event, COROUTINE),
        (loops_over_something_else, COROUTINE),
        (chooses, COROUTINE),
        (about_streams, COROUTINE),
        (Agent().over_stream, STREAM),
        (Agent().over_event, COROUTINE),
        (Agent.of_class, STREAM),
        (Agent.static, FUNCTION),
        (CallableStream(), STREAM),
        (CallableGenerator(), STREAM),
        (CallableEvent(), FUNCTION),
        (Made, FUNCTION),
        (functools.partial(with_context, "context"), STREAM),
        (functools.partial(context_is_iterated, "rows"), COROUTINE),
        (functools.partial(with_context, stream="bound by name"), COROUTINE),
        (functools.partial(functools.partial(Agent.over_stream, Agent())), STREAM),
        (passing(loop), STREAM),
        (passing(one), COROUTINE),
        (passing(plain), FUNCTION),
        (passing(passing(generator)), STREAM),
        (awaiting(plain), COROUTINE),
        (awaiting(passing(one)), COROUTINE),
        (awaiting(loop), STREAM),
        (per_event(plain), STREAM),
        (functools.lru_cache(plain), FUNCTION),
    ],
    ids=lambda p: getattr(p, "__qualname__", None) or getattr(p, "name", None) or type(p).__name__,
)
def test_the_kind_of(run: Callable[..., Any], kind: AgentKind) -> None:
    assert kind_of(run) is kind


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (None, "cannot be called"),
        ("settle", "cannot be called"),
        (lambda: None, "does not take that"),
        (lambda a, b: None, "does not take that"),
        (lambda *, event: None, "does not take that"),
        (functools.partial(plain, 1), "does not take that"),
    ],
)
def test_what_cannot_be_called_with_one_argument_is_no_agent(run: Any, why: str) -> None:
    with pytest.raises(DeclarationError, match=why):
        kind_of(run)


def test_a_decorator_that_wraps_itself_does_not_hang_the_declaration() -> None:
    def odd(event): ...

    odd.__wrapped__ = odd  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="wrapper loop"):
        import inspect

        inspect.unwrap(odd)
    assert kind_of(odd) is FUNCTION


# -- the bytecode of compilers that do not run this test


def listed(*rows: tuple[str, Any, int]) -> list[Any]:
    return [agents._Step(*row) for row in rows]


@pytest.mark.parametrize(
    "chain",
    [
        # 3.11: async for x in stream.take(10)
        [("LOAD_FAST", "stream", 1), ("LOAD_METHOD", "take", 1), ("LOAD_CONST", 10, 1), ("PRECALL", 1, -1),
         ("CALL", 1, -1)],
        # 3.12 and 3.13
        [("LOAD_FAST", "stream", 1), ("LOAD_ATTR", "take", 1), ("LOAD_CONST", 10, 1), ("CALL", 1, -2)],
        # 3.13, with a keyword argument: its names are a tuple on the stack
        [("LOAD_FAST", "stream", 1), ("LOAD_ATTR", "take", 1), ("LOAD_CONST", 10, 1), ("LOAD_CONST", ("within",), 1),
         ("CALL_KW", 1, -3)],
        [("LOAD_DEREF", "stream", 1)],
        [("LOAD_FAST_CHECK", "stream", 1)],
    ],
)  # fmt: skip
def test_chains_of_method_calls_are_followed_to_their_root_in_every_version(chain: list[tuple[str, Any, int]]) -> None:
    before = [("LOAD_CONST", 1, 1), ("STORE_FAST", "x", -1)]
    steps = listed(*before, *chain, ("GET_AITER", None, 0))
    assert agents._root(steps, len(steps) - 1) == "stream"


def test_pairs_that_3_13_makes_of_two_instructions_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(opname: str, argval: Any) -> Any:
        return SimpleNamespace(opname=opname, argval=argval, opcode=dis.opmap["NOP"], arg=None)

    # events = stream; async for x in events
    code = [
        written("LOAD_FAST_LOAD_FAST", ("other", "stream")),
        written("STORE_FAST_LOAD_FAST", ("events", "events")),
        written("GET_AITER", None),
    ]
    monkeypatch.setattr(agents.dis, "get_instructions", iter)
    assert [s.name for s in agents._steps(code)] == ["LOAD_FAST", "LOAD_FAST", "STORE_FAST", "LOAD_FAST", "GET_AITER"]
    assert agents._iterates(code, "stream")
    assert not agents._iterates(code, "other")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="comprehensions are part of their function since 3.12")
def test_a_comprehension_that_is_part_of_its_function_is_followed() -> None:
    assert kind_of(comprehension) is STREAM


# ---------------------------------------------------------------------- what it gives


@dataclass
class Settled:
    id: str


@dataclass
class SettledInEuros(Settled):
    euros: int = 0


def declared(agent: Any, sink: Any = Settled) -> Pipeline:
    return Pipeline("p", source=Topic("in"), agent=agent, sink=Topic("out", value=sink))


def test_a_plain_generator_is_refused_with_the_way_to_give_several_results() -> None:
    def split(order: Any) -> Any:
        yield from order["items"]

    for agent in (split, functools.partial(split)):
        with pytest.raises(DeclarationError, match=r"plain generator.*async def agent"):
            declared(agent)


def test_a_loop_that_returns_its_result_is_refused() -> None:
    async def settle(stream: Any) -> Any:
        async for event in stream:
            return event
        return None

    with pytest.raises(DeclarationError, match=r"returns a value.*yield results"):
        declared(settle)


def test_a_loop_that_returns_nothing_is_an_agent_without_results() -> None:
    async def settle(stream: Any) -> None:
        async for event in stream:
            if event is None:
                return

    declared(settle)


async def one(event: Any) -> Settled: ...
async def maybe(event: Any) -> Settled | None: ...
async def other(event: Any) -> SettledInEuros | Output | None: ...
def plain(event: Any) -> Settled: ...
def a_list(event: Any) -> list[Settled]: ...
async def dicts(event: Any) -> dict[str, Any]: ...
def awaited(event: Any) -> Awaitable[Settled]: ...
async def many(stream: Any) -> AsyncIterator[Settled]:
    async for event in stream:
        yield event


async def many_dicts(stream: Any) -> AsyncIterator[dict[str, Any]]:
    async for event in stream:
        yield event


def unknown(event: Any) -> OnlyForTheTypeChecker: ...  # noqa: F821  # pyright: ignore
def number(event: Any) -> int: ...


@pytest.mark.parametrize(
    ("agent", "sink"),
    [(one, Settled), (maybe, Settled), (other, Settled), (plain, Settled), (many, Settled), (dicts, dict), (unknown, str),
     (number, float), (many_dicts, dict), (a_list, list[Settled]), (number, int | None), (dicts, Any), (one, SettledInEuros)],
)  # fmt: skip
def test_an_annotation_that_its_sink_takes_is_in_order(agent: Any, sink: Any) -> None:
    declared(agent, sink)


@pytest.mark.parametrize(
    ("agent", "sink", "words"),
    [(one, dict, "gives Settled.*takes dict"), (maybe, str, "gives Settled"), (dicts, Settled, "gives dict"),
     (many_dicts, Settled, "gives dict.*takes Settled"), (awaited, Settled, "nobody awaits"), (number, str, "gives int"),
     (a_list, Settled, "gives list")],
)  # fmt: skip
def test_an_annotation_that_its_sink_does_not_take_is_refused(agent: Any, sink: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        declared(agent, sink)
