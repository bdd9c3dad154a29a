"""Functions whose result nobody would await or iterate over are refused where they are declared."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from semel.codec import Codec, register
from semel.dedup import Dedup
from semel.errors import DeclarationError
from semel.table import Table
from semel.topic import Topic

DAY = timedelta(days=1)


async def awaited(*given: Any) -> Any:
    return given[0]


def iterated(*given: Any) -> Any:
    yield given[0]


async def both(*given: Any) -> Any:
    yield given[0]


class Awaited:
    async def __call__(self, *given: Any) -> Any:
        return given[0]

    async def method(self, *given: Any) -> Any:
        return given[0]


@functools.wraps(awaited)
def awaits_it_itself(*given: Any) -> Any:
    try:
        awaited(*given).send(None)
    except StopIteration as done:
        return done.value


UNFINISHED = [
    (awaited, "async def"), (functools.partial(awaited, 1), "async def"), (Awaited(), "async def"),
    (Awaited().method, "async def"), (both, "async def"), (iterated, "yield"),
]  # fmt: skip
DECLARED: dict[str, Callable[[Any], Any]] = {
    "Dedup key": lambda f: Dedup(f, window=DAY),
    "Dedup time": lambda f: Dedup("id", window=DAY, time=f),
    "Dedup compare": lambda f: Dedup("id", window=DAY, compare=f),
    "topic 'readings': time": lambda f: Topic("readings", time=f),
    "table 'sums': default": lambda f: Table("sums", value=int, default=f),
    "table 'sums': merge": lambda f: Table("sums", value=int, merge=f),
    "table 'sums': migrate": lambda f: Table("sums", value=int, migrate=f),
    "Codec(str) encode": lambda f: Codec(str, f, bytes.decode, True),
    "Codec(str) decode": lambda f: Codec(str, str.encode, f, True),
    "register() applies": lambda f: register(f, lambda _: Codec(str, str.encode, bytes.decode, True)),
    "register() make": lambda f: register(lambda _: False, f),
}


@pytest.mark.parametrize(("function", "why"), UNFINISHED)
@pytest.mark.parametrize("what", DECLARED)
def test_a_function_whose_result_is_no_value_yet_is_refused(what: str, function: Any, why: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        DECLARED[what](function)
    assert str(refused.value).startswith(f"{what}=") and why in str(refused.value)


@pytest.mark.parametrize("function", [str, len, lambda *given: given, functools.partial(str), awaits_it_itself])
@pytest.mark.parametrize("what", [what for what in DECLARED if what.startswith(("Dedup", "Codec", "topic"))])
def test_a_function_that_gives_its_value_is_taken(what: str, function: Any) -> None:
    DECLARED[what](function)


def test_a_coroutine_of_the_old_kind_is_refused() -> None:
    with pytest.raises(DeclarationError, match="Dedup key="):
        Dedup(types.coroutine(iterated), window=DAY)
