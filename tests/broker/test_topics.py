"""Topics that change under an app: compacted, grown, made anew, trimmed, missing, moved by hand; and aborted transactions."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest

from semel.local import jars
from semel.local.kafka import LocalKafka
from tests.broker import logs
from tests.broker.ledger import Ledger
from tests.broker.logs import Message
from tests.broker.truth import payments
from tests.broker.workers import REFUSAL, UNPROVABLE, WorkerProcess

pytestmark = pytest.mark.broker


# -- aborted transactions in the source


async def test_events_of_aborted_transactions_never_take_effect(ledger: Ledger) -> None:
    """They lie between the others in the log, and their markers make gaps in the offsets, at the very start as well."""
    events = payments(81, 1_200)
    worker = ledger.worker().start()
    for n in range(6):
        async with logs.transaction(ledger.bootstrap, f"{ledger.name}-feeder") as producer:
            for bad in payments(900 + n, 50, redeliver=0):
                await producer.send(ledger.source, bad.value, bad.key)
            await producer.flush()
            await producer.abort_transaction()
        async with logs.transaction(ledger.bootstrap, f"{ledger.name}-feeder") as producer:
            for good in events[n * 200 : (n + 1) * 200]:
                await producer.send(ledger.source, good.value, good.key)
            await producer.commit_transaction()
    truth = await ledger.settle(worker)
    assert sum(c.records for c in truth.counts.values()) == 1_200
    assert len(await logs.read(ledger.bootstrap, ledger.source, committed=False)) == 1_500


async def test_an_open_transaction_in_the_source_holds_back_its_partition_only(ledger41: Ledger) -> None:
    ledger = ledger41
    worker = ledger.worker().start()
    async with logs.transaction(ledger.bootstrap, f"{ledger.name}-feeder") as producer:
        held = {"id": "held", "account": "held", "amount": 1}
        metadata = await producer.send_and_wait(ledger.source, json.dumps(held).encode(), b"held")
        await ledger.feed(payments(82, 400))
        await ledger.until_done(250)
        await asyncio.sleep(0.5)
        assert (await worker.row("balances", "held"))[0] == 404
        settled = await logs.read(ledger.bootstrap, ledger.sink)
        assert metadata.partition not in {line.partition for line in settled}
        await producer.commit_transaction()
    await ledger.settle(worker)


# -- compacted


@pytest.mark.parametrize("kafka_version", [jars.NEWEST], indirect=True)
@pytest.mark.parametrize("killed", [False, True], ids=["frozen meanwhile", "killed before"])
async def test_what_compaction_leaves_of_an_input_takes_effect_once(
    own_kafka: Callable[..., LocalKafka], tmp_path: Path, killed: bool
) -> None:
    """Events vanish ahead of the worker, and with them the very offset at which it goes on, and behind it, too."""
    kafka = own_kafka(properties={"log.cleaner.backoff.ms": "100"})
    kafka.start()
    ledger = Ledger(kafka.bootstrap, "cleaned", tmp_path, partitions=2)
    fed = [
        payments(seed, count, accounts=400, redeliver=0) for seed, count in ((141, 2_000), (142, 4_000), (143, 1_000))
    ]
    # Many segments, and a log that is never dirty enough, until it shall be.
    rolling = {"cleanup.policy": "compact", "segment.ms": "200"}
    try:
        await logs.create(kafka.bootstrap, ledger.source, 2, {**rolling, "min.cleanable.dirty.ratio": "1.0"})
        worker = ledger.worker(SEMEL_SESSION_TIMEOUT_MS="60000").start()
        await ledger.feed(fed[0], per_s=2_000)
        await ledger.drained()
        worker.kill9() if killed else worker.freeze()
        await ledger.feed(fed[1], per_s=2_000)
        await logs.configure(kafka.bootstrap, ledger.source, {**rolling, "min.cleanable.dirty.ratio": "0.0"})
        async with asyncio.timeout(60):
            while len(await logs.read(kafka.bootstrap, ledger.source)) > 2_000:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        worker.start() if killed else worker.thaw()
        await ledger.feed(fed[2], per_s=2_000)
        await ledger.drained()
        events = {event["id"]: event for message in chain(*fed) for event in [json.loads(message.value or b"")]}
        left = {json.loads(line.value or b"")["id"] for line in await logs.read(kafka.bootstrap, ledger.source)}
        settled = [json.loads(line.value or b"")["id"] for line in await logs.read(kafka.bootstrap, ledger.sink)]
        assert len(settled) == len(set(settled)), "an event took effect twice"
        assert left <= set(settled), "an event that is there took no effect"
        assert len(events.keys() - set(settled)) > 500, "nothing vanished that was not read"
        await worker.ready()
        balances = Counter[str]()
        for ident in settled:
            balances[events[ident]["account"]] += events[ident]["amount"]
        assert await worker.rows("balances") == balances
        code, said = await ledger.command("prove")
        assert (code, "compaction removes events from the source" in said) == (UNPROVABLE, True), said
    finally:
        await ledger.close()


# -- grown


async def done_with(ledger: Ledger, events: Sequence[Message], running: bool) -> WorkerProcess:
    """A worker that has done these events; `running`: it runs on."""
    await ledger.feed(events)
    worker = ledger.worker().start()
    await ledger.drained()
    if not running:
        assert await worker.stopped() == 0
    return worker


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it is down"])
async def test_a_source_that_grew_stops_the_worker_with_the_way_out(ledger41: Ledger, running: bool) -> None:
    ledger = ledger41
    worker = await done_with(ledger, payments(83, 500), running)
    await logs.grow(ledger.bootstrap, ledger.source, 6)
    await asyncio.sleep(1.2)
    if running:
        await ledger.feed(payments(84, 200))
    else:
        worker.start()
    await worker.refuses(f"{ledger.source!r} has 6 partitions now, 4 when {ledger.name!r} last ran", "semel reset")


# -- made anew


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it is down"])
async def test_a_source_made_anew_stops_the_worker_with_the_way_out(ledger41: Ledger, running: bool) -> None:
    ledger = ledger41
    worker = await done_with(ledger, payments(85, 500), running)
    await logs.delete(ledger.bootstrap, ledger.source)
    await ledger.create()
    await ledger.feed(payments(86, 300))
    if not running:
        worker.start()
    await worker.refuses(ledger.source, "semel reset")
    settled = {json.loads(line.value)["id"].split("-")[0] for line in await logs.read(ledger.bootstrap, ledger.sink)}
    assert settled == {"85"}, "an event of the new topic took effect on the old one's state"


@pytest.mark.parametrize("what", ["changelog", "positions"])
@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it is down"])
async def test_a_log_of_the_state_made_anew_stops_the_worker_with_the_way_out(
    ledger41: Ledger, running: bool, what: str
) -> None:
    """Restored from it, a table would be empty whose events are behind the position."""
    ledger = ledger41
    name = ledger.changelog if what == "changelog" else ledger.positions
    worker = await done_with(ledger, payments(103, 500), running)
    await logs.delete(ledger.bootstrap, name)
    if running:
        await logs.create(ledger.bootstrap, name, ledger.partitions, {"cleanup.policy": "compact"})
        await asyncio.sleep(1.2)
        await ledger.feed(payments(104, 100))
        await worker.refuses(name, "semel reset")
    # On its own disk there is a copy of the rows, on another there is none.
    for state in ("state", "fresh"):
        await ledger.worker(state=state, log=state).start().refuses(name, "semel reset")
    settled = {json.loads(line.value)["id"].split("-")[0] for line in await logs.read(ledger.bootstrap, ledger.sink)}
    assert settled == {"103"}, "an event took effect on state that was lost"
    async with asyncio.timeout(30):
        while (await ledger.command("reset", "--to", "earliest"))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.5)  # its session is not over yet
    again = ledger.worker(log="again").start()
    await ledger.drained()
    await again.ready()
    assert await again.rows("balances") == (await ledger.truth()).balances


async def test_a_source_that_is_deleted_stops_the_worker_or_is_waited_for(ledger41: Ledger) -> None:
    """Nothing is made up in its place, and nothing of the state is touched."""
    ledger = ledger41
    await ledger.feed(payments(87, 300))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    await logs.delete(ledger.bootstrap, ledger.source)
    worker.start()
    await worker.said(f"waiting for the source topic {ledger.source}")
    await asyncio.sleep(1)
    status, said = await worker.get("/readyz")
    assert (status, ledger.source in said["waiting_for"]) == (503, True)
    assert ledger.source not in await logs.topics(ledger.bootstrap)
    assert await worker.stopped() == 0


# -- trimmed


async def test_a_source_trimmed_past_the_position_stops_the_worker_with_the_way_out(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(88, 300))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    await ledger.feed(payments(89, 500))
    await logs.trim(ledger.bootstrap, ledger.source, await logs.ends(ledger.bootstrap, ledger.source))
    await ledger.feed(payments(90, 100))
    await worker.start().refuses(ledger.source, "no longer holds offset", "semel reset --to earliest", "retention")


async def test_a_source_trimmed_ahead_of_a_running_worker_stops_it_with_the_way_out(ledger41: Ledger) -> None:
    ledger = ledger41
    worker = ledger.worker("w1", SEMEL_SESSION_TIMEOUT_MS="20000").start()
    await ledger.feed(payments(91, 100))
    await ledger.drained()
    worker.freeze()
    await ledger.feed(payments(92, 500))
    await logs.trim(ledger.bootstrap, ledger.source, await logs.ends(ledger.bootstrap, ledger.source))
    await ledger.feed(payments(93, 100))
    # What a long poll had asked for before counts still: it was not trimmed when it was read.
    worker.thaw()
    await worker.refuses(ledger.source, "no longer holds offset")
    settled = [json.loads(line.value)["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert not any(ident.startswith("93-") for ident in settled), "it jumped over what was missing"


async def test_records_deleted_behind_the_position_do_not_matter(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(94, 300))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    ends = await logs.ends(ledger.bootstrap, ledger.source)
    await logs.trim(ledger.bootstrap, ledger.source, {p: at // 2 for p, at in ends.items()})
    worker.start()
    await worker.ready()
    await ledger.feed(payments(95, 100, redeliver=0))
    await ledger.drained()
    settled = [json.loads(line.value)["id"] for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert len(settled) == len(set(settled)) == 400


# -- missing


async def test_a_missing_source_is_waited_for_and_said(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    ledger = Ledger(kafka.bootstrap, topic_prefix, tmp_path)
    worker = ledger.worker().start()
    try:
        await worker.said(f"waiting for the source topic {ledger.source}: semel never creates a source")
        status, said = await worker.get("/readyz")
        assert status == 503
        assert ledger.source in said["waiting_for"]
        assert not {t for t in await logs.topics(kafka.bootstrap) if t.startswith(topic_prefix)}
        await ledger.create()
        await ledger.feed(payments(96, 200))
        await ledger.settle(worker)
    finally:
        await ledger.close()


# -- moved by hand


async def test_a_replay_from_zero_by_group_and_state_is_told_apart_by_positions(ledger41: Ledger) -> None:
    """Group offsets alone say nothing: the positions have them. Moving one without the other is refused."""
    ledger = ledger41
    await ledger.feed(payments(97, 500))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    await logs.move_group(ledger.bootstrap, ledger.name, {(ledger.source, p): 0 for p in range(4)})
    worker.start()
    await worker.refuses("somebody moved the group's offsets", "semel reset", "position record")


async def test_a_replay_from_zero_of_everything_gives_the_same_again(ledger: Ledger) -> None:
    """Positions, changelogs, marks, offsets and the store dropped: the source is processed anew, to the same end."""
    await ledger.feed(payments(98, 2_000))
    worker = ledger.worker().start()
    truth = await ledger.settle(worker)
    assert await worker.stopped() == 0
    before = [(line.key, line.value) for line in await logs.read(ledger.bootstrap, ledger.sink)]
    own = {name for name in await logs.topics(ledger.bootstrap) if name.startswith(f"{ledger.name}-")}
    assert own == {
        ledger.positions,
        ledger.changelog,
        f"{ledger.name}-dedup-changelog",
        f"{ledger.name}-parked",
        f"{ledger.name}-timers",
    }
    await logs.delete(ledger.bootstrap, *own, ledger.sink, ledger.dead_letter_topic)
    await logs.forget_group(ledger.bootstrap, ledger.name)
    again = ledger.worker(state="fresh").start()
    assert (await ledger.settle(again)).balances == truth.balances
    after = [(line.key, line.value) for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert sorted(after) == sorted(before)


async def test_a_reset_moves_positions_and_state_together(ledger41: Ledger) -> None:
    """All is processed again with empty state; a reset while a worker runs is refused."""
    ledger = ledger41
    await ledger.feed(payments(102, 500))
    worker = ledger.worker().start()
    truth = await ledger.settle(worker)
    code, said = await ledger.command("reset", "--to", "earliest")
    assert (code, "running" in said or "stop" in said) == (REFUSAL, True), said
    assert await worker.stopped() == 0
    async with asyncio.timeout(30):
        while (await ledger.command("reset", "--to", "earliest"))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.5)  # its session is not over yet
    again = ledger.worker(log="again").start()
    await ledger.drained()
    await again.ready()
    assert await again.rows("balances") == truth.balances
    # What was written stays; the same is written once more.
    settled = [(line.key, line.value) for line in await logs.read(ledger.bootstrap, ledger.sink)]
    assert len(settled) == 2 * len(set(settled)) == 2 * 500


async def test_a_group_whose_offsets_expired_goes_on_from_its_positions(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed(payments(99, 500))
    worker = ledger.worker().start()
    await ledger.drained()
    assert await worker.stopped() == 0
    await logs.forget_group(ledger.bootstrap, ledger.name)
    await ledger.feed(payments(100, 500))
    await ledger.settle(worker.start())


async def test_offsets_of_another_consumer_are_refused_and_adopted_when_told_to(ledger41: Ledger) -> None:
    ledger = ledger41
    await ledger.feed([Message(b"k", b'{"id": "old", "account": "k", "amount": 1}', partition=p) for p in range(4)])
    await logs.move_group(ledger.bootstrap, ledger.name, {(ledger.source, p): 1 for p in range(4)})
    worker = ledger.worker().start()
    await worker.refuses("--adopt", "another consumer used this group name")
    worker.start("--adopt")
    await worker.ready()
    await ledger.feed(payments(101, 200, redeliver=0))
    await ledger.drained()
    assert len(await logs.read(ledger.bootstrap, ledger.sink)) == 200
