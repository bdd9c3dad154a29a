"""Source: records become values, or say why not."""

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


def _nothing(record: Record, codec: Codec[Any]) -> str:
    """Why there is no value."""
    if isinstance(record, TooLarge):
        return record.why
    return f"the value is null; the topic declares {codec.name}"


def decoder(codec: Codec[Any]) -> Callable[[Sequence[Record]], list[Any]]:
    """Records -> values; an `Undecodable` for each that does not fit. Never raises for a record."""
    decode = codec.decode

    def one(record: Record) -> Any:
        try:
            if record.value is None:
                raise DecodeError(_nothing(record, codec))
            return decode(record.value)
        except DecodeError as exc:
            return Undecodable(exc if type(exc) is DecodeError else DecodeError(described(exc)))
        except Exception as exc:
            return Undecodable(DecodeError(described(exc)))

    def many(records: Sequence[Record]) -> list[Any]:
        try:
            return [decode(r.value) for r in records]  # pyright: ignore[reportArgumentType]
        except Exception:
            # Rare: find the one that does not fit.
            return [one(r) for r in records]

    return many
