"""Values of a declared type, from a seed: what a pipeline's source can be fed with when nobody says what it looks like.

Scalars of a structure are drawn from small pools, so that events meet in the same rows; fields that look like a time
are the present; the others are small numbers and short texts.
"""

# What a type is made of is only known when it is looked at.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import dataclasses
import enum
import re
import types
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints, is_typeddict
from uuid import UUID

import msgspec

from semel.errors import ConfigError

POOL = 24
_TIME_LIKE = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|at|when|on)$", re.IGNORECASE)


class NotMade(ConfigError):
    """No value of this type can be made up; the message says what else there is."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"no events can be made up for {what}: define chaos_events(rng) in the pipeline's module (an iterator of "
            "(key, value) or (key, value, headers)), or give recorded ones with --input FILE or --from-topic TOPIC"
        )


def fields_of(declared: Any) -> dict[str, Any] | None:
    """Field -> type of a structure: dataclass, faust.Record, msgspec.Struct, TypedDict, NamedTuple; None of the rest."""
    declared = _plain(declared)
    if not isinstance(declared, type):
        return None
    if dataclasses.is_dataclass(declared):
        names = [f.name for f in dataclasses.fields(declared) if f.init]
    elif issubclass(declared, msgspec.Struct):
        names = list(declared.__struct_fields__)
    elif is_typeddict(declared):
        names = list(declared.__annotations__)
    elif issubclass(declared, tuple) and hasattr(declared, "_fields"):
        names = list(cast("Any", declared)._fields)
    elif any(c.__module__.startswith("faust.") and c.__name__ == "Record" for c in declared.__mro__):
        names = list(cast("Any", declared)._options.fields)
    else:
        return None
    try:
        hints = get_type_hints(declared, include_extras=True)
    except NameError as unknown:
        raise NotMade(f"{declared.__name__} ({unknown})") from unknown
    return {name: hints[name] for name in names}


def build(declared: Any, values: Mapping[str, Any]) -> Any:
    """The structure with these fields."""
    declared = _plain(declared)
    return dict(values) if is_typeddict(declared) else declared(**values)


def unique(declared: Any, prefix: str, number: int) -> Any | None:
    """A value of this type that no other number gives; None where the type has too few values."""
    for branch in _branches(declared):
        made = _unique_scalar(branch, prefix, number)
        if made is not None:
            return made
    return None


def _unique_scalar(declared: Any, prefix: str, number: int) -> Any | None:
    made: dict[Any, Callable[[], Any]] = {
        str: lambda: f"{prefix}-{number:07d}",
        bytes: f"{prefix}-{number:07d}".encode,
        int: lambda: 1_000_000 + number,
        float: lambda: float(1_000_000 + number),
        Decimal: lambda: Decimal(1_000_000 + number),
        UUID: lambda: UUID(int=Random(f"{prefix}-{number}").getrandbits(128)),
        datetime: lambda: datetime.fromtimestamp(1_700_000_000 + number, UTC),
    }
    return made[declared]() if declared in made else None


def make(declared: Any, rng: Random, now_ms: int, *, name: str = "", depth: int = 0) -> Any:
    """A value of the type. `name` is that of the field it is for: part of its texts. NotMade where there is none."""
    limits = _limits(declared)
    branches = _branches(declared)
    if type(None) in branches and (len(branches) == 1 or rng.random() < 0.15):
        return None
    declared = rng.choice([b for b in branches if b is not type(None)])
    if declared in _SCALARS:
        return _limited(_SCALARS[declared](rng, name, now_ms), limits)
    origin, inner = get_origin(declared), get_args(declared)
    if origin is Literal:
        return rng.choice(inner)
    if isinstance(declared, type) and issubclass(declared, enum.Enum):
        return rng.choice(list(declared))
    fields = fields_of(declared)
    if fields is not None:
        if depth > 6:
            raise NotMade(f"{_name(declared)}, which holds itself")
        return build(declared, {f: make(t, rng, now_ms, name=f, depth=depth + 1) for f, t in fields.items()})
    return _container(declared, origin, inner, rng, now_ms, name, depth)


def _container(
    declared: Any, origin: Any, inner: tuple[Any, ...], rng: Random, now_ms: int, name: str, depth: int
) -> Any:
    made = origin or declared

    def some(element: Any) -> list[Any]:
        return [make(element, rng, now_ms, name=name, depth=depth + 1) for _ in range(rng.randint(0, 3))]

    element = inner[0] if inner else str
    if made is tuple:
        if not inner or inner[-1] is Ellipsis:
            return tuple(some(element))
        return tuple(make(part, rng, now_ms, name=name, depth=depth + 1) for part in inner)
    if made in (list, set, frozenset):
        return made(some(element))
    if isinstance(made, type) and made.__module__ == "collections.abc":
        return dict(zip(some(element), some(inner[1]), strict=False)) if len(inner) == 2 else some(element)
    if made is dict and (inner or depth):
        key, value = inner or (str, int)
        return dict(zip(some(key), some(value), strict=False))
    if made in (Any, object) and depth:
        return make(str, rng, now_ms, name=name)
    raise NotMade(f"values of type {_name(declared)}" + (f" (field {name!r})" if name else ""))


def _text(rng: Random, name: str, now_ms: int) -> str:
    if _TIME_LIKE.search(name):
        return datetime.fromtimestamp(now_ms / 1000, UTC).isoformat().replace("+00:00", "Z")
    return f"{name or 'text'}-{rng.randrange(POOL):02d}"


_SCALARS: dict[Any, Callable[[Random, str, int], Any]] = {
    str: _text,
    int: lambda rng, name, now_ms: now_ms if _TIME_LIKE.search(name) else rng.randint(1, 1000),
    float: lambda rng, name, now_ms: now_ms / 1000 if _TIME_LIKE.search(name) else round(rng.uniform(0, 1000), 2),
    bool: lambda rng, name, now_ms: rng.random() < 0.5,
    bytes: lambda rng, name, now_ms: f"{name or 'bytes'}-{rng.randrange(POOL):02d}".encode(),
    Decimal: lambda rng, name, now_ms: Decimal(rng.randint(100, 100_000)) / 100,
    UUID: lambda rng, name, now_ms: UUID(int=rng.randrange(POOL)),
    datetime: lambda rng, name, now_ms: datetime.fromtimestamp(now_ms / 1000, UTC),
    date: lambda rng, name, now_ms: datetime.fromtimestamp(now_ms / 1000, UTC).date(),
    time: lambda rng, name, now_ms: datetime.fromtimestamp(now_ms / 1000, UTC).time(),
    timedelta: lambda rng, name, now_ms: timedelta(seconds=rng.randint(1, 3600)),
    type(None): lambda rng, name, now_ms: None,
}


# -- types


def _plain(declared: Any) -> Any:
    """Without Annotated, NewType and `type X = ...` around it."""
    while True:
        if get_origin(declared) is Annotated:
            declared = get_args(declared)[0]
        elif hasattr(declared, "__supertype__"):
            declared = declared.__supertype__
        elif hasattr(declared, "__value__"):
            declared = declared.__value__
        else:
            return declared


def _branches(declared: Any) -> list[Any]:
    declared = _plain(declared)
    if get_origin(declared) in (Union, types.UnionType):
        return [branch for part in get_args(declared) for branch in _branches(part)]
    return [declared]


def _limits(declared: Any) -> list[msgspec.Meta]:
    return [m for m in getattr(declared, "__metadata__", ()) if isinstance(m, msgspec.Meta)]


def _limited(value: Any, limits: list[msgspec.Meta]) -> Any:
    """Within what `Annotated[..., Meta(...)]` allows, as far as numbers and lengths go."""
    for limit in limits:
        if isinstance(value, str):
            if limit.pattern is not None:
                raise NotMade(f"a text of pattern {limit.pattern}")
            value = value.ljust(limit.min_length or 0, "-")[: limit.max_length]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            for bound, step in ((limit.ge, 0), (limit.gt, 1)):
                value = max(value, bound + step) if bound is not None else value
            for bound, step in ((limit.le, 0), (limit.lt, -1)):
                value = min(value, bound + step) if bound is not None else value
    return value


def _name(declared: Any) -> str:
    return getattr(declared, "__name__", None) or str(declared)
