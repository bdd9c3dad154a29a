"""What kind of agent a callable is: one that takes the stream, or one that takes an event at a time; and what it gives.

Told by its shape. Where that is not certain it is refused: an event that is taken for a stream, or the other way round, would
be handled by nobody.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from types import FunctionType, NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from semel.callables.shape import Shape, shape_of
from semel.errors import DeclarationError
from semel.functions import behind, called
from semel.output import Output
from semel.plan import AgentKind

Kind = Literal["stream", "event"]

# `stream`, `payments`, but not `address` or `status`: what such a name is given is no single event, or badly named.
_NAME_OF_MANY = re.compile(r"stream|[^sui]s$")
_STREAMS = (AsyncIterable, AsyncIterator, AsyncGenerator)
_STREAM = re.compile(r"\b(StreamT?|AsyncItera(tor|ble)|AsyncGenerator)\b")


def kind_of(run: Callable[..., Any], kind: Kind | None = None) -> AgentKind:
    """An async generator takes the stream. Other functions take one event, unless their parameter is annotated as a stream
    (`AsyncIterable`, `AsyncIterator`, a class with `__aiter__`), or a coroutine function iterates over it: `async for` over the
    parameter, its `events()`, `items()`, `filter()`, `enumerate()`, `batches()`.

    A class takes what its `__init__` does, or the stream where its instances are iterated over.

    `kind`: what it is, where somebody says so. What stands behind partials, methods, callable objects and decorators made with
    `functools.wraps` counts: the outermost of which it is certain. DeclarationError for what cannot be called with one argument,
    for a coroutine function of which it is certain neither way, and whose parameter has the name of many or is asked for what a
    stream has, and for what takes the stream and could not go through it.
    """
    name = called(run)
    if not callable(run):
        raise DeclarationError(f"agent {run!r} cannot be called; give a function of the stream or of one event")
    if kind not in (None, "stream", "event"):
        raise DeclarationError(f"agent {name!r}: kind={kind!r}; it takes 'stream' or 'event', or is left out")
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError):
        # Code in another language that does not say what it takes.
        return AgentKind.STREAM if kind == "stream" else AgentKind.FUNCTION
    try:
        signature.bind(None)
    except TypeError as exc:
        raise DeclarationError(
            f"agent {name!r} is called with one argument, the stream or the event, and does not take that: {exc}"
        ) from exc
    layers = _layers(run)
    if any(inspect.isgeneratorfunction(layer.function) for layer in layers):
        raise DeclarationError(
            f"agent {name!r} is a plain generator, which nobody iterates over. For several results of one event make it take "
            "the stream: `async def agent(stream)` with `async for event in stream:` around its `yield`s"
        )
    if kind == "event" and any(inspect.isasyncgenfunction(layer.function) for layer in layers[:1]):
        raise DeclarationError(
            f"agent {name!r} is an async generator, and kind='event': nobody iterates over what it gives of one event. Make it "
            "take the stream, with `async for event in stream:` around its `yield`s, or return one result"
        )
    _check_no_context_manager(layers, name)
    takes_stream = kind == "stream" if kind is not None else _takes_stream(run, layers, name)
    if takes_stream:
        _check_goes_through_stream(run, layers, name)
        return AgentKind.STREAM
    awaited = any(inspect.iscoroutinefunction(layer.function) for layer in layers)
    return AgentKind.COROUTINE if awaited else AgentKind.FUNCTION


class _Layer(NamedTuple):
    """A function that a call goes through, and its parameter that gets the stream or the event; None: not known."""

    function: Any  # a FunctionType, which pyright would take for a method
    parameter: inspect.Parameter | None

    @property
    def shape(self) -> Shape | None:
        return shape_of(self.function, self.parameter.name if self.parameter is not None else None)


def _layers(run: Any) -> list[_Layer]:
    return [_Layer(function, _parameter(function, given)) for function, given in behind(run)]


def _parameter(function: FunctionType, given: int) -> inspect.Parameter | None:
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[given:]
    first = parameters[0] if parameters else None
    return None if first is None or first.kind is inspect.Parameter.VAR_POSITIONAL else first


def _check_no_context_manager(layers: list[_Layer], name: str) -> None:
    for layer in layers:
        function = layer.function
        # Its decorators name what they make after what they wrap; the module that they are of stays.
        if function.__globals__ is vars(contextlib) and function.__code__.co_name == "helper":
            raise DeclarationError(
                f"agent {name!r} gives a context manager, for a `with` statement, and nobody enters it; take the decorator off, "
                "and use it within the agent"
            )


def _check_goes_through_stream(run: Any, layers: list[_Layer], name: str) -> None:
    cls = _class_of(run)
    if cls is not None and not any(hasattr(cls, method) for method in ("__aiter__", "__anext__", "__await__")):
        raise DeclarationError(
            f"agent {name!r} is a class that takes the stream, and nobody iterates over its instances; give it `__aiter__`, or "
            "declare a function: `async def agent(stream)`"
        )
    if len(layers) != 1:
        return
    [layer] = layers
    if inspect.iscoroutinefunction(layer.function) or inspect.isasyncgenfunction(layer.function):
        return
    if layer.shape is not None and layer.shape.returns_nothing:
        raise DeclarationError(
            f"agent {name!r} takes the stream, is a plain function and returns nothing: nobody goes through the stream; declare "
            "it with async def, and iterate with `async for event in stream:`"
        )


def _class_of(run: Any) -> type | None:
    while isinstance(run, functools.partial):
        run = cast("functools.partial[Any]", run).func
    return run if isinstance(run, type) else None


def _class_takes_stream(cls: type) -> bool | None:
    """None where neither its `__init__` nor what its instances are says so."""
    init = cls.__init__
    if isinstance(init, FunctionType):
        parameter = _parameter(init, 1)
        declared = _declares_stream(init, parameter) if parameter is not None else None
        if declared is not None:
            return declared
    # What is iterated over that way is no result of an event.
    return True if hasattr(cls, "__aiter__") or hasattr(cls, "__anext__") else None


def _takes_stream(run: Any, layers: list[_Layer], name: str) -> bool:
    cls = _class_of(run)
    if cls is not None:
        return _class_takes_stream(cls) or False
    for layer in layers:
        certain = _layer_takes_stream(layer, name)
        if certain is not None:
            return certain
    parameter = next((layer.parameter.name for layer in layers if layer.parameter is not None), "its parameter")
    if not any(inspect.iscoroutinefunction(layer.function) for layer in layers):
        return False
    if not _NAME_OF_MANY.search(parameter) and not any(shape.as_stream for shape in _shapes(layers)):
        return False
    raise DeclarationError(
        f"agent {name!r} may take the stream or one event at a time: what can be seen of its code says neither for certain. "
        f"Annotate {parameter!r} (AsyncIterable[...] for the stream, else the event's type), or give the Pipeline "
        "kind='stream' or kind='event'"
    )


def _layer_takes_stream(layer: _Layer, name: str) -> bool | None:
    """None where it is not certain."""
    function, parameter = layer
    if inspect.isasyncgenfunction(function):
        _check_not_of_one_event(layer, name)
        return True
    declared = _declares_stream(function, parameter) if parameter is not None else None
    if declared:
        return True
    if not inspect.iscoroutinefunction(function):
        return declared
    shape = layer.shape
    if declared is False and shape is not None and shape.iterates and parameter is not None:
        raise DeclarationError(
            f"agent {name!r} iterates over {parameter.name!r}, which is annotated as {parameter.annotation!s}; annotate it as "
            "AsyncIterable[...], or give the Pipeline kind='stream' or kind='event'"
        )
    if declared is False or shape is None:
        return declared
    if shape.iterates != shape.takes_event:
        return shape.iterates
    return False if _gives_value(function) else None


def _check_not_of_one_event(generator: _Layer, name: str) -> None:
    function, parameter = generator
    shape = generator.shape
    if parameter is None or (shape is not None and shape.iterates):
        return
    # A decorator has the annotations of what it wraps, and another parameter.
    if not hasattr(function, "__wrapped__") and _declares_stream(function, parameter) is False:
        declared = parameter.annotation
        written = declared if isinstance(declared, str) else inspect.formatannotation(declared)
        why = f"{parameter.name!r} is annotated as {written}"
    elif shape is not None and shape.takes_event:
        why = f"its code takes {parameter.name!r} as one event"
    else:
        return
    raise DeclarationError(
        f"agent {name!r} is an async generator, which takes the stream, and {why}. Put `async for ... in {parameter.name}:` "
        "around its `yield`s (annotated as AsyncIterable[...], if at all), or return one result of the event instead of "
        "yielding; where it does go through the stream, give the Pipeline kind='stream'"
    )


def _declares_stream(function: FunctionType, parameter: inspect.Parameter) -> bool | None:
    """What its annotation says; None where there is none, or one that says nothing."""
    declared = parameter.annotation
    if declared is inspect.Parameter.empty:
        return None
    declared = _hints(function).get(parameter.name, declared)
    if isinstance(declared, str):
        return True if _STREAM.search(declared) else None
    return _is_stream(declared)


def _is_stream(declared: Any) -> bool | None:
    declared = getattr(declared, "__value__", declared)  # type X = ...
    origin = get_origin(declared)
    if origin is Annotated:
        return _is_stream(get_args(declared)[0])
    if origin in (Union, UnionType):
        parts = {_is_stream(part) for part in get_args(declared) if part is not NoneType}
        return parts.pop() if len(parts) == 1 else None
    declared = origin or declared
    if declared is Any or declared is object or not isinstance(declared, type):
        # Of what a Literal or a NewType is made is a value; a type variable may be anything.
        return False if origin is Literal or hasattr(declared, "__supertype__") else None
    return hasattr(declared, "__aiter__") or any(c.__name__ == "StreamT" for c in declared.__mro__)


def _gives_value(function: FunctionType) -> bool:
    """Whether its annotation says that it returns something: one that takes the stream yields, or gives nothing."""
    declared = _hints(function).get("return", function.__annotations__.get("return"))
    return declared not in (None, NoneType, Any, "None", "Any", "object", object)


def _hints(function: FunctionType) -> dict[str, Any]:
    """Annotations by name, those left out that cannot be resolved: what they name may exist for the type checker only."""
    try:
        return get_type_hints(function)
    except Exception:
        return {name: hint for name in function.__annotations__ for hint in _hint(function, name)}


def _hint(function: FunctionType, name: str) -> list[Any]:
    alone = SimpleNamespace(__annotations__={name: function.__annotations__[name]})
    try:
        return [get_type_hints(alone, globalns=function.__globals__)[name]]
    except Exception:
        return []


def check_results(
    run: Callable[..., Any], kind: AgentKind, accepted: tuple[type, ...] | None, sink: str | None
) -> None:
    """DeclarationError where code or annotation shows that what the agent gives cannot be a result.

    `sink`: the name of the topic that results go to, None where there is none: then each has to name a topic, which only an
    `Output` can. `accepted`: the classes that the sink takes; None: not known.
    """
    layers = _layers(run)
    functions = [layer.function for layer in layers]
    loops = kind is AgentKind.STREAM and not any(inspect.isasyncgenfunction(f) for f in functions)
    if loops and any(shape.iterates and shape.returns_value for shape in _shapes(layers)):
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
        if sink is not None and accepted is not None and not any(_may_be(result, a) for a in accepted):
            names = " or ".join(a.__name__ for a in accepted)
            raise DeclarationError(
                f"agent {called(run)!r} gives {result.__name__}, by its annotation, and sink {sink!r} takes {names}; let the "
                f"two agree{_SEVERAL if issubclass(result, list | tuple | set | frozenset) else ''}"
            )
        # What stands behind a decorator may make something else of it.
        if sink is None and len(layers) == 1:
            raise DeclarationError(f"agent {called(run)!r} gives {result.__name__}, by its annotation, {_NO_SINK}")
    # What a plain function makes of the stream is gone through; it is no result.
    if sink is None and len(layers) == 1 and (kind is not AgentKind.STREAM or not loops) and (made := _made(layers[0])):
        raise DeclarationError(f"agent {called(run)!r} gives {made}, {_NO_SINK}")


_NO_SINK = (
    "and there is no sink for it; declare sink=Topic(...), give results a topic of their own (Output(value, topic=...)), or "
    "give none"
)
_SEVERAL = ": a result is one record, and for several of one event the agent takes the stream and yields each"


def _may_be(given: type[Any], taken: type[Any]) -> bool:
    return issubclass(given, taken) or issubclass(taken, given)


def _made(layer: _Layer) -> str:
    """What its code makes of events, where all that it gives is made in the place where it is given, and is no `Output`."""
    names: list[str] = []
    for node in layer.shape.given if layer.shape is not None else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            cls = _global(layer.function, node.func.id)
            # A class may make what it likes, where it says how.
            if not isinstance(cls, type) or issubclass(cls, Output) or cls.__new__ is not object.__new__:
                return ""
            names.append(cls.__name__)
        elif isinstance(node, ast.Dict | ast.DictComp):
            names.append("dict")
        elif isinstance(node, ast.List | ast.ListComp):
            names.append("list")
        elif isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            names.append("str")
        else:
            return ""
    return " or ".join(dict.fromkeys(names))


def _global(function: FunctionType, name: str) -> Any:
    """What a name stands for in a module, where the function has no other of that name."""
    code = function.__code__
    own = name in code.co_varnames or name in code.co_freevars or name in code.co_cellvars
    return None if own else function.__globals__.get(name)


def cannot_yield(run: Callable[..., Any], kind: AgentKind) -> bool:
    """Whether it takes the stream and is no generator, but a coroutine: what is awaited has no results."""
    outermost = next((function for function, _ in behind(run)), None)
    return kind is AgentKind.STREAM and inspect.iscoroutinefunction(outermost)


def gives_nothing(run: Callable[..., Any], kind: AgentKind) -> bool:
    """Whether its code says that it has no result: it iterates and never yields, or returns nothing but None; where there is no
    code to look at, whether its annotation does."""
    layers = _layers(run)
    if kind is not AgentKind.STREAM and len(layers) == 1 and layers[0].shape is None:
        declared = _hints(layers[0].function).get("return", ...)
        if declared is NoneType or declared is None:
            return True
    if any(inspect.isasyncgenfunction(layer.function) for layer in layers):
        return False
    shapes = list(_shapes(layers))
    if kind is AgentKind.STREAM:
        return any(shape.iterates for shape in shapes)
    return bool(shapes) and len(shapes) == len(layers) and all(shape.returns_nothing for shape in shapes)


def asked_of_stream(run: Callable[..., Any]) -> set[str]:
    """The names of the methods that a streaming agent's code calls on its stream, also on what those give."""
    return {name for shape in _shapes(_layers(run)) for name in shape.asked}


def _shapes(layers: list[_Layer]) -> Iterator[Shape]:
    for layer in layers:
        shape = layer.shape
        if shape is not None:
            yield shape


def _declared_results(run: Any, functions: list[FunctionType], kind: AgentKind) -> Iterator[type[Any]]:
    """The classes that the return annotation names, where it names classes; `Output` and None go without saying."""
    declared = _hints(functions[-1]).get("return") if functions else _given_by_class(run)
    if kind is AgentKind.STREAM:
        arguments = get_args(declared)
        if not arguments or not (
            any(inspect.isasyncgenfunction(f) for f in functions) or get_origin(declared) in _STREAMS
        ):
            return
        declared = arguments[0]
    for part in get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,):
        cls = get_origin(part) or part
        silent = cls in (NoneType, Output, Any) or is_typeddict(cls) or getattr(cls, "_is_protocol", False)
        if isinstance(cls, type) and not silent:
            yield cast("type[Any]", cls)


def _given_by_class(run: Any) -> Any:
    try:
        return get_type_hints(run).get("return")
    except Exception:
        # As in `_hints`.
        return None
