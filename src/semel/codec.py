"""Bytes to typed values and back: one codec per declared type.

`bytes` is raw, `str` is UTF-8, everything else is JSON: written by orjson, read by msgspec, which checks the
shape and keeps integers of any size exact (orjson reads those beyond 64 bits as floats, and two ids become one).
What does not fit raises `DecodeError` and names the place; what would not come back as it went raises TypeError
when it is written. Another format comes in through `register`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec
import orjson
from msgspec import inspect as shapes

from semel.errors import DeclarationError, DecodeError, described
from semel.functions import check_gives_value
from semel.schema.exact import check_of, only_reading_tells, writer_of_same, writer_where_plain
from semel.schema.fingerprint import describe

T = TypeVar("T")

# Written by orjson where it can; by msgspec where only msgspec can (integers beyond 64 bits, fields named `_x`).
_everything = msgspec.json.Encoder(order="deterministic").encode
_FRAME_BYTES = 5
_TAG = "type"


@dataclasses.dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How values of `type` become bytes.

    `encode` raises TypeError for a value that is not of the type, or would not come back as it went, wherever inside
    (`semel.schema.exact`). `decode` looks at everything and raises DecodeError, whatever the code behind it raises.
    `immutable`: a value cannot change in place, so one decoded object may be handed out many times. `nullable`: a record
    of a topic that has no value (a tombstone) is the value None. `structure`: what its bytes look like
    (`semel.schema.fingerprint`), None where nobody knows: then the type's name has to do. `encode_same`: as `encode` for
    a value that is read back as it is, down to the types in it; None of another, as of an int in a float's place.
    """

    type: Any
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    immutable: bool
    nullable: bool = False
    structure: Any = None
    encode_same: Callable[[T], bytes | None] | None = None

    def __post_init__(self) -> None:
        """DeclarationError for what is awaited: `encode` and `decode` are called."""
        for name, given in (("encode", self.encode), ("decode", self.decode)):
            check_gives_value(given, f"Codec({_name(self.type)}) {name}")

    @property
    def name(self) -> str:
        return _name(self.type)


_converters: list[tuple[Callable[[Any], bool], Callable[[Any], Codec[Any]]]] = []
# Where a declared type's class, or one it inherits from, comes from -> who registers the codec. By name: a pipeline that
# declares no such type does not load it.
_REGISTERED_BY = {"faust.models.record": "semel.faust_.codec", "pydantic.main": "semel.pydantic_"}


def register(applies: Callable[[Any], bool], make: Callable[[Any], Codec[Any]]) -> None:
    """The converter hook: types for which `applies(type)` holds get their codec from `make(type)`. Later ones win."""
    check_gives_value(applies, "register() applies")
    check_gives_value(make, "register() make")
    _converters.insert(0, (applies, make))


def codec_for(declared: Any) -> Codec[Any]:
    """The codec of a declared type. DeclarationError where there is none."""
    if isinstance(declared, Codec):
        return _honest(cast("Codec[Any]", declared))
    for part in union_of(declared) or (declared,):
        for cls in getattr(part, "__mro__", ()):
            if cls.__module__ in _REGISTERED_BY:
                importlib.import_module(_REGISTERED_BY[cls.__module__])
    for applies, make in _converters:
        if applies(declared):
            return _honest(make(declared))
    if declared is bytes:
        return Codec(bytes, _bytes_out, bytes, True, structure="raw bytes", encode_same=_same_bytes)
    if declared is str:
        return Codec(str, _str_out, _str_in, True, structure="raw text", encode_same=_same_str)
    if sum(dataclasses.is_dataclass(part) for part in union_of(declared)) > 1:
        return _tagged(declared)
    try:
        reader: msgspec.json.Decoder[Any] = msgspec.json.Decoder(declared)
        shape = shapes.type_info(declared)
    except (TypeError, NotImplementedError, NameError) as exc:
        raise _impossible(declared, str(exc)) from exc
    for part in _parts(shape):
        if isinstance(part, shapes.CustomType):
            raise _impossible(declared, f"nothing is known of {part.cls.__name__}")
    encode, encode_same = _writers(declared, shape, reader.decode)
    return Codec(
        declared,
        encode,
        _reader(declared, reader.decode),
        _immutable(shape),
        structure=describe(shape),
        encode_same=encode_same,
    )


def key_codec_for(declared: Any) -> Codec[Any]:
    """As `codec_for`, for keys of rows: one that would be read back as another key is refused, since it would be another row.

    An int stands where a float is declared, and (1, 1) is read back as (1, 1.0), which has other bytes.
    """
    codec = codec_for(declared)
    if (
        isinstance(declared, Codec)
        or any(applies(declared) for applies, _ in _converters)
        or not _holds_float(declared)
    ):
        return codec
    write, read = codec.encode, codec.decode

    def encode(value: Any) -> bytes:
        raw = write(value)
        again = read(raw)
        if write(again) != raw:
            raise TypeError(f"{value!r:.120} would be read back as {again!r:.120}, which is another row; give it so")
        return raw

    return dataclasses.replace(codec, encode=encode, encode_same=None)


def accepted_classes(codec: Codec[Any]) -> tuple[type, ...] | None:
    """The classes whose instances it encodes; None where that is not known from its type."""
    if any(applies(codec.type) for applies, _ in _converters):
        return None
    classes = _classes(codec.type)
    return (*classes, int) if classes is not None and float in classes else classes


def topic_codec(declared: Any) -> Codec[Any]:
    """The codec of a topic's values: of `T | None`, and of Any, a record without a value is one too.

    The rest is as `codec_for` has it for T. DeclarationError where there is none.
    """
    if declared is Any:
        return dataclasses.replace(codec_for(declared), nullable=True)
    parts = union_of(declared)
    if type(None) not in parts:
        return codec_for(declared)
    rest = tuple(part for part in parts if part is not type(None))
    written = codec_for(rest[0] if len(rest) == 1 else Union[rest])  # noqa: UP007  (made at run time)
    if len(rest) == 1 and (rest[0] in (bytes, str) or any(applies(rest[0]) for applies, _ in _converters)):
        return dataclasses.replace(written, type=declared, nullable=True)
    if sum(dataclasses.is_dataclass(part) for part in rest) > 1:
        return dataclasses.replace(written, type=declared, nullable=True)
    return dataclasses.replace(codec_for(declared), nullable=True)


def framed(declared: Any, *, schema_id: int | None = None) -> Codec[Any]:
    """Values behind the five bytes that serializers of a schema registry write first: 0x00 and a schema's number.

    Their number is not looked at: what follows must be as `declared`. To write, `schema_id` is needed.
    """
    inner = codec_for(declared)
    head = None if schema_id is None else b"\x00" + schema_id.to_bytes(4, "big")

    def encode(value: Any) -> bytes:
        if head is None:
            raise TypeError(f"framed({inner.name}) has no schema_id=; give the number that consumers look up")
        return head + inner.encode(value)

    def decode(raw: bytes) -> Any:
        if raw[:1] != b"\x00" or len(raw) < _FRAME_BYTES:
            raise DecodeError(f"not a framed {inner.name}: it does not begin with 0x00 and the number of a schema")
        return inner.decode(raw[_FRAME_BYTES:])

    return Codec(declared, encode, decode, inner.immutable)


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
    if "union" in why:
        why = why.partition(" - type `")[0]
        return DeclarationError(
            f"{_name(declared)} cannot be told apart in JSON ({why}); declare a union of dataclasses, or of msgspec.Structs "
            "that have tag=True, as the whole value of the topic or table; where it lies within another type, make its "
            "members msgspec.Structs with tag=True"
        )
    return DeclarationError(
        f"{_name(declared)} cannot be read from JSON ({why}); declare bytes, str, int, float, bool, dict, list or a "
        "dataclass, or give the type a codec with semel.codec.register"
    )


def _honest(codec: Codec[Any]) -> Codec[Any]:
    """The same, with any error of somebody else's `decode` as DecodeError; a codec of ours as it is."""
    read = codec.decode
    if getattr(read, "__module__", None) == __name__ or read is bytes:
        return codec

    def decode(raw: bytes) -> Any:
        try:
            return read(raw)
        except DecodeError:
            raise
        except BaseException as exc:  # it is called, not awaited: whatever it raises is its own
            raise DecodeError(described(exc)) from exc

    return dataclasses.replace(codec, decode=decode)


# -- several classes in one topic


def union_of(declared: Any) -> tuple[Any, ...]:
    """The members of a union; none where it is no union."""
    if get_origin(declared) is Annotated:
        return union_of(get_args(declared)[0])
    return get_args(declared) if get_origin(declared) in (Union, types.UnionType) else ()


def _tagged(declared: Any) -> Codec[Any]:
    """Dataclasses told apart by a field: a Literal that all of them have, else "type" with the name of the class.

    The latter is no field of theirs: it is written before the others, as msgspec does for its Structs.
    """
    members = [part for part in union_of(declared) if part is not type(None)]
    odd = [part for part in members if not dataclasses.is_dataclass(part) or not isinstance(part, type)]
    if odd:
        raise DeclarationError(
            f"{_name(declared)} cannot be told apart in JSON: {_name(odd[0])} is no dataclass; declare a union of dataclasses "
            "alone, or of msgspec.Structs that have tag=True"
        )
    field, tags = _tags(declared, members)
    own = field not in {f.name for f in dataclasses.fields(members[0])}
    codecs = {tag: codec_for(cls) for cls, values in tags.items() for tag in values}
    name, wanted = _name(declared), ", ".join(map(repr, codecs))
    peek: Any = msgspec.json.Decoder(
        msgspec.defstruct("Tag", [("tag", Any, msgspec.field(name=field, default=None))])
    ).decode
    prefixes = {cls: orjson.dumps({field: values[0]})[:-1] for cls, values in tags.items()}

    def encode(value: Any) -> bytes:
        cls = value.__class__
        if cls not in prefixes:
            raise TypeError(f"expected {name}, got {cls.__name__}: {value!r:.120}")
        if not own:
            tag: Any = getattr(value, field)
            if tag not in tags[cls]:
                raise TypeError(f"{cls.__name__} has {field}={tag!r}; it takes {', '.join(map(repr, tags[cls]))}")
            return codecs[tag].encode(value)
        raw = codecs[tags[cls][0]].encode(value)
        return prefixes[cls] + (b"}" if raw == b"{}" else b"," + raw[1:])

    def decode(raw: bytes) -> Any:
        try:
            tag: Any = peek(raw).tag
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise DecodeError(f"not of type {name}: {exc}{hint(raw)}") from exc
        codec = codecs.get(tag) if isinstance(tag, str) else None
        if codec is None:
            has = f"is {tag!r:.60}" if tag is not None else "is not there"
            raise DecodeError(
                f"not of type {name}: its field {field!r}, which tells them apart, {has}; it takes {wanted}{hint(raw)}"
            )
        return codec.decode(raw)

    return Codec(declared, encode, decode, all(c.immutable for c in codecs.values()))


def _tags(declared: Any, members: list[type]) -> tuple[str, dict[type, tuple[str, ...]]]:
    """The field that tells the members apart, and its values for each."""
    hints = [get_type_hints(cls) for cls in members]
    for field in hints[0]:
        literals = [get_args(h.get(field)) if get_origin(h.get(field)) is Literal else () for h in hints]
        values = [value for each in literals for value in each]
        if all(literals) and all(isinstance(v, str) for v in values) and len(set(values)) == len(values):
            return field, dict(zip(members, literals, strict=True))
    taken = next((cls for cls, h in zip(members, hints, strict=True) if _TAG in h), None)
    names = [cls.__name__ for cls in members]
    if taken is not None or len(set(names)) != len(names):
        why = f"{taken.__name__} has a field {_TAG!r} of its own" if taken is not None else "two have one name"
        raise DeclarationError(
            f"{_name(declared)} cannot be told apart in JSON: {why}; give each a field of one name that says which it is, as "
            f'kind: Literal["{names[0].lower()}"] = "{names[0].lower()}"'
        )
    return _TAG, {cls: (cls.__name__,) for cls in members}


def fields_of(declared: Any) -> list[str] | None:
    """The fields that a value of the type can have; of a union, those of any member. None where nobody can tell."""
    if get_origin(declared) is Annotated:
        return fields_of(get_args(declared)[0])
    parts = [fields_of(part) for part in union_of(declared) if part is not type(None)]
    if parts:
        known = [part for part in parts if part is not None]
        return list(dict.fromkeys(name for part in known for name in part)) if len(known) == len(parts) else None
    cls: Any = get_origin(declared) or declared
    if not isinstance(cls, type):
        return None
    cls = cast("Any", cls)
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls)]
    if is_typeddict(cls):
        return list(get_type_hints(cls))
    if cls in (str, bytes, int, float, bool):
        return []
    for listed in ("__struct_fields__", "_fields", "model_fields"):
        names = getattr(cls, listed, None)
        if names is not None:
            return list(names)
    return None


def check_fields(names: Iterable[str], codec: Codec[Any], who: str) -> None:
    """A field that no value can have is found where it is declared, and not by every event in the dead letters."""
    known = fields_of(codec.type)
    if known is None:
        return
    for name in names:
        # A property of a class is as good as a field; a TypedDict is a dict, whose methods are none.
        if name not in known and (is_typeddict(codec.type) or not hasattr(codec.type, name)):
            near = difflib.get_close_matches(name, known, 1)
            raise DeclarationError(
                f"{who} field {name!r}, and {codec.name} has {', '.join(known) or 'no fields'}"
                + (f"; did you mean {near[0]!r}?" if near else "")
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


def _holds_float(declared: Any) -> bool:
    """Whether a float may be a part of its values."""
    try:
        return declared is not float and any(
            isinstance(p, shapes.FloatType) for p in _parts(shapes.type_info(declared))
        )
    except (TypeError, NotImplementedError, NameError):
        return False


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


def _writers(
    declared: Any, shape: shapes.Type, read: Callable[[bytes], Any]
) -> tuple[Callable[[Any], bytes], Callable[[Any], bytes | None] | None]:
    """`encode` and `encode_same` of a codec."""
    parts = list(_parts(shape))
    # orjson leaves out fields that begin with an underscore.
    hidden = any(f.name.startswith("_") for p in parts if isinstance(p, shapes.DataclassType) for f in p.fields)
    allowed = _classes(declared)
    only = allowed[0] if allowed is not None and len(allowed) == 1 else None
    inexact = check_of(declared, shape)
    # Of these the class says it all; where nothing but JSON's own types can be inside, reading it again is the faster look.
    plain = all(isinstance(p, (shapes.AnyType, shapes.DictType, shapes.ListType)) for p in parts)
    check = None if only in (int, bool) or plain else inexact
    again = only_reading_tells(parts)
    name = _name(declared)
    dumps = orjson.dumps

    def encode(value: Any) -> bytes:
        if type(value) is not only and allowed is not None:
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

    if hidden or plain or again:
        return encode, None
    return writer_where_plain(shape, dumps, encode), writer_of_same(shape, dumps, encode)


def _classes(declared: Any) -> tuple[type, ...] | None:
    """The classes a value must be of one of; None where isinstance cannot tell."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _classes(get_args(declared)[0])
    if origin in (Union, types.UnionType):
        accepted: list[type] = []
        for part in get_args(declared):
            classes = _classes(part)
            if classes is None:
                return None
            accepted += classes
        return tuple(accepted)
    cls = origin or declared
    if not isinstance(cls, type) or cls in (Any, object) or is_typeddict(cls):
        return None
    return (cls,)


def _plain(value: Any) -> Any:
    """What orjson does not know: sets (in order, so that equal values are equal bytes), bytes, Decimal, structs, ..."""
    if isinstance(value, tuple):
        return list(cast("tuple[Any, ...]", value))
    plain = msgspec.to_builtins(value, order="deterministic", builtin_types=(dict,))
    if plain is value:
        raise TypeError(f"type {type(value).__name__} does not fit in JSON")
    return plain


def _bytes_out(value: bytes) -> bytes:
    if not isinstance(value, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected bytes, got {type(value).__name__}: {value!r:.120}")
    return bytes(value)


def _same_bytes(value: Any) -> bytes | None:
    return value if type(value) is bytes else None


def _same_str(value: Any) -> bytes | None:
    return _str_out(value) if type(value) is str else None


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
            raise DecodeError(f"not of type {name}: {exc}{hint(raw)}") from exc
        except BaseException as exc:  # of a `__post_init__`: it is called, not awaited, whatever it raises is its own
            raise DecodeError(f"not of type {name}: {described(exc)}") from exc

    return decode


def hint(raw: bytes) -> str:
    """What bytes that are not as declared look like, where that is known."""
    if not raw:
        return "; it is empty"
    if raw[0] == 0 and len(raw) >= _FRAME_BYTES:
        return (
            f"; it begins as a schema registry's serializers do, with 0x00 and the schema id {int.from_bytes(raw[1:5], 'big')}: "
            "for JSON declare value=semel.codec.framed(T), for Avro or Protobuf a Codec of your own"
        )
    if raw[:2] == b"\x1f\x8b":
        return "; it is gzip, compressed by its producer's own code: give the topic a Codec that decompresses it"
    try:
        read: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    if isinstance(read, str) and read[:1] in ("{", "["):
        return "; it is JSON within a JSON string, as an outbox writes it: declare str, or have it written as JSON (expand.json)"
    if isinstance(read, dict) and read.keys() == {"schema", "payload"}:
        return (
            "; it is wrapped in schema and payload by Kafka Connect's JsonConverter: set its schemas.enable=false, or "
            "declare a class with a field payload"
        )
    return ""


def _str_in(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError(f"not UTF-8: {exc}") from exc
