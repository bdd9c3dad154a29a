"""Effects in PostgreSQL by real workers on a real Kafka, which die between the effect and Kafka's commit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.logs import Message
from tests.postgres import Postgres, running

pytestmark = pytest.mark.broker

EVENTS = 800
KILLED = -9


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with running("bookings (id text NOT NULL, number bigserial)") as server:
        yield server


def message(n: int) -> Message:
    account = f"account-{n % 8}"
    return Message(account.encode(), json.dumps({"id": f"{n}", "account": account}).encode())


async def test_a_row_is_there_once_though_workers_and_the_database_die_between_it_and_the_commit(
    kafka: LocalKafka, make_ledger: MakeLedger, postgres: Postgres, tmp_path: Path
) -> None:
    ledger, runs = await make_ledger(kafka, target="booking:pipeline"), tmp_path / "runs"
    # Little by little, so that there are many commits, each with events.
    feeding = ledger.feed_beside([message(n // 2) for n in range(2 * EVENTS)], per_s=200)
    worker = ledger.worker(INBOX=postgres.url(), RUNS=str(runs))
    for point in ("barrier.after_seal", "commit.after_offsets"):
        assert await worker.start(failpoint=f"{point}:kill:6").ended() == KILLED
    assert not feeding.done(), "the load ended before the deaths"
    worker.start()
    await worker.ready()
    postgres.restart()
    await feeding
    await ledger.drained()
    with psycopg.connect(postgres.url()) as connection:
        booked = dict(connection.execute("SELECT id, number FROM bookings").fetchall())
        assert connection.execute("SELECT count(*) FROM bookings").fetchall() == [(EVENTS,)]
    assert booked.keys() == {f"{n}" for n in range(EVENTS)}
    # Something was at stake: handlers ran again for what was booked.
    assert max(Counter(runs.read_text().split()).values()) > 1
    settled = [json.loads(line.value or b"") for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert {line["id"]: line["balance"] for line in settled} == booked
    assert len(settled) == EVENTS
    assert await logs.read(ledger.bootstrap, ledger.dead_letter_topic) == []
    assert await worker.stopped() == 0
