"""Whether a value is exactly what its declared type says, all the way down: what is written is then what is read.

JSON has fewer types than Python, and its writers help themselves: a datetime becomes a text, a tuple a list, NaN a null,
a field of a wrong type whatever it is. Here such a value is refused, with the place.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from keyword import iskeyword
from math import isfinite
from typing import Any, cast, get_origin, get_type_hints
from uuid import UUID

from msgspec import inspect as shapes

Check = Callable[[Any], None]
Writer = Callable[[Any], bytes]

# Types whose every value is exact in JSON. A float may be NaN, a str a lone surrogate, which writers refuse by themselves.
_PLAIN = frozenset({str, int, bool, type(None)})
_PLAIN_SHAPES: dict[type[shapes.Type], type] = {
    shapes.StrType: str,
    shapes.IntType: int,
    shapes.BoolType: bool,
    shapes.NoneType: type(None),
}
_OBJECTS = (shapes.DataclassType, shapes.StructType, shapes.NamedTupleType)
_CLASSES: dict[type[shapes.Type], type] = {
    shapes.BytesType: bytes,
    shapes.ByteArrayType: bytearray,
    shapes.MemoryViewType: memoryview,
    shapes.DecimalType: Decimal,
    shapes.UUIDType: UUID,
    shapes.TimeDeltaType: timedelta,
}
_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")


def check_of(declared: Any, shape: shapes.Type) -> Check:
    """A function that raises TypeError for a value which would not come back as it is."""
    look = _Checks().of(shape, declared)
    if isinstance(shape, _OBJECTS) and all(type(field.type) in _PLAIN_SHAPES for field in shape.fields):
        return look

    def check(value: Any) -> None:
        try:
            look(value)
        except RecursionError:
            raise TypeError("it is nested too deeply for JSON, or holds itself") from None

    return check


def only_reading_tells(parts: list[shapes.Type]) -> bool:
    """Whether a type among these has rules of its own: bounds of a number, a `__post_init__` that refuses."""
    return any(
        hasattr(getattr(part, "cls", None), "__post_init__")
        or any(getattr(part, name, None) is not None for name in _BOUNDS)
        or (isinstance(part, (shapes.DateTimeType, shapes.TimeType)) and part.tz is not None)
        for part in parts
    )


def untyped(value: Any) -> None:
    """TypeError for what is not of JSON's own types, of which a part without a declared type must be."""
    if type(value) in _PLAIN:
        return
    if type(value) is dict:
        for key, part in cast("dict[Any, Any]", value).items():
            if type(key) is not str and not isinstance(key, str):
                raise TypeError(f"keys of a dict must be str where their type is not declared, got {key!r:.80}")
            if type(part) not in _PLAIN:
                untyped(part)
    elif type(value) is list:
        for part in cast("list[Any]", value):
            if type(part) not in _PLAIN:
                untyped(part)
    elif isinstance(value, float):
        _finite(value)
    elif isinstance(value, dict):
        untyped(dict(cast("dict[Any, Any]", value)))
    elif isinstance(value, list):
        untyped(list(cast("list[Any]", value)))
    elif not isinstance(value, (str, int)):
        raise TypeError(
            f"{_a(value)} does not come back from JSON as it is where its type is not declared; declare the type, or "
            "write it as a str, number, list or dict"
        )


def _a(value: Any) -> str:
    return f"the {type(value).__name__} {value!r:.80}"


def _finite(value: Any) -> None:
    if not isfinite(value):
        raise TypeError(f"NaN and infinity do not fit in JSON: {value!r}")


def _wrong(wanted: str, value: Any) -> TypeError:
    return TypeError(f"expected {wanted}, got {type(value).__name__}: {value!r:.120}")


def _nothing(value: Any) -> None:
    """Any value will do."""


class _Checks:
    """Checks of the types inside one type; of each class once, since types may be recursive."""

    def __init__(self) -> None:
        self._of_class: dict[Any, Check] = {}

    def of(self, shape: shapes.Type, declared: Any = None) -> Check:
        kind = type(shape)
        simple = _SIMPLE.get(kind)
        if simple is not None:
            return simple
        if kind in _CLASSES:
            return _instance(_CLASSES[kind])
        if isinstance(shape, shapes.EnumType):
            return _instance(shape.cls)
        if isinstance(shape, shapes.LiteralType):
            return _literal(shape.values)
        if isinstance(shape, shapes.UnionType):
            return _union([(t, self.of(t)) for t in shape.types])
        if isinstance(shape, shapes.ListType):
            # `Sequence` and the like take a tuple, too; it is read back as a list of the same items.
            abstract = getattr(get_origin(declared) or declared, "__module__", "") == "collections.abc"
            return _items((list, tuple) if abstract else (list,), self.of(shape.item_type))
        if isinstance(shape, shapes.SetType):
            return _items((set,), self.of(shape.item_type))
        if isinstance(shape, shapes.FrozenSetType):
            return _items((frozenset,), self.of(shape.item_type))
        if isinstance(shape, shapes.VarTupleType):
            return _items((tuple,), self.of(shape.item_type))
        if isinstance(shape, shapes.TupleType):
            return _tuple([self.of(t) for t in shape.item_types])
        if isinstance(shape, shapes.DictType):
            return _dict(self.of(shape.key_type), self.of(shape.value_type))
        if isinstance(shape, _OBJECTS):
            return self._object(shape)
        if isinstance(shape, shapes.TypedDictType):
            return self._typed_dict(shape)
        return _nothing

    def _object(self, shape: shapes.DataclassType | shapes.StructType | shapes.NamedTupleType) -> Check:
        known = self._of_class.get(shape.cls)
        if known is not None:
            return known
        cls: Any = get_origin(shape.cls) or shape.cls
        fields: list[tuple[str, frozenset[type], Check]] = []

        def look(value: Any) -> None:
            if type(value) is not cls:
                _subclass(cls, value)
            for name, plain, deep in fields:
                part = getattr(value, name)
                if type(part) not in plain:
                    try:
                        deep(part)
                    except TypeError as exc:
                        raise TypeError(f"{name}: {exc}") from None

        check = self._of_class[shape.cls] = _unless_plain(
            cls, [(f.name, _plain_types(f.type)) for f in shape.fields], look
        )
        hints = _hints(cls)
        fields += [(f.name, _plain_types(f.type), self.of(f.type, hints.get(f.name))) for f in shape.fields]
        return check

    def _typed_dict(self, shape: shapes.TypedDictType) -> Check:
        known = self._of_class.get(shape.cls)
        if known is not None:
            return known
        fields: dict[str, Check] = {}
        name, required = shape.cls.__name__, [f.encode_name for f in shape.fields if f.required]

        def check(value: Any) -> None:
            if not isinstance(value, dict):
                raise _wrong(name, value)
            given = cast("dict[Any, Any]", value)
            for key, part in given.items():
                if key not in fields:
                    raise TypeError(f"{name} has no key {key!r:.80}, and would lose it")
                try:
                    fields[key](part)
                except TypeError as exc:
                    raise TypeError(f"{key}: {exc}") from None
            for key in required:
                if key not in given:
                    raise TypeError(f"{name} lacks {key!r}")

        self._of_class[shape.cls] = check
        fields.update({f.encode_name: self.of(f.type) for f in shape.fields})
        return check


def _unless_plain(cls: type, fields: list[tuple[str, frozenset[type]]], look: Check) -> Check:
    """`look`, for values whose classes do not say it all."""
    return _where_plain(cls, fields, "return", look) or look


def writer_where_plain(shape: shapes.Type, write: Writer, otherwise: Writer) -> Writer:
    """`write` for values whose class and whose fields' classes say that they are exact, if it takes them; else `otherwise`."""
    if isinstance(shape, _OBJECTS):
        fields = [(f.name, _plain_types(f.type)) for f in shape.fields]
        return (
            _where_plain(get_origin(shape.cls) or shape.cls, fields, "return write(value)", otherwise, write)
            or otherwise
        )
    if type(shape) in _PLAIN_SHAPES:
        return _where_plain(_PLAIN_SHAPES[type(shape)], [], "return write(value)", otherwise, write) or otherwise
    return otherwise


# Types whose values are read back as they are where they are of this very class. A datetime may have a zone, which is read
# back as its offset; an enum is not written as itself.
_SAME = {
    **_PLAIN_SHAPES,
    shapes.FloatType: float,
    shapes.BytesType: bytes,
    shapes.DecimalType: Decimal,
    shapes.UUIDType: UUID,
    shapes.TimeDeltaType: timedelta,
    shapes.DateType: date,
}


def writer_of_same(shape: shapes.Type, write: Writer, encode: Writer) -> Callable[[Any], bytes | None] | None:
    """A function that gives the bytes of a value which is read back as it is, to the types of its fields; of another one None.

    None where that is not easily told: of fields that are objects, lists or datetimes. `write` is enough for JSON's own types,
    `encode` looks at everything.
    """
    if isinstance(shape, _OBJECTS):
        fields = [(f.name, _same_types(f.type)) for f in shape.fields]
        plain = all(types <= _PLAIN for _, types in fields)
        cls = get_origin(shape.cls) or shape.cls
        return _where_plain(cls, fields, "return write(value)", _none, write if plain else encode)
    if type(shape) in _SAME:
        enough = type(shape) in _PLAIN_SHAPES
        return _where_plain(_SAME[type(shape)], [], "return write(value)", _none, write if enough else encode)
    return None


def _none(value: Any) -> None:
    return None


def _same_types(shape: shapes.Type) -> frozenset[type]:
    parts = shape.types if isinstance(shape, shapes.UnionType) else (shape,)
    if not all(type(part) in _SAME for part in parts):
        return frozenset()
    return frozenset(_SAME[type(part)] for part in parts)


def _where_plain(
    cls: type, fields: list[tuple[str, frozenset[type]]], then: str, otherwise: Any, write: Any = None
) -> Any:
    """A function that does `then` where a value is of this very class and each field of one of its plain types.

    Written out, since every result and every row that is written passes here. None where a field has no plain type.
    """
    if not all(plain and name.isidentifier() and not iskeyword(name) for name, plain in fields):
        return None
    known: dict[str, Any] = {"type": type, "cls": cls, "write": write}
    terms = ["type(value) is cls"]
    numbers: dict[frozenset[type], int] = {}
    for name, plain in fields:
        number = numbers.setdefault(plain, len(numbers))
        known[f"plain{number}"] = next(iter(plain)) if len(plain) == 1 else plain
        terms.append(f"type(value.{name}) {'is' if len(plain) == 1 else 'in'} plain{number}")
    # As defaults, they are local names, which are found soonest; each costs a little of every call.
    names = ", ".join(f"{name}={name}" for name in known)
    known["otherwise"] = otherwise
    exec(
        f"def made(value, {names}):\n"
        f"    if {' and '.join(terms)}:\n"
        "        try:\n"
        f"            {then}\n"
        "        except TypeError:\n"
        "            pass\n"
        "    return otherwise(value)\n",
        known,
    )
    return known["made"]


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception:
        return {}


def _plain_types(shape: shapes.Type) -> frozenset[type]:
    """The types whose values need no further look in a field of this type."""
    if isinstance(shape, shapes.AnyType):
        return _PLAIN
    parts = shape.types if isinstance(shape, shapes.UnionType) else (shape,)
    return frozenset(_PLAIN_SHAPES[type(part)] for part in parts if type(part) in _PLAIN_SHAPES)


def _subclass(cls: Any, value: Any) -> None:
    """A subclass is read back as its parent: well where it adds nothing."""
    if not isinstance(value, cls):
        raise _wrong(cls.__name__, value)
    lost = _fields(type(value)) - _fields(cls)
    if lost:
        raise TypeError(
            f"expected {cls.__name__}, got its subclass {type(value).__name__}, whose {', '.join(sorted(lost))} would be lost"
        )


def _fields(cls: Any) -> set[str]:
    return set(getattr(cls, "__dataclass_fields__", getattr(cls, "__struct_fields__", ())))


def _instance(cls: type) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, cls):
            raise _wrong(cls.__name__, value)

    return check


def _int(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong("int", value)


def _float(value: Any) -> None:
    if isinstance(value, float):
        _finite(value)
    elif not isinstance(value, int) or isinstance(value, bool):
        raise _wrong("float", value)
    elif float(value) != value:
        raise TypeError(f"expected float, got int: {value!r:.120}, which no float is equal to")


def _datetime(value: Any) -> None:
    if not isinstance(value, datetime):
        raise _wrong("datetime", value)
    offset = value.utcoffset()
    if offset is not None and offset % _MINUTE:
        raise TypeError(f"the offset of {value!r} is no whole number of minutes")


def _date(value: Any) -> None:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise _wrong("date", value)


_MINUTE = timedelta(minutes=1)
_SIMPLE: dict[type[shapes.Type], Check] = {
    shapes.AnyType: untyped,
    shapes.NoneType: _instance(type(None)),
    shapes.BoolType: _instance(bool),
    shapes.IntType: _int,
    shapes.FloatType: _float,
    shapes.StrType: _instance(str),
    shapes.DateTimeType: _datetime,
    shapes.DateType: _date,
    shapes.TimeType: _instance(time),
}


def _literal(values: tuple[Any, ...]) -> Check:
    kinds: set[Any] = {(type(v), v) for v in values}

    def check(value: Any) -> None:
        if not isinstance(value, (str, int, type(None))) or (type(value), value) not in kinds:
            raise _wrong(f"one of {', '.join(map(repr, values))}", value)

    return check


def _union(parts: list[tuple[shapes.Type, Check]]) -> Check:
    checks = [check for _, check in parts]

    def check(value: Any) -> None:
        errors: list[str] = []
        for one in checks:
            try:
                return one(value)
            except TypeError as exc:
                errors.append(str(exc))
        raise TypeError(errors[0] if len(errors) == 1 else f"fits none of its types: {'; '.join(errors)}")

    return check


def _items(classes: tuple[type, ...], item: Check) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, classes):
            raise _wrong(classes[0].__name__, value)
        if item is untyped:
            for part in cast("list[Any]", value):
                if type(part) not in _PLAIN:
                    untyped(part)
            return
        for number, part in enumerate(cast("list[Any]", value)):
            try:
                item(part)
            except TypeError as exc:
                raise TypeError(f"[{number}]: {exc}") from None

    return check


def _tuple(items: list[Check]) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != len(items):
            raise _wrong(f"a tuple of {len(items)}", value)
        for item, part in zip(items, cast("tuple[Any, ...]", value), strict=True):
            item(part)

    return check


def _dict(key: Check, item: Check) -> Check:
    if key is untyped and item is untyped:

        def plain(value: Any) -> None:
            if not isinstance(value, dict):
                raise _wrong("dict", value)
            untyped(cast("Any", value))

        return plain

    strings = key is untyped

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise _wrong("dict", value)
        for name, part in cast("dict[Any, Any]", value).items():
            if not strings:
                key(name)
            elif not isinstance(name, str):
                raise TypeError(f"keys of a dict must be str where their type is not declared, got {name!r:.80}")
            try:
                item(part)
            except TypeError as exc:
                raise TypeError(f"[{name!r:.80}]: {exc}") from None

    return check
