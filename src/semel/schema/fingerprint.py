"""What values of a type look like in JSON, and whether what was written as one type is read well as another (protocol rule 24).

A description is plain JSON, kept in the position records: of a field its type and its default, of a class nothing but its
fields, so that another name is no change.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast

import msgspec
import orjson
from msgspec import inspect as shapes

# A str, or a dict whose first key says which kind it is.
Described = Any

_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")


def describe(shape: shapes.Type) -> Described:
    """The description of a JSON type."""
    return _Describing().of(shape)


class _Describing:
    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, shape: shapes.Type) -> Described:
        plain = self._of(shape)
        bounds = {name: getattr(shape, name) for name in _BOUNDS if getattr(shape, name, None) is not None}
        return {"bounded": plain, "by": bounds} if bounds else plain

    def _of(self, shape: shapes.Type) -> Described:
        if isinstance(shape, (shapes.EnumType, shapes.LiteralType)):
            given = [m.value for m in shape.cls] if isinstance(shape, shapes.EnumType) else shape.values
            return {"one of": sorted(given, key=repr)}
        if isinstance(shape, shapes.UnionType):
            return {"union": sorted((self.of(t) for t in shape.types), key=orjson.dumps)}
        if isinstance(shape, (shapes.ListType, shapes.VarTupleType)):
            return {"list": self.of(shape.item_type)}
        if isinstance(shape, (shapes.SetType, shapes.FrozenSetType)):
            return {"set": self.of(shape.item_type)}
        if isinstance(shape, shapes.TupleType):
            return {"tuple": [self.of(t) for t in shape.item_types]}
        if isinstance(shape, shapes.DictType):
            return {"dict": [self.of(shape.key_type), self.of(shape.value_type)]}
        if isinstance(shape, (shapes.DataclassType, shapes.StructType, shapes.NamedTupleType, shapes.TypedDictType)):
            return self._fields(shape)
        return type(shape).__name__.removesuffix("Type").lower()

    def _fields(
        self, shape: shapes.DataclassType | shapes.StructType | shapes.NamedTupleType | shapes.TypedDictType
    ) -> Described:
        cls: Any = shape.cls
        if cls in self._numbers:
            return {"same": self._numbers[cls]}
        self._numbers[cls] = len(self._numbers)
        fields = {f.encode_name: self._field(f) for f in shape.fields}
        array = isinstance(shape, shapes.NamedTupleType) or getattr(shape, "array_like", False)
        described: dict[str, Any] = {"in order": [*fields.items()]} if array else {"fields": fields}
        if isinstance(shape, shapes.StructType) and shape.tag is not None:
            described["tag"] = [shape.tag_field, shape.tag]
        described["n"] = self._numbers[cls]
        return described

    def _field(self, field: shapes.Field) -> list[Described]:
        """Its type; and its default where it may be missing."""
        of = self.of(field.type)
        if field.required:
            return [of]
        if field.default is not msgspec.NODEFAULT:
            return [of, described_default(field.default)]
        return [of, {"made by": getattr(field.default_factory, "__qualname__", "absent")}]


def described_default(default: Any) -> Described:
    """The same in every process: what is no plain value (a sentinel, the time of the start) is described by nothing."""
    try:
        return {"value": orjson.loads(msgspec.json.encode(_plain(default)))}
    except (TypeError, ValueError):
        return {"unknown": ""}


def _plain(value: Any) -> Any:
    """TypeError for what may be another one in the next process."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (str, int, float, bytes, Decimal, timedelta)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in cast("list[Any]", value)]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(v) for v in cast("set[Any]", value)), key=repr)
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in cast("dict[Any, Any]", value).items()}
    raise TypeError(type(value).__name__)


# -- comparing


def differences(before: Described, now: Described) -> list[str]:
    """What keeps values that were written as `before` from being read as `now`, with nothing lost; empty where nothing."""
    if before != now and any(isinstance(d, str) and d.startswith("raw ") for d in (before, now)):
        return [f"the value was {in_words(before)}, is {in_words(now)}"]
    return [*_Comparing(before, now).differ(before, now, "")]


class _Comparing:
    def __init__(self, before: Described, now: Described) -> None:
        self._known = [_classes(before), _classes(now)]
        self._assumed: set[tuple[int, int]] = set()

    def differ(self, before: Described, now: Described, place: str) -> Iterator[str]:
        before, now = _resolved(before, self._known[0]), _resolved(now, self._known[1])
        if now == "any" or (before == now and not _has_classes(before)):
            return
        if _kind(before) == "union" or _kind(now) == "union":
            for one in _alternatives(before):
                if not any(not [*self.differ(one, other, place)] for other in _alternatives(now)):
                    yield f"{place or 'the value'} was {in_words(before)}, is {in_words(now)}"
            return
        if _kind(now) == "bounded" and before != now:
            yield f"{place or 'the value'} was {in_words(before)}, is {in_words(now)}"
            return
        if _kind(before) == "bounded" and _kind(now) != "bounded":
            before = before["bounded"]
        kind = _kind(before)
        if kind == "one of" and _kind(now) == "one of":
            if [v for v in before[kind] if v not in now[kind]]:
                yield f"{place or 'the value'} was {in_words(before)}, is {in_words(now)}"
        elif kind != _kind(now):
            yield f"{place or 'the value'} was {in_words(before)}, is {in_words(now)}"
        elif kind in ("list", "set"):
            yield from self.differ(before[kind], now[kind], f"{place}[]")
        elif kind in ("dict", "tuple"):
            if len(before[kind]) != len(now[kind]):
                yield f"{place or 'the value'} was {in_words(before)}, is {in_words(now)}"
                return
            for old, new in zip(before[kind], now[kind], strict=True):
                yield from self.differ(old, new, f"{place}[]")
        elif kind in ("fields", "in order"):
            pair = (id(before), id(now))
            if pair not in self._assumed:
                self._assumed.add(pair)
                yield from self._fields(before, now, kind, f"{place}." if place else "")

    def _fields(self, before: Described, now: Described, kind: str, place: str) -> Iterator[str]:
        if before.get("tag") != now.get("tag"):
            yield f"{place}tag was {before.get('tag')}, is {now.get('tag')}"
        old, new = dict(before[kind]), dict(now[kind])
        if kind == "in order" and [*new][: len(old)] != [*old]:
            yield f"{place or 'the value'} was {', '.join(old)} in this order, is {', '.join(new)}"
            return
        for name, (of, *default) in old.items():
            if name not in new:
                yield f"field {place}{name} is gone, and what stands in it would be lost"
                continue
            yield from self.differ(of, new[name][0], f"{place}{name}")
            if default and len(new[name]) == 1:
                yield f"field {place}{name} has no default any more, and may be missing"
            elif default and default[0] != new[name][1] and "unknown" not in default[0] | new[name][1]:
                yield f"the default of {place}{name}, for rows that lack it, was {_shown(default[0])}, is {_shown(new[name][1])}"
        for name, of in new.items():
            if name not in old and len(of) == 1:
                yield f"field {place}{name} is new and has no default"


def _classes(described: Described) -> dict[int, Described]:
    """The classes inside a description by their numbers."""
    by_number: dict[int, Described] = {}

    def look(part: Described) -> None:
        if isinstance(part, dict):
            each = cast("dict[str, Any]", part)
            if "fields" in each or "in order" in each:
                by_number[each.get("n", -1)] = each
            for name, inside in each.items():
                if name not in ("value", "one of", "by", "tag"):
                    look(inside)
        elif isinstance(part, (list, tuple)):
            for inside in cast("list[Any]", part):
                look(inside)

    look(described)
    return by_number


def _resolved(described: Described, classes: dict[int, Described]) -> Described:
    return classes[described["same"]] if _kind(described) == "same" else described


def _has_classes(described: Described) -> bool:
    return b'"same"' in orjson.dumps(described)


def _kind(described: Described) -> str:
    return described if isinstance(described, str) else next(iter(described))


def _alternatives(described: Described) -> list[Described]:
    return described["union"] if _kind(described) == "union" else [described]


def in_words(described: Described) -> str:
    """In words, briefly."""
    if isinstance(described, str):
        return described
    kind, inside = next(iter(cast("dict[str, Any]", described).items()))
    if kind == "union":
        return " | ".join(map(in_words, inside))
    if kind == "fields":
        return f"an object of {', '.join(inside) or 'no fields'}"
    if kind == "in order":
        return f"an array of {', '.join(name for name, _ in inside)}"
    if kind == "bounded":
        return f"{in_words(inside)} with {', '.join(f'{k}={v}' for k, v in described['by'].items())}"
    if kind == "one of":
        return f"one of {', '.join(map(repr, inside))}"
    if kind in ("list", "set"):
        return f"{kind}[{in_words(inside)}]"
    return f"{kind}[{', '.join(map(in_words, inside))}]" if kind in ("dict", "tuple") else kind


def _shown(default: Any) -> str:
    return repr(default["value"]) if "value" in default else str(default["made by"])


# -- code


def fingerprint(code: Callable[..., Any] | None) -> str:
    """Of what a function says and the plain values it closes over; empty where nothing is to be had.

    Neither its layout, nor its module, nor the version of Python has a part in that, where its source is to be had.
    """
    if code is None:
        return ""
    code = inspect.unwrap(code)
    node = _source(code)
    if node is not None:
        text = repr(_plain_tree(node))
    else:
        raw = getattr(code, "__code__", None)
        if raw is None:
            return ""
        # Its compiled form, good for one version of Python. A set in it stands in another order in each process.
        consts = [
            sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in raw.co_consts if not inspect.iscode(c)
        ]
        text = f"{raw.co_code.hex()} {consts!r} {raw.co_names!r}"
    return hashlib.sha256(f"{text} {_captured(code)}".encode()).hexdigest()[:16]


def _parsed(source: str) -> ast.AST:
    """Some versions of Python raise SystemError where what is collected meanwhile has its last words, as a task does whose error
    nobody has asked for: to show its traceback, source is parsed, too."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()


def _source(code: Any) -> ast.AST | None:
    """The part of the source that the function was made from."""
    raw = getattr(code, "__code__", None)
    try:
        if raw is None:
            return _parsed(textwrap.dedent(inspect.getsource(code)))
        tree = _parsed("".join(inspect.findsource(raw)[0]))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    # Several lambdas may stand in one line: it is the innermost that holds all that was compiled.
    inside = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in raw.co_positions()
        if None not in (line, end_line, column, end_column) and (line, column) != (end_line, end_column)
    ]
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        and getattr(node, "name", "<lambda>") == raw.co_name
        and all(
            (node.lineno, node.col_offset) <= start and end <= (node.end_lineno, node.end_col_offset)
            for start, end in inside
        )
    ]
    return max(around, key=lambda node: (node.lineno, node.col_offset)) if inside and around else None


def _plain_tree(part: Any) -> Any:
    """Without what is empty: a newer Python has more fields that mostly are, and shows such fields otherwise."""
    if isinstance(part, ast.JoinedStr):
        # Some versions put an empty text at the end.
        part = ast.JoinedStr([v for v in part.values if not (isinstance(v, ast.Constant) and v.value == "")])
    if isinstance(part, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(part) if value not in (None, []) and name != "kind"]
        return [type(part).__name__, *((name, _plain_tree(value)) for name, value in fields)]
    return [_plain_tree(each) for each in cast("list[Any]", part)] if isinstance(part, list) else ascii(part)


def _captured(code: Any) -> str:
    """Plain values that it closes over. Those of its module are not its own: some are other ones in each environment."""
    try:
        around = inspect.getclosurevars(code).nonlocals
    except (TypeError, ValueError):
        return ""
    return repr(sorted((k, v) for k, v in around.items() if isinstance(v, (str, int, float, bytes))))


__all__ = ["describe", "described_default", "differences", "fingerprint", "in_words"]
