"""A record that cannot be handled becomes a dead letter: its own bytes, and headers that say where from and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from semel.port import NO_TIMESTAMP, TP, TooLarge
from semel.stages.sink.dead_letters import DROPPED_FIRST, HEADERS, DeadLetters, dead_letter, split_headers
from semel.stages.sink.destination import NOT_THE_VALUE_BYTES, ProducerRecord
from semel.stages.sink.failure_cause import Cause
from semel.stages.sink.foreign_headers import FAMILIES

NOW = 1_700_000_000_000


class Given(NamedTuple):
    offset: int = 12
    timestamp: int = NOW - 5
    key: bytes | None = b"account-1"
    value: bytes | None = b"v"
    headers: Sequence[tuple[str, bytes | None]] = (("trace", b"t"), ("empty", None))


CAUSE = Cause(
    "ValueError@agents.settle:settle", "ValueError", '  File "settle.py", line 3, in settle\nValueError: no\n'
)
UNRAISED = Cause("undecodable@payments:not-of-type-Payment")


def buried(
    record: Given,
    *,
    error: str = "ValueError: no",
    letters: DeadLetters | None = None,
    cause: Cause = CAUSE,
    attempts: int = 5,
    hold: bytes = b"",
) -> ProducerRecord:
    return dead_letter(
        letters or DeadLetters("p.dlq", 8, 1_000_000),
        TP("payments", 3),
        record,
        pipeline="p",
        agent="settle",
        reason="failed",
        error=error,
        attempts=attempts,
        cause=cause,
        first_ms=NOW - 900,
        now_ms=NOW,
        hold=hold,
    )


def test_a_dead_letter_has_the_records_bytes_and_says_where_from_and_why() -> None:
    record = Given(value=b"\xff\x00")
    out = buried(record)
    assert (out.tp, out.timestamp, out.key, out.value) == (TP("p.dlq", 3), NO_TIMESTAMP, record.key, record.value)
    assert tuple(out.headers[:2]) == tuple(record.headers)
    said = dict(out.headers[2:])
    assert said == {
        "semel.pipeline": b"p",
        "semel.agent": b"settle",
        "semel.reason": b"failed",
        "semel.error": b"ValueError: no",
        "semel.attempts": b"5",
        "semel.topic": b"payments",
        "semel.partition": b"3",
        "semel.offset": b"12",
        "semel.timestamp": str(NOW - 5).encode(),
        "semel.dead_at": str(NOW).encode(),
        "semel.fingerprint": b"ValueError@agents.settle:settle",
        "semel.exception": b"ValueError",
        "semel.failed_first_at": str(NOW - 900).encode(),
        "semel.failed_last_at": str(NOW).encode(),
        "semel.trace": CAUSE.trace.encode(),
        "__dlq.errors.topic": b"payments",
        "__dlq.errors.partition": b"3",
        "__dlq.errors.offset": b"12",
        "__dlq.errors.group": b"p",
        "__dlq.errors.delivery.count": b"5",
        "__dlq.errors.message": b"ValueError: no",
    }


def test_what_no_exception_made_a_dead_letter_says_its_reason_only() -> None:
    said = dict(buried(Given(), cause=UNRAISED, attempts=0).headers)
    assert said["semel.fingerprint"] == b"undecodable@payments:not-of-type-Payment"
    assert said["__dlq.errors.delivery.count"] == b"1"
    assert not said.keys() & {"semel.exception", "semel.trace", "semel.code_version"}


def test_the_version_of_the_code_is_said_where_it_is_known() -> None:
    letters = DeadLetters("p.dlq", 8, 1_000_000, code_version="v1.2.3")
    assert dict(buried(Given(), letters=letters).headers)["semel.code_version"] == b"v1.2.3"


def test_a_dead_letter_says_in_the_words_of_streams_and_spring_where_it_comes_from() -> None:
    letters = DeadLetters("p.dlq", 8, 1_000_000, families=("streams", "spring"))
    said = {n: v for n, v in buried(Given(), letters=letters).headers if n.startswith(("__", "kafka_"))}
    assert said == {
        "__streams.errors.topic": b"payments",
        "__streams.errors.partition": b"3",
        "__streams.errors.offset": b"12",
        "__streams.errors.message": b"ValueError: no",
        "__streams.errors.exception": b"ValueError",
        "__streams.errors.stacktrace": CAUSE.trace.encode(),
        "kafka_dlt-original-topic": b"payments",
        "kafka_dlt-original-partition": b"\x00\x00\x00\x03",
        "kafka_dlt-original-offset": b"\x00\x00\x00\x00\x00\x00\x00\x0c",
        "kafka_dlt-original-timestamp": (NOW - 5).to_bytes(8, "big"),
        "kafka_dlt-original-consumer-group": b"p",
        "kafka_dlt-exception-message": b"ValueError: no",
        "kafka_dlt-exception-fqcn": b"ValueError",
        "kafka_dlt-exception-stacktrace": CAUSE.trace.encode(),
    }


def test_every_header_of_every_family_has_its_place_in_the_order_of_dropping() -> None:
    letters = DeadLetters("p.dlq", 8, 50_000, code_version="v", families=tuple(FAMILIES))
    out = buried(Given(value=bytes(100_000)), letters=letters)
    named = {name for name, _ in out.headers[2:]}
    # An edited letter is held by a person, not by an agent.
    assert named == HEADERS - {"semel.held", "semel.hold"}
    assert len(DROPPED_FIRST) == len(set(DROPPED_FIRST))


@pytest.mark.parametrize("most", [300, 2_000, 50_000])
def test_that_it_holds_its_key_is_said_whatever_the_topic_takes(most: int) -> None:
    out = buried(Given(value=bytes(100_000)), letters=DeadLetters("p.dlq", 8, most), hold=b"p/a/payments[3]@7/1")
    assert split_headers(out.headers)[1]["semel.hold"] == b"p/a/payments[3]@7/1"


def test_the_headers_of_a_dead_letter_are_told_from_those_it_came_with() -> None:
    again = (("trace", b"\x00"), ("semel.lineage", b"up"), *buried(Given(headers=())).headers)
    out = buried(Given(headers=again), cause=UNRAISED)
    headers, own = split_headers(out.headers)
    assert tuple(headers) == again
    assert own == dict(out.headers[len(again) :])
    assert split_headers((("trace", b"1"),)) == ((("trace", b"1"),), {})


def test_a_dead_letter_of_a_record_without_key_and_value_stays_so() -> None:
    out = buried(Given(key=None, value=None, headers=()))
    assert (out.key, out.value) == (None, None)


def test_a_dead_letter_of_a_record_that_was_too_large_to_read_says_what_is_left_out() -> None:
    out = buried(TooLarge(7, NOW, "its batch is larger than 64 MiB"))
    assert (out.key, out.value) == (None, None)
    assert dict(out.headers)["semel.left_out"] == b"its batch is larger than 64 MiB"
    assert dict(out.headers)["semel.offset"] == b"7"


@pytest.mark.parametrize("error", ["x" * 10_000, "ł" * 10_000, "\ud800" * 10_000, "a\ud800\u0000b"])
def test_any_error_text_fits_in_a_header(error: str) -> None:
    said = dict(buried(Given(), error=error).headers)["semel.error"]
    assert said is not None
    assert 0 < len(said) <= 2000
    said.decode()


def test_a_value_that_the_dead_letter_topic_does_not_take_is_left_out_and_that_is_said() -> None:
    out = buried(Given(value=bytes(100_000)), letters=DeadLetters("p.dlq", 2, 50_000))
    assert out.value is None
    assert out.tp == TP("p.dlq", 1)
    assert b"100000 bytes" in (dict(out.headers)["semel.left_out"] or b"")


@pytest.mark.parametrize("most", [600, 700, 1_000, 1_400, 2_000, 3_000, 5_000, 8_000])
@pytest.mark.parametrize("error", ["x" * 10_000, "ł" * 10_000, ""])
@pytest.mark.parametrize("value", [b"v" * 100, b"v" * 1_500, b"v" * 50_000, None])
@pytest.mark.parametrize("families", [(), ("kip1191",), tuple(FAMILIES)])
def test_a_dead_letter_fits_whatever_the_topic_takes(
    most: int, error: str, value: bytes | None, families: tuple[str, ...]
) -> None:
    letters = DeadLetters("p.dlq", 2, most - NOT_THE_VALUE_BYTES, "v1", families)
    cause = CAUSE._replace(trace="  File" * 600)
    out = buried(Given(value=value, headers=(("h", b"1" * 40),)), error=error, letters=letters, cause=cause)
    builder = DefaultRecordBatchBuilder(2, 0, 1, 1, 1, 0, 1 << 20)
    builder.append(0, NOW, out.key, out.value, headers=list(out.headers))
    assert len(builder.build()) <= most
    said = dict(out.headers)
    assert {"semel.topic", "semel.partition", "semel.offset", "semel.reason"} <= said.keys()
    if most >= 2_000 and value is not None and len(value) == 100:
        # The error gives way to the value.
        assert out.value == value
    if most >= 1_400:
        assert said["semel.error"] or not error
    dropped = [name not in said for name in DROPPED_FIRST if name not in ("semel.left_out", "semel.trace")]
    if families == tuple(FAMILIES):
        assert dropped == sorted(dropped, reverse=True), "what matters least is dropped first"
    trace = said.get("semel.trace")
    assert trace is None or cause.trace.encode().endswith(trace)
