"""`semel dlq`: the dead letters of a real worker, by cause and one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker


def event(ident: str, account: str, **fields: Any) -> bytes:
    return json.dumps({"id": ident, "account": account, "amount": 1, **fields}).encode()


@pytest.fixture
async def picky(kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    return await make_ledger(kafka, target="picky:pipeline")


async def dlq(ledger: Ledger, verb: str, *arguments: str, code: int = 0) -> Any:
    ended, said, complained = await ledger.run("dlq", verb, ledger.target, *arguments)
    assert ended == code, complained
    assert "Traceback" not in complained
    return json.loads(said) if "--json" in arguments and said else said or complained


async def test_dead_letters_are_shown_by_cause_and_one_by_one(picky: Ledger) -> None:
    assert "there is no dead-letter topic" in await dlq(picky, "ls", code=1)
    worker = picky.worker(SEMEL_VERSION="v7").start()
    await logs.send(
        picky.bootstrap,
        picky.source,
        [Message(b"account-0", event(f"good-{n}", "account-0")) for n in range(5)]
        + [Message(b"account-%d" % (n % 3), event(f"bad-{n}", f"account-{n % 3}", do="fail")) for n in range(6)]
        + [Message(b"account-1", event(f"rejected-{n}", "account-1", do="reject")) for n in range(2)]
        + [Message(b"account-2", b"\xff no json", (("trace", b"\x00\xff"),))],
    )
    await picky.drained()
    assert await worker.stopped() == 0

    found = await dlq(picky, "ls", "--json", "--broker", picky.bootstrap)
    assert (found["pipeline"], found["topic"], found["letters"]) == (picky.name, picky.dead_letter_topic, 9)
    failed, rejected, undecodable = found["groups"]
    assert failed["fingerprint"] == "ValueError@picky:settle"
    assert (failed["count"], failed["keys"], failed["keys_exact"], failed["version"]) == (6, 3, True, "v7")
    assert (failed["reasons"], failed["exceptions"]) == ({"failed": 6}, {"ValueError": 6})
    assert 0 < failed["first_seen"] < failed["last_seen"], "the first attempt came before the last"
    assert rejected["fingerprint"] == "semel.errors.Reject@picky:settle"
    assert undecodable["fingerprint"].startswith(f"undecodable@{picky.source}:not-of-type-Payment")
    assert undecodable["exceptions"] == {}

    one = await dlq(picky, "show", failed["example"], "--json")
    assert (one["position"], one["fingerprint"], one["decoded"], one["attempts"]) == (
        failed["example"], "ValueError@picky:settle", True, 3
    )  # fmt: skip
    assert one["value"]["do"] == "fail"
    assert one["source"] == failed["source"]
    assert 'raise ValueError("always")' in one["trace"]
    assert dict(one["appended"])["__dlq.errors.topic"] == picky.source
    told = await dlq(picky, "show", f"{picky.dead_letter_topic}[{undecodable['example'].replace('@', ']@')}")
    assert "0xff206e6f206a736f6e" in told and "trace: 0x00ff" in told

    assert await dlq(picky, "show", failed["source"], "--json") == one
    assert "no dead letter of the event at" in await dlq(picky, "show", f"{picky.source}[0]@99999", code=1)
    group = await dlq(picky, "show", "--group", "ValueError@picky:settle", "--limit", "4", "--json")
    assert (group["count"], len(group["letters"])) == (6, 4)
    assert all(row["key"].startswith("account-") for row in group["letters"])
    text = await dlq(picky, "ls")
    assert "semel.errors.Reject@picky:settle" in text

    assert "no letter of the group" in await dlq(picky, "show", "--group", "nothing", code=1)
    assert "there is no dead letter at" in await dlq(picky, "show", "0@999999", code=1)
    assert "is no position" in await dlq(picky, "show", "what", code=2)
    assert "give PARTITION@OFFSET" in await dlq(picky, "show", code=2)
    await dlq(picky, "ls", "--broker", "127.0.0.1:1", code=3)
