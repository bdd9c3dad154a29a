"""Events made from the type that a source declares: an object of it, with something in each field that its type allows.

The field that dedup goes by never repeats, times are the present, and everything else comes from small pools so that events
meet in the same rows. Where a type does not say enough, `NotMade` says what else there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import EnumMeta
from itertools import chain, count, islice
from random import Random
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec

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
# Of a text, a number that it says, and the present.
_PLAIN: Mapping[Any, Callable[[str, int, datetime], Any]] = {
    str: lambda text, number, now: text,
    int: lambda text, number, now: number,
    float: lambda text, number, now: number + 0.25,
    Decimal: lambda text, number, now: Decimal(f"{number}.25"),
    bytes: lambda text, number, now: text.encode(),
    UUID: lambda text, number, now: UUID(int=number),
    bool: lambda text, number, now: number % 2 == 0,
    NoneType: lambda text, number, now: None,
    datetime: lambda text, number, now: now,
    date: lambda text, number, now: now.date(),
    time: lambda text, number, now: now.time(),
    timedelta: lambda text, number, now: timedelta(seconds=number),
}
# Types that have a value for every number.
_ENDLESS = (str, int, float, Decimal, bytes, UUID)
_NOTHING: Mapping[str, Any] = {}


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
    source, dedup = subject.source, subject.dedup
    # A tombstone holds nothing.
    declared = plain_of(source.value.type)
    fields = fields_of(declared)
    rows = [table for table in subject.plan.tables if table.keyed and table.merge is None]
    keyed = f"with {POOL} keys"
    if key is not None:
        keyed, key = f"keyed by {key}", _template(key, fields)
    elif rows:
        key = _only_key(subject, fields, rows)
        tables = f"table{'s' if len(rows) > 1 else ''} {', '.join(table.name for table in rows)}"
        keyed = f"keyed by {key}, the only field that could be the key of {tables}; --key FIELD says another"
        key = f"{{{key}}}"
    identity = _identity(dedup, source.value.name, declared, fields)

    def made() -> Iterator[Delivery]:
        rng, at = Random(f"{seed} events"), subject.event_time
        for number in count(1):
            now = datetime.fromtimestamp(now_ms() / 1000, UTC)
            special: dict[str, Any] = {}
            if isinstance(at, str) and at in fields:
                special[at] = _present(plain_of(fields[at]), now)
            if identity is not None:
                of = plain_of(fields.get(identity, declared))
                special[identity] = _PLAIN[of](f"{seed}-{number:07d}", 1_000_000 + number, now)
            value = special[""] if "" in special else make(declared, rng, now, given=special)
            raw = source.value.encode(value)
            record_key = (
                source.key.encode(make(source.key.type, rng, now, "key")) if key is None else _filled(key, value)
            )
            # Bounds of a type, and a key that is not the topic's, are seen where they are read.
            source.value.decode(raw)
            source.key.decode(record_key)
            yield Delivery(record_key, raw, _headers(dedup, seed, number))

    events = made()
    try:
        first = list(islice(events, TRIED))
    except (TypeError, ValueError, NameError, DecodeError) as wrong:
        types = f"values are declared as {source.value.name} and keys as {source.key.name}"
        raise NotMade(f"topic {source.name!r}, whose {types} ({wrong})") from wrong
    note = f"events are made up from {source.value.name}, seed {seed}, {keyed}"
    return Input(chain(first, events), (note,), json=source.value.type is not bytes)


def _identity(dedup: Dedup | None, what: str, declared: Any, fields: Mapping[str, Any]) -> str | None:
    """The field (empty: the whole value) that no two events have the same; None where none needs to be so.

    NotMade where the dedup key is not known from the value's type, or has too few values.
    """
    if dedup is None or isinstance(dedup.key, HeaderKey):
        return None
    if callable(dedup.key):
        raise NotMade(f"the dedup key of {what}, which is a function of the value")
    if plain_of(declared) in _ENDLESS:
        return ""
    names = (dedup.key.fields or tuple(fields)) if isinstance(dedup.key, ContentKey) else (dedup.key,)
    for name in names:
        if name in fields and plain_of(fields[name]) in _ENDLESS:
            return name
    raise NotMade(f"the dedup key of {what}: {', '.join(names) or 'it'} has too few values, or is no field")


def _headers(dedup: Dedup | None, seed: int, number: int) -> Headers:
    if dedup is None or not isinstance(dedup.key, HeaderKey):
        return ()
    first, *others = dedup.key.names
    return ((first, f"{seed}-{number:07d}".encode()), *((name, b"chaos") for name in others))


# -- the record key


def _only_key(subject: Subject, fields: Mapping[str, Any], rows: Sequence[TablePlan]) -> str:
    """The only field of the type that keys of these tables have, the one dedup goes by aside. ConfigError."""
    identity = None if subject.dedup is None else subject.dedup.key
    possible = [
        name
        for name, declared in fields.items()
        if name != identity and declared in (str, int) and all(table.key.type is declared for table in rows)
    ]
    if len(possible) == 1:
        return possible[0]
    value = subject.source.value.name
    which = (
        f"{', '.join(possible[:-1])} and {possible[-1]} of {value} could be it"
        if possible
        else f"no field of {value} but its id is of type {rows[0].key.name}"
    )
    raise ConfigError(
        f"{subject.name!r} keeps rows of {', '.join(table.name for table in rows)} by a key, which must be that of the record, "
        f"and {which}: give it with --key FIELD, or --key '{{origin}}-{{dest}}' for several, or define chaos_events(rng) in the "
        "pipeline's module"
    )


def _template(key: str, fields: Mapping[str, Any]) -> str:
    """A `--key` as a text with fields in braces. ConfigError for a field that there is not."""
    key = key if "{" in key else f"{{{key}}}"
    if set(_IN_BRACES.sub("", key)) & {"{", "}"}:
        raise ConfigError(f"--key {key!r} has a brace that is not closed; write fields as {{field}}")
    for named in _IN_BRACES.findall(key):
        if (name := named.partition(".")[0]) not in fields:
            raise ConfigError(f"--key names field {name!r}; an event has {', '.join(fields) or 'no fields'}")
    return key


def _filled(key: str, event: Any) -> bytes:
    """With the values of its fields; an optional one that is absent leaves its place empty."""

    def text(named: re.Match[str]) -> str:
        value: Any = event
        for step in named[1].split("."):
            value = cast("dict[str, Any]", value).get(step) if isinstance(value, dict) else getattr(value, step, None)
        # As JSON has it: of an enum its value, a time in ISO 8601.
        return "" if value is None else str(msgspec.to_builtins(value))

    return _IN_BRACES.sub(text, key).encode()


# -- types, and values of them


def fields_of(declared: Any) -> dict[str, Any]:
    """Of a dataclass, a struct, a record, a typed dict or a named tuple; none of what is no structure."""
    if of_record := getattr(declared, "_options", None):
        return of_record.fields
    structure = isinstance(declared, type) and declared not in _PLAIN and not isinstance(declared, EnumMeta)
    hints = get_type_hints(declared) if structure else {}
    return {name: of for name, of in hints.items() if ClassVar not in (of, get_origin(of))}


def plain_of(declared: Any) -> Any:
    """Without an annotation, a NewType, and None beside one other type."""
    if get_origin(declared) is Annotated:
        return plain_of(get_args(declared)[0])
    rest = [part for part in union_of(declared) if part is not NoneType]
    return plain_of(rest[0]) if len(rest) == 1 else getattr(declared, "__supertype__", declared)


def make(
    declared: Any, rng: Random, now: datetime, name: str = "", depth: int = 0, given: Mapping[str, Any] = _NOTHING
) -> Any:
    """`name` is that of the field it is for: part of its texts. `given`: what fields of it have.

    NotMade where there is no such value; TypeError or ValueError where the type itself refuses it.
    """
    if depth > DEEPEST:
        raise NotMade(f"values that hold themselves (field {name!r})")

    def inner(of: Any, called: str = name) -> Any:
        return make(of, rng, now, called, depth + 1)

    if depth and NoneType in union_of(declared) and rng.random() < 0.15:
        return None
    declared, number = plain_of(declared), rng.randint(1, POOL)
    origin, arguments = get_origin(declared), get_args(declared)
    text = f"{name or 'text'}-{number:02d}"
    if (plain := _PLAIN.get(declared)) is not None:
        return plain(text, number, now)
    if declared is Any and depth:
        return text
    if kinds := [kind for kind in union_of(declared) if kind is not NoneType]:
        return inner(rng.choice(kinds))
    if origin is Literal or isinstance(declared, EnumMeta):
        return rng.choice(arguments or list(cast("EnumMeta", declared)))
    if origin is tuple and Ellipsis not in arguments:
        return tuple(inner(of) for of in arguments)
    if origin is not None and arguments:
        some = range(rng.randint(0, 3))
        if issubclass(origin, Mapping):
            return {inner(arguments[0]): inner(arguments[1]) for _ in some}
        kind: Any = origin if origin in (set, frozenset, tuple) else list
        return kind(inner(arguments[0]) for _ in some)
    if not (fields := fields_of(declared)):
        raise NotMade(f"values of type {declared}" + (f" (field {name!r})" if name else ""))
    return cast("Any", declared)(
        **{field: given[field] if field in given else inner(of, field) for field, of in fields.items()}
    )


def _present(plain: Any, now: datetime) -> Any:
    """The present as `time=` takes it: a number is one of ms, whatever its type; a text is as ISO 8601 has it."""
    ms = int(now.timestamp() * 1000)
    return {int: ms, float: float(ms), Decimal: Decimal(ms), Any: ms, str: now.isoformat()}.get(plain, now)
