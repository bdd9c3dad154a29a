"""Decode: records become values, or say why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from semel.codec import Codec
from semel.errors import DecodeError, described
from semel.port import Record, TooLarge


class Undecodable:
    """Stands where a value would: what was wrong with the bytes."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def _null(record: Record, codec: Codec[Any]) -> Any:
    """What a record without a value is."""
    if isinstance(record, TooLarge):
        return Undecodable(DecodeError(record.why))
    if codec.nullable:
        return None
    return Undecodable(
        DecodeError(
            f"the value is null (a tombstone), and the topic declares {codec.name}; declare value={codec.name} | None to "
            "have it as None"
        )
    )


def decoder(codec: Codec[Any]) -> Callable[[Sequence[Record]], list[Any]]:
    """Records -> values; an `Undecodable` for each that does not fit. Never raises for a record."""
    decode = codec.decode

    def one(record: Record) -> Any:
        try:
            return _null(record, codec) if record.value is None else decode(record.value)
        except DecodeError as exc:
            return Undecodable(exc if type(exc) is DecodeError else DecodeError(described(exc)))
        except Exception as exc:
            return Undecodable(DecodeError(described(exc)))

    def many(records: Sequence[Record]) -> list[Any]:
        try:
            return [decode(v) if (v := r.value) is not None else _null(r, codec) for r in records]
        except Exception:
            # Rare: find the one that does not fit.
            return [one(r) for r in records]

    return many
