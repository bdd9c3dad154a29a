"""An agent whose annotation names another class than its source gives is refused where the pipeline is declared."""

from __future__ import annotations

import abc
import functools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NewType, Protocol, TypedDict, TypeVar

import faust
import msgspec
import pytest

from semel import Batch, Event, Pipeline, Topic
from semel.errors import DeclarationError

T = TypeVar("T")


@dataclass
class Payment:
    id: str


@dataclass
class Refund(Payment):
    of: str = ""


@dataclass
class Parcel:
    id: str


class Letter(msgspec.Struct):
    id: str


class Fields(TypedDict):
    id: str


class HasId(Protocol):
    id: str


class Known(abc.ABC):
    @property
    @abc.abstractmethod
    def id(self) -> str: ...


@dataclass
class Box(Generic[T]):
    id: T


Text = NewType("Text", str)


def takes(annotation: Any, how: str = "def") -> Callable[..., Any]:
    """An agent with that annotation on its parameter."""
    if how == "stream":

        async def over_stream(events):
            async for event in events:
                yield event

        over_stream.__annotations__["events"] = annotation
        return over_stream

    if how == "async def":

        async def awaits(event):
            return await event.save()

        awaits.__annotations__["event"] = annotation
        return awaits

    def plain(event): ...

    plain.__annotations__["event"] = annotation
    return plain


def declared(agent: Any, value: Any = Payment) -> Pipeline:
    return Pipeline("p", source=Topic("payments", value=value), agent=agent)


@pytest.mark.parametrize("how", ["def", "async def"])
@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Parcel, Payment), ("Parcel", Payment), (Parcel, dict), (dict, Payment), (Letter, Payment), (Parcel, Letter),
     (str, bytes), (int, str), (int, dict), (Payment, list[Payment]), (Parcel, Payment | None), (Letter, Payment | Parcel),
     (Annotated[Parcel, "weighed"], Payment)],
)  # fmt: skip
def test_an_event_of_another_class_than_its_source_gives_is_refused(annotation: Any, value: Any, how: str) -> None:
    with pytest.raises(
        DeclarationError, match=r"takes \w+, by its annotation, and source 'payments' gives .+; let the two"
    ):
        declared(takes(annotation, how), value)


@pytest.mark.parametrize(
    "annotation",
    [AsyncIterable[Parcel], AsyncIterator[Parcel], AsyncGenerator[Parcel, None], "AsyncIterable[Parcel]", faust.Stream[Parcel],
     faust.StreamT[Parcel]],
)  # fmt: skip
def test_a_stream_of_another_class_than_its_source_gives_is_refused(annotation: Any) -> None:
    with pytest.raises(DeclarationError, match="takes Parcel, by its annotation, and source 'payments' gives Payment"):
        declared(takes(annotation, "stream"))


ANYTHING = [Payment, Refund, Any, object, T, HasId, Known, Fields, Parcel | None, Payment | Parcel, list[Parcel],
            Box[str], Text, "Gone"]  # fmt: skip


@pytest.mark.parametrize("annotation", ANYTHING)
def test_an_annotation_that_may_agree_is_in_order(annotation: Any) -> None:
    declared(takes(annotation))
    if not isinstance(annotation, str):
        declared(takes(AsyncIterable[annotation], "stream"))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Payment, Refund), (Payment, Payment | Parcel), (float, int), (int, float), (complex, float), (bool, int), (dict, Fields),
     (Mapping, dict), (list, list[Payment]), (Parcel, Any), (bytes, bytearray), (Box, Box[str])],
)  # fmt: skip
def test_so_is_one_of_a_class_that_some_of_its_values_are_of(annotation: Any, value: Any) -> None:
    declared(takes(annotation), value)


def test_a_decorator_may_make_something_else_of_the_value() -> None:
    def opened(agent: Callable[[Parcel], Any]) -> Callable[[Payment], Any]:
        @functools.wraps(agent)
        def wrapper(payment: Payment) -> Any:
            return agent(Parcel(payment.id))

        return wrapper

    class Opened:
        def __init__(self, agent: Callable[[Parcel], Any]) -> None:
            functools.update_wrapper(self, agent)

        def __call__(self, payment: Payment) -> Any: ...

    for decorate in (opened, Opened):
        declared(decorate(takes(Parcel)))
        declared(functools.partial(decorate(takes(Parcel))))


def test_what_an_agent_asks_its_stream_for_is_something_else_than_values() -> None:
    async def events(stream: AsyncIterable[Parcel]) -> None:
        async for event in stream.events():  # type: ignore[attr-defined]
            print(event)  # noqa: T201

    declared(events)


def test_methods_and_partials_are_looked_at_in_the_parameter_that_is_left() -> None:
    def weigh(scale: Payment, parcel: Parcel) -> None: ...

    class Shop:
        def weigh(self, parcel: Parcel) -> None: ...

        def __call__(self, parcel: Parcel) -> None: ...

    for agent in (functools.partial(weigh, Payment("1")), Shop().weigh, Shop()):
        declared(agent, Parcel)
        with pytest.raises(DeclarationError, match="takes Parcel"):
            declared(agent)


def test_two_classes_of_one_name_are_told_apart_by_their_modules() -> None:
    other = type("Payment", (), {"__module__": "shop.api"})
    with pytest.raises(DeclarationError, match=r"takes shop\.api\.Payment, by its annotation.*gives Payment"):
        declared(takes(other))


def test_the_class_of_a_module_that_was_run_again_is_the_same() -> None:
    again = type("Payment", (), {"__module__": Payment.__module__, "__qualname__": Payment.__qualname__})
    declared(takes(again))


async def of_an_event(event: Event) -> None: ...
def of_an_event_at_most(event: Event | None) -> None: ...
def of_an_annotated_event(event: Annotated[Event, "why"]) -> None: ...
async def of_a_batch(batch: Batch) -> None: ...
async def of_events(stream: AsyncIterable[Event]) -> None:
    async for event in stream:
        print(event.key)  # noqa: T201


async def of_batches(stream: AsyncIterable[Batch]) -> Any:
    async for batch in stream:
        yield len(batch)


@pytest.mark.parametrize(
    ("run", "words"),
    [(of_an_event, r"takes an Event.*stream\.events\(\).*current_event\(\)"), (of_an_event_at_most, "takes an Event"),
     (of_an_annotated_event, "takes an Event"), (of_a_batch, r"takes a Batch.*stream\.batches\(\)"),
     (of_events, r"takes an Event.*stream\.events\(\)"), (of_batches, r"takes a Batch.*stream\.batches\(\)")],
)  # fmt: skip
def test_what_the_engine_makes_of_values_is_asked_of_the_stream(run: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        Pipeline("p", source=Topic("payments", value=Payment), agent=run)
