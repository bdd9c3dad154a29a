"""Checkpoint: an epoch is cut from what the tasks did (seal), and lands in the store once Kafka has it (rules 7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from semel.plan import Plan
from semel.port import TP
from semel.stages.commit.epoch import EpochState, SealedEpoch, by_partition
from semel.stages.sink.destination import ProducerRecord, state_records
from semel.state import positions
from semel.state.positions import Position, Sink
from semel.state.store import Store
from semel.state.task import Task, task_meta


def seal(
    plan: Plan,
    tasks: Iterable[Task],
    outs: Sequence[ProducerRecord],
    *,
    number: int,
    generation: int,
    writer: str,
    now_ms: int,
    sinks: Callable[[int], dict[str, Sink]],
) -> SealedEpoch:
    """Everything that one transaction writes. Synchronous: nothing an agent does can fall between its parts.

    `sinks`: by task, what is known of the topics that outputs go to.
    `tasks`: those touched; each gets a position record and the fence of its offsets, moved or not (rule 9). An app without
    source topics leaves a position record without positions: the epoch's name, so that it can be found again.
    """
    records = by_partition(outs)
    offsets: dict[TP, int] = {}
    standing: dict[Task, Position] = {}
    state_logs = plan.state_logs
    for task in tasks:
        task.touched = False
        p = task.partition
        for log in task.state_logs:
            if log.touched:
                tp = TP(log.topic, p)
                records[tp] = state_records(tp, log.seal())
        # Until it is known that nobody else has a log, it is claimed only.
        task.claims = dict.fromkeys(task.unclaimed, now_ms)
        logs = {name: task.logs[name]["id"] for name in state_logs if name not in task.unclaimed}
        position = task.position(generation, writer, number, now_ms, logs, sinks(p))
        standing[task] = position
        tp = TP(plan.positions_topic, p)
        records[tp] = state_records(tp, [(positions.KEY, position.encode())])
        for topic, at in position.topics.items():
            offsets[TP(topic, p)] = at.next
    if not plan.sources:
        tp = TP(plan.positions_topic, 0)
        position = Position({}, generation=generation, writer=writer, epoch=number, at_ms=now_ms)
        records[tp] = state_records(tp, [(positions.KEY, position.encode())])
    return SealedEpoch(number, records, offsets, now_ms, standing)


def land(store: Store, plan: Plan, sealed: SealedEpoch, *, now_ms: int) -> dict[TP, int]:
    """Write a committed epoch to the store in one batch, then drop what lay over it. StoreError: it is not written.

    Of one that was abandoned nothing is written: its tasks are restored. Returns how far the logs of marks may be trimmed:
    only expired ones lie before, and the position says so (rule 21).
    """
    if sealed.abandoned:
        sealed.abandon()
        return {}
    batch = store.batch()
    trims: dict[TP, int] = {}
    for task, position in sealed.positions.items():
        p = task.partition
        for log in task.state_logs:
            log.land(batch, _advance(task, log.topic, sealed), position.stream_time.ms)
        if position.trimmed > task.committed.trimmed:
            trims[TP(plan.marks_topic, p)] = position.trimmed
        task.stamp_offset = _advance(task, plan.positions_topic, sealed)
        batch.meta(p, task_meta(task, position, now_ms))
    store.write(batch)
    for task, position in sealed.positions.items():
        task.committed = position
        for log in task.state_logs:
            log.landed()
    sealed.step(EpochState.LANDED)
    return trims


def _advance(task: Task, topic: str, sealed: SealedEpoch) -> int:
    """Note how far the log is in the store; the offset of the epoch's first record there, -1 if not told."""
    tp = TP(topic, task.partition)
    base = sealed.base_offsets.get(tp, -1)
    if base >= 0:
        task.logs[topic]["next"] = base + len(sealed.records[tp])
    return base
