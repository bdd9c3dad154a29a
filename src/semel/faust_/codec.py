"""Faust's types and serializers as codecs of the engine."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownLambdaType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faust
import orjson

from semel import codec
from semel.codec import Codec
from semel.errors import DecodeError
from semel.topic import Topic


def _is_record(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, faust.Record)


def _record_codec(declared: Any) -> Codec[Any]:
    name = declared.__name__

    def encode(value: Any) -> bytes:
        if not isinstance(value, declared):
            raise TypeError(f"expected {name}, got {type(value).__name__}: {value!r:.120}")
        return value.dumps(serializer="json")

    def decode(raw: bytes) -> Any:
        try:
            return declared.from_data(orjson.loads(raw), preferred_type=declared)
        except Exception as exc:
            raise DecodeError(f"not a {name}: {type(exc).__name__}: {exc}") from exc

    return Codec(declared, encode, decode, False)


codec.register(_is_record, _record_codec)


def _reader(load: Callable[[Any], Any], what: str) -> Callable[[bytes], Any]:
    def decode(raw: bytes) -> Any:
        try:
            return load(raw)
        except Exception as exc:
            raise DecodeError(f"not a {what}: {type(exc).__name__}: {exc}") from exc

    return decode


def value_codec(app: Any, typ: Any, serializer: Any) -> Codec[Any]:
    """As Faust reads and writes a value of this type with this serializer; plain JSON goes straight to orjson."""
    name = getattr(typ, "__name__", None) or str(serializer or "json")
    serializer = serializer or app.conf.value_serializer
    if typ is None and serializer == "json":
        return Codec(Any, orjson.dumps, _reader(_plain_or_model, name), False)
    registry = app.serializers
    return Codec(
        typ or Any,
        lambda value: registry.dumps_value(typ, value, serializer=serializer),
        _reader(lambda raw: registry.loads_value(typ, raw, serializer=serializer), name),
        serializer == "raw" or typ in (int, float, bool, str, bytes),
    )


def _plain_or_model(raw: bytes) -> Any:
    value = orjson.loads(raw)
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


def source_of(app: Any, channel: Any, name: str) -> Topic:
    """A topic that a Faust agent reads, as the engine's `Topic`."""
    schema = channel.schema
    key_type = channel.key_type if channel.key_type is not None else getattr(schema, "key_type", None)
    value_type = channel.value_type if channel.value_type is not None else getattr(schema, "value_type", None)
    return Topic(
        name,
        key=key_codec(app, key_type, schema.key_serializer or channel.key_serializer),
        value=value_codec(app, value_type, schema.value_serializer or channel.value_serializer),
        partitions=channel.partitions,
    )
