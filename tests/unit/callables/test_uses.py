"""What a function's code uses by name: for certain, perhaps, or not."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from semel.callables.uses import Use, first_of_each, uses


class Box(dict[str, Any]):
    name = "box"


box, other = Box(), Box()
holder = ModuleType("holder")
holder.box = box  # type: ignore[attr-defined]
namespace = SimpleNamespace(box=box)
METHODS = frozenset(("get", "pop"))


class Boxes:
    box = box


def found(run: Callable[..., Any]) -> dict[str, bool]:
    names = {id(box): "box", id(other): "other"}
    return {names[id(use.object)]: use.certain for use in first_of_each(uses(run, Box, METHODS))}


# -- for certain


def reads(event):
    return box[event]


def adds(event):
    box[event] += 1


def asks(event):
    return event in box


def gets(event):
    return box.get(event, 0)


def deletes(event):
    del box[event]


def by_module(event):
    holder.box[event] = 1


def by_class(event):
    Boxes.box[event] = 1


async def in_the_loop(stream):
    async for event in stream:
        if not event:
            continue
        box[event] = 1
        yield event


async def in_a_batch(stream):
    async for batch in stream.batches():
        for event in batch:
            box[event] = 1


async def in_a_block(event):
    with contextlib.suppress(OSError):
        try:
            while True:
                box[event] = 1
        finally:
            pass


def in_a_test(event):
    if box[event]:
        return event
    return None


def in_a_comprehension(event):
    return [box[part] for part in event]


def calls_what_uses(event):
    credit(event)


def credit(event):
    box[event] = 1


def given_to(event):
    return event if event in other else box.pop(event)


CERTAIN = [
    reads, adds, asks, gets, deletes, by_module, by_class, in_the_loop, in_a_batch, in_a_block, in_a_test, in_a_comprehension,
    calls_what_uses,
]  # fmt: skip


@pytest.mark.parametrize("run", CERTAIN, ids=lambda run: run.__name__)
def test_what_every_event_comes_to_is_certain(run: Callable[..., Any]) -> None:
    assert found(run) == {"box": True}


def test_what_is_closed_over_is_found() -> None:
    own = box

    def closes(event: Any) -> None:
        own[event] = 1

    assert found(closes) == {"box": True}
    assert found(functools.partial(closes)) == {"box": True}


# -- perhaps


def in_a_branch(event):
    if event:
        box[event] = 1


def in_a_handler(event):
    try:
        event()
    except ValueError:
        box[event] = 1


def in_a_case(event):
    match event:
        case {"old": _}:
            box[event] = 1


def behind_the_end(event):
    raise ValueError(event)
    box[event] = 1


def behind_or(event):
    return event or box[event]


def in_a_function(event):
    return lambda: box[event]


def handed_on(event):
    event(box)


def under_another_name(event):
    known = box
    known[event] = 1


def calls_in_a_branch(event):
    if event:
        credit(event)


def calls_a_generator(event):
    return each(event)


def each(event):
    box[event] = 1
    yield event


def sorted_out(event):
    return [box[part] for part in event if part]


PERHAPS = [
    in_a_branch, in_a_handler, in_a_case, behind_the_end, behind_or, in_a_function, handed_on, under_another_name,
    calls_in_a_branch, calls_a_generator, sorted_out,
]  # fmt: skip


@pytest.mark.parametrize("run", PERHAPS, ids=lambda run: run.__name__)
def test_what_some_events_may_not_come_to_is_not_certain(run: Callable[..., Any]) -> None:
    assert found(run) == {"box": False}


def test_a_decorated_function_may_not_be_called_by_its_decorator() -> None:
    def seldom(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def wrapper(event: Any) -> Any:
            return run(event) if event else None

        return wrapper

    def always(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def wrapper(event: Any) -> Any:
            return run(event)

        return wrapper

    assert found(seldom(adds)) == {"box": False}
    assert found(always(adds)) == {"box": False}


def test_a_certain_use_counts_among_others() -> None:
    assert found(given_to) == {"other": True, "box": False}


# -- not


def says_its_name(event):
    return box.name


def of_its_own(event):
    box = {}
    box[event] = 1
    return box


def given(box):
    return box["a"]


def calls_what_calls(event):
    calls_what_uses(event)


def of_an_instance(event):
    return namespace.box[event]


def annotated(event: Any) -> None:
    known: box[event] = event  # noqa: F841


def not_there_yet(event):
    return of_later[event]  # noqa: F821


NOT = [
    says_its_name,
    of_its_own,
    given,
    calls_what_calls,
    of_an_instance,
    annotated,
    not_there_yet,
    str,
    len,
    lambda e: box,
]


@pytest.mark.parametrize("run", NOT, ids=lambda run: run.__name__)
def test_what_is_no_use_or_not_known_is_not_found(run: Callable[..., Any]) -> None:
    assert found(run) == {}


def test_what_a_closure_does_not_hold_yet_is_not_found() -> None:
    def closes(event: Any) -> Any:
        return later[event]

    assert found(closes) == {}
    later = box
    assert found(closes) == {"box": True}


def test_a_use_says_where_it_is() -> None:
    [use] = uses(adds, Box, METHODS)
    assert use == Use(box, f"{__file__}:{adds.__code__.co_firstlineno + 1}", certain=True)

    @functools.cache
    def decorated(event: Any) -> Any:
        return box[event]

    [use] = uses(decorated, Box, METHODS)
    assert use.where == f"{__file__}:{decorated.__wrapped__.__code__.co_firstlineno + 2}"
