"""Functions that somebody declares: what a call goes through and gives; and a field's name, which stands for one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, cast

from semel.errors import DeclarationError

# Decorators around decorators; one that wraps itself must not hang the declaration.
_DEEPEST = 100


def called(run: Any) -> str:
    return getattr(run, "__name__", None) or repr(run)


def behind(run: Any) -> Iterator[tuple[FunctionType, int]]:
    """The functions a call of `run` goes through, outermost first, each with how many of its parameters are given."""
    given = 0
    for _ in range(_DEEPEST):
        if isinstance(run, functools.partial):
            partial = cast("functools.partial[Any]", run)
            given += len(partial.args)
            run = partial.func
        elif isinstance(run, MethodType):
            given += 1
            run = run.__func__
        elif isinstance(run, FunctionType):
            yield run, given
            run = getattr(run, "__wrapped__", None)
        elif run is None or isinstance(run, type):
            return
        else:
            run = getattr(run, "__wrapped__", None) or _method(run)


def _method(run: Any) -> MethodType | None:
    method = getattr(run, "__call__", None)  # noqa: B004  (what it is bound to, not whether it is there)
    return method if isinstance(method, MethodType) else None


def check_gives_value(run: Any, where: str) -> None:
    """DeclarationError where what a call gives is no value yet: nobody awaits it, or iterates over it.

    Of decorators the outermost counts: it may run what it wraps.
    """
    function = next((f for f, _ in behind(run)), None)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(
            f"{where}={called(run)} is declared with async def, and nobody awaits what it gives; give a plain function (def), "
            "and do what has to be awaited in the agent"
        )
    if inspect.isgeneratorfunction(function):
        raise DeclarationError(
            f"{where}={called(run)} has a yield in it, and nobody iterates over what it gives; give a function that returns "
            "its value"
        )


def is_reader(given: Any) -> bool:
    """A function of a value, or the name of one of its fields."""
    return callable(given) or (isinstance(given, str) and given != "")


def reader_of(given: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function; for a name one that reads a field of a dict or an attribute of an object, None where it is absent."""
    if not isinstance(given, str):
        return given

    def read(value: Any) -> Any:
        if isinstance(value, dict):
            return value.get(given)  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
        return getattr(value, given, None)

    return read
