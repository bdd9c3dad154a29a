"""What kind of agent a callable is: one that takes the stream, or one that takes an event at a time."""

from __future__ import annotations

import dis
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple, cast

from semel.errors import DeclarationError
from semel.plan import AgentKind

# Decorators around decorators; one that wraps itself must not hang the declaration.
_DEEPEST = 100
_STREAM = re.compile(r"\b(StreamT?|AsyncItera(tor|ble)|AsyncGenerator)\b")


def kind_of(run: Callable[..., Any]) -> AgentKind:
    """An async generator takes the stream; so does a coroutine function that iterates over its first parameter
    (`async for x in stream`, `stream.batches()`, `stream.events()`) or annotates it as a Stream. Others take one event.

    What stands behind partials, methods, callable objects and decorators made with `functools.wraps` counts.
    DeclarationError for what cannot be called with one argument.
    """
    name = getattr(run, "__name__", None) or repr(run)
    if not callable(run):
        raise DeclarationError(f"agent {run!r} cannot be called; give a function of the stream or of one event")
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError):
        return AgentKind.FUNCTION
    try:
        signature.bind(None)
    except TypeError as exc:
        raise DeclarationError(
            f"agent {name!r} is called with one argument, the stream or the event, and does not take that: {exc}"
        ) from exc
    functions = list(_behind(run))
    if any(inspect.isasyncgenfunction(f) for f, _ in functions):
        return AgentKind.STREAM
    awaited = [(f, bound) for f, bound in functions if inspect.iscoroutinefunction(f)]
    if not awaited:
        return AgentKind.FUNCTION
    if any(_takes_stream(f, bound) for f, bound in awaited):
        return AgentKind.STREAM
    return AgentKind.COROUTINE


def _behind(run: Any) -> Iterator[tuple[FunctionType, int]]:
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


def _takes_stream(function: FunctionType, given: int) -> bool:
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[given:]
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return False
    declared = _STREAM.search(str(parameters[0].annotation)) is not None
    return declared or _iterates(function.__code__, parameters[0].name)


class _Step(NamedTuple):
    """One instruction, and by how much the stack is higher after it."""

    name: str
    what: Any
    effect: int


# Method calls on a stream give streams; what else is done with a value gives something else.
_LOADS = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_FAST_AND_CLEAR", "LOAD_DEREF", "LOAD_CLASSDEREF")
_STORES = ("STORE_FAST", "STORE_DEREF")
_CALLS = ("CALL", "CALL_KW", "CALL_FUNCTION_EX")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


def _iterates(code: CodeType, name: str) -> bool:
    """Whether the code runs `async for` over its local `name`, or over what a chain of method calls makes of it.

    The value that GET_AITER takes was put on the stack by the instructions before it; going back through them until
    the stack is one lower finds the first, which is the value that the chain began with.
    """
    steps = list(_steps(code))
    names = {name}
    for index, step in enumerate(steps):
        if step.name == "GET_AITER" and _root(steps, index) in names:
            return True
        if step.name in _STORES:
            made_of = _root(steps, index)
            if made_of in names:
                names.add(step.what)
    return False


def _root(steps: list[_Step], index: int) -> str | None:
    """The local that the value on top of the stack before `steps[index]` is, or is made of by calling its methods."""
    last, height = index - 1, 0
    while index > 0 and height < 1:
        index -= 1
        if "JUMP" in steps[index].name or steps[index].name == "GET_AITER":
            return None
        height += steps[index].effect
    first = steps[index]
    if height != 1 or first.name not in _LOADS:
        return None
    if index == last:
        return first.what
    called = steps[last].name in _CALLS and steps[index + 1].name in _ATTRIBUTES
    return first.what if called else None


def _steps(code: CodeType) -> Iterator[_Step]:
    """The instructions of 3.11 to 3.13, pairs that later compilers make one taken apart."""
    for step in dis.get_instructions(code):
        if step.opname in ("CACHE", "EXTENDED_ARG"):
            continue
        if step.opname in ("LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST"):
            for part, what in zip(step.opname.replace("_FAST_", "_FAST ").split(), step.argval, strict=True):
                yield _Step(part, what, 1 if part.startswith("LOAD") else -1)
        else:
            yield _Step(step.opname, step.argval, dis.stack_effect(step.opcode, step.arg, jump=False))
