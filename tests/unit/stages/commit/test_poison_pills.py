"""What is no record: found in the handler that gave it, else in the epoch that holds it; never by ending the worker."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from semel import Output, Pipeline, Table, Topic
from semel.codec import Codec
from semel.errors import CommitError
from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from tests.unit.harness import APP, Payment, World

BAD = 3


def codec(make: Callable[[bytes], Any]) -> Codec[int]:
    """Somebody else's codec: of the number 3 it gives what `make` makes, of the others bytes."""
    return Codec(int, lambda v: make(b"%d" % v) if v == BAD else b"%d" % v, lambda raw: int(bytes(raw)), True)


def pipeline(result: Callable[[Payment], Any], *, table: Table | None = None, **sink: Any) -> Pipeline:
    def handle(payment: Payment) -> Any:
        if table is not None:
            table[payment.account] = payment.amount
        return result(payment)

    return Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        agent=handle,
        tables=[] if table is None else [table],
        sink=Topic("settlements", **{"key": str, "value": int, **sink}),
    )


def dead(world: World) -> list[tuple[int, str, str]]:
    """(amount, reason, error) of each dead letter."""
    found: list[tuple[int, str, str]] = []
    for records in world.cluster.committed(f"{APP}.dlq"):
        for r in records:
            said = {name: (value or b"").decode() for name, value in r.headers}
            found.append((orjson.loads(r.value or b"")["amount"], said["semel.reason"], said["semel.error"]))
    return found


async def five(world: World) -> list[int]:
    """Five events of one key, the fourth of which is bad; the amounts that came out."""
    worker = world.start()
    for n in range(5):
        world.pay("a1", n)
    await world.drained(within_s=120)
    assert not worker.over
    return [int(r.value or b"") for records in world.cluster.committed("settlements") for r in records]


NO_BYTES: list[Any] = [lambda raw: raw.decode(), int, lambda raw: [raw]]


@pytest.mark.parametrize("make", NO_BYTES, ids=["str", "int", "list"])
async def test_a_codec_that_gives_no_bytes_for_a_result_costs_its_event_and_no_other(world: World, make: Any) -> None:
    world.pipeline = pipeline(lambda p: p.amount, value=codec(make))
    assert await five(world) == [0, 1, 2, 4]
    [(amount, reason, error)] = dead(world)
    assert (amount, reason) == (BAD, "failed")
    assert "Codec.encode returns bytes" in error


@pytest.mark.parametrize("make", NO_BYTES, ids=["str", "int", "list"])
async def test_a_codec_that_gives_no_bytes_for_a_key_costs_its_event_and_no_other(world: World, make: Any) -> None:
    world.pipeline = pipeline(lambda p: Output(p.amount, key=p.amount), key=codec(make))
    assert sorted(await five(world)) == [0, 1, 2, 4]
    [(amount, reason, error)] = dead(world)
    assert (amount, reason) == (BAD, "failed")
    assert "key: its codec gave" in error


@pytest.mark.parametrize("make", NO_BYTES, ids=["str", "int", "list"])
async def test_a_codec_that_gives_no_bytes_for_a_row_costs_its_event_and_no_other(world: World, make: Any) -> None:
    world.pipeline = pipeline(lambda p: p.amount, table=Table("rows", key=str, value=codec(make)))
    assert await five(world) == [0, 1, 2, 4]
    [(amount, reason, error)] = dead(world)
    assert (amount, reason) == (BAD, "failed")
    assert "table 'rows'" in error


@pytest.mark.parametrize("make", [bytearray, memoryview])
async def test_bytes_in_another_shape_are_bytes(world: World, make: Any) -> None:
    table = Table("rows", key=str, value=codec(make))
    world.pipeline = pipeline(lambda p: Output(p.amount, key=p.amount), table=table, value=codec(make), key=codec(make))
    assert sorted(await five(world)) == [0, 1, 2, 3, 4]
    assert dead(world) == []
    rows = [r.value for records in world.cluster.committed(f"{APP}-rows-changelog") for r in records]
    assert rows[-1] == b"4"


@pytest.mark.parametrize(
    "headers",
    [{"\ud800": b""}, {"h": "\ud800"}, {b"h": b""}, {"h": 5}, {"h": bytearray(b"x")}, [("h", b"", b"")], 7],
    ids=["name", "text", "bytes as a name", "number", "bytearray", "three parts", "no headers at all"],
)
async def test_headers_that_are_none_cost_their_event_and_no_other(world: World, headers: Any) -> None:
    world.pipeline = pipeline(lambda p: Output(p.amount, headers=headers if p.amount == BAD else {}))
    assert await five(world) == [0, 1, 2, 4]
    assert [(amount, reason) for amount, reason, _ in dead(world)] == [(BAD, "failed")]


class Name(enum.StrEnum):
    TRACE = "trace"


async def test_a_header_may_be_named_by_a_member_of_an_enum(world: World) -> None:
    world.pipeline = pipeline(lambda p: Output(p.amount, headers={Name.TRACE: b"x"}))
    assert await five(world) == [0, 1, 2, 3, 4]
    [*_, record] = [r for records in world.cluster.committed("settlements") for r in records]
    assert ("trace", b"x") in record.headers


@pytest.mark.parametrize("stamp", [2**63, -1, 1.5, True, "now"])
async def test_a_time_that_is_none_costs_its_event_and_no_other(world: World, stamp: Any) -> None:
    world.pipeline = pipeline(lambda p: Output(p.amount, timestamp_ms=stamp if p.amount == BAD else None))
    assert await five(world) == [0, 1, 2, 4]
    assert [(amount, reason) for amount, reason, _ in dead(world)] == [(BAD, "failed")]


async def test_what_only_the_batch_refuses_is_found_and_its_event_dead_lettered(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever passes at the emit: epochs of one event find whose it is, and the worker lives."""
    monkeypatch.setattr("semel.output.header", lambda name, value: (name, value))
    world.pipeline = pipeline(lambda p: Output(p.amount, headers={"\ud800": b""} if p.amount == BAD else {}))
    assert await five(world) == [0, 1, 2, 4]
    [(amount, reason, error)] = dead(world)
    assert (amount, reason) == (BAD, "refused")
    assert "cannot be encoded" in error
    assert "payments[1]@3 is to blame" in caplog.text or "payments[0]@3 is to blame" in caplog.text


async def test_an_output_without_an_event_that_is_no_record_fails_alone(world: World) -> None:
    worker = world.start()
    await world.until_running(worker)
    world.cluster.create_topic("notes", 1)

    def note(value: Any) -> asyncio.Future[None]:
        return worker.engine.outbox(ProducerRecord(TP("notes", 0), None, b"k", value, ()))

    sent = [note(b"1"), note("no bytes"), note(b"2")]
    world.pay_many(20)
    told = await asyncio.gather(*sent, return_exceptions=True)
    assert (told[0], told[2]) == (None, None)
    assert isinstance(told[1], CommitError)
    assert "cannot be encoded" in str(told[1])
    assert [r.value for r in world.cluster.committed("notes")[0]] == [b"1", b"2"]
    await world.drained()
    world.check()


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_that_cannot_say_what_it_is_costs_its_event_and_no_other(world: World) -> None:
    def result(payment: Payment) -> int:
        if payment.amount == BAD:
            raise Mute
        return payment.amount

    world.pipeline = pipeline(result)
    assert await five(world) == [0, 1, 2, 4]
    [(amount, reason, error)] = dead(world)
    assert (amount, reason) == (BAD, "failed")
    assert error == "Mute (its message cannot be read: RuntimeError)"


async def test_a_record_whose_headers_fill_the_dead_letter_topic_is_dead_lettered_without_them(world: World) -> None:
    world.pipeline = pipeline(lambda p: p.amount)
    world.cluster.create_topic(f"{APP}.dlq", 2, {"max.message.bytes": "100000"})
    worker = world.start()
    await world.until_running(worker)
    headers = [(f"h{n}", bytes(1_000)) for n in range(100)]
    world.cluster.write(TP("payments", 0), [(b"a1", b"not json")], headers=headers)
    await world.drained()
    [record] = [r for records in world.cluster.committed(f"{APP}.dlq") for r in records]
    said = dict(record.headers)
    assert record.value is None
    assert b"headers of about" in (said["semel.left_out"] or b"")
    assert (said["semel.topic"], said["semel.offset"]) == (b"payments", b"0")


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize("read", [False, True], ids=["nobody reads it", "the agent reads it"])
async def test_a_key_that_is_none_of_its_type_fails_the_event_that_reads_it_at_once_and_no_other(
    world: World, read: bool
) -> None:
    attempts: list[int] = []

    async def settle(payments: Any) -> Any:
        async for event in payments.events():
            attempts.append(event.offset)
            yield event.value.amount if not read or event.key else 0

    world.pipeline = Pipeline(
        APP,
        source=Topic("payments", key=str, value=Payment),
        agent=settle,
        sink=Topic("settlements", key=str, value=int),
    )
    world.start()
    for amount, key in ((1, b"a1"), (2, b"\xff\x00"), (3, b"a1")):
        value = orjson.dumps({"id": f"p{amount}", "account": "a1", "amount": amount})
        world.cluster.write(TP("payments", 0), [(key, value)])
    await world.drained(within_s=60)
    assert len(attempts) == 3
    assert [(amount, reason) for amount, reason, _ in dead(world)] == ([(2, "failed")] if read else [])
    out = [int(r.value or b"") for records in world.cluster.committed("settlements") for r in records]
    assert sorted(out) == ([1, 3] if read else [1, 2, 3])


async def test_a_field_that_a_class_does_not_have_is_ignored(world: World) -> None:
    world.pipeline = pipeline(lambda p: p.amount)
    world.start()
    world.write({"id": "p1", "account": "a1", "amount": 7, "sent_by": "a newer producer"}, "a1")
    await world.drained()
    assert dead(world) == []
