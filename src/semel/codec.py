"""Bytes to typed values and back: one codec per declared type.

`bytes` is raw, `str` is UTF-8, everything else is JSON: written by orjson, read by orjson, or by
msgspec where the shape must be checked (dataclasses, `list[int]`, `int | None`, ...). What does not
fit raises `DecodeError` and names the place. Another format comes in through `register`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec
import orjson

from semel.errors import DeclarationError, DecodeError

T = TypeVar("T")

_SCALARS = (int, float, bool)
_IMMUTABLE: tuple[type, ...] = (int, float, bool, str, bytes, type(None), Decimal)


@dataclasses.dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How values of `type` become bytes.

    `encode` raises TypeError for a value that is not of the type; `decode` raises DecodeError.
    `immutable`: a value cannot change in place, so one decoded object may be handed out many times.
    """

    type: Any
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    immutable: bool

    @property
    def name(self) -> str:
        return getattr(self.type, "__name__", None) or str(self.type)


_converters: list[tuple[Callable[[Any], bool], Callable[[Any], Codec[Any]]]] = []


def register(applies: Callable[[Any], bool], make: Callable[[Any], Codec[Any]]) -> None:
    """The converter hook: types for which `applies(type)` holds get their codec from `make(type)`. Later ones win."""
    _converters.insert(0, (applies, make))


def codec_for(declared: Any) -> Codec[Any]:
    """The codec of a declared type. DeclarationError where there is none."""
    if isinstance(declared, Codec):
        return declared  # pyright: ignore[reportUnknownVariableType]
    for applies, make in _converters:
        if applies(declared):
            return make(declared)
    if declared is bytes:
        return Codec(bytes, _bytes_out, bytes, True)
    if declared is str:
        return Codec(str, _str_out, _str_in, True)
    if declared in (dict, list):
        return Codec(declared, _checked_dumps(declared), _loads_of(declared), False)
    if declared in _SCALARS:
        return Codec(declared, _checked_dumps(declared), _loads_of(declared), True)
    return _structured(declared)


def _structured(declared: Any) -> Codec[Any]:
    try:
        reader: msgspec.json.Decoder[Any] = msgspec.json.Decoder(declared)
    except (TypeError, NotImplementedError) as exc:
        raise DeclarationError(
            f"{declared!r} cannot be read from JSON ({exc}); declare bytes, str, int, float, bool, dict, list or a "
            "dataclass, or give the type a codec with semel.codec.register"
        ) from exc
    read = reader.decode
    name = getattr(declared, "__name__", str(declared))

    def decode(raw: bytes) -> Any:
        try:
            return read(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DecodeError(f"not a {name}: {exc}") from exc

    return Codec(declared, _checked_dumps(declared), decode, is_immutable(declared))


def is_immutable(declared: Any) -> bool:
    """True if values of the type cannot change in place: scalars, frozen dataclasses and tuples of such, unions of such."""
    origin = get_origin(declared)
    if origin in (Union, types.UnionType, tuple):
        return all(part is Ellipsis or is_immutable(part) for part in get_args(declared))
    if not isinstance(declared, type):
        return False
    if issubclass(declared, _IMMUTABLE) or issubclass(declared, Enum):
        return True
    if dataclasses.is_dataclass(declared):
        params: Any = declared.__dataclass_params__  # pyright: ignore[reportAttributeAccessIssue,reportUnknownVariableType,reportUnknownMemberType]
        hints = msgspec.inspect.type_info(declared)
        return (
            bool(params.frozen)
            and all(is_immutable(f.type) for f in dataclasses.fields(declared) if isinstance(f.type, type))
            and not any(
                isinstance(getattr(f, "type", None), (msgspec.inspect.ListType, msgspec.inspect.DictType))
                for f in getattr(hints, "fields", ())
            )
        )
    return False


def _default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    raise TypeError(f"a {type(value).__name__} does not fit in JSON")


def _checked_dumps(declared: Any) -> Callable[[Any], bytes]:
    checks: tuple[Any, ...] = (declared,)
    if get_origin(declared) in (Union, types.UnionType):
        checks = get_args(declared)
    plain = tuple(t for t in ((get_origin(c) or c) for c in checks) if isinstance(t, type))
    exact = plain[0] if len(plain) == 1 == len(checks) else None
    name = getattr(declared, "__name__", str(declared))
    dumps = orjson.dumps

    def encode(value: Any) -> bytes:
        if (
            type(value) is not exact
            and plain
            and (not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain))
        ):
            if exact is float and type(value) is int:
                return dumps(float(value))
            raise TypeError(f"expected {name}, got {type(value).__name__}: {value!r:.120}")
        try:
            return dumps(value)
        except TypeError:
            try:
                return dumps(value, _default)
            except TypeError as exc:
                raise TypeError(f"{value!r:.120} does not fit in JSON: {exc}") from exc

    return encode


def _loads_of(declared: type) -> Callable[[bytes], Any]:
    loads = orjson.loads

    def decode(raw: bytes) -> Any:
        try:
            value = loads(raw)
        except orjson.JSONDecodeError as exc:
            raise DecodeError(f"not JSON: {exc}") from exc
        if type(value) is not declared:
            if declared is float and type(value) is int:
                return float(value)
            raise DecodeError(f"expected {declared.__name__}, got {type(value).__name__}: {value!r:.120}")
        return value

    return decode


def _bytes_out(value: bytes) -> bytes:
    if not isinstance(value, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected bytes, got {type(value).__name__}: {value!r:.120}")
    return bytes(value)


def _str_out(value: str) -> bytes:
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected str, got {type(value).__name__}: {value!r:.120}")
    return value.encode()


def _str_in(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError(f"not UTF-8: {exc}") from exc
