"""Handlers that take the worker's process with them, and kills from outside that only look like it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.ledger import Ledger
from tests.broker.logs import Message
from tests.broker.workers import WorkerProcess

pytestmark = pytest.mark.broker

# The pipeline's attempts are fewer: so few deaths prove nothing.
LEAST_CRASHES = 5
EVENTS = 30


def message(n: int, **more: object) -> Message:
    account = f"account-{n % 8}"
    return Message(account.encode(), json.dumps({"id": str(n), "account": account, **more}).encode())


def begun(runs: Path) -> int:
    """How often the slow event was taken up."""
    return runs.read_text().split().count("0") if runs.exists() else 0


async def supervised(worker: WorkerProcess, ledger: Ledger, within_s: float = 120) -> list[int]:
    """Started again whenever it has ended, until everything is done; with what it ended."""
    ends = time.monotonic() + within_s
    codes: list[int] = []
    worker.start()
    while await ledger.done() < EVENTS:
        assert time.monotonic() < ends, (codes, worker.log_end())
        await asyncio.sleep(0.05)
        if not worker.running:
            assert worker.exit_code is not None
            codes.append(worker.exit_code)
            worker.start()
    return codes


@pytest.mark.parametrize(
    ("do", "code", "says"),
    [
        ("exit", 1, r"ends the process by os\._exit\(0\), at .*deadly\.py:\d+ \(settle\)"),
        ("kill", -signal.SIGKILL, ""),
        ("fault", -signal.SIGSEGV, r"Segmentation fault\n\n(.*\n)*.*deadly\.py"),
        ("fault in a thread", -signal.SIGSEGV, r"Segmentation fault\n\n(.*\n)*.*deadly\.py"),
    ],
)
async def test_an_event_that_ends_the_process_ends_in_the_dead_letters(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path, do: str, code: int, says: str
) -> None:
    ledger = await make_ledger(kafka, target="deadly:pipeline", partitions=2)
    runs = tmp_path / "runs"
    await ledger.feed([*(message(n) for n in range(11)), message(11, do=do), *(message(n) for n in range(12, EVENTS))])
    worker = ledger.worker(RUNS=str(runs))
    codes = await supervised(worker, ledger)
    # Each death is one, and never an end in order; where others were in hand with it, there is one more.
    assert set(codes) == {code} and len(codes) in (LEAST_CRASHES, LEAST_CRASHES + 1), (codes, worker.log_end())
    handled = Counter(runs.read_text().split())
    assert handled["11"] == len(codes)
    (letter,) = await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
    assert json.loads(letter.value or b"")["id"] == "11"
    assert (letter.header("semel.reason"), letter.header("semel.attempts")) == ("failed", str(LEAST_CRASHES))
    assert f"ProcessEnded: its handler ended the process {LEAST_CRASHES} times in a row" in letter.header("semel.error")
    assert f"Alone in hand at {LEAST_CRASHES} deaths in a row" in worker.whole_log
    assert re.search(says, worker.whole_log)
    settled = [json.loads(line.value or b"")["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert sorted(settled, key=int) == [str(n) for n in range(EVENTS) if n != 11]
    assert await worker.stopped() == 0
    code, said = await ledger.command("prove")
    assert code == 0, said


async def test_kills_from_outside_in_quick_succession_dead_letter_nobody(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path, seed: int
) -> None:
    ledger = await make_ledger(kafka, target="deadly:pipeline", partitions=2)
    runs = tmp_path / "runs"
    await ledger.feed([message(0, wait_s=4.0), *(message(n) for n in range(1, EVENTS))])
    worker = ledger.worker(RUNS=str(runs))
    rng = random.Random(seed)
    for _ in range(10):
        worker.start()
        await worker.said("web views on")
        await asyncio.sleep(rng.uniform(0.0, 3.5))
        worker.kill9()
    assert begun(runs) >= 2
    assert await supervised(worker, ledger) == []
    assert await logs.read(ledger.bootstrap, ledger.dead_letter_topic) == []
    settled = [json.loads(line.value or b"")["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert sorted(settled, key=int) == [str(n) for n in range(EVENTS)]
    assert await worker.stopped() == 0
    code, said = await ledger.command("prove")
    assert code == 0, said


async def test_a_worker_that_is_killed_while_it_drains_blames_nobody(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = await make_ledger(kafka, target="deadly:pipeline", partitions=1)
    runs = tmp_path / "runs"
    await ledger.feed([message(0, wait_s=60.0)])
    worker = ledger.worker(RUNS=str(runs))
    for number in range(2):
        worker.start()
        began = time.monotonic()
        while begun(runs) <= number:
            assert time.monotonic() - began < 60, worker.log_end()
            await asyncio.sleep(0.05)
        worker.term()
        await worker.said("stopping: finishing what is in hand")
        worker.kill9()
    worker.start()
    await worker.ready()
    assert "the process before this one died" not in worker.whole_log
