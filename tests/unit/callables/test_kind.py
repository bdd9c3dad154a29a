"""What kind of agent a callable is, told from its code before it ever runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import faust
import pytest

from semel import Output, Pipeline, Topic
from semel.callables.kind import kind_of
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


async def closed_at_its_end(feed):
    async with contextlib.aclosing(feed.events()) as events:
        async for event in events:
            db.note(event)


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


class OverStream:
    def __init__(self, stream: AsyncIterable[int]):
        self.stream = stream

    async def __aiter__(self):
        async for event in self.stream:
            yield event


class OverWhatItIsGiven:
    def __init__(self, source):
        self.source = source

    def __aiter__(self): ...


class AwaitedOverStream:
    def __init__(self, stream: AsyncIterable[int]): ...

    def __await__(self): ...


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
        (closed_at_its_end, STREAM),
        (caught_by_a_closure, STREAM),
        (annotated, STREAM),
        (annotated_as_an_iterator, STREAM),
        (plain, FUNCTION),
        (lambda event: event, FUNCTION),
        (lambda event, *, factor=2: event * factor, FUNCTION),
        (print, FUNCTION),
        (dict, FUNCTION),
        (rows_of_the_event, COROUTINE),
        (rows_kept_in_the_event, COROUTINE),
        (chooses, COROUTINE),
        (about_streams, COROUTINE),
        (Agent().over_stream, STREAM),
        (Agent.of_class, STREAM),
        (Agent.static, FUNCTION),
        (CallableStream(), STREAM),
        (CallableGenerator(), STREAM),
        (CallableEvent(), FUNCTION),
        (Made, FUNCTION),
        (OverStream, STREAM),
        (functools.partial(OverStream), STREAM),
        (OverWhatItIsGiven, STREAM),
        (AwaitedOverStream, STREAM),
        (functools.partial(with_context, "context"), STREAM),
        (functools.partial(functools.partial(Agent.over_stream, Agent())), STREAM),
        (passing(loop), STREAM),
        (passing(plain), FUNCTION),
        (passing(passing(generator)), STREAM),
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


# -- what is not certain is refused, and said with kind= or an annotation


async def delegates(stream):
    await db.consume(stream)


async def asks_for_the_next(stream):
    events = aiter(stream)
    db.note(await anext(events))


async def asks_for_the_next_event(stream):
    events = stream.events()
    while True:
        db.note(await anext(events))


async def mistyped(stream):
    async for event in stream.event():
        db.note(event)


async def within_a_context(stream):
    async with db.closing(stream) as events:
        async for event in events:
            db.note(event)


async def within_a_function(stream):
    async def loop():
        async for event in stream:
            db.note(event)

    await loop()


async def made_into_something_else(stream):
    stream = db.decoded(stream)
    async for event in stream:
        db.note(event)


async def in_a_task(stream):
    async with db.group() as group:
        group.create_task(db.consume(stream))


async def annotated_for_nobody(stream: Any) -> None:
    await db.consume(stream)


async def annotated_for_the_type_checker(stream: OnlyForTheTypeChecker) -> None:  # noqa: F821  # pyright: ignore
    await db.consume(stream)


async def of_many(payments):
    await db.save_all(payments)


async def hands_on_its_events(feed):
    await db.consume(feed.events())


async def hands_on_its_batches(feed):
    async with db.grouped(feed.batches()) as groups:
        async for group in groups:
            db.note(group)


async def hands_on_some(feed):
    await db.consume(feed.filter(db.wanted))


class Delegates:
    async def __call__(self, stream):
        await db.consume(stream)


exec("async def without_source(stream):\n    async for event in stream: pass")
UNCERTAIN = [
    delegates, mistyped, asks_for_the_next, asks_for_the_next_event, within_a_context, within_a_function,
    made_into_something_else,
    in_a_task, annotated_for_nobody, annotated_for_the_type_checker, Delegates(), Delegates().__call__, passing(delegates),
    functools.partial(delegates), of_many,
    hands_on_its_events, hands_on_its_batches, hands_on_some,
    globals()["without_source"],
]  # fmt: skip


@pytest.mark.parametrize("run", UNCERTAIN, ids=lambda p: getattr(p, "__qualname__", None) or type(p).__name__)
def test_what_may_be_either_is_refused_until_somebody_says_what_it_is(run: Callable[..., Any]) -> None:
    with pytest.raises(DeclarationError, match=r"Annotate '\w+' \(AsyncIterable.*kind='stream' or kind='event'"):
        kind_of(run)
    assert kind_of(run, "stream") is STREAM
    assert kind_of(run, "event") is COROUTINE


async def by_its_annotation(event: Settled) -> None:
    await db.save(event)


async def by_what_it_returns(event: Any) -> Settled:
    return await db.save(event)


async def by_an_attribute(event):
    await db.save(event.id)


async def by_a_key(event):
    await db.save(event["id"])


async def by_its_items(event):
    for name, value in event.items():
        await db.save(name, value)


async def by_a_dict_of_its_items(event):
    await db.save(dict(event.items()))


async def by_its_field_of_that_name(order):
    await db.save(order.items)


async def by_a_comparison(event):
    if event > 3:
        await db.save(event)


async def by_a_match(event):
    match event:
        case {"id": key}:
            await db.save(key)


async def by_its_text(event):
    await db.save(f"{event}")


async def never_waits(event):
    db.note(event)


async def of_one(address):
    await db.save(address)


async def never_looks(event):
    await db.tick()


@pytest.mark.parametrize(
    "run",
    [by_its_annotation, by_what_it_returns, by_an_attribute, by_a_key, by_its_items, by_a_dict_of_its_items,
     by_its_field_of_that_name, by_a_comparison, by_a_match, by_its_text, never_waits, never_looks,
     passing(by_a_key), functools.partial(by_a_key)],
)  # fmt: skip
def test_what_no_stream_could_be_is_one_event(run: Callable[..., Any]) -> None:
    assert kind_of(run) is COROUTINE


@pytest.mark.parametrize(
    "run",
    [one, rows_of_the_whole_event, loops_over_something_else, Agent().over_event, awaiting(plain), awaiting(one),
     functools.partial(with_context, stream="bound by name"), functools.partial(context_is_iterated, "rows"), of_one],
)  # fmt: skip
def test_what_may_be_either_and_is_not_named_as_many_is_one_event(run: Callable[..., Any]) -> None:
    assert kind_of(run) is COROUTINE
    assert kind_of(run, "stream") is STREAM


def handed_on(stream: AsyncIterable[int]) -> AsyncIterator[int]:
    return generator(stream)


async def of_something_optional(stream: AsyncIterator[int] | None) -> None:
    await db.consume(stream)


async def in_words(stream: AsyncIterator[OnlyForTheTypeChecker]) -> None:  # noqa: F821  # pyright: ignore
    await db.consume(stream)


class OwnStream:
    def __aiter__(self): ...


async def of_a_class_of_its_own(stream: OwnStream) -> None:
    await db.consume(stream)


async def of_fausts_interface(stream: faust.StreamT) -> None:
    await db.consume(stream)


@pytest.mark.parametrize(
    "run", [handed_on, of_something_optional, in_words, of_a_class_of_its_own, of_fausts_interface, passing(in_words)]
)
def test_an_annotation_says_that_it_takes_the_stream(run: Callable[..., Any]) -> None:
    assert kind_of(run) is STREAM


async def contradicts_itself(payments: Settled):
    async for payment in payments:
        db.note(payment)


def test_a_loop_over_what_is_annotated_as_an_event_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"iterates over 'payments', which is annotated as .*AsyncIterable"):
        kind_of(contradicts_itself)
    assert kind_of(contradicts_itself, "stream") is STREAM


async def several_of_one(order: Settled):
    yield order.id


async def several_of_one_at_most(order: Settled | None):
    yield db.of(order)


@pytest.mark.parametrize("run", [several_of_one, several_of_one_at_most, passing(several_of_one)])
def test_a_generator_of_what_is_annotated_as_one_event_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(
        DeclarationError, match=r"takes the stream.*'order' is annotated as (\w+\.)*Settled.*`async for"
    ):
        kind_of(run)
    assert kind_of(run, "stream") is STREAM


async def several_of_what_it_reads(order):
    yield order["id"]
    yield await db.sum(order)


async def several_of_its_parts(order):
    for part in order:
        yield await db.of(part)


async def several_at_once(order):
    yield db.of(order)


@pytest.mark.parametrize("run", [several_of_what_it_reads, several_of_its_parts, several_at_once])
def test_a_generator_whose_code_takes_one_event_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(
        DeclarationError, match=r"async generator, which takes the stream.*'order' as one event.*`async for"
    ):
        kind_of(run)
    assert kind_of(run, "stream") is STREAM


async def yields_of_a_helper(stream):
    async for result in db.results(stream):
        yield result


async def yields_what_it_asks_for(stream):
    events = aiter(stream)
    while True:
        yield await anext(events)


async def yields_of_a_closure(stream):
    async def ask():
        return await anext(stream)

    yield await ask()


def test_a_generator_that_may_go_through_the_stream_takes_it() -> None:
    for run in (yields_of_a_helper, yields_what_it_asks_for, yields_of_a_closure):
        assert kind_of(run) is STREAM


async def wrongly_annotated(stream: Settled):
    async for event in stream:
        yield event


def each(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    async def wrapper(order):
        async for one in order:
            async for result in f(one):
                yield result

    return wrapper


def test_a_generator_that_iterates_takes_the_stream_whatever_is_written_there() -> None:
    assert kind_of(wrongly_annotated) is STREAM
    assert kind_of(each(several_of_one)) is STREAM


class GivenTheStream:
    def __init__(self, stream: AsyncIterable[int]): ...


def test_a_class_that_takes_the_stream_and_gives_nothing_to_iterate_over_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"'GivenTheStream'.*class.*`__aiter__`"):
        kind_of(GivenTheStream)


@contextlib.asynccontextmanager
async def for_a_with_statement(stream):
    async for event in stream:
        yield event


def test_a_context_manager_is_no_agent() -> None:
    with pytest.raises(DeclarationError, match=r"'for_a_with_statement'.*context manager.*take the decorator off"):
        kind_of(for_a_with_statement)


def waits_for_nothing(stream: AsyncIterable[int]) -> None:
    db.note(stream)


def test_a_plain_function_that_takes_the_stream_and_gives_nothing_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"'waits_for_nothing'.*plain function.*async def"):
        kind_of(waits_for_nothing)


@pytest.mark.parametrize(
    ("run", "said", "words"),
    [(generator, "event", "async generator, and kind='event'"), (plain, "batch", "takes 'stream' or 'event'")],
)
def test_a_kind_that_cannot_be_is_refused(run: Any, said: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        kind_of(run, said)


def test_a_pipeline_says_what_kind_its_agent_is() -> None:
    given: dict[str, Any] = {"source": Topic("in"), "agent": delegates}
    assert Pipeline("p", **given, kind="stream").plan().agents[0].kind is STREAM
    assert Pipeline("p", **given, kind="event").plan().agents[0].kind is COROUTINE
    with pytest.raises(DeclarationError, match="kind='stream' or kind='event'"):
        Pipeline("p", **given)


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

    Pipeline("p", source=Topic("in"), agent=settle)


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


async def unknown_event(event: OnlyForTheTypeChecker) -> Settled: ...  # noqa: F821  # pyright: ignore


def handing_on(stream: AsyncIterable[Any]) -> AsyncIterator[Settled]:
    return many(stream)


async def handing_on_what_it_can(stream: Any) -> AsyncGenerator[Settled | Output, None]:
    async for event in stream:
        yield event


@pytest.mark.parametrize("agent", [unknown_event, handing_on, handing_on_what_it_can], ids=lambda run: run.__name__)
def test_an_annotation_counts_beside_one_that_cannot_be_resolved_and_where_a_stream_is_handed_on(agent: Any) -> None:
    declared(agent, Settled)
    declared(agent, Any)
    with pytest.raises(DeclarationError, match=r"gives Settled.*sink 'out' takes str; let the two agree$"):
        declared(agent, str)


def test_of_several_results_of_an_event_each_is_yielded() -> None:
    with pytest.raises(DeclarationError, match=r"gives list.*takes Settled; .*yields each$"):
        declared(a_list, Settled)


# -- results that there is no sink for


def sends(event: Any) -> Output | None: ...
def says_nothing(event: Any): ...
def any_at_all(event: Any) -> Any: ...


@pytest.mark.parametrize("agent", [one, maybe, other, plain, a_list, dicts, many, handing_on, number, unknown_event])
def test_an_annotated_result_without_a_sink_is_refused(agent: Any) -> None:
    with pytest.raises(DeclarationError, match=r"by its annotation, and there is no sink for it; declare sink=Topic"):
        Pipeline("p", source=Topic("in"), agent=agent)


async def yields_what_it_makes(stream):
    async for event in stream:
        if event:
            yield StreamStarted()
        yield {"id": event}


def returns_a_list(event):
    return [event, event]


def returns_text(event):
    return f"{event}"


async def sends_some(stream):
    async for event in stream:
        yield {"id": event}
        yield Output(event, topic=Topic("elsewhere"))


async def yields_what_another_makes(stream):
    async for event in stream:
        yield made(event)


def made(event):
    return Output(event, topic=Topic("elsewhere"))


async def yields_nothing(stream):
    async for _ in stream:
        pass
    if False:
        yield


class MadeElsewhere:
    def __new__(cls, event: Any) -> Any:
        return Output(event, topic=Topic("elsewhere"))


def made_by_a_class(event):
    return MadeElsewhere(event)


class Passing:
    def __init__(self, stream: AsyncIterable[Any]) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for event in self.stream:
            yield Output(event, topic=Topic("elsewhere"))


def makes_of_the_stream(stream: AsyncIterable[Any]):
    return Passing(stream)


@pytest.mark.parametrize(
    ("agent", "gives"),
    [(yields_what_it_makes, "StreamStarted or dict"), (returns_a_list, "list"), (returns_text, "str")],
)
def test_a_result_that_is_made_where_it_is_given_and_has_no_sink_is_refused(agent: Any, gives: str) -> None:
    with pytest.raises(DeclarationError, match=f"gives {gives}, and there is no sink for it"):
        Pipeline("p", source=Topic("in"), agent=agent)


@pytest.mark.parametrize(
    "agent",
    [sends, says_nothing, any_at_all, unknown, sends_some, yields_what_another_makes, yields_nothing, made_by_a_class,
     makes_of_the_stream, lambda event: {"id": event}],
)  # fmt: skip
def test_what_may_name_a_topic_needs_no_sink(agent: Any) -> None:
    Pipeline("p", source=Topic("in"), agent=agent)


def test_what_a_decorator_makes_of_a_result_is_not_known() -> None:
    def sending(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def wrapper(event: Any) -> Any:
            return Output(run(event), topic=Topic("elsewhere"))

        return wrapper

    for agent in (returns_a_list, plain):
        Pipeline("p", source=Topic("in"), agent=sending(agent))
