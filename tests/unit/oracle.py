"""An oracle that knows nothing of engines, and a checker that holds their work against it.

The oracle reads the source topic and says, offset by offset, what must have come of each record. The checker holds that
against the topics the workers wrote: every output once, a key's in order, every row, every mark, and at each committed
position the counts and the stream time that belong to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from semel.memory.batch import MemoryRecord
from semel.memory.cluster import MemoryCluster
from semel.port import TP
from semel.state.dedup_marks import DEAD, unpack
from semel.state.positions import COUNTS
from semel.state.task import TaskState
from tests.unit.payments import APP, ATTEMPTS, Payment

if TYPE_CHECKING:
    from tests.unit.harness import Worker, World


@dataclass
class Truth:
    """What must have come of one partition of the source."""

    outputs: list[dict[str, Any]] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    balances: dict[str, int] = field(default_factory=dict)
    journals: dict[str, list[str]] = field(default_factory=dict)
    marks: dict[str, tuple[int, bool]] = field(default_factory=dict)
    # offset -> (counts, stream time) once everything below it is done
    below: dict[int, tuple[dict[str, int], int | None]] = field(default_factory=dict)


def oracle(records: Sequence[MemoryRecord], *, end: int) -> Truth:
    """For input within the dedup window, never ahead of the clock: what each record does, one after the other."""
    truth = Truth()
    counts = dict.fromkeys(COUNTS, 0)
    payloads: dict[str, bytes] = {}
    stream: int | None = None
    last = 0
    for record in records:
        for offset in range(last, record.offset + 1):
            truth.below[offset] = (dict(counts), stream)
        last = record.offset + 1
        counts["in"] += 1
        try:
            payment = Payment(**orjson.loads(record.value or b""))
        except (ValueError, TypeError):
            counts["dead"] += 1
            truth.dead.append((record.offset, "undecodable"))
            continue
        stream = record.timestamp if stream is None else max(stream, record.timestamp)
        if payment.id in payloads:
            if payloads[payment.id] != record.value:
                counts["conflicts"] += 1
                counts["dead"] += 1
                truth.dead.append((record.offset, "conflict"))
            elif truth.marks[payment.id][1]:
                counts["dead"] += 1
                truth.dead.append((record.offset, "duplicate"))
            else:
                counts["duplicates"] += 1
            continue
        payloads[payment.id] = record.value or b""
        failed = payment.fails < 0 or payment.fails >= ATTEMPTS
        truth.marks[payment.id] = (record.offset, failed)
        if failed:
            counts["dead"] += 1
            truth.dead.append((record.offset, "failed"))
            continue
        balance = truth.balances[payment.account] = truth.balances.get(payment.account, 0) + payment.amount
        journal = truth.journals.setdefault(payment.account, [])
        journal.append(payment.id)
        del journal[:-20]
        if payment.amount == 0:
            counts["filtered"] += 1
        else:
            counts["out"] += 1
            truth.outputs.append({"id": payment.id, "account": payment.account, "balance": balance})
    for offset in range(last, end + 1):
        truth.below[offset] = (dict(counts), stream)
    return truth


def committed_values(cluster: MemoryCluster, topic: str, partition: int) -> list[MemoryRecord]:
    return cluster.committed(topic)[partition] if topic in cluster.topics() else []


def folded(records: Sequence[MemoryRecord]) -> dict[bytes, bytes]:
    """A changelog's last word on each key."""
    rows: dict[bytes, bytes] = {}
    for record in records:
        assert record.key is not None
        if record.value is None:
            rows.pop(record.key, None)
        else:
            rows[record.key] = record.value
    return rows


def dead_letters(records: Sequence[MemoryRecord]) -> list[tuple[int, str]]:
    said = [{name: value or b"" for name, value in r.headers} for r in records]
    return [(int(h["semel.offset"]), h["semel.reason"].decode()) for h in said]


def given_up(world: World) -> list[tuple[str, str, int]]:
    """Reason, error and attempts of each dead letter."""
    found: list[tuple[str, str, int]] = []
    for log in world.cluster.committed(f"{APP}.dlq"):
        for record in log:
            headers = {name: (value or b"").decode() for name, value in record.headers}
            found.append((headers["semel.reason"], headers["semel.error"], int(headers["semel.attempts"])))
    return found


def truth_of(world: World, partition: int) -> Truth:
    end = world.cluster.log(TP("payments", partition)).end
    return oracle(world.cluster.committed("payments")[partition], end=end)


def check_partition(world: World, p: int) -> None:
    cluster = world.cluster
    truth = truth_of(world, p)
    history = world.position_history()[p] if world.position_history() else []
    # Nothing is lost, doubled or out of order.
    outputs = [orjson.loads(r.value or b"null") for r in committed_values(cluster, "settlements", p)]
    outputs, wanted = by_account(outputs), by_account(truth.outputs)
    assert outputs == wanted, difference(f"settlements[{p}]", outputs, wanted)
    dead = sorted(dead_letters(committed_values(cluster, f"{APP}.dlq", p)))
    assert dead == truth.dead, difference(f"dlq[{p}]", dead, truth.dead)
    # State is the fold of what took effect.
    balances = folded(committed_values(cluster, f"{APP}-balances-changelog", p))
    assert {k.decode(): orjson.loads(v) for k, v in balances.items()} == truth.balances, f"balances[{p}]"
    journals = folded(committed_values(cluster, f"{APP}-journals-changelog", p))
    assert {k.decode(): orjson.loads(v) for k, v in journals.items()} == truth.journals, f"journals[{p}]"
    marks = {k.decode(): unpack(v) for k, v in folded(committed_values(cluster, f"{APP}-dedup-changelog", p)).items()}
    assert {k: (m.offset, m.outcome == DEAD) for k, m in marks.items()} == truth.marks, f"marks[{p}]"
    # Positions never go back, and each says what had come of everything below it.
    before = -1
    for position in history:
        at = position.topics["payments"].next
        assert at >= before, f"positions[{p}] went from {before} back to {at}"
        before = at
        counts, stream = truth.below[at]
        if position.parked:
            done = position.counts["in"] + position.parked
            assert done == counts["in"], f"positions[{p}] at {at} counts {done} with those parked, not {counts}"
        else:
            assert position.counts == counts, f"positions[{p}] at {at} counts {position.counts}, not {counts}"
        assert position.stream_time.ms == stream, f"positions[{p}] at {at}: {position.stream_time}, not {stream}"
    if history:
        group = cluster.groups.stable_offsets(APP, [TP("payments", p)])[TP("payments", p)]
        assert group == before, f"the group is at {group}, the position at {before}"


def by_account(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each key's in their order; that of different keys says nothing."""
    return sorted(outputs, key=lambda output: output["account"])


def difference(what: str, found: list[Any], wanted: list[Any]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    return f"{what} has {len(found)}, not {len(wanted)}; at {at}: {found[at : at + 3]}, not {wanted[at : at + 3]}"


def check_store(world: World, worker: Worker) -> None:
    for p, task in worker.engine.tasks.items():
        if task.state is not TaskState.RUNNING:
            continue
        truth = truth_of(world, p)
        rows = {k.decode(): orjson.loads(v) for k, v in task.tables["balances"].scan()}
        assert rows == truth.balances, f"{worker.name}'s store, balances[{p}]"
        journals = {k.decode(): orjson.loads(v) for k, v in task.tables["journals"].scan()}
        assert journals == truth.journals, f"{worker.name}'s store, journals[{p}]"
        marks = {k[8:].decode(): unpack(v).offset for k, v in worker.store.scan_marks(p)}
        assert marks == {k: offset for k, (offset, _) in truth.marks.items()}, f"{worker.name}'s store, marks[{p}]"
