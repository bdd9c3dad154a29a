"""What kind of agent a callable is: one that takes the stream, or one that takes an event at a time; and what it gives."""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from types import CodeType, FunctionType, NoneType, UnionType
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from semel.errors import DeclarationError
from semel.functions import behind, called
from semel.output import Output
from semel.plan import AgentKind

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
    functions = list(behind(run))
    if any(inspect.isgeneratorfunction(f) for f, _ in functions):
        raise DeclarationError(
            f"agent {name!r} is a plain generator, which nobody iterates over. For several results of one event make it take "
            "the stream: `async def agent(stream)` with `async for event in stream:` around its `yield`s"
        )
    if any(inspect.isasyncgenfunction(f) for f, _ in functions):
        return AgentKind.STREAM
    awaited = [(f, bound) for f, bound in functions if inspect.iscoroutinefunction(f)]
    if not awaited:
        return AgentKind.FUNCTION
    if any(_takes_stream(f, bound) for f, bound in awaited):
        return AgentKind.STREAM
    return AgentKind.COROUTINE


def check_results(run: Callable[..., Any], kind: AgentKind, accepted: tuple[type, ...] | None, where: str) -> None:
    """DeclarationError where code or annotation shows that what the agent gives cannot be a result.

    `accepted`: the classes that its sink takes; None: not known, or no sink.
    """
    functions = [f for f, _ in behind(run)]
    loops = kind is AgentKind.STREAM and not any(inspect.isasyncgenfunction(f) for f in functions)
    if loops and any(_returns_a_value(f.__code__) for f in functions):
        raise DeclarationError(
            f"agent {called(run)!r} iterates over its stream and returns a value, which goes nowhere and ends its loop; yield "
            "results inside the loop"
        )
    for result in _declared_results(run, functions, kind):
        if issubclass(result, Awaitable):
            raise DeclarationError(
                f"agent {called(run)!r} is a plain function that returns {result.__name__}, which nobody awaits; declare it "
                "with async def"
            )
        if accepted is not None and not any(issubclass(result, a) or issubclass(a, result) for a in accepted):
            names = " or ".join(a.__name__ for a in accepted)
            raise DeclarationError(
                f"agent {called(run)!r} gives {result.__name__}, by its annotation, and {where} takes {names}; let the two agree"
            )


def gives_nothing(run: Callable[..., Any], kind: AgentKind) -> bool:
    """Whether its code shows that it can have no result: it iterates and never yields, or returns nothing but None."""
    functions = [f for f, _ in behind(run)]
    if not functions or any(inspect.isasyncgenfunction(f) for f in functions):
        return False
    if kind is AgentKind.STREAM:
        return True
    return not any(_returns_a_value(f.__code__) for f in functions) and any(_returns(f.__code__) for f in functions)


def _returns(code: CodeType) -> bool:
    return any(
        step.opname.startswith("RETURN_") and step.opname != "RETURN_GENERATOR" for step in dis.get_instructions(code)
    )


def _returns_a_value(code: CodeType) -> bool:
    before: dis.Instruction | None = None
    for step in dis.get_instructions(code):
        if step.opname == "RETURN_CONST" and step.argval is not None:
            return True
        if step.opname == "RETURN_VALUE":
            constant = before is not None and before.opname == "LOAD_CONST"
            if not constant or before is None or before.argval is not None:
                return True
        before = step
    return False


def _declared_results(run: Any, functions: list[FunctionType], kind: AgentKind) -> Iterator[type]:
    """The classes that the return annotation names, where it names classes; `Output` and None go without saying."""
    try:
        declared = get_type_hints(functions[-1] if functions else run).get("return")
    except Exception:
        # What an annotation names may exist for the type checker only.
        return
    if kind is AgentKind.STREAM:
        arguments = get_args(declared)
        if not any(inspect.isasyncgenfunction(f) for f in functions) or not arguments:
            return
        declared = arguments[0]
    for part in get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,):
        found = get_origin(part) or part
        silent = found in (NoneType, Output, Any) or is_typeddict(found) or getattr(found, "_is_protocol", False)
        if isinstance(found, type) and not silent:
            yield cast("type", found)


def _takes_stream(function: FunctionType, given: int) -> bool:
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[given:]
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return False
    declared = _STREAM.search(str(parameters[0].annotation)) is not None
    return declared or _iterates(function.__code__, parameters[0].name)


def asked_of_stream(run: Callable[..., Any]) -> set[str]:
    """The names of the methods that a streaming agent's code calls on its stream, also on what those give."""
    asked: set[str] = set()
    for function, given in behind(run):
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters)[given:]
        if not parameters:
            continue
        steps, names = list(_steps(function.__code__)), {parameters[0]}
        for index, step in enumerate(steps):
            if step.name in _ATTRIBUTES and _root(steps, index) in names:
                asked.add(step.what)
            elif step.name in _STORES and _root(steps, index) in names:
                names.add(step.what)
    return asked


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
