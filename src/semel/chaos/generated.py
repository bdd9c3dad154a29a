"""Events made from the type that a source declares, as far as that says what one looks like.

The field that dedup goes by never repeats, what is called a time is the present, other texts come from small pools so that
events meet in the same rows. Where a type does not say enough, `NotMade` says what else there is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain, count
from random import Random
from typing import Any, cast
from uuid import UUID

import msgspec
from msgspec import inspect as shapes

from semel.chaos.events import Headers, Input, Made
from semel.chaos.subject import Subject
from semel.codec import Codec, union_of
from semel.dedup import ContentKey, Dedup, HeaderKey
from semel.errors import ConfigError, DecodeError
from semel.plan import TablePlan
from semel.topic import Topic

POOL = 24
DEEPEST = 6
_TIME_LIKE = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|at|when|on)$", re.IGNORECASE)
_IN_BRACES = re.compile(r"\{([^{}]+)\}")
_FIELDS = (shapes.DataclassType, shapes.StructType, shapes.TypedDictType)
_SEVERAL = (shapes.ListType, shapes.SetType, shapes.FrozenSetType, shapes.VarTupleType, shapes.CollectionType)
_NUMBERS = (shapes.IntType, shapes.FloatType, shapes.DecimalType)


class NotMade(ConfigError):
    """No events can be made of these types; the message says what else there is."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"no events can be made up for {what}: define chaos_events(rng) in the pipeline's module (an iterator of "
            "(key, value) or (key, value, headers)), or give recorded ones with --input FILE or --from-topic TOPIC"
        )


def from_types(subject: Subject, seed: int, now_ms: Callable[[], int], key: str | None = None) -> Input:
    """Events of the source's value type. NotMade where that does not say enough.

    `key`: the record key as a text with fields in braces, `{origin}-{dest}`, or the name of one. A row of a table lies in
    the partition that its key hashes to, and which field the agent takes for that stands in its code only: where there is
    such a table and no `key`, it is the one field that could be it. ConfigError where none could, or several.
    """
    source, declared = subject.source, valued(subject.source)
    with _as_not_made(source):
        shape = shape_of(declared)
        identity = _identity(subject.dedup, source.value.name, shape)
    rows = [table for table in subject.plan.tables if table.keyed and table.merge is None]
    reason = ""
    if key is None and rows:
        key = _only_key(subject, shape, identity, rows)
        of = f"table{'s' if len(rows) > 1 else ''} {', '.join(table.name for table in rows)}"
        reason = f", the only field that could be the key of {of}; --key FIELD says another"
    keyed, keyed_by = f"with {POOL} keys", ()
    if key is not None:
        key = key if "{" in key else f"{{{key}}}"
        keyed, keyed_by = f"keyed by {key}{reason}", _fields_of(key, shape)

    def made() -> Iterator[Made]:
        fields, rng, time = fields_in(shape), Random(f"{seed} events"), subject.event_time
        at = names_in(shape).get(time) if isinstance(time, str) else None
        for number in count(1):
            drawn = make(shape, rng, now_ms())
            if at is not None:
                drawn[at] = _present(fields[at], rng, now_ms())
            if identity is not None and fields:
                drawn[identity] = unique(fields[identity], f"{seed}", number)
            elif identity is not None:
                drawn = unique(shape, f"{seed}", number)
            record_key = _some_key(source, rng) if key is None else _filled(key, drawn, names_in(shape))
            with _as_not_made(source):
                value = source.value.encode(typed(declared, drawn))
            yield Made(record_key, value, _headers(subject.dedup, seed, number))

    events = made()
    # What cannot be is refused before anything runs.
    first = next(events)
    note = f"events are made up from {source.value.name}, seed {seed}, {keyed}"
    return Input(chain((first,), events), (note,), json=source.value.type is not bytes, keyed_by=keyed_by)


@contextmanager
def _as_not_made(source: Topic) -> Generator[None]:
    """NotMade where the source's type is none that values are made of."""
    try:
        yield
    except (TypeError, NameError, NotImplementedError, msgspec.MsgspecError) as wrong:
        raise NotMade(f"topic {source.name!r}, whose values are declared as {source.value.name} ({wrong})") from wrong


def _identity(dedup: Dedup | None, what: str, shape: shapes.Type) -> str | None:
    """The field, as JSON names it (empty: the whole value), that no two events have the same; None where none needs to be so.

    NotMade where the dedup key is not known from the value's type, or has too few values.
    """
    fields, in_json = fields_in(shape), names_in(shape)
    if dedup is None or isinstance(dedup.key, HeaderKey):
        return "id" if "id" in fields and unique(fields["id"], "", 0) is not None else None
    if callable(dedup.key):
        raise NotMade(f"the dedup key of {what}, which is a function of the value")
    if not fields and unique(shape, "", 0) is not None:
        return ""
    names = (dedup.key.fields or tuple(in_json)) if isinstance(dedup.key, ContentKey) else (dedup.key,)
    for name in names:
        if name in in_json and unique(fields[in_json[name]], "", 0) is not None:
            return in_json[name]
    raise NotMade(f"the dedup key of {what}: {', '.join(names) or 'it'} has too few values, or is no field")


def _headers(dedup: Dedup | None, seed: int, number: int) -> Headers:
    if dedup is None or not isinstance(dedup.key, HeaderKey):
        return ()
    first, *others = dedup.key.names
    return ((first, f"{seed}-{number:07d}".encode()), *((name, b"chaos") for name in others))


# -- the record key


def _only_key(subject: Subject, shape: shapes.Type, identity: str | None, rows: Sequence[TablePlan]) -> str:
    """The field that alone could be the record key of these tables; ConfigError where none could, or several."""
    source = subject.source
    possible = [
        name
        for name, of in fields_in(shape).items()
        if name != identity and all(_gives_key(of, name, table.key, source.key) for table in rows)
    ]
    if len(possible) == 1:
        return possible[0]
    kinds = ", ".join(dict.fromkeys(table.key.name for table in rows))
    which = (
        f"{', '.join(possible[:-1])} and {possible[-1]} of {source.value.name} could be it"
        if possible
        else f"no field of {source.value.name} but its id can be a key of type {kinds}"
    )
    raise ConfigError(
        f"{subject.name!r} keeps rows of {', '.join(table.name for table in rows)} by a key, which must be that of the record, "
        f"and {which}: give it with --key FIELD, or --key '{{origin}}-{{dest}}' for several, or define chaos_events(rng) in the "
        "pipeline's module"
    )


def _gives_key(of: shapes.Type, name: str, row: Codec[Any], record: Codec[Any]) -> bool:
    """Whether each value of a field is a key of rows, whose bytes are those of the record key that is made of it."""
    try:
        for plain in alternatives(of):
            drawn = make(plain, Random(0), 0, name, depth=1)
            raw = str(drawn).encode()
            record.decode(raw)
            # Bytes are written as base64 in JSON, which is not what the agent sees.
            if isinstance(plain, shapes.BytesType) or row.encode(typed(row.type, drawn)) != raw:
                return False
    except (ConfigError, DecodeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return False
    return True


def _fields_of(key: str, shape: shapes.Type) -> tuple[str, ...]:
    """The fields, as JSON names them, that a `--key` takes. ConfigError for one that there is not."""
    in_json = names_in(shape)
    if set(_IN_BRACES.sub("", key)) & {"{", "}"}:
        raise ConfigError(f"--key {key!r} has a brace that is not closed; write fields as {{field}}")
    names = [named[1].partition(".")[0] for named in _IN_BRACES.finditer(key)]
    for name in names:
        if name not in in_json and name not in in_json.values():
            raise ConfigError(f"--key names field {name!r}; an event has {', '.join(in_json) or 'no fields'}")
    return tuple(in_json.get(name, name) for name in names)


def _filled(key: str, drawn: Any, in_json: Mapping[str, str]) -> bytes:
    """The text with its fields filled in; an optional one that is not there leaves its place empty."""

    def text(named: re.Match[str]) -> str:
        first, *inner = named[1].split(".")
        value: Any = drawn.get(in_json.get(first, first))
        for step in inner:
            value = cast("dict[str, Any]", value).get(step) if isinstance(value, dict) else None
        return "" if value is None else str(value)

    return _IN_BRACES.sub(text, key).encode()


def _some_key(source: Topic, rng: Random) -> bytes:
    number = rng.randrange(POOL)
    text = f"key-{number:02d}"
    for key in (text, text.encode(), number):
        with suppress(TypeError, ValueError, AttributeError, DecodeError):
            raw = source.key.encode(key)
            if source.key.decode(raw) == key:
                return raw
    raise NotMade(f"keys of topic {source.name!r}, which are declared as {source.key.name}")


# -- types, as msgspec describes them


def valued(source: Topic) -> Any:
    """What a record of the topic holds: T of `T | None`, since a tombstone holds nothing."""
    rest = [part for part in union_of(source.value.type) if part is not type(None)]
    return rest[0] if len(rest) == 1 else source.value.type


def shape_of(declared: Any) -> shapes.Type:
    """What msgspec knows of a type; of a `faust.Record` its fields."""
    if options := getattr(declared, "_options", None):
        fields = [shapes.Field(name, name, shape_of(of)) for name, of in options.fields.items()]
        return shapes.TypedDictType(declared, tuple(fields))
    return shapes.type_info(declared)


def fields_in(shape: shapes.Type) -> dict[str, shapes.Type]:
    """As JSON names them; none of what is no structure."""
    return {field.encode_name: field.type for field in shape.fields} if isinstance(shape, _FIELDS) else {}


def names_in(shape: shapes.Type) -> dict[str, str]:
    """Field as code names it -> as JSON does."""
    return {field.name: field.encode_name for field in shape.fields} if isinstance(shape, _FIELDS) else {}


def alternatives(shape: shapes.Type) -> list[shapes.Type]:
    """What a value may be, without the unions and annotations around it."""
    match shape:
        case shapes.UnionType(types):
            return [plain for of in types for plain in alternatives(of)]
        case shapes.Metadata(of):
            return alternatives(of)
        case _:
            return [shape]


def typed(declared: Any, drawn: Any) -> Any:
    """A value of the type, of what JSON has for it."""
    if hasattr(declared, "_options"):
        return declared.from_data(drawn)
    return msgspec.convert(drawn, declared, str_keys=True)


# -- values, as JSON has them

# Of what needs nothing but chance, the present, and a text of the field's own.
_SIMPLE: Mapping[type[shapes.Type], Callable[[Random, datetime, str], Any]] = {
    shapes.NoneType: lambda rng, now, text: None,
    shapes.BoolType: lambda rng, now, text: rng.random() < 0.5,
    shapes.DecimalType: lambda rng, now, text: f"{rng.randint(100, 100_000) / 100:.2f}",
    shapes.BytesType: lambda rng, now, text: base64.b64encode(text.encode()).decode(),
    shapes.UUIDType: lambda rng, now, text: str(UUID(int=rng.randrange(POOL))),
    shapes.DateTimeType: lambda rng, now, text: now.isoformat(),
    shapes.DateType: lambda rng, now, text: now.date().isoformat(),
    shapes.TimeType: lambda rng, now, text: now.time().isoformat(),
    shapes.TimeDeltaType: lambda rng, now, text: f"PT{rng.randint(1, 3600)}S",
}


def make(shape: shapes.Type, rng: Random, now_ms: int, name: str = "", depth: int = 0) -> Any:
    """`name` is that of the field it is for: part of its texts. NotMade where there is no such value."""
    if depth > DEEPEST:
        raise NotMade(f"values that hold themselves (field {name!r})")

    def inner(of: shapes.Type, called: str = name) -> Any:
        return make(of, rng, now_ms, called, depth + 1)

    def some(of: shapes.Type) -> list[Any]:
        return [inner(of) for _ in range(rng.randint(0, 3))]

    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    time_like = _TIME_LIKE.search(name) is not None
    text = f"{name or 'text'}-{rng.randrange(POOL):02d}"
    if simple := _SIMPLE.get(type(shape)):
        return simple(rng, now, text)
    match shape:
        case shapes.UnionType(types):
            chosen = rng.choice([of for of in types if not isinstance(of, shapes.NoneType)])
            return None if depth and shape.includes_none and rng.random() < 0.15 else inner(chosen)
        case shapes.Metadata(of):
            return make(of, rng, now_ms, name, depth)
        case shapes.IntType():
            return now_ms if time_like else rng.randint(*map(int, _bounds(shape)))
        case shapes.FloatType():
            return now_ms / 1000 if time_like else round(rng.uniform(*_bounds(shape)), 2)
        case shapes.StrType() if shape.pattern is None:
            plain = now.isoformat().replace("+00:00", "Z") if time_like else text
            return plain.ljust(shape.min_length or 0, "-")[: shape.max_length]
        case shapes.AnyType() if depth:
            return text
        case shapes.LiteralType(values):
            return rng.choice(values)
        case shapes.EnumType(cls):
            return rng.choice(list(cls)).value
        case shapes.DictType() if depth or not isinstance(shape.key_type, shapes.AnyType):
            return dict(zip(some(shape.key_type), some(shape.value_type), strict=False))
        case shapes.TupleType(types):
            return [inner(of) for of in types]
        case shapes.NamedTupleType():
            return [inner(field.type, field.name) for field in shape.fields]
        case _ if isinstance(shape, _FIELDS):
            return {field: inner(of, field) for field, of in fields_in(shape).items()}
        case _ if isinstance(shape, _SEVERAL) and (depth or not isinstance(shape.item_type, shapes.AnyType)):
            return some(shape.item_type)
        case _:
            kind = type(shape).__name__.removesuffix("Type")
            raise NotMade(f"values of type {kind}" + (f" (field {name!r})" if name else ""))


def unique(shape: shapes.Type, prefix: str, number: int) -> Any | None:
    """A value that no other number gives; None where the type has too few values."""
    text = f"{prefix}-{number:07d}"
    for plain in alternatives(shape):
        match plain:
            case shapes.StrType():
                return text
            case shapes.BytesType():
                return base64.b64encode(text.encode()).decode()
            case shapes.UUIDType():
                return str(UUID(int=Random(text).getrandbits(128)))
            case _ if isinstance(plain, _NUMBERS):
                return 1_000_000 + number
            case _:
                continue
    return None


def _present(shape: shapes.Type, rng: Random, now_ms: int) -> Any:
    """The present as `time=` takes it: a number is one of ms, whatever its type; else in the form that the type asks for."""
    plain = next(of for of in alternatives(shape) if not isinstance(of, shapes.NoneType))
    return now_ms if isinstance(plain, (*_NUMBERS, shapes.AnyType)) else make(plain, rng, now_ms, name="time")


def _bounds(shape: shapes.IntType | shapes.FloatType) -> tuple[float, float]:
    """Of a small number, within what its type allows."""
    low = shape.ge if shape.ge is not None else 1 if shape.gt is None else shape.gt + 1
    high = shape.le if shape.le is not None else low + 999 if shape.lt is None else shape.lt - 1
    return low, max(low, high)
