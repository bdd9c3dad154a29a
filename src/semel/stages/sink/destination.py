"""Destination: results become records, checked against their topic before they count (protocol rule 2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from semel.errors import OutputRefused
from semel.output import SOURCE_KEY, Output
from semel.partitioner import KeyPartitions
from semel.port import NO_TIMESTAMP, TP, Record
from semel.state import lineage, replay
from semel.topic import Topic, UnnamedTopic

Headers = Sequence[tuple[str, bytes | None]]

# A batch of one record costs up to 61 bytes of batch header plus the record's varints.
OVERHEAD_BYTES = 96
# What a record's value is to leave free in a topic of max.message.bytes, for key and headers.
NOT_THE_VALUE_BYTES = 1024
_LINEAGE_BYTES = len(lineage.HEADER) + 10
_NOT_HANDED_ON = replay.HEADERS | {lineage.HEADER}


class ProducerRecord(NamedTuple):
    """A record to be produced. `size`: about what it takes of a transaction, in bytes; 0 of records of the state."""

    tp: TP
    timestamp: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    size: int = 0


# As `ProducerRecord(...)`, which is a function of Python's: it is called for every output, row and mark.
_new: Callable[[type[ProducerRecord], tuple[Any, ...]], ProducerRecord] = tuple.__new__  # pyright: ignore


def state_records(tp: TP, changes: Iterable[tuple[bytes, bytes | None]]) -> list[ProducerRecord]:
    """What a log of state is to hold. It says no time: a broker would refuse ours where our clock is ahead of its own."""
    return [_new(ProducerRecord, (tp, NO_TIMESTAMP, key, value, (), 0)) for key, value in changes]


class TopicLimits(NamedTuple):
    """What a topic accepts, from its real configuration; times in ms, None: no limit."""

    max_bytes: int
    max_behind_ms: int | None
    max_ahead_ms: int | None
    broker_time: bool
    compacted: bool = False


def limits_from(configs: dict[str, str]) -> TopicLimits:
    def bound(name: str) -> int | None:
        value = int(configs.get(name, str(2**63 - 1)))
        return None if value >= 2**62 else value

    # Before Kafka 3.6 one setting bounded both sides.
    around = bound("message.timestamp.difference.max.ms")
    before, after = bound("message.timestamp.before.max.ms"), bound("message.timestamp.after.max.ms")
    return TopicLimits(
        int(configs.get("max.message.bytes", "1048588")),
        around if before is None else before,
        around if after is None else after,
        configs.get("message.timestamp.type", "CreateTime") == "LogAppendTime",
        "compact" in configs.get("cleanup.policy", ""),
    )


class Destination:
    """A topic that results go to. `named`: an event, or the declaration, has named it, so that its types are known."""

    __slots__ = (
        "_apart",
        "_encode",
        "_key_encode",
        "_places",
        "_tps",
        "limits",
        "named",
        "partition_of",
        "partitions",
        "topic",
    )

    def __init__(
        self, topic: Topic, partitions: int, limits: TopicLimits, partition_of: KeyPartitions | None = None
    ) -> None:
        self.topic = topic
        self.limits = limits
        self.named = not isinstance(topic, UnnamedTopic)
        self._encode = topic.value.encode
        self._key_encode = topic.key.encode
        self._places: dict[int, KeyPartitions] = {}
        # Of source partitions whose keys go over another number of partitions than most.
        self._apart: dict[int, tuple[KeyPartitions, list[TP]]] = {}
        self._go_over(KeyPartitions(partitions) if partition_of is None else partition_of)

    def begin(self) -> None:
        """Over how many partitions keys go is told anew."""
        self._places.clear()
        self._apart.clear()

    def spread(self, source_partition: int, partition_of: KeyPartitions) -> None:
        """Over how many partitions its keys go: fewer than there are where the topic grew, so that none moves."""
        self._places[source_partition] = partition_of
        fewest = min(self._places.values(), key=lambda place: place.partitions)
        if fewest.partitions != self.partitions:
            self._go_over(fewest)
        self._apart = {
            p: (place, self._first(place.partitions))
            for p, place in self._places.items()
            if place.partitions != fewest.partitions
        }

    def _go_over(self, partition_of: KeyPartitions) -> None:
        self.partitions = partition_of.partitions
        self.partition_of = partition_of
        self._tps = self._first(self.partitions)

    def _first(self, partitions: int) -> list[TP]:
        return [TP(self.topic.name, p) for p in range(partitions)]

    def key(self, key: Any) -> bytes | None:
        if key is None or isinstance(key, bytes):
            return key
        try:
            return self._key_encode(key)
        except TypeError as exc:
            raise OutputRefused(f"output to {self.topic.name!r}, key: {exc}") from exc

    def record(
        self,
        result: Any,
        source: Record,
        source_partition: int,
        now_ms: int,
        origin: tuple[str, bytes] | None = None,
        stamp_ms: int | None = None,
    ) -> ProducerRecord:
        """The record of a result: its source's key, headers and timestamp unless an `Output` says otherwise.

        `origin`: the header that says which event it comes from. `stamp_ms`: instead of the source's timestamp. OutputRefused
        where the topic would not take it.
        """
        key, headers, timestamp = source.key, source.headers, source.timestamp if stamp_ms is None else stamp_ms
        value = result
        if type(result) is Output:
            value = result.value
            if result.key is not SOURCE_KEY:
                key = self.key(result.key)
            try:
                given = result.header_list()
            except (TypeError, ValueError) as exc:
                raise OutputRefused(f"output to {self.topic.name!r}: {exc}") from exc
            if given is not None:
                headers = given
            if result.timestamp_ms is not None:
                timestamp = result.timestamp_ms
                if type(timestamp) is not int or not 0 <= timestamp < 2**63:
                    raise OutputRefused(
                        f"output to {self.topic.name!r}: timestamp_ms={timestamp!r}; give a number of ms since 1970"
                    )
        try:
            raw = None if value is None else self._encode(value)
        except TypeError as exc:
            raise OutputRefused(f"output to {self.topic.name!r}: {exc}{_hint(value)}") from exc
        return self.checked(key, raw, headers, timestamp, source_partition, now_ms, origin=origin)

    def checked(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp: int | None,
        source_partition: int,
        now_ms: int,
        partition: int | None = None,
        origin: tuple[str, bytes] | None = None,
    ) -> ProducerRecord:
        if key.__class__ is not bytes and key is not None:
            key = self._as_bytes("key", key)
        if value.__class__ is not bytes and value is not None:
            value = self._as_bytes("value", value)
        limits = self.limits
        size = (len(key) if key else 0) + (len(value) if value else 0) + OVERHEAD_BYTES
        if headers:
            size += sum(
                (len(name) if name.isascii() else len(name) * 4) + len(content or b"") + 10 for name, content in headers
            )
        if origin is not None:
            size += _LINEAGE_BYTES + len(origin[1])
            # Those of the source say where the source came from, an event further up, and whether it came again.
            headers = (*(h for h in headers if h[0] not in _NOT_HANDED_ON), origin) if headers else (origin,)
        if size > limits.max_bytes:
            raise OutputRefused(
                f"output to {self.topic.name!r} of about {size} bytes is above the topic's max.message.bytes="
                f"{limits.max_bytes}; send less, or raise it on the topic"
            )
        if key is None and limits.compacted:
            raise OutputRefused(
                f"output to {self.topic.name!r} has no key, and that topic is compacted (cleanup.policy), which takes records "
                "with keys only; give Output(value, key=...), or set cleanup.policy=delete on the topic"
            )
        if timestamp is not None and not limits.broker_time:
            if limits.max_ahead_ms is not None and timestamp > now_ms + limits.max_ahead_ms:
                raise OutputRefused(
                    f"output to {self.topic.name!r} is stamped {timestamp}, further ahead than the topic's "
                    f"message.timestamp.after.max.ms={limits.max_ahead_ms} allows; give Output(timestamp_ms=...) or "
                    "raise it"
                )
            if limits.max_behind_ms is not None and timestamp < now_ms - limits.max_behind_ms:
                raise OutputRefused(
                    f"output to {self.topic.name!r} is stamped {timestamp}, older than the topic's "
                    f"message.timestamp.before.max.ms={limits.max_behind_ms} allows; give Output(timestamp_ms=...) or "
                    "raise it"
                )
        if partition is not None:
            if not 0 <= partition < self.partitions:
                raise OutputRefused(
                    f"output to {self.topic.name!r}, partition {partition}: the topic has {self.partitions} partitions"
                )
            return _new(ProducerRecord, (self._tps[partition], timestamp, key, value, headers, size))
        partition_of, tps = self.partition_of, self._tps
        if self._apart:
            partition_of, tps = self._apart.get(source_partition, (partition_of, tps))
        tp = tps[source_partition % len(tps)] if key is None else tps[partition_of(key)]
        return _new(ProducerRecord, (tp, timestamp, key, value, headers, size))

    def _as_bytes(self, what: str, given: Any) -> bytes:
        """What a codec of somebody else's gave where bytes are to be."""
        if isinstance(given, (bytes, bytearray, memoryview)):
            return bytes(given)  # pyright: ignore[reportUnknownArgumentType]
        raise OutputRefused(
            f"output to {self.topic.name!r}, {what}: its codec gave {given!r:.80}, of type {type(given).__name__}; "
            "Codec.encode returns bytes"
        )


def _hint(value: Any) -> str:
    if inspect.iscoroutine(value):
        value.close()
        return "; nobody awaits it: declare the agent with async def, or await what it calls"
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return (
            "; nobody iterates over it: for several results of one event, let the agent take the stream and yield them"
        )
    return ""


def header_bytes(headers: Iterable[tuple[str, str | bytes | None]]) -> int:
    """At most."""
    total = 0
    for name, content in headers:
        size = len(content.encode() if isinstance(content, str) else content or b"")
        total += len(name) * (1 if name.isascii() else 4) + size + 10
    return total
