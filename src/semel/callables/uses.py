"""Uses: which objects of a class a function's code uses by name, without running it: globals, what it closes over, and what
stands in modules and classes that it names; also in the functions of the project that it calls, one level deep.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from semel.callables.shape import definition_of
from semel.functions import behind

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = str(Path(__file__).parents[1])
_NOTHING = object()
# What binds a name that is no `ast.Name`.
_NAMING = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Use:
    """`where`: file and line. `certain`: whatever the events are, those that are not sorted out before come to it, and it does
    more than to name the object."""

    object: Any
    where: str
    certain: bool


def uses(run: Any, cls: type, methods: frozenset[str]) -> list[Use]:
    """In the order of the code. More than naming: `x[...]`, `in x`, and calls of these methods.

    An attribute else, as `x.name`, is no use. In branches, handlers, functions within it and behind decorators nothing is
    certain.
    """
    layers = [function for function, _ in behind(run)]
    uses: list[Use] = []
    for number, function in enumerate(layers):
        reader = _read(function, cls, methods)
        uses += [use if number == 0 else replace(use, certain=False) for use in reader.uses]
        for called, certain in reader.called:
            inner = [layer for layer, _ in behind(called)]
            sure = certain and number == 0 and len(inner) == 1 and not inspect.isgeneratorfunction(called)
            for layer in inner:
                if layer not in layers and _of_project(layer, function):
                    below = _read(layer, cls, methods).uses
                    uses += [replace(use, certain=use.certain and sure) for use in below]
    return uses


def _of_project(function: FunctionType, caller: FunctionType) -> bool:
    """Whether its code is the project's: no library's, or of the package of whoever calls it."""
    if _package(function) == _package(caller):
        return True
    return not function.__code__.co_filename.startswith((*_LIBRARIES, _OWN))


def _package(function: FunctionType) -> str:
    return (function.__module__ or "").partition(".")[0]


def _read(function: FunctionType, cls: type, methods: frozenset[str]) -> _Reader:
    reader = _Reader(function, cls, methods)
    node = definition_of(function)
    if node is not None:
        reader.own_names(node)
        reader.block(node.body)
    return reader


class _Reader(ast.NodeVisitor):
    """Goes through a function's code. `found`: in it; `called`: functions that it calls by name, and whether for certain."""

    def __init__(self, function: FunctionType, cls: type, methods: frozenset[str]) -> None:
        self.uses: list[Use] = []
        self.called: list[tuple[FunctionType, bool]] = []
        self._function = function
        self._cls = cls
        self._methods = methods
        self._certain = True
        self._own: set[str] = set()

    def own_names(self, node: ast.AST) -> None:
        """Names that are bound somewhere within: what they stand for is not known."""
        bound, shared = set[str](), set[str]()
        for part in ast.walk(node):
            if isinstance(part, ast.arg):
                bound.add(part.arg)
            elif isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
                bound.add(part.id)
            elif isinstance(part, _NAMING):
                bound.add(part.name or "")
            elif isinstance(part, ast.alias):
                bound.add((part.asname or part.name).partition(".")[0])
            elif isinstance(part, ast.Global | ast.Nonlocal):
                shared.update(part.names)
        self._own = (bound | shared) - {""}

    # -- what a name stands for

    def _named(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return self._value(node.id)
        if isinstance(node, ast.Attribute):
            holder = self._named(node.value)
            if isinstance(holder, ModuleType | type):
                # As it stands there: nothing of the user's runs for it.
                return vars(holder).get(node.attr, _NOTHING)
        return _NOTHING

    def _value(self, name: str) -> Any:
        function = self._function
        if name in self._own:
            return _NOTHING
        free = function.__code__.co_freevars
        if name in free:
            try:
                return (function.__closure__ or ())[free.index(name)].cell_contents
            except (IndexError, ValueError):
                # Not bound yet.
                return _NOTHING
        return function.__globals__.get(name, _NOTHING)

    def _is_one(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name | ast.Attribute) and isinstance(self._named(node), self._cls)

    def _note(self, node: ast.expr, *, used: bool) -> None:
        code = self._function.__code__
        first = definition_of(self._function)
        # The lines of the source that was read begin at the function's own, or its first decorator's.
        begins = min([first.lineno, *(d.lineno for d in first.decorator_list)]) if first is not None else node.lineno
        where = f"{code.co_filename}:{code.co_firstlineno + node.lineno - begins}"
        self.uses.append(Use(self._named(node), where, used and self._certain))

    # -- uses

    def visit_Name(self, node: ast.Name) -> None:
        if self._is_one(node):
            self._note(node, used=False)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._is_one(node):
            self._note(node, used=False)
        elif not self._is_one(node.value):
            self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._is_one(node.value):
            self._note(node.value, used=True)
        else:
            self.visit(node.value)
        self.visit(node.slice)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.visit(node.left)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn) and self._is_one(right):
                self._note(right, used=True)
            else:
                self.visit(right)

    def visit_Call(self, node: ast.Call) -> None:
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr in self._methods and self._is_one(func.value):
            self._note(func.value, used=True)
        else:
            called = self._named(func)
            if isinstance(called, FunctionType):
                self.called.append((called, self._certain))
            self.visit(func)
        for argument in (*node.args, *node.keywords):
            self.visit(argument)

    # -- what is not on every event's path

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Behind what ends a block comes nothing."""
        before = self._certain
        for statement in statements:
            self.visit(statement)
            if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
                self._certain = False
        self._certain = before

    def _perhaps(self, *nodes: ast.AST | None) -> None:
        before, self._certain = self._certain, False
        for node in nodes:
            if node is not None:
                self.visit(node)
        self._certain = before

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._perhaps(*node.body, *node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._perhaps(node.body, node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.visit(node.values[0])
        self._perhaps(*node.values[1:])

    def visit_Assert(self, node: ast.Assert) -> None:
        self._perhaps(node.test, node.msg)

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        if isinstance(node.test, ast.Constant) and node.test.value:
            self.block(node.body)
        else:
            self._perhaps(*node.body)
        self._perhaps(*node.orelse)

    def _loop(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        self.block(node.body)
        self._perhaps(*node.orelse)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._loop(node)

    def _within(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item)
        self.block(node.body)

    def visit_With(self, node: ast.With) -> None:
        self._within(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self._within(node)

    def visit_Try(self, node: ast.Try) -> None:
        self._tried(node)

    def visit_TryStar(self, node: ast.TryStar) -> None:
        self._tried(node)

    def _tried(self, node: ast.Try | ast.TryStar) -> None:
        self.block(node.body)
        self._perhaps(*node.handlers, *node.orelse)
        self.block(node.finalbody)

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        self._perhaps(*node.cases)

    def _made_of_each(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, *made: ast.AST) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        if first.ifs or others:
            self._perhaps(*first.ifs, *others, *made)
        else:
            for part in made:
                self.visit(part)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._made_of_each(node, node.elt)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._made_of_each(node, node.elt)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._made_of_each(node, node.elt)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._made_of_each(node, node.key, node.value)

    # -- functions within it: whether they are called is not known

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._perhaps(*node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._perhaps(*node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._perhaps(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._perhaps(*node.body)

    # -- annotations run for nobody

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        self.visit(node.target)


def first_of_each(all_uses: Sequence[Use]) -> Iterator[Use]:
    """One use of each object, a certain one where there is one."""
    best: dict[int, Use] = {}
    for use in all_uses:
        before = best.get(id(use.object))
        if before is None or (use.certain and not before.certain):
            best[id(use.object)] = use
    yield from best.values()
