"""Faust's types and serializers as codecs of the engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownLambdaType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, get_args
from uuid import UUID

import faust
import msgspec

from semel import codec
from semel.codec import Codec
from semel.errors import DecodeError
from semel.schema.fingerprint import described_default
from semel.topic import Topic


def _is_record(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, faust.Record)


def _record_codec(declared: Any) -> Codec[Any]:
    name = declared.__name__

    def encode(value: Any) -> bytes:
        if not isinstance(value, declared):
            raise TypeError(f"expected {name}, got {type(value).__name__}: {value!r:.120}")
        return value.dumps(serializer="json")

    decode = _reader(lambda raw: declared.from_data(_plain(raw), preferred_type=declared), name)
    return Codec(declared, _exact(encode, decode), decode, False, structure=_structure(declared))


codec.register(_is_record, _record_codec)

# Not orjson: it reads integers beyond 64 bits as floats, and two of them become one.
_plain = msgspec.json.decode


def _exact(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> Callable[[Any], bytes]:
    """As `encode`; TypeError for what would be read back as something else, since Faust's serializers help themselves."""

    def checked(value: Any) -> bytes:
        raw = encode(value)
        try:
            again = decode(raw)
            same = again == value or (_as_declared(value, again) and encode(again) == raw)
        except DecodeError as exc:
            raise TypeError(f"{value!r:.120} could not be read again: {exc}") from exc
        if not same:
            raise TypeError(f"{value!r:.120} would be read back as {again!r:.120}; give it a type that JSON has")
        return raw

    return checked


def _as_declared(value: Any, again: Any) -> bool:
    """Whether a record is read back as Faust reads it: a field that is not coerced in its form in JSON, where that says all.

    What lies in a field of any type is to come back as it went: nobody said that it has another form.
    """
    if not isinstance(value, faust.Record) or type(again) is not type(value):
        return False
    options: Any = type(value)._options  # pyright: ignore[reportPrivateUsage]
    return all(
        getattr(again, name) == getattr(value, name)
        or (not _is_open(of) and _in_json(getattr(value, name), getattr(again, name)))
        for name, of in options.fields.items()
    )


def _is_open(declared: Any) -> bool:
    return declared in (Any, object, dict, list) or any(_is_open(part) for part in get_args(declared))


def _in_json(value: Any, again: Any) -> bool:
    if isinstance(value, (datetime, date, time, Decimal, UUID)):
        return isinstance(again, str)  # nothing but its own form: the same bytes came of both
    if isinstance(value, Enum):
        return again == value.value
    if isinstance(value, (set, frozenset, tuple, list)):
        items: list[Any] = list(value)
        return isinstance(again, list) and len(again) == len(items) and all(map(_in_json, items, again))
    if isinstance(value, dict):
        return (
            isinstance(again, dict)
            and value.keys() == again.keys()
            and all(_in_json(value[k], again[k]) for k in value)
        )
    return type(again) is type(value) and (again == value or _as_declared(value, again))


def _reader(load: Callable[[Any], Any], what: str) -> Callable[[bytes], Any]:
    def decode(raw: bytes) -> Any:
        try:
            return load(raw)
        except Exception as exc:
            raise DecodeError(f"not of type {what}: {type(exc).__name__}: {exc}") from exc

    return decode


def value_codec(app: Any, typ: Any, serializer: Any) -> Codec[Any]:
    """As Faust reads and writes a value of this type with this serializer; plain JSON without its detours."""
    name = getattr(typ, "__name__", None) or str(serializer or "json")
    serializer = serializer or app.conf.value_serializer
    if typ in (None, dict, list) and serializer == "json":
        return Codec(typ or Any, codec.codec_for(Any).encode, _reader(_plain_or_model, name), False, structure="any")
    registry = app.serializers
    decode = _reader(lambda raw: registry.loads_value(typ, raw, serializer=serializer), name)
    return Codec(
        typ or Any,
        _exact(lambda value: registry.dumps_value(typ, value, serializer=serializer), decode),
        decode,
        serializer == "raw" or typ in (int, float, bool, str, bytes),
        structure=_structure(typ) if serializer == "json" else None,
    )


def _structure(typ: Any) -> Any:
    """As `semel.schema.fingerprint` describes a class: of a record its fields with their types and defaults."""
    if not _is_record(typ):
        return getattr(typ, "__name__", None)
    options = typ._options
    return {
        "fields": {
            name: [str(of), described_default(options.defaults[name])] if name in options.defaults else [str(of)]
            for name, of in options.fields.items()
        }
    }


def _plain_or_model(raw: bytes) -> Any:
    value = _plain(raw)
    if type(value) is dict and "__faust" in value:
        from faust.models.base import maybe_model

        return maybe_model(value)
    return value


def key_codec(app: Any, typ: Any, serializer: Any) -> Codec[Any]:
    name = getattr(typ, "__name__", None) or str(serializer or "raw")
    registry = app.serializers
    return Codec(
        typ or Any,
        lambda key: registry.dumps_key(typ, key, serializer=serializer),
        _reader(lambda raw: registry.loads_key(typ, raw, serializer=serializer), name),
        True,
    )


def table_key_codec(app: Any, typ: Any, serializer: Any) -> Codec[Any]:
    """As `key_codec`; without a type b"null" would be the row of None, which any kind of keys may stand beside."""
    codec = key_codec(app, typ, serializer)
    if typ is not None:
        return codec
    encode = codec.encode

    def checked(key: Any) -> bytes:
        if isinstance(key, bytes) and key == b"null":
            raise TypeError(f"the key {key!r} would be the row of the key None; give it another name")
        return encode(key)

    return replace(codec, encode=checked, encode_same=None)


def kind_of_key(key: Any) -> str:
    """Of a table's keys, so that no two of them are one row.

    Faust writes bytes as they are and all else as JSON, so that b"1" and 1 would meet, and a UUID and its text. A table
    takes JSON's own types, or one other type, whichever its first row has. None, the key of a record without one, is no
    kind: its row keeps no other out.
    """
    if key is None:
        return ""
    return "plain" if isinstance(key, _JSON) else type(key).__name__


_JSON = (str, int, float, tuple)


def source_of(app: Any, channel: Any, name: str) -> Topic:
    """A topic that a Faust agent reads, as the engine's `Topic`."""
    schema = channel.schema
    key_type = channel.key_type if channel.key_type is not None else getattr(schema, "key_type", None)
    value_type = channel.value_type if channel.value_type is not None else getattr(schema, "value_type", None)
    value = value_codec(app, value_type, schema.value_serializer or channel.value_serializer)
    # As Faust: a tombstone is None, but where a model is declared and nothing says that it may be empty.
    null = not hasattr(value_type, "from_data") or bool(schema.allow_empty or channel.allow_empty)
    return Topic(
        name,
        key=key_codec(app, key_type, schema.key_serializer or channel.key_serializer),
        value=replace(value, nullable=null),
        partitions=channel.partitions,
    )
