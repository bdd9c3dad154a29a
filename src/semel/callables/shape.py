"""Shape: what the source of a function shows of how it uses its first parameter, and of what it gives back."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field
from types import FunctionType
from typing import cast
from weakref import WeakKeyDictionary

SEMELS = frozenset(("events", "items", "filter", "enumerate", "batches"))
"""The methods of a stream of semel's own."""
FAUSTS = frozenset(
    ("take", "take_events", "take_with_timestamp", "noack_take", "group_by", "through", "echo", "noack", "combine", "join",
     "left_join", "inner_join", "outer_join", "add_processor", "derive_topic")
)  # fmt: skip
"""What a Faust agent may ask of its stream, and a Pipeline's may not."""

# What these make of their argument, they make at once: no stream can be given to them.
_AT_ONCE = frozenset(
    ("all", "any", "bool", "dict", "enumerate", "float", "frozenset", "int", "iter", "len", "list", "map", "max", "min", "set",
     "sorted", "str", "sum", "tuple", "zip")
)  # fmt: skip

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Shape:
    """Each is certain where it is True, and says nothing where it is False.

    `iterates`: it runs `async for` over the parameter, or over what methods of a stream make of it. `takes_event`: it does
    with the parameter what cannot be done with a stream, or could not handle one. `asked`: the methods that it calls on the
    parameter, and on what those give. `as_stream`: one of them is a stream's. `returns_value`: of its `return`s,
    `returns_nothing`: it comes back, with None only. `given`: what it returns or yields, but for None; what an inner generator
    yields is none of it.
    """

    iterates: bool = False
    takes_event: bool = False
    asked: set[str] = field(default_factory=set[str])
    as_stream: bool = False
    returns_value: bool = False
    given: list[ast.expr] = field(default_factory=list[ast.expr])
    returns_nothing: bool = False


def shape_of(function: FunctionType, parameter: str | None) -> Shape | None:
    """None where there is no source to look at, as for a lambda. `parameter`: the name of the one that it is called with."""
    node = definition_of(function)
    if node is None:
        return None
    reader = _Reader(parameter)
    for statement in node.body:
        reader.visit(statement)
    shape = reader.shape
    if reader.named_anew:
        # What it is from there on is not known.
        shape.iterates = shape.takes_event = shape.as_stream = False
    elif not shape.iterates:
        # What never waits, or never looks at it, could not iterate over a stream.
        shape.takes_event = shape.takes_event or not reader.waits or not reader.looks
    shape.returns_nothing = not shape.returns_value and (reader.returns or not _ends_by_raise(node.body))
    return shape


# Weak: a function holds what it closes over, and of a test that is all of the test.
_definitions: WeakKeyDictionary[FunctionType, Definition | None] = WeakKeyDictionary()


def definition_of(function: FunctionType) -> Definition | None:
    if function not in _definitions:
        _definitions[function] = _read_definition(function)
    return _definitions[function]


def _read_definition(function: FunctionType) -> Definition | None:
    try:
        source = inspect.getsource(function.__code__)
        # What is defined inside something else is indented.
        tree = _parsed(f"if True:\n{source}" if source[:1].isspace() else source)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    body = cast("ast.If", tree.body[0]).body if source[:1].isspace() else tree.body
    node = body[0] if body else None
    named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function.__code__.co_name
    return cast("Definition", node) if named else None


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SystemError:
        # Python 3.11 loses count where a finalizer that is collected meanwhile parses something, as a traceback does for its
        # carets (python/cpython#106905). Nothing is wrong with the source.
        return ast.parse(source)


def _ends_by_raise(body: list[ast.stmt]) -> bool:
    last = body[-1]
    if isinstance(last, ast.If):
        return bool(last.orelse) and _ends_by_raise(last.body) and _ends_by_raise(last.orelse)
    return isinstance(last, ast.Raise)


def _closed_at_the_end(node: ast.expr) -> ast.expr | None:
    """What `aclosing(...)` gives back as it is."""
    if not isinstance(node, ast.Call) or len(node.args) != 1:
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return node.args[0] if name == "aclosing" else None


class _Reader(ast.NodeVisitor):
    """Reads a function's own code in its order; of functions within it, only that they look at the parameter."""

    def __init__(self, parameter: str | None) -> None:
        self.shape = Shape()
        self.named_anew = self.waits = self.looks = self.returns = False
        self._parameter = parameter
        # Names that stand for the stream, if the parameter is one.
        self._names = {parameter} if parameter is not None else set[str]()

    def _is_it(self, node: ast.AST | None) -> bool:
        return isinstance(node, ast.Name) and node.id in self._names

    def _made_of_it(self, node: ast.AST | None) -> bool:
        """Whether it is the parameter, or what methods of a stream give that are called on it."""
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in SEMELS | FAUSTS:
                return False
            node = node.func.value
        return self._is_it(node)

    def _certain(self, *nodes: ast.AST | None) -> None:
        """Here stands what a stream cannot be."""
        if any(self._is_it(node) for node in nodes):
            self.shape.takes_event = True

    # -- names

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self._names:
            self.looks = True
            if isinstance(node.ctx, ast.Store | ast.Del) and node.id == self._parameter:
                self.named_anew = True

    def _assigned(self, target: ast.AST, value: ast.AST | None) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                self._assigned(one, its)
        elif isinstance(target, ast.Name) and self._made_of_it(value):
            self._names.add(target.id)
        else:
            self.visit(target)
            if isinstance(target, ast.Name) and target.id != self._parameter:
                self._names.discard(target.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._assigned(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        self._assigned(node.target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._assigned(node.target, node.value)

    # -- a stream

    def _iterated(self, node: ast.expr) -> None:
        self.waits = True
        self.shape.iterates = self.shape.iterates or self._made_of_it(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and self._is_it(node.func.value):
            # A method that no stream has may be an event's, or a mistyped one.
            self.looks = True
            self.shape.asked.add(node.func.attr)
            for argument in (*node.args, *node.keywords):
                self.visit(argument)
        else:
            self.visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._iterated(node.iter)
        self._assigned(node.target, None)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        if node.is_async:
            self._iterated(node.iter)
        else:
            self.shape.takes_event = self.shape.takes_event or self._made_of_it(node.iter)
            self.visit(node.iter)
        for part in (node.target, *node.ifs):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._made_of_it(node.value):
            self.shape.asked.add(node.attr)
            if self._is_it(node.value) and node.attr not in SEMELS | FAUSTS:
                self.shape.takes_event = True
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and self._made_of_it(node):
            self.shape.as_stream = True
        elif isinstance(node.func, ast.Name) and node.func.id in _AT_ONCE:
            self.shape.takes_event = self.shape.takes_event or any(map(self._made_of_it, node.args))
        self.generic_visit(node)

    # -- an event

    def visit_For(self, node: ast.For) -> None:
        if self._made_of_it(node.iter):
            self.shape.takes_event = True
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._certain(node.value)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._certain(node.left, *node.comparators)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._certain(node.left, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._certain(*node.values)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._certain(node.operand)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._certain(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._certain(node.test)
        self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> None:
        self._certain(node.subject)
        self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        self._certain(node.value)
        self.generic_visit(node)

    # -- how it ends

    def visit_Return(self, node: ast.Return) -> None:
        self.returns = True
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            return
        self.shape.returns_value = True
        self.shape.given.append(node.value)
        looked, self.looks = self.looks, False
        awaits = any(isinstance(part, ast.Await | ast.comprehension) for part in ast.walk(node.value))
        self.visit(node.value)
        if self.looks and not awaits:
            # What is made of a stream and given back would be iterated over by nobody.
            self.shape.takes_event = True
        self.looks = self.looks or looked

    def visit_Yield(self, node: ast.Yield) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.shape.given.append(node.value)
        self.generic_visit(node)

    # -- what waits

    def visit_Await(self, node: ast.Await) -> None:
        self.waits = True
        self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self.waits = True
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self._assigned(item.optional_vars, _closed_at_the_end(item.context_expr))
        for statement in node.body:
            self.visit(statement)

    # -- functions within it

    def _within(self, node: ast.AST) -> None:
        self.looks = self.looks or any(self._is_it(part) for part in ast.walk(node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._within(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._within(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._within(node)
