"""What PipelineTester shows is what a worker does: every kind of agent in both, and the same in every topic and table."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from semel.local.kafka import LocalKafka
from semel.state import lineage
from semel.testing import PipelineTester
from tests.broker import logs
from tests.broker.ledger import Ledger
from tests.broker.logs import Message
from tests.broker.pipelines.kinds import KINDS, SILENT, TIMED, audit_of, pipeline_of

pytestmark = pytest.mark.broker

AT_MS = 1_700_000_000_000
_EVENTS: list[tuple[str, Any]] = [
    *(("a", {"account": "a", "n": n}) for n in (1, 2, 0, 3)),
    ("b", {"account": "b", "n": 5}),
    ("b", {"account": "b", "n": -1}),
    ("b", {"account": "b"}),
    ("a", b"no json"),
    ("b", {"account": "b", "n": 7}),
]
SAID_MS = AT_MS + 60_000
EVENTS = [(key, v | {"at": SAID_MS + n} if isinstance(v, dict) else v) for n, (key, v) in enumerate(_EVENTS)]
ROWS = {"a": 6, "b": 12}
# So many start and run side by side: two cores, shared.
AT_ONCE = 6

Found = dict[str, Any]


def in_the_tester(kind: str, name: str) -> Found:
    with PipelineTester(pipeline_of(kind, name), partitions=1) as tester:
        for n, (key, value) in enumerate(EVENTS):
            tester.send(value, key=key, headers=[("trace", b"t%d" % n)], timestamp=AT_MS + n, settle=False)
        tester.settle()
        counts = tester.counts
        return {
            "outputs": [
                (
                    out.topic == audit_of(name),
                    out.key,
                    out.value,
                    out.timestamp,
                    {h: v for h, v in out.headers.items() if h != lineage.HEADER},
                )
                for out in sorted(tester.outputs(), key=lambda out: out.topic)
            ],
            "dead": [(d.offset, d.raw_key, d.raw_value, d.reason, d.error, d.attempts) for d in tester.dead_letters()],
            "rows": dict(tester.tables["sums"].items()),
            "stream_time": [task.committed.stream_time.ms for task in tester._deployment.tasks()],
            "counts": (counts.received, counts.outputs, counts.filtered, counts.dead_lettered),
        }


async def in_a_worker(kind: str, ledger: Ledger) -> Found:
    raw = [
        value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode() for _, value in EVENTS
    ]
    await ledger.create()
    await ledger.feed(
        Message(key.encode(), value, (("trace", b"t%d" % n),), AT_MS + n, 0)
        for n, ((key, _), value) in enumerate(zip(EVENTS, raw, strict=True))
    )
    worker = ledger.worker().start(KIND=kind)
    try:
        await ledger.until_done(len(EVENTS))
        await ledger.drained()
        [said] = (await worker.get("/pipelines"))[1]
        counts = said["counts"]
        there = await logs.topics(ledger.bootstrap)
        written = [name for name in sorted((ledger.sink, audit_of(ledger.name))) if name in there]
        found = {
            "outputs": [
                (
                    topic == audit_of(ledger.name),
                    line.key.decode(),
                    json.loads(line.value or b""),
                    line.timestamp,
                    {h: v for h, v in line.headers if h != lineage.HEADER},
                )
                for topic in written
                for line in await logs.read(ledger.bootstrap, topic)
                if line.key is not None
            ],
            "dead": [
                (
                    int(d.header("semel.offset")),
                    d.key,
                    d.value,
                    d.header("semel.reason"),
                    d.header("semel.error"),
                    int(d.header("semel.attempts")),
                )
                for d in await logs.read(ledger.bootstrap, ledger.dead_letter_topic)
            ],
            "rows": await worker.rows("sums"),
            "stream_time": [task["stream_time_ms"] for task in said["tasks"]],
            "counts": (counts["in"], counts["out"], counts["filtered"], counts["dead"]),
        }
        assert await worker.stopped() == 0
        return found
    finally:
        await ledger.close()


async def in_workers(bootstrap: str, directory: Path) -> dict[str, tuple[str, Found | BaseException]]:
    """Of each kind the name of its pipeline, and what its worker did."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def of(kind: str) -> tuple[str, Found]:
        (directory / kind).mkdir()
        name = f"agents-{kind.replace('_', '-')}-{secrets.token_hex(3)}"
        async with turns:
            ledger = Ledger(bootstrap, name, directory / kind, target="kinds:pipeline", partitions=1)
            return name, await in_a_worker(kind, ledger)

    done = await asyncio.gather(*(of(kind) for kind in KINDS), return_exceptions=True)
    return {
        kind: ("", found) if isinstance(found, BaseException) else found
        for kind, found in zip(KINDS, done, strict=True)
    }


@pytest.fixture(scope="module")
def workers(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Any]]:
    return asyncio.run(in_workers(kafka.bootstrap, tmp_path_factory.mktemp("agents")))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tester_and_a_worker_agree(kind: str, workers: dict[str, tuple[str, Any]]) -> None:
    name, found = workers[kind]
    if isinstance(found, BaseException):
        raise found
    expected = in_the_tester(kind, name)
    assert len(expected["outputs"]) == (0 if kind in SILENT else 4 if kind == "filtered" else 5)
    assert sorted(reason for _, _, _, reason, *_ in expected["dead"]) == ["failed", "rejected", "undecodable"]
    assert expected["rows"] == (ROWS | {"a": 4} if kind == "filtered" else ROWS)
    assert expected["counts"][0] == len(EVENTS)
    assert expected["stream_time"] == [(SAID_MS if kind in TIMED else AT_MS) + len(EVENTS) - 1]
    assert in_any_order(found) == in_any_order(expected)


def in_any_order(done: Any) -> Any:
    """What is parked for a while comes later than events of other keys, how much later is the clock's to say."""
    return {**done, **{name: sorted(done[name], key=repr) for name in ("outputs", "dead")}}
