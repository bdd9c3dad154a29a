"""User code that ends oddly, or does not end: its event fails, and the worker ends when it is told to."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message
from tests.broker.truth import payments
from tests.broker.workers import WorkerProcess

pytestmark = pytest.mark.broker


@pytest.fixture
async def odd(kafka: LocalKafka, make_ledger: MakeLedger) -> Ledger:
    return await make_ledger(kafka, target="odd:pipeline")


def event(ident: str, do: str) -> Message:
    return Message(b"account-0", json.dumps({"id": ident, "account": "account-0", "amount": 1, "do": do}).encode())


async def handling(worker: WorkerProcess, odd: Ledger, do: str) -> None:
    """Returns when the worker has begun to handle an event that does not end."""
    await odd.feed(payments(141, 20, redeliver=0))
    await odd.drained()
    await logs.send(odd.bootstrap, odd.source, [event(do, do)])
    await asyncio.sleep(1.5)
    assert worker.running


async def test_an_exit_or_a_cancellation_in_a_handler_costs_its_event_only(odd: Ledger) -> None:
    worker = odd.worker().start()
    await odd.feed(payments(141, 50, redeliver=0))
    await logs.send(odd.bootstrap, odd.source, [event(do, do) for do in ("exit", "interrupt", "cancel")])
    await odd.feed(payments(142, 50, redeliver=0))
    await odd.drained()
    dead = [dict(line.headers) for line in await logs.read(odd.bootstrap, odd.dead_letter_topic)]
    errors = sorted((d["semel.error"] or b"").split(b":")[0] for d in dead)
    assert errors == [b"CancelledError", b"KeyboardInterrupt", b"SystemExit"], worker.log_end()
    settled: list[Any] = [json.loads(line.value or b"null") for line in await logs.read(odd.bootstrap, odd.sink)]
    assert len(settled) == 100
    assert await worker.stopped() == 0


async def test_what_a_handler_does_to_the_event_loop_and_to_its_tasks_costs_its_event_at_most(odd: Ledger) -> None:
    """Each of them ended the worker, again at each start."""
    worker = odd.worker().start()
    await odd.feed(payments(141, 20, redeliver=0))
    await odd.drained()
    failing, done = ("cancel all", "exit in a task", "exit in a group"), ("exit beside", "stop the loop")
    await logs.send(odd.bootstrap, odd.source, [event(do, do) for do in (*failing, *done)])
    await odd.feed(payments(142, 20, redeliver=0))
    await odd.drained()
    dead = {
        json.loads(line.value or b"")["id"]: line.header("semel.error")
        for line in await logs.read(odd.bootstrap, odd.dead_letter_topic)
    }
    assert sorted(dead) == sorted(failing), worker.log_end()
    assert "HandlingError: the program's code cancels task" in dead.pop("cancel all")
    assert all(error.startswith("SystemExit: 0") for error in dead.values())
    settled: list[Any] = [json.loads(line.value or b"null") for line in await logs.read(odd.bootstrap, odd.sink)]
    assert sorted(s["id"] for s in settled if s["id"] in (*failing, *done)) == list(done) and len(settled) == 42
    assert "has stopped the event loop, and the worker goes on" in worker.log
    assert re.search(r"agent settle has started raised SystemExit\(0\), at \S+\[\d\]@\d+ ", worker.log), (
        worker.log_end()
    )
    assert await worker.stopped() == 0
    code, said = await odd.command("prove")
    assert code == 0, said


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [("swallow", 0, "swallows CancelledError"), ("thread", 0, "still runs time.sleep"), ("spin", 1, "It stands here")],
)
async def test_a_worker_ends_within_its_drain_deadline_whatever_its_handler_does(
    odd: Ledger, do: str, code: int, words: str
) -> None:
    worker = odd.worker(SEMEL_HANDLER_TIMEOUT_MS="500", SEMEL_DRAIN_TIMEOUT_MS="3000").start()
    await handling(worker, odd, do)
    began = time.monotonic()
    assert await worker.stopped() == code, worker.log_end()
    # The deadline, what is waited for after it, and a slow machine.
    assert time.monotonic() - began < 20
    assert words in worker.log
    assert do == "thread" or "odd.py" in worker.log
