"""What kind of agent a callable is: one that takes the stream, or one that takes an event at a time."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable
from typing import Any

from semel.errors import DeclarationError
from semel.plan import AgentKind

_PASSING = {"PUSH_NULL", "PRECALL", "CALL", "KW_NAMES", "LOAD_CONST", "LOAD_METHOD", "LOAD_ATTR", "CACHE", "CALL_KW"}
_TAKING = {"LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF"}


def kind_of(run: Callable[..., Any]) -> AgentKind:
    """An async generator takes the stream. A coroutine function takes the stream if it iterates over its first parameter
    (`async for x in stream`, `stream.batches()`, `stream.events()`) or annotates it as a Stream; else one event.

    DeclarationError for a callable without a parameter.
    """
    function: Any = run
    while isinstance(function, functools.partial):
        function = function.func  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    function = inspect.unwrap(function)
    if not inspect.isroutine(function) and callable(function):
        function = function.__call__
    try:
        parameters = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError):
        return AgentKind.FUNCTION
    if not parameters:
        raise DeclarationError(
            f"agent {getattr(run, '__name__', run)!r} takes no parameter; it needs one, the stream or the event"
        )
    if inspect.isasyncgenfunction(function):
        return AgentKind.STREAM
    if not inspect.iscoroutinefunction(function):
        return AgentKind.FUNCTION
    annotation = str(parameters[0].annotation)
    if "Stream" in annotation or _iterates(function, parameters[0].name):
        return AgentKind.STREAM
    return AgentKind.COROUTINE


def _iterates(function: Any, name: str) -> bool:
    """Whether the function's code runs `async for` over its parameter `name`, directly or through a method of it."""
    following = False
    for step in dis.get_instructions(inspect.unwrap(getattr(function, "__func__", function))):
        if step.opname == "GET_AITER":
            if following:
                return True
        elif step.opname in _TAKING and step.argval == name:
            following = True
        elif step.opname not in _PASSING:
            following = False
    return False
