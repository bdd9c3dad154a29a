"""What a test sends: values of the source's types, as the bytes, partitions and times that a producer would choose."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from semel.functions import reader_of
from semel.memory.cluster import MemoryCluster
from semel.memory.refused import Refused
from semel.output import Output
from semel.partitioner import partition_of
from semel.port import TP
from semel.testing.errors import PipelineTesterError, interrupts
from semel.testing.results import TopicRecord, or_bytes
from semel.topic import Topic

Headers = Mapping[str, bytes | str | None] | Sequence[tuple[str, bytes | str | None]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SourceProducer:
    """Writes to one topic of `partitions`. PipelineTesterError for what is no record of it.

    A value of another type, or one that could not be read back, is a mistake of the test and no test of bad input: that
    is sent as bytes.
    """

    def __init__(self, cluster: MemoryCluster, topic: Topic, partitions: int) -> None:
        self.sent: list[TopicRecord] = []
        self._cluster = cluster
        self._topic = topic
        self._partitions = partitions
        self._unkeyed = 0

    def send(
        self, value: Any, key: Any, headers: Headers, timestamp: datetime | int | None, partition: int | None
    ) -> TopicRecord:
        topic = self._topic
        raw_key, raw = self._key(key), self._value(value)
        if isinstance(timestamp, datetime):
            timestamp = (utc(timestamp) - _EPOCH) // timedelta(milliseconds=1)
        elif timestamp is None:
            timestamp = self._cluster.now_ms()
        try:
            listed = Output(None, headers=headers).header_list() or []
        except (TypeError, ValueError) as exc:
            raise PipelineTesterError(str(exc)) from exc
        tp = TP(topic.name, self._place(raw_key, partition))
        offset = self._append(tp, raw_key, raw, listed, timestamp)
        record = TopicRecord(
            *tp, offset, timestamp, or_bytes(topic.key, raw_key), value, dict(listed), raw_key, raw
        )  # fmt: skip
        self.sent.append(record)
        return record

    def redeliver(self, sent: TopicRecord) -> None:
        """The record as it stands in the log, once more."""
        tp, offset = sent.position
        fetched, _ = self._cluster.log(tp).read(offset, committed=True, max_bytes=1, at_least_one=True)
        record = fetched.records[0]
        self._append(tp, record.key, record.value, record.headers, record.timestamp)

    def _append(
        self,
        tp: TP,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        timestamp: int,
    ) -> int:
        try:
            return self._cluster.write(tp, [(key, value)], timestamp=timestamp, headers=headers)
        except Refused as exc:
            raise PipelineTesterError(
                f"the broker would not take this record (error {exc.code}): {exc.detail}"
            ) from exc

    def _place(self, raw_key: bytes | None, partition: int | None) -> int:
        if partition is not None:
            if not 0 <= partition < self._partitions:
                raise PipelineTesterError(
                    f"partition={partition}: the source has partitions 0 to {self._partitions - 1}"
                )
            return partition
        if raw_key is not None:
            return partition_of(raw_key, self._partitions)
        self._unkeyed += 1
        return (self._unkeyed - 1) % self._partitions

    def _value(self, value: Any) -> bytes | None:
        codec = self._topic.value
        if value is None or (isinstance(value, bytes) and codec.type is not bytes):
            return value
        try:
            raw = codec.encode(value)
            codec.decode(raw)
        except interrupts():
            raise
        except BaseException as exc:  # it is called, not awaited: whatever it raises is its own
            raise PipelineTesterError(
                f"{value!r:.200} is no value of topic {self._topic.name!r}, which takes {codec.name}: {exc}. To see what "
                "the pipeline makes of bad input, send it as bytes"
            ) from exc
        return raw

    def _key(self, key: Any) -> bytes | None:
        if key is None or isinstance(key, bytes):
            return key
        codec = self._topic.key
        try:
            return codec.encode(key)
        except interrupts():
            raise
        except BaseException as exc:  # as above
            raise PipelineTesterError(
                f"{key!r:.200} is no key of topic {self._topic.name!r}, which takes {codec.name}: {exc}"
            ) from exc


def required_field(name: str) -> Callable[[Any], Any]:
    """Reads a field as the rules of a `Dedup` do. PipelineTesterError where a value has none of this name.

    An event without a dedup key is an event; a test that names a field of its own values means one that is there.
    """
    read = reader_of(name)

    def required(value: Any) -> Any:
        content = read(value)
        if content is None and not (name in value if isinstance(value, dict) else hasattr(value, name)):
            fields = cast("Iterable[Any]", value if isinstance(value, dict) else getattr(value, "__dict__", ()))
            near = difflib.get_close_matches(name, map(str, fields), 1)
            raise PipelineTesterError(
                f"key={name!r}: {value!r:.200} has no such field"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + ". Name one that all values have, or give a function of a value, as key=lambda value: ..."
            )
        return content

    return required


def utc(at: datetime) -> datetime:
    """In UTC where it names no zone."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
