"""What an agent takes, by its annotation, against what its source gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from semel.callables.kind import asked_of_stream
from semel.codec import accepted_classes
from semel.errors import DeclarationError
from semel.functions import behind, called
from semel.plan import AgentKind
from semel.topic import Topic

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_STREAMS = (AsyncIterable, AsyncIterator, AsyncGenerator)
# What a stream gives only where it is asked for it, and how.
_OF_STREAM = {
    "Event": (
        "an Event",
        "take the stream and iterate over its events: `async for event in stream.events():`, or take the value and call "
        "semel.current_event() beside it",
    ),
    "Batch": ("a Batch", "take the stream and iterate over its batches: `async for batch in stream.batches():`"),
}
# What type checkers take for the annotated class besides its subclasses.
_PROMOTED: dict[type, tuple[type, ...]] = {
    float: (int,),
    complex: (int, float),
    bytes: (bytearray, memoryview),
}


def check_takes(run: Callable[..., Any], kind: AgentKind, source: Topic) -> None:
    """DeclarationError where the parameter is annotated with a class that no value of the source is an instance of, or with
    what the stream makes of values where asked.

    Only where that is certain: what else than a plain class stands there is not looked at, nor what stands behind a
    decorator, which may make something else of the value.
    """
    declared = _declared(run, kind)
    _check_values(run, declared)
    given = accepted_classes(source.value)
    taken = cast("type", declared) if _is_plain(declared) else None
    if given is None or taken is None or any(_may_be(cls, taken) for cls in given):
        return
    raise DeclarationError(
        f"agent {called(run)!r} takes {_named(taken, source)}, by its annotation, and source {source.name!r} gives "
        f"{source.value.name}; let the two agree"
    )


def _check_values(run: Any, declared: Any) -> None:
    """DeclarationError for one that is to be given Events or Batches: it would be given values."""
    origin = get_origin(declared)
    for part in get_args(declared) if origin in (Union, UnionType) else (declared,):
        name = getattr(part, "__name__", "")
        if getattr(part, "__module__", "").partition(".")[0] == "semel" and name in _OF_STREAM:
            raise DeclarationError(
                f"agent {called(run)!r} takes {_OF_STREAM[name][0]}, by its annotation, and is given the values of its events; "
                f"{_OF_STREAM[name][1]}"
            )


def _declared(run: Any, kind: AgentKind) -> Any:
    """What its parameter is annotated with, or the stream that it takes is one of; None where nothing says so."""
    functions = list(behind(run))
    if len(functions) != 1 or _decorated(run):
        return None
    function, given = functions[0]
    parameter = next(iter([*inspect.signature(function).parameters.values()][given:]), None)
    if parameter is None or parameter.kind not in _POSITIONAL:
        return None
    try:
        declared = get_type_hints(function).get(parameter.name)
    except Exception:
        # What an annotation names may exist for the type checker only.
        return None
    if kind is AgentKind.STREAM:
        # Of events(), batches() and the like comes something else than values.
        if not _is_stream(get_origin(declared)) or not get_args(declared) or asked_of_stream(run):
            return None
        declared = get_args(declared)[0]
    return declared


def _decorated(run: Any) -> bool:
    while isinstance(run, functools.partial):
        run = cast("functools.partial[Any]", run).func
    return hasattr(run, "__wrapped__")


def _is_stream(origin: Any) -> bool:
    return origin in _STREAMS or getattr(origin, "__module__", "").partition(".")[0] == "faust"


def _is_plain(declared: Any) -> bool:
    """Of its class alone a value can be told."""
    if declared is Any or not isinstance(declared, type) or get_origin(declared) is not None or is_typeddict(declared):
        return False
    open_ended = getattr(declared, "_is_protocol", False) or inspect.isabstract(declared)
    return not open_ended and declared.__module__.partition(".")[0] != "semel"


def _may_be(given: type, taken: type) -> bool:
    if issubclass(given, taken) or issubclass(taken, given) or issubclass(given, _PROMOTED.get(taken, ())):
        return True
    # The same class, of a module that was run twice.
    return (given.__module__, given.__qualname__) == (taken.__module__, taken.__qualname__)


def _named(taken: type, source: Topic) -> str:
    return f"{taken.__module__}.{taken.__name__}" if taken.__name__ == source.value.name else taken.__name__
