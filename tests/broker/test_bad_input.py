"""Records that cannot be handled: each is said, kept whole in the dead letters, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Line, Message
from tests.broker.truth import payments

pytestmark = pytest.mark.broker

HEADERS = (("trace", b"\x00\xff"), ("trace", b"twice"), ("empty", b""))
DAY_MS = 86_400_000
YEAR_2099_MS = 4_070_908_800_000


def event(ident: str = "bad", account: str = "account-0", **fields: Any) -> bytes:
    return json.dumps({"id": ident, "account": account, "amount": 1, **fields}).encode()


@pytest.fixture
async def picky(kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    return await make_ledger(kafka, target="picky:pipeline")


@dataclass
class Outcome:
    dead: list[Line]
    settled: list[dict[str, Any]]
    balances: dict[str, int]
    log: str


async def outcome(picky: Ledger, *bad: Message, settled: int) -> Outcome:
    """What becomes of bad records among good ones, of which `settled` in all have a result; the worker lives on."""
    worker = picky.worker().start()
    await picky.feed(payments(131, 100, redeliver=0))
    await logs.send(picky.bootstrap, picky.source, bad, large=True)
    await picky.feed(payments(132, 100, redeliver=0))
    await picky.drained()
    await worker.ready()
    found = Outcome(
        await logs.read(picky.bootstrap, picky.dead_letter_topic),
        [json.loads(line.value or b"null") for line in await logs.read(picky.bootstrap, picky.sink)],
        await worker.rows("balances"),
        worker.log,
    )
    assert len(found.settled) == settled, worker.log_end()
    assert sum(s["account"] != "" for s in found.settled) == settled
    right: dict[str, int] = {}
    for s in found.settled:
        right[s["account"]] = s["balance"]
    assert found.balances == right
    assert await worker.stopped() == 0
    return found


def the_dead(found: Outcome, reason: str, message: Message, *said: str) -> Line:
    """The one dead letter: the record as it came, and why."""
    [dead] = found.dead
    assert (dead.key, dead.value) == (message.key, message.value)
    assert dead.headers[: len(message.headers)] == tuple(message.headers)
    assert dead.header("semel.reason") == reason
    for words in said:
        assert words in dead.header("semel.error"), dead.header("semel.error")
    where = f"[{dead.header('semel.partition')}]@{dead.header('semel.offset')} goes to the dead letters ({reason})"
    assert where in found.log
    return dead


BAD = {
    "bytes that are no JSON": (b"\xff\xfe\x00not json", ""),
    "an empty value": (b"", ""),
    "a null value": (None, "null"),
    "a wrong type": (event(amount="ten"), "amount"),
    "another shape": (b"[1, 2, 3]", ""),
    "a missing field": (b'{"id": "bad", "account": "account-0"}', "amount"),
    "a null where none may be": (b'{"id": "bad", "account": null, "amount": 1}', "account"),
    "a number out of all bounds": (b'{"id": "bad", "account": "account-0", "amount": 1e400}', ""),
    "deep nesting": (b"[" * 100_000, ""),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_value_that_is_not_what_the_topic_declares_is_dead_lettered_whole(picky: Ledger, what: str) -> None:
    value, said = BAD[what]
    bad = Message(b"account-0", value, HEADERS)
    found = await outcome(picky, bad, settled=200)
    dead = the_dead(found, "undecodable", bad, said)
    assert dead.header("semel.pipeline") == picky.name
    assert dead.header("semel.topic") == picky.source
    assert dead.partition == int(dead.header("semel.partition"))


async def test_a_null_key_is_no_error_where_the_table_row_lives_elsewhere_is(picky: Ledger) -> None:
    """The event goes to some partition; its account's row belongs to one. Writing it anywhere else is refused."""
    home = {m.key: None for m in payments(131, 100, redeliver=0)}
    assert home
    bad = [Message(None, event(f"bad-{p}", "account-0"), HEADERS, partition=p) for p in range(4)]
    found = await outcome(picky, *bad, settled=201)
    assert len(found.dead) == 3
    for dead in found.dead:
        assert dead.key is None
        assert dead.headers[: len(HEADERS)] == HEADERS
        assert "WrongPartition" in dead.header("semel.error")


async def test_a_value_without_its_dedup_key_is_dead_lettered(picky: Ledger) -> None:
    bad = Message(b"account-0", event(""), HEADERS)
    found = await outcome(picky, bad, settled=200)
    the_dead(found, "missing", bad, "no dedup key")


async def test_a_record_that_a_few_kilobytes_stand_for_is_dead_lettered_and_costs_little(picky: Ledger) -> None:
    """200 MB of it, compressed to a few kB by whoever may write to the source."""
    producer = AIOKafkaProducer(
        bootstrap_servers=picky.bootstrap, compression_type="zstd", max_request_size=1 << 30, acks="all"
    )
    await producer.start()
    try:
        await producer.send_and_wait(picky.source, b'"' + b"0" * (200 << 20) + b'"', b"account-0")
    finally:
        await producer.stop()
    worker = picky.worker().start()
    await picky.feed(payments(131, 100, redeliver=0))
    await picky.drained()
    [dead] = await logs.read(picky.bootstrap, picky.dead_letter_topic)
    assert (dead.value, dead.header("semel.reason"), dead.header("semel.offset")) == (None, "undecodable", "0")
    assert "larger than 32 MiB" in dead.header("semel.left_out")
    assert len(await logs.read(picky.bootstrap, picky.sink)) == 100
    status = Path(f"/proc/{worker.pid}/status").read_text()  # noqa: ASYNC240
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) // 1024
    assert peak_mb < 500, "what is decompressed is bounded"
    assert await worker.stopped() == 0


async def test_a_value_of_five_megabytes_takes_effect_or_is_dead_lettered_whole(
    any_kafka: LocalKafka, make_ledger: MakeLedger, topic_prefix: str
) -> None:
    """The dead-letter topic takes what the source takes, with room for the headers."""
    picky = await make_ledger(any_kafka, name=f"{topic_prefix}-large", target="picky:pipeline")
    await logs.delete(picky.bootstrap, picky.source)
    await picky.create(max_message_bytes="6000000")
    good = Message(b"account-0", event("large", note="n" * 5_000_000), HEADERS)
    bad = Message(b"account-0", b"x" * 5_000_000, HEADERS)
    found = await outcome(picky, good, bad, settled=201)
    the_dead(found, "undecodable", bad)


async def test_an_output_too_large_for_its_topic_is_refused_in_the_handler(picky: Ledger) -> None:
    bad = Message(b"account-0", event(do="grow"), HEADERS)
    found = await outcome(picky, bad, settled=200)
    the_dead(found, "failed", bad, "OutputRefused", "max.message.bytes=200000")


async def test_an_output_stamped_too_far_ahead_is_refused_in_the_handler(picky: Ledger) -> None:
    """Kafka 4 takes an hour; without the check the refusal would come at the commit, again and again."""
    bad = Message(b"account-0", event(do="future"), HEADERS)
    found = await outcome(picky, bad, settled=200)
    the_dead(found, "failed", bad, "OutputRefused", "message.timestamp.after.max.ms")


async def test_an_event_of_1970_among_those_of_today_is_late(picky: Ledger) -> None:
    bad = Message(b"account-0", event(), HEADERS, timestamp=DAY_MS)
    found = await outcome(picky, bad, settled=200)
    dead = the_dead(found, "late", bad, "older than stream time")
    assert dead.header("semel.timestamp") == str(DAY_MS)


async def test_an_event_of_2099_is_dead_lettered_and_stops_no_clock(
    any_kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    """One bad clock does not make every other event late."""
    picky = await make_ledger(any_kafka, target="picky:pipeline")
    await logs.delete(picky.bootstrap, picky.source)
    await picky.create(message_timestamp_after_max_ms=str(2**62))
    bad = Message(b"account-0", event(), HEADERS, timestamp=YEAR_2099_MS)
    found = await outcome(picky, bad, settled=200)
    dead = the_dead(found, "clock", bad, "ahead of this worker's clock")
    assert dead.header("semel.timestamp") == str(YEAR_2099_MS)
    assert abs(dead.timestamp - time.time() * 1000) < 600_000, "a dead letter is stamped now"


async def test_a_topic_that_begins_in_1970_is_processed(kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    picky = await make_ledger(kafka, target="picky:pipeline")
    # By default the broker deletes what is a week old, whenever it looks: the worker would say so and stop.
    await logs.delete(picky.bootstrap, picky.source)
    await picky.create(retention_ms="-1")
    old = [Message(m.key, m.value, timestamp=DAY_MS + n) for n, m in enumerate(payments(133, 50, redeliver=0))]
    await picky.feed(old)
    worker = picky.worker().start()
    await picky.drained()
    settled = await logs.read(picky.bootstrap, picky.sink)
    assert len(settled) == 50
    assert {line.timestamp for line in settled} == {m.timestamp for m in old}
    assert await logs.read(picky.bootstrap, picky.dead_letter_topic) == []
    assert await worker.stopped() == 0


async def test_a_rejected_event_is_dead_lettered_at_once_and_leaves_no_trace(picky: Ledger) -> None:
    bad = Message(b"account-0", event(do="reject"), HEADERS)
    found = await outcome(picky, bad, settled=200)
    dead = the_dead(found, "rejected", bad, "not a payment of ours")
    assert dead.header("semel.attempts") == "1"


async def test_an_event_that_always_fails_is_tried_again_then_dead_lettered_without_a_trace(picky: Ledger) -> None:
    """What it yielded and wrote before it failed is undone each time."""
    bad = Message(b"account-0", event(do="fail"), HEADERS)
    found = await outcome(picky, bad, settled=200)
    dead = the_dead(found, "failed", bad, "ValueError: always")
    assert dead.header("semel.attempts") == "3"


async def test_an_event_that_fails_once_takes_effect_once_and_in_its_place(picky: Ledger) -> None:
    bad = Message(b"account-0", event("again", do="fail once"), HEADERS)
    found = await outcome(picky, bad, settled=201)
    assert found.dead == []
    assert [s["id"] for s in found.settled].count("again") == 1
    mine = [s["id"] for s in found.settled if s["account"] == "account-0"]
    assert mine.index("again") == sum(m.key == b"account-0" for m in payments(131, 100, redeliver=0)), (
        "events of its key stood before and after it"
    )


async def test_a_duplicate_of_a_dead_event_follows_it(picky: Ledger) -> None:
    bad = Message(b"account-0", event(do="fail"), HEADERS)
    worker = picky.worker().start()
    await picky.feed([bad, bad])
    await picky.drained()
    dead = await logs.read(picky.bootstrap, picky.dead_letter_topic)
    assert [line.header("semel.reason") for line in dead] == ["failed", "duplicate"]
    assert [line.value for line in dead] == [bad.value] * 2
    assert await logs.read(picky.bootstrap, picky.sink) == []
    assert await worker.stopped() == 0


async def test_an_event_that_takes_too_long_is_left_out_of_the_epochs_until_it_is_done(picky: Ledger) -> None:
    worker = picky.worker(SEMEL_HANDLER_TIMEOUT_MS="300").start()
    await worker.ready()
    await picky.feed([Message(b"account-0", event("before")), Message(b"account-0", event("slow", do="sleep"))])
    await worker.said("is left out of")
    slow = [json.loads(line.value or b"")["id"] for line in await logs.read(picky.bootstrap, picky.sink)]
    assert slow == ["before"]
    await picky.drained()
    settled = [json.loads(line.value or b"") for line in await logs.read(picky.bootstrap, picky.sink)]
    assert [(s["id"], s["balance"]) for s in settled] == [("before", 1), ("slow", 2)]
    assert await worker.stopped() == 0


async def test_a_sink_that_is_gone_is_said_and_costs_nothing(picky: Ledger) -> None:
    worker = picky.worker().start()
    await picky.feed(payments(134, 100, redeliver=0))
    await picky.drained()
    told = len(worker.log)
    await logs.delete(picky.bootstrap, picky.sink)
    await picky.feed(payments(135, 100, redeliver=0))
    async with asyncio.timeout(30):
        while picky.sink not in worker.log[told:]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await asyncio.sleep(4)
    assert worker.running, worker.log_end()
    await logs.create(picky.bootstrap, picky.sink, 4)
    await picky.drained()
    settled = [json.loads(line.value or b"")["id"] for line in await logs.read(picky.bootstrap, picky.sink)]
    assert sorted(settled) == sorted(f"135-{n}" for n in range(100))
    assert await worker.stopped() == 0
