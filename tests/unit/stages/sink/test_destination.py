"""Results become records, checked against their topic before they count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from semel.errors import OutputRefused
from semel.output import SOURCE_KEY, Output
from semel.partitioner import partition_of
from semel.port import TP
from semel.stages.sink.destination import Destination, ProducerRecord, TopicLimits, limits_from
from semel.topic import Topic

NOW = 1_700_000_000_000
NO_LIMITS = TopicLimits(1_000_000, None, None, False)


class Given(NamedTuple):
    offset: int = 12
    timestamp: int = NOW - 5
    key: bytes | None = b"account-1"
    value: bytes | None = b"v"
    headers: Sequence[tuple[str, bytes | None]] = (("trace", b"t"), ("empty", None))


def destination(limits: TopicLimits = NO_LIMITS, *, partitions: int = 8, **declared: Any) -> Destination:
    return Destination(Topic("out", **{"value": dict, **declared}), partitions, limits)


def sent(result: Any, to: Destination | None = None, source: Given | None = None, partition: int = 3) -> ProducerRecord:
    return (to or destination()).record(result, source or Given(), partition, NOW)._replace(size=0)


# -- where a result goes


def test_a_result_keeps_its_sources_key_headers_and_timestamp_and_so_its_order() -> None:
    out = sent({"a": 1})
    assert out == ProducerRecord(
        TP("out", partition_of(b"account-1", 8)), NOW - 5, b"account-1", b'{"a":1}', (("trace", b"t"), ("empty", None))
    )
    assert sent(Output({"a": 1})) == out


def test_a_result_of_an_event_without_a_key_goes_where_its_event_was() -> None:
    assert sent({}, source=Given(key=None), partition=3).tp == TP("out", 3)
    assert sent({}, destination(partitions=2), Given(key=None), 3).tp == TP("out", 1)


def test_an_output_says_what_is_to_be_otherwise() -> None:
    out = sent(Output({}, key="k2", headers={"a": "text", "b": b"\xff", "c": None}, timestamp_ms=5))
    assert out == ProducerRecord(
        TP("out", partition_of(b"k2", 8)), 5, b"k2", b"{}", [("a", b"text"), ("b", b"\xff"), ("c", None)]
    )
    assert sent(Output({}, headers=[("a", b"1"), ("a", b"2")])).headers == [("a", b"1"), ("a", b"2")]
    assert sent(Output({}, headers={})).headers == []
    assert sent(Output({}, key=None)).key is None
    assert sent(Output({}, key=b"\x00raw")).key == b"\x00raw"
    assert repr(SOURCE_KEY) == "the source record's key"


def test_an_output_to_a_name_is_refused_where_it_is_made() -> None:
    with pytest.raises(TypeError, match=r"Output\(topic='letters'\): give a semel\.Topic"):
        Output({}, topic="letters")  # pyright: ignore[reportArgumentType]


def test_an_output_of_none_is_a_tombstone() -> None:
    assert sent(Output(None)).value is None


# -- what a topic does not take


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ([1], "expected dict, got list"),
        ({"a": object()}, "does not come back from JSON"),
        (Output({}, key=5), "key: expected str"),
        (Output({}, headers={"a": 5}), "header 'a': 5"),
        (Output({}, headers=[(b"a", b"1")]), "names are str"),
        (Output({}, headers=["ab", ("a", b"b", "c")]), "output to 'out'"),
        (Output({}, timestamp_ms=1.5), "timestamp_ms=1.5"),
        (Output({}, timestamp_ms=-1), "timestamp_ms=-1"),
        (Output({}, timestamp_ms=2**63), "timestamp_ms"),
    ],
)
def test_what_is_no_record_is_refused_when_it_is_emitted(result: Any, why: str) -> None:
    with pytest.raises(OutputRefused, match=why):
        sent(result)


def test_a_record_that_fits_by_our_measure_fits_by_kafkas() -> None:
    headers = [("ключ" * 30, b"v" * 50), ("plain", None), ("", b"")] * 20
    for size in range(900, 1000):
        value = b"x" * size
        builder = DefaultRecordBatchBuilder(2, 0, 1, -1, -1, 0, 10**9)
        builder.append(0, NOW, b"k" * 40, value, headers)
        exact = len(builder.build())
        to = destination(TopicLimits(exact - 1, None, None, False), value=bytes)
        with pytest.raises(OutputRefused, match=f"max.message.bytes={exact - 1}"):
            sent(Output(value, key=b"k" * 40, headers=headers), to)


def test_a_record_well_below_the_limit_is_taken() -> None:
    to = destination(TopicLimits(1000, None, None, False), value=bytes)
    assert sent(b"x" * 800, to).value == b"x" * 800
    with pytest.raises(OutputRefused, match="send less, or raise it on the topic"):
        sent(b"x" * 1000, to)


def test_timestamps_beyond_the_topics_limits_are_refused_unless_the_broker_stamps() -> None:
    limits = TopicLimits(1_000_000, 1000, 500, False)
    for fine in (NOW - 1000, NOW, NOW + 500):
        assert sent(Output({}, timestamp_ms=fine), destination(limits)).timestamp == fine
    with pytest.raises(OutputRefused, match=r"after\.max\.ms=500"):
        sent(Output({}, timestamp_ms=NOW + 501), destination(limits))
    with pytest.raises(OutputRefused, match=r"before\.max\.ms=1000"):
        sent({}, destination(limits), Given(timestamp=NOW - 1001))
    assert sent({}, destination(limits._replace(broker_time=True)), Given(timestamp=0)).timestamp == 0


def test_a_partition_that_is_named_must_be_there() -> None:
    to = destination(partitions=2)
    assert to.checked(b"k", b"v", (), NOW, 0, NOW, partition=1).tp == TP("out", 1)
    for odd in (-1, 2):
        with pytest.raises(OutputRefused, match="the topic has 2 partitions"):
            to.checked(b"k", b"v", (), NOW, 0, NOW, partition=odd)


def test_limits_are_those_of_the_topics_real_configuration() -> None:
    forever = str(2**63 - 1)
    assert limits_from({}) == TopicLimits(1_048_588, None, None, False)
    assert limits_from(
        {
            "max.message.bytes": "5",
            "message.timestamp.before.max.ms": forever,
            "message.timestamp.after.max.ms": "3600000",
            "message.timestamp.type": "LogAppendTime",
        }
    ) == TopicLimits(5, None, 3_600_000, True)


def test_before_kafka_3_6_one_limit_bounds_both_sides() -> None:
    assert limits_from({"message.timestamp.difference.max.ms": "7"})[1:3] == (7, 7)
