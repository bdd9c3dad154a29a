"""What PipelineTester shows is what a worker does: every kind of agent in both, and the same in every topic and table."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from semel import lineage
from semel.local.kafka import LocalKafka
from semel.testing import PipelineTester
from tests.broker import logs
from tests.broker.conftest import MakeLedger
from tests.broker.logs import Message
from tests.broker.pipelines.kinds import pipeline_of

pytestmark = pytest.mark.broker

AT_MS = 1_700_000_000_000
EVENTS: list[tuple[str, Any]] = [
    *(("a", {"account": "a", "n": n}) for n in (1, 2, 0, 3)),
    ("b", {"account": "b", "n": 5}),
    ("b", {"account": "b", "n": -1}),
    ("b", {"account": "b"}),
    ("a", b"no json"),
    ("b", {"account": "b", "n": 7}),
]
KINDS = (
    "values", "events", "current", "batches", "items", "filtered", "enumerated", "sending", "function", "coroutine",
)  # fmt: skip


def in_the_tester(kind: str, name: str) -> dict[str, Any]:
    with PipelineTester(pipeline_of(kind, name), partitions=1) as tester:
        for n, (key, value) in enumerate(EVENTS):
            tester.send(value, key=key, headers=[("trace", b"t%d" % n)], timestamp=AT_MS + n, settle=False)
        tester.settle()
        counts = tester.counts
        return {
            "outputs": [
                (out.key, out.value, out.timestamp, {h: v for h, v in out.headers.items() if h != lineage.HEADER})
                for out in tester.outputs()
            ],
            "dead": [(d.offset, d.raw_value, d.reason, d.error, d.attempts) for d in tester.dead_letters()],
            "rows": dict(tester.tables["sums"].items()),
            "counts": (counts.received, counts.outputs, counts.filtered, counts.dead_lettered),
        }


@pytest.mark.parametrize("kind", KINDS)
async def test_the_tester_and_a_worker_agree(kind: str, kafka: LocalKafka, make_ledger: MakeLedger) -> None:
    ledger = await make_ledger(kafka, target="kinds:pipeline", partitions=1)
    raw = [
        value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode() for _, value in EVENTS
    ]
    await ledger.feed(
        Message(key.encode(), value, (("trace", b"t%d" % n),), AT_MS + n, 0)
        for n, ((key, _), value) in enumerate(zip(EVENTS, raw, strict=True))
    )
    worker = ledger.worker().start(KIND=kind)
    await ledger.drained()
    [counts] = [p["counts"] for p in (await worker.get("/pipelines"))[1]]
    found = {
        "outputs": [
            (
                line.key.decode(),
                json.loads(line.value or b""),
                line.timestamp,
                {h: v for h, v in line.headers if h != lineage.HEADER},
            )
            for line in await logs.read(ledger.bootstrap, ledger.sink)
            if line.key is not None
        ],
        "dead": [
            (
                int(d.header("semel.offset")),
                d.value,
                d.header("semel.reason"),
                d.header("semel.error"),
                int(d.header("semel.attempts")),
            )
            for d in await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
        ],
        "rows": await worker.rows("sums"),
        "counts": (counts["in"], counts["out"], counts["filtered"], counts["dead"]),
    }
    expected = await asyncio.to_thread(in_the_tester, kind, ledger.name)
    assert len(expected["outputs"]) == (4 if kind == "filtered" else 5)
    assert len(expected["dead"]) == 3
    assert found == expected
