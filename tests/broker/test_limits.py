"""Peak load on a real broker: what a pipeline may be given in a second, and a worker that has halted for long."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.logs import Message

pytestmark = pytest.mark.broker

RATE, BURST = 60, 10


def payments(count: int, do: str = "") -> list[Message]:
    made: list[Message] = []
    for n in range(count):
        account = f"account-{n % 50}"
        said = {"do": do} if do else {}
        made.append(
            Message(account.encode(), json.dumps({"id": f"e{n}", "account": account, "amount": 1} | said).encode(), ())
        )
    return made


async def test_two_workers_of_which_one_is_killed_handle_no_more_than_their_pipeline_may(
    kafka: LocalKafka, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    """Also what was handled for nothing counts."""
    runs = tmp_path / "runs"
    limited = await make_ledger(kafka, target="limited:pipeline")
    await limited.feed(payments(700))
    first, second = (limited.worker(name, state=name, RUNS=str(runs)).start() for name in ("w1", "w2"))
    await asyncio.sleep(6)
    assert sum([await w.metric("semel_agent_rate_limit") for w in (first, second)]) == RATE
    second.kill9()
    await limited.drained()
    assert await first.metric("semel_agent_rate_limit") == RATE
    assert await first.metric("semel_agent_rate_limited_seconds") > 3
    await limited.settle(first)
    began = sorted(map(float, runs.read_text().split()))
    assert len(began) >= 700
    for seconds in (1.0, 5.0):
        most = max(sum(1 for at in began if start <= at < start + seconds) for start in began)
        assert most <= RATE * seconds + BURST + 2
    # And hardly less, once both of them are there.
    assert began[-1] - began[0] < 700 / RATE + 12


async def test_a_worker_that_has_halted_for_as_long_as_it_is_told_ends_with_its_exit_code(
    kafka: LocalKafka, make_ledger: MakeLedger
) -> None:
    picky = await make_ledger(kafka, target="picky:pipeline")
    await picky.feed(payments(50, "fail"))
    worker = picky.worker(SEMEL_HALTED_TIMEOUT_MS="2000").start()
    await worker.refuses("agent settle has halted for", "halted_timeout_ms", "ValueError: always", code=7)
    assert await logs.read(picky.bootstrap, picky.dead_letter_topic) == []
