"""Events made from the type that a source declares, as far as that says what one looks like.

The field that dedup goes by never repeats, times are the present, and everything else comes from small pools so that events
meet in the same rows. Where a type does not say enough, `NotMade` says what else there is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, count, islice
from random import Random
from typing import Any, cast
from uuid import UUID

import msgspec
from msgspec import inspect as shapes

from semel.chaos.events import Delivery, Headers, Input
from semel.chaos.subject import Subject
from semel.codec import union_of
from semel.dedup import ContentKey, Dedup, HeaderKey
from semel.errors import ConfigError, DecodeError
from semel.plan import TablePlan

POOL = 24
DEEPEST = 6
# Made before anything runs, so that what cannot be is refused in time.
TRIED = 50
_IN_BRACES = re.compile(r"\{([^{}]+)\}")
_FIELDS = (shapes.DataclassType, shapes.StructType, shapes.TypedDictType)
_SEVERAL = (shapes.ListType, shapes.SetType, shapes.FrozenSetType, shapes.VarTupleType, shapes.CollectionType)
_NUMBERS = (shapes.IntType, shapes.FloatType, shapes.DecimalType, shapes.AnyType)
# Types that have a value for every number.
_ENDLESS = (shapes.StrType, shapes.BytesType, shapes.UUIDType, shapes.IntType, shapes.FloatType, shapes.DecimalType)


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
    such a table and no `key`, it is the one field of that type. ConfigError where there is none, or several.
    """
    source, rng = subject.source, Random(f"{seed} events")
    declared = _without_none(source.value.type)
    rows = [table for table in subject.plan.tables if table.keyed and table.merge is None]
    keyed = f"with {POOL} keys"
    if key is not None:
        keyed = f"keyed by {key}"
    elif rows:
        key = _only_key(subject, declared, rows)
        tables = f"table{'s' if len(rows) > 1 else ''} {', '.join(table.name for table in rows)}"
        keyed = f"keyed by {key}, the only field that could be the key of {tables}; --key FIELD says another"

    def made() -> Iterator[Delivery]:
        shape = shape_of(declared)
        fields, names = fields_in(shape)
        identity = _identity(subject.dedup, source.value.name, shape)
        time = names.get(subject.event_time) if isinstance(subject.event_time, str) else None
        template = None if key is None else _template(key, names)
        for number in count(1):
            drawn = make(shape, rng, now_ms())
            if time is not None:
                drawn[time] = _present(fields[time], now_ms())
            if identity:
                drawn[identity] = unique(fields[identity], seed, number)
            elif identity is not None:
                drawn = unique(shape, seed, number)
            if template is None:
                of_key = source.key.type
                record_key = source.key.encode(typed(of_key, make(shape_of(of_key), rng, now_ms(), "key")))
            else:
                record_key = _filled(template, drawn).encode()
                source.key.decode(record_key)
            yield Delivery(
                record_key, source.value.encode(typed(declared, drawn)), _headers(subject.dedup, seed, number)
            )

    events = made()
    try:
        first = list(islice(events, TRIED))
    except (TypeError, NameError, NotImplementedError, DecodeError, msgspec.MsgspecError) as wrong:
        types = f"values are declared as {source.value.name} and keys as {source.key.name}"
        raise NotMade(f"topic {source.name!r}, whose {types} ({wrong})") from wrong
    note = f"events are made up from {source.value.name}, seed {seed}, {keyed}"
    return Input(chain(first, events), (note,), json=source.value.type is not bytes)


def _identity(dedup: Dedup | None, what: str, shape: shapes.Type) -> str | None:
    """The field, as JSON names it (empty: the whole value), that no two events have the same; None where none needs to be so.

    NotMade where the dedup key is not known from the value's type, or has too few values.
    """
    fields, names = fields_in(shape)
    if dedup is None or isinstance(dedup.key, HeaderKey):
        return None
    if callable(dedup.key):
        raise NotMade(f"the dedup key of {what}, which is a function of the value")
    if not fields and unique(shape, 0, 0) is not None:
        return ""
    of_key = (dedup.key.fields or tuple(names)) if isinstance(dedup.key, ContentKey) else (dedup.key,)
    for name in of_key:
        if name in names and unique(fields[names[name]], 0, 0) is not None:
            return names[name]
    raise NotMade(f"the dedup key of {what}: {', '.join(of_key) or 'it'} has too few values, or is no field")


def _headers(dedup: Dedup | None, seed: int, number: int) -> Headers:
    if dedup is None or not isinstance(dedup.key, HeaderKey):
        return ()
    first, *others = dedup.key.names
    return ((first, f"{seed}-{number:07d}".encode()), *((name, b"chaos") for name in others))


# -- the record key


def _only_key(subject: Subject, declared: Any, rows: Sequence[TablePlan]) -> str:
    """The only field of the type that keys of these tables have, the one dedup goes by aside. ConfigError."""
    types, dedup = [table.key.type for table in rows], subject.dedup
    fields, names = fields_in(shape_of(declared)) if types[0] in (str, int) else ({}, {})
    possible = [
        name
        for name, in_json in names.items()
        if (dedup is None or name != dedup.key) and all(fields[in_json] == shapes.type_info(of) for of in types)
    ]
    if len(possible) == 1:
        return possible[0]
    several = (
        f"{', '.join(possible[:-1])} and {possible[-1]} of {subject.source.value.name} could be it" if possible else ""
    )
    raise ConfigError(
        f"{subject.name!r} keeps rows of {', '.join(table.name for table in rows)} by a key, which must be that of the record, "
        f"and {several or f'no field of {subject.source.value.name} but its id is of type {rows[0].key.name}'}: give it with "
        "--key FIELD, or --key '{origin}-{dest}' for several, or define chaos_events(rng) in the pipeline's module"
    )


def _template(key: str, names: Mapping[str, str]) -> str:
    """A `--key` as a text with JSON's fields in braces. ConfigError for a field that there is not."""
    key = key if "{" in key else f"{{{key}}}"
    if set(_IN_BRACES.sub("", key)) & {"{", "}"}:
        raise ConfigError(f"--key {key!r} has a brace that is not closed; write fields as {{field}}")

    def in_json(named: re.Match[str]) -> str:
        name, dot, rest = named[1].partition(".")
        if name not in names and name not in names.values():
            raise ConfigError(f"--key names field {name!r}; an event has {', '.join(names) or 'no fields'}")
        return f"{{{names.get(name, name)}{dot}{rest}}}"

    return _IN_BRACES.sub(in_json, key)


def _filled(template: str, drawn: Any) -> str:
    """With the values of its fields; an optional one that is absent leaves its place empty."""

    def text(named: re.Match[str]) -> str:
        value = drawn
        for step in named[1].split("."):
            value = cast("dict[str, Any]", value).get(step) if isinstance(value, dict) else None
        return "" if value is None else str(value)

    return _IN_BRACES.sub(text, template)


# -- types, as msgspec describes them


def _without_none(declared: Any) -> Any:
    """T of `T | None`, since a tombstone holds nothing."""
    rest = [part for part in union_of(declared) if part is not type(None)]
    return rest[0] if len(rest) == 1 else declared


def shape_of(declared: Any) -> shapes.Type:
    """What msgspec knows of a type; of a `faust.Record` its fields."""
    if options := getattr(declared, "_options", None):
        fields = [shapes.Field(name, name, shape_of(of)) for name, of in options.fields.items()]
        return shapes.TypedDictType(declared, tuple(fields))
    return shapes.type_info(declared)


def fields_in(shape: shapes.Type) -> tuple[dict[str, shapes.Type], dict[str, str]]:
    """Fields as JSON names them, and that name by the one that code has; none of what is no structure."""
    fields = shape.fields if isinstance(shape, _FIELDS) else ()
    return {f.encode_name: f.type for f in fields}, {f.name: f.encode_name for f in fields}


def typed(declared: Any, drawn: Any) -> Any:
    """A value of the type, of what JSON has for it."""
    if hasattr(declared, "_options"):
        return declared.from_data(drawn)
    return msgspec.convert(drawn, declared, str_keys=True)


def _plain(shape: shapes.Type) -> list[shapes.Type]:
    """What a value may be but None, without the unions and annotations around it."""
    match shape:
        case shapes.UnionType(types):
            return [plain for of in types for plain in _plain(of)]
        case shapes.Metadata(of):
            return _plain(of)
        case shapes.NoneType():
            return []
        case _:
            return [shape]


# -- values, as JSON has them


# Of a number from 1 on, a text that says it, and the present.
_SIMPLE: Mapping[type[shapes.Type], Callable[[int, str, datetime], Any]] = {
    shapes.NoneType: lambda number, text, now: None,
    shapes.BoolType: lambda number, text, now: number % 2 == 0,
    shapes.IntType: lambda number, text, now: number,
    shapes.FloatType: lambda number, text, now: number + 0.25,
    shapes.DecimalType: lambda number, text, now: f"{number}.25",
    shapes.StrType: lambda number, text, now: text,
    shapes.AnyType: lambda number, text, now: text,
    shapes.BytesType: lambda number, text, now: base64.b64encode(text.encode()).decode(),
    shapes.UUIDType: lambda number, text, now: str(UUID(int=number)),
    shapes.DateTimeType: lambda number, text, now: now.isoformat(),
    shapes.DateType: lambda number, text, now: now.date().isoformat(),
    shapes.TimeType: lambda number, text, now: now.time().isoformat(),
    shapes.TimeDeltaType: lambda number, text, now: f"PT{number}S",
}


def make(shape: shapes.Type, rng: Random, now_ms: int, name: str = "", depth: int = 0) -> Any:
    """`name` is that of the field it is for: part of its texts. NotMade where there is no such value."""
    if depth > DEEPEST:
        raise NotMade(f"values that hold themselves (field {name!r})")

    def inner(of: shapes.Type, called: str = name) -> Any:
        return make(of, rng, now_ms, called, depth + 1)

    def some(of: shapes.Type) -> list[Any]:
        return [inner(of) for _ in range(rng.randint(0, 3))]

    number = rng.randint(1, POOL)
    # Of what nothing is declared nothing is known; within something that is, it may be anything.
    anything = shapes.AnyType
    match shape:
        case shapes.UnionType():
            absent = depth and shape.includes_none and rng.random() < 0.15
            return None if absent else inner(rng.choice(_plain(shape)))
        case shapes.Metadata(of):
            return make(of, rng, now_ms, name, depth)
        case shapes.LiteralType(values):
            return rng.choice(values)
        case shapes.EnumType(cls):
            return rng.choice(list(cls)).value
        case shapes.DictType(of_key, of_value) if depth or not isinstance(of_key, anything):
            return dict(zip(some(of_key), some(of_value), strict=False))
        case shapes.TupleType(types):
            return [inner(of) for of in types]
        case shapes.NamedTupleType(_, fields):
            return [inner(field.type, field.name) for field in fields]
        case _ if isinstance(shape, _FIELDS):
            return {field: inner(of, field) for field, of in fields_in(shape)[0].items()}
        case _ if isinstance(shape, _SEVERAL) and (depth or not isinstance(shape.item_type, anything)):
            return some(shape.item_type)
        case _ if (simple := _SIMPLE.get(type(shape))) and (depth or not isinstance(shape, anything)):
            return simple(number, f"{name or 'text'}-{number:02d}", datetime.fromtimestamp(now_ms / 1000, UTC))
        case _:
            kind = type(shape).__name__.removesuffix("Type")
            raise NotMade(f"values of type {kind}" + (f" (field {name!r})" if name else ""))


def unique(shape: shapes.Type, seed: int, number: int) -> Any | None:
    """A value that no other number gives; None where the type has too few values."""
    for plain in _plain(shape):
        if isinstance(plain, _ENDLESS):
            return _SIMPLE[type(plain)](1_000_000 + number, f"{seed}-{number:07d}", datetime.now(UTC))
    return None


def _present(shape: shapes.Type, now_ms: int) -> Any:
    """The present as `time=` takes it: a number is one of ms, whatever its type; a text is as ISO 8601 has it."""
    now, plain = datetime.fromtimestamp(now_ms / 1000, UTC), _plain(shape)[0]
    return now_ms if isinstance(plain, _NUMBERS) else _SIMPLE[type(plain)](0, now.isoformat(), now)
