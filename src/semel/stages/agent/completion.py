"""Completion: an event that is done, or a batch, which is one unit of work: its write set joins the open epoch (rule 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from semel.errors import StaleIncarnation
from semel.port import Record
from semel.runtime import forks
from semel.stages.agent.turns import Turns
from semel.stages.agent.work_queue import WorkQueue
from semel.stages.fetch.work_unit import OpenBatch, Release, WorkUnit
from semel.stages.services import Services
from semel.state.event_context import EventContext, OutputNumbers
from semel.state.task import Task

# What an event is counted as in its epoch beside what it writes: its dedup mark, mostly.
EVENT_BYTES = 100


def open_batch(unit: WorkUnit, context: EventContext, values: Iterator[Any]) -> list[tuple[Any, Record]]:
    """The values that are to take effect, and their records, as one. `values`: goes through the unit, and says in the context
    which record it is at."""
    unit.batch = OpenBatch()
    ids: dict[int, Any] = {}
    pairs: list[tuple[Any, Record]] = []
    for value in values:
        record = context.record
        pairs.append((value, record))
        ids[record.offset] = context.id
    context.steps = OutputNumbers(ids)
    context.batch = pairs
    unit.batch.events = len(pairs)
    unit.index = unit.start
    return pairs


class Completion:
    """One agent's. Synchronous: all of it is in the epoch, or nothing."""

    def __init__(self, services: Services, queue: WorkQueue) -> None:
        self._epoch = services.epoch
        self._changed = services.changed
        self._queue = queue
        self._generation = forks.generation
        # Events that its code has handled to their end, whatever became of their epochs.
        self.succeeded = 0
        # Of them, those that had no result.
        self.without_result = 0

    def finish(self, context: EventContext) -> None:
        """The event in hand is done."""
        if forks.generation != self._generation:
            forks.leave()
        unit: WorkUnit | None = context.unit
        if unit is None or not context.alive:
            raise StaleIncarnation("the event's epoch is over")
        writes = context.writes
        if writes.dirty:
            writes.write_back()
        task: Task = context.task
        counts = task.counts
        outputs, epoch = writes.outputs, self._epoch
        # As `OpenEpoch.add`, without its call: it is once an event.
        epoch.bytes = held = epoch.bytes + writes.bytes + EVENT_BYTES
        if held >= epoch.limit_bytes:
            epoch.fill()
        if outputs:
            epoch.outputs += outputs
            counts["out"] += len(outputs)
            if context.origin is not None:
                sent = task.outputs
                for out in outputs:
                    topic = out.tp.topic
                    sent[topic] = sent.get(topic, 0) + 1
            outputs.clear()
        else:
            counts["filtered"] += 1
            self.without_result += 1
        counts["in"] += 1
        writes.fold(task.marks)
        if unit.moved is not None:
            task.stream_ms, task.pending = unit.moved
            unit.moved = None
        context.holding = False
        unit.index += 1
        self.succeeded += 1
        if not task.touched:
            # The next event may take its time; this one is not to wait for it.
            task.touched = True
            self._changed.set()

    def finish_batch(self, context: EventContext, turns: Turns) -> None:
        """The batch in hand is done, with what became of its other records."""
        if forks.generation != self._generation:
            forks.leave()
        unit: WorkUnit = context.unit
        if not context.alive or unit.batch is None:
            raise StaleIncarnation("the batch's epoch is over")
        writes, task, batch = context.writes, unit.cursor.task, unit.batch
        writes.write_back()
        turns.look()
        results, steps = writes.outputs, context.steps
        task.counts["out"] += len(results)
        without_result = batch.events - (len(steps.counts) if steps is not None else 0)
        task.counts["filtered"] += without_result
        self.without_result += without_result
        if context.origin is not None:
            for out in results:
                task.outputs[out.tp.topic] = task.outputs.get(out.tp.topic, 0) + 1
        outs = [*batch.letters, *(results if steps is None else steps.in_order(results))]
        waiting, set_aside = unit.cursor.parked, sum(letter.size for letter in batch.letters)
        for event in batch.parked:
            assert waiting is not None
            if isinstance(event, Release):
                waiting.release(event.record)
            else:
                waiting.add(event, 0.0)
                set_aside += event.size
        self._epoch.add(outs, writes.bytes + set_aside + EVENT_BYTES * batch.events)
        results.clear()
        writes.fold(task.marks)
        if unit.moved is not None:
            task.stream_ms, task.pending = unit.moved
            unit.moved = None
        context.holding = False
        context.batch = ()
        unit.batch = None
        unit.index = unit.end
        self.succeeded += batch.events
        self._queue.batch_wrote(writes.bytes, batch.events)
        for name, count in batch.counts.items():
            task.counts[name] += count
        task.counts["in"] += batch.events
        task.touched = True
        self._changed.set()
