"""Bytes to typed values and back: one codec per declared type.

`bytes` is raw, `str` is UTF-8, everything else is JSON: written by orjson, read by msgspec, which checks the
shape and keeps integers of any size exact (orjson reads those beyond 64 bits as floats, and two ids become one).
What does not fit raises `DecodeError` and names the place; what would not come back as it went raises TypeError
when it is written. Another format comes in through `register`.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Generic, TypeVar, Union, cast, get_args, get_origin, is_typeddict

import msgspec
import orjson
from msgspec import inspect as shapes

from semel.errors import DeclarationError, DecodeError
from semel.exact import check_of, only_reading_tells

T = TypeVar("T")

# Written by orjson where it can; by msgspec where only msgspec can (integers beyond 64 bits, fields named `_x`).
_everything = msgspec.json.Encoder(order="deterministic").encode


@dataclasses.dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How values of `type` become bytes.

    `encode` raises TypeError for a value that is not of the type, or would not come back as it went, wherever inside
    (`semel.exact`). `decode` looks at everything and raises DecodeError.
    `immutable`: a value cannot change in place, so one decoded object may be handed out many times.
    """

    type: Any
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    immutable: bool

    @property
    def name(self) -> str:
        return _name(self.type)


_converters: list[tuple[Callable[[Any], bool], Callable[[Any], Codec[Any]]]] = []
# Where a declared type's class, or one it inherits from, comes from -> who registers the codec. By name: a pipeline that
# declares no such type does not load it.
_REGISTERED_BY = {"faust.models.record": "semel.faust_.codec"}


def register(applies: Callable[[Any], bool], make: Callable[[Any], Codec[Any]]) -> None:
    """The converter hook: types for which `applies(type)` holds get their codec from `make(type)`. Later ones win."""
    _converters.insert(0, (applies, make))


def codec_for(declared: Any) -> Codec[Any]:
    """The codec of a declared type. DeclarationError where there is none."""
    if isinstance(declared, Codec):
        return cast("Codec[Any]", declared)
    for cls in getattr(declared, "__mro__", ()):
        if cls.__module__ in _REGISTERED_BY:
            importlib.import_module(_REGISTERED_BY[cls.__module__])
    for applies, make in _converters:
        if applies(declared):
            return make(declared)
    if declared is bytes:
        return Codec(bytes, _bytes_out, bytes, True)
    if declared is str:
        return Codec(str, _str_out, _str_in, True)
    try:
        reader: msgspec.json.Decoder[Any] = msgspec.json.Decoder(declared)
        shape = shapes.type_info(declared)
    except (TypeError, NotImplementedError, NameError) as exc:
        raise _impossible(declared, str(exc)) from exc
    for part in _parts(shape):
        if isinstance(part, shapes.CustomType):
            raise _impossible(declared, f"nothing is known of {part.cls.__name__}")
    return Codec(declared, _writer(declared, shape, reader.decode), _reader(declared, reader.decode), _immutable(shape))


def accepted_classes(codec: Codec[Any]) -> tuple[type, ...] | None:
    """The classes whose instances it encodes; None where that is not known from its type."""
    if any(applies(codec.type) for applies, _ in _converters):
        return None
    found = _classes(codec.type)
    return (*found, int) if found is not None and float in found else found


def is_immutable(declared: Any) -> bool:
    """True if no value of the type can change in place: scalars, and frozen dataclasses, tuples and unions of such."""
    try:
        return _immutable(shapes.type_info(declared))
    except (TypeError, NotImplementedError, NameError):
        return False


def _name(declared: Any) -> str:
    plain = isinstance(declared, type) and get_origin(declared) is None
    return declared.__name__ if plain else str(declared).removeprefix("typing.")


def _impossible(declared: Any, why: str) -> DeclarationError:
    return DeclarationError(
        f"{_name(declared)} cannot be read from JSON ({why}); declare bytes, str, int, float, bool, dict, list or a "
        "dataclass, or give the type a codec with semel.codec.register"
    )


# -- what a type is made of


def _parts(shape: shapes.Type) -> Iterator[shapes.Type]:
    """The type and every type inside it, each class once: types may be recursive."""
    waiting, seen = [shape], set[type]()
    while waiting:
        part = waiting.pop()
        cls = getattr(part, "cls", None)
        if cls is not None:
            if cls in seen:
                continue
            seen.add(cls)
        yield part
        waiting += [f.type for f in getattr(part, "fields", ())]
        waiting += [*getattr(part, "types", ()), *getattr(part, "item_types", ())]
        inner = (getattr(part, name, None) for name in ("type", "item_type", "key_type", "value_type"))
        waiting += [i for i in inner if isinstance(i, shapes.Type)]


_CHANGEABLE = (
    shapes.AnyType,
    shapes.ByteArrayType,
    shapes.CustomType,
    shapes.DictType,
    shapes.ListType,
    shapes.MemoryViewType,
    shapes.RawType,
    shapes.SetType,
    shapes.TypedDictType,
)


def _immutable(shape: shapes.Type) -> bool:
    for part in _parts(shape):
        if isinstance(part, _CHANGEABLE):
            return False
        if isinstance(part, shapes.StructType) and not part.cls.__struct_config__.frozen:
            return False
        if isinstance(part, shapes.DataclassType):
            params = getattr(part.cls, "__dataclass_params__", None)
            if params is None or not params.frozen:
                return False
    return True


# -- writing


def _writer(declared: Any, shape: shapes.Type, read: Callable[[bytes], Any]) -> Callable[[Any], bytes]:
    parts = list(_parts(shape))
    # orjson leaves out fields that begin with an underscore.
    hidden = any(f.name.startswith("_") for p in parts if isinstance(p, shapes.DataclassType) for f in p.fields)
    allowed = _classes(declared)
    exact = allowed[0] if allowed is not None and len(allowed) == 1 else None
    inexact = check_of(declared, shape)
    # Of these the class says it all; where nothing but JSON's own types can be inside, reading it again is the faster look.
    plain = all(isinstance(p, (shapes.AnyType, shapes.DictType, shapes.ListType)) for p in parts)
    check = None if exact in (int, bool) or plain else inexact
    again = only_reading_tells(parts)
    name = _name(declared)
    dumps = orjson.dumps

    def encode(value: Any) -> bytes:
        if type(value) is not exact and allowed is not None:
            if type(value) is int and float in allowed and int not in allowed and float(value) == value:
                value = float(value)
            elif not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise TypeError(f"expected {name}, got {type(value).__name__}: {value!r:.120}")
        if check is not None:
            check(value)
        if hidden:
            raw = thorough(value)
        else:
            try:
                raw = dumps(value)
            except TypeError:
                raw = thorough(value)
        if plain or again:
            try:
                same = read(raw) == value or not plain
            except Exception as exc:
                raise TypeError(f"it could not be read again: {exc}") from exc
            if not same:
                inexact(value)
                raise TypeError(f"{value!r:.120} would be read back as another value")
        return raw

    def thorough(value: Any) -> bytes:
        if plain:
            inexact(value)
        try:
            if not hidden:
                try:
                    # Keys become strings in JSON; where they are no strings they are declared, and read back as they were.
                    return dumps(value, _plain, orjson.OPT_NON_STR_KEYS)
                except orjson.JSONEncodeError as exc:
                    if "64-bit" not in str(exc):
                        raise
            try:
                return _everything(value)
            except TypeError:
                return msgspec.json.encode(value)  # keys that are not str cannot be put in order
        except (TypeError, ValueError, OverflowError) as exc:
            raise TypeError(f"{value!r:.120} does not fit in JSON: {exc}") from exc

    return encode


def _classes(declared: Any) -> tuple[type, ...] | None:
    """The classes a value must be of one of; None where isinstance cannot tell."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _classes(get_args(declared)[0])
    if origin in (Union, types.UnionType):
        found: list[type] = []
        for part in get_args(declared):
            classes = _classes(part)
            if classes is None:
                return None
            found += classes
        return tuple(found)
    cls = origin or declared
    if not isinstance(cls, type) or cls in (Any, object) or is_typeddict(cls):
        return None
    return (cls,)


def _plain(value: Any) -> Any:
    """What orjson does not know: sets (in order, so that equal values are equal bytes), bytes, Decimal, structs, ..."""
    if isinstance(value, tuple):
        return list(cast("tuple[Any, ...]", value))
    found = msgspec.to_builtins(value, order="deterministic", builtin_types=(dict,))
    if found is value:
        raise TypeError(f"a {type(value).__name__} does not fit in JSON")
    return found


def _bytes_out(value: bytes) -> bytes:
    if not isinstance(value, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected bytes, got {type(value).__name__}: {value!r:.120}")
    return bytes(value)


def _str_out(value: str) -> bytes:
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected str, got {type(value).__name__}: {value!r:.120}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise TypeError(f"{value!r:.120} does not fit in UTF-8: {exc}") from exc


# -- reading


def _reader(declared: Any, read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    name = _name(declared)

    def decode(raw: bytes) -> Any:
        try:
            return read(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DecodeError(f"not a {name}: {exc}") from exc
        except Exception as exc:
            # A `__post_init__` may raise anything, and what is nested deep enough a RecursionError.
            raise DecodeError(f"not a {name}: {type(exc).__name__}: {exc}") from exc

    return decode


def _str_in(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError(f"not UTF-8: {exc}") from exc
