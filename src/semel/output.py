"""Output: a result that is to go somewhere else than where results go by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from semel.topic import Topic


class _SourceKey:
    def __repr__(self) -> str:
        return "the source record's key"


SOURCE_KEY: Final = _SourceKey()


class Output:
    """Yield or return it where the default is not wanted.

    By default an output keeps its source record's key, headers and timestamp, hence its order. `key`: another
    key (encoded by the topic's key type; None for no key). `headers`: instead of the source's. `topic`: instead of
    the pipeline's sink. `Output(None)` is a tombstone.
    """

    __slots__ = ("headers", "key", "timestamp_ms", "topic", "value")

    def __init__(
        self,
        value: Any,
        *,
        key: Any = SOURCE_KEY,
        headers: Mapping[str, bytes | str] | Sequence[tuple[str, bytes]] | None = None,
        topic: Topic | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        self.value = value
        self.key = key
        self.headers = headers
        self.topic = topic
        self.timestamp_ms = timestamp_ms

    def header_list(self) -> list[tuple[str, bytes]] | None:
        if self.headers is None:
            return None
        pairs = self.headers.items() if isinstance(self.headers, Mapping) else self.headers
        return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]
