"""`semel prove` on a real cluster, as a user runs it: on a pipeline that runs and dies meanwhile, and on one that was spoiled."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from semel.local.kafka import LocalKafka
from semel.state import lineage
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message
from tests.broker.truth import payments
from tests.broker.workers import PROJECT, SEMEL

pytestmark = pytest.mark.broker

CLEAN, VIOLATED, UNREACHABLE, UNPROVABLE = 0, 1, 3, 5


async def prove(ledger: Ledger, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    running = await asyncio.create_subprocess_exec(
        SEMEL, "prove", ledger.target, *arguments, cwd=PROJECT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SEMEL_BROKER": ledger.bootstrap, "PIPELINE": ledger.name, **environment},
    )  # fmt: skip
    out, err = await running.communicate()
    assert running.returncode is not None
    return running.returncode, out.decode(), err.decode()


async def document(ledger: Ledger, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = await prove(ledger, "--json", *arguments)
    return code, json.loads(out)


async def test_a_pipeline_is_proven_clean_while_its_worker_is_killed_again_and_again(
    ledger41: Ledger, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    events = payments(seed, 6_000)
    feeding = ledger41.feed_beside(events, per_s=1_500)
    worker = ledger41.worker().start()
    await ledger41.until_done(200)
    for _ in range(4):
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        worker.kill9()
        worker.start()
        code, live = await document(ledger41)
        assert (code, live["verdict"]) == (CLEAN, "clean"), live
    await feeding
    truth = await ledger41.settle(worker)
    report = tmp_path / "proof.html"
    code, proof = await document(ledger41, "--report", str(report))
    assert (code, proof["verdict"], proof["ledger"]) == (CLEAN, "clean", "closed"), proof
    counts = proof["counts"]
    assert counts["records"] == counts["counted_in"] == len(events)
    assert counts["duplicates"] == truth.duplicates
    assert counts["outputs"] == counts["took_effect"] == counts["counted_out"]
    assert "clean" in report.read_text() and "http" not in report.read_text()


async def test_an_output_that_somebody_forges_is_found_with_its_witnesses(ledger41: Ledger) -> None:
    await ledger41.feed(payments(1, 500))
    worker = ledger41.worker().start()
    await ledger41.settle(worker)
    assert await worker.stopped() == 0
    line = (await logs.read(ledger41.bootstrap, ledger41.sink))[7]
    assert line.header(lineage.HEADER).startswith(f"{ledger41.name}/{ledger41.source}/{line.partition}/")
    copy = Message(line.key, line.value, line.headers, partition=line.partition)
    await logs.send(ledger41.bootstrap, ledger41.sink, [copy])
    code, proof = await document(ledger41)
    assert (code, proof["verdict"]) == (VIOLATED, "violated")
    assert proof["laws"]["no-duplicate"] == 1
    [finding] = [f for f in proof["findings"] if f["law"] == "no-duplicate"]
    assert line.offset in [w["offset"] for w in finding["witnesses"] if w["topic"] == ledger41.sink]
    assert finding["witnesses"][0]["id"] == json.loads(line.value or b"")["id"]
    code, text, _ = await prove(ledger41)
    assert (code, text.startswith("violated")) == (VIOLATED, True)


async def test_events_that_were_deleted_from_the_source_are_unprovable_and_the_rest_is_not(ledger41: Ledger) -> None:
    await ledger41.feed(payments(2, 600))
    worker = ledger41.worker().start()
    await ledger41.settle(worker)
    await logs.trim(ledger41.bootstrap, ledger41.source, {0: 50})
    code, proof = await document(ledger41)
    assert (code, proof["verdict"], proof["findings"]) == (UNPROVABLE, "unprovable", [])
    [gap] = proof["unprovable"]
    assert (gap["topic"], gap["partition"], gap["start"], gap["end"], gap["events"]) == (ledger41.source, 0, 0, 50, 50)
    # The rest is held against the laws as before.
    [line, *_] = [x for x in await logs.read(ledger41.bootstrap, ledger41.sink) if x.partition == 1]
    await logs.send(ledger41.bootstrap, ledger41.sink, [Message(line.key, line.value, line.headers, partition=1)])
    assert (await document(ledger41))[0] == VIOLATED


async def test_outputs_without_lineage_are_unprovable(ledger41: Ledger) -> None:
    await ledger41.feed(payments(3, 300))
    worker = ledger41.worker(SEMEL_LINEAGE="false").start()
    await ledger41.settle(worker)
    assert {line.headers for line in await logs.read(ledger41.bootstrap, ledger41.sink)} == {()}
    code, proof = await document(ledger41)
    assert (code, proof["verdict"]) == (UNPROVABLE, "unprovable")
    assert "lineage" in proof["unprovable"][0]["sentence"]


async def test_two_agents_that_give_up_the_same_events_are_told_apart_and_a_copied_letter_is_found(
    kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    clerks = await make_ledger(kafka, target="clerks:app")
    events = payments(4, 1_500)
    feeding = clerks.feed_beside(events, per_s=1_500)
    worker = clerks.worker().start()
    await clerks.until_done(300)
    worker.kill9()
    worker.start()
    await feeding
    await clerks.drained()
    assert await worker.stopped() == 0
    amounts = [json.loads(event.value or b"")["amount"] for event in events]
    settled, audited = (sum(amount > least for amount in amounts) for least in (100, 50))
    letters = await logs.read(clerks.bootstrap, clerks.dead_letter_topic)
    assert Counter(letter.header("semel.agent") for letter in letters) == {
        "clerks.settle": len(events) - settled,
        "clerks.audit": len(events) - audited,
    }
    code, proof = await document(clerks)
    assert (code, proof["findings"]) == (CLEAN, []), proof
    assert proof["counts"]["outputs"] == settled + audited
    copy = Message(letters[0].key, letters[0].value, letters[0].headers, partition=letters[0].partition)
    await logs.send(clerks.bootstrap, clerks.dead_letter_topic, [copy])
    code, proof = await document(clerks)
    assert (code, proof["laws"]["no-duplicate"]) == (VIOLATED, 1), proof


async def test_what_cannot_be_asked_is_said_in_a_sentence(ledger41: Ledger) -> None:
    code, out, err = await prove(ledger41)
    assert (code, out) == (5, "")
    assert "has never run here" in err and "Traceback" not in err
    code, _, err = await prove(ledger41, PIPELINE=f"{ledger41.name}-other")
    assert code == 5 and "does not exist" in err
    code, _, err = await prove(ledger41, SEMEL_BROKER="127.0.0.1:1")
    assert code == UNREACHABLE and "Traceback" not in err
    code, _, err = await prove(ledger41, "--since", "yesterday")
    assert code == 2 and "2026-03-01T12:00:00" in err
    code, _, err = await prove(ledger41, "--report", "nowhere/proof.html")
    assert code == 2 and "nowhere" in err
