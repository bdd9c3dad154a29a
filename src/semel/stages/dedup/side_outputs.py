"""Side outputs: records that are done without the agent, counted and, where it must be, kept as dead letters (rules 2 and 23)."""

from __future__ import annotations

import logging
from typing import Any

from semel.display.folding import folded
from semel.port import Record
from semel.runtime.log_throttle import LogThrottle
from semel.stages.fetch.decode import Undecodable
from semel.stages.fetch.work_unit import Release, WorkUnit
from semel.stages.services import Services
from semel.stages.sink.dead_letters import dead_letter
from semel.stages.sink.destination import ProducerRecord
from semel.stages.sink.failure_cause import Cause, cause_without_exception
from semel.state.parked_event import ParkedEvent
from semel.state.replay import place_of

log = logging.getLogger("semel.agent")


class SideOutputs:
    """What is set aside is part of the batch in hand where there is one, or of the epoch at once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._throttle = LogThrottle(log, "records went to the dead letters")

    def count(self, unit: WorkUnit, name: str) -> None:
        counts = unit.cursor.task.counts if unit.batch is None else unit.batch.counts
        counts[name] += 1

    def done(self, unit: WorkUnit, name: str, letter: ProducerRecord | None = None) -> None:
        """A record needs no agent any more; `name`: what it is counted as."""
        self.count(unit, "in")
        self.count(unit, name)
        if letter is not None:
            self._keep(unit, letter)
        if unit.batch is None:
            unit.cursor.task.touched = True
            self._services.changed.set()

    def _keep(self, unit: WorkUnit, letter: ProducerRecord) -> None:
        if unit.batch is not None:
            unit.batch.letters.append(letter)
        else:
            self._services.epoch.add((letter,), letter.size)

    def no_room(self, unit: WorkUnit, record: Record) -> bool:
        """Whether a record that waits for its key finds no room: then the unit ends before it, and its partition waits."""
        cursor, parked = unit.cursor, unit.cursor.parked
        if parked is None:
            return False
        # What is parked before it is handled, and does not fit, would wait for good: the log refuses it, and it is dead-lettered.
        behind = unit.waits_for_its_key(record)
        if parked.held_by(record) is not None:
            # It takes the place of another one.
            why = parked.too_large(ParkedEvent(record))
        else:
            why = parked.no_room_for(ParkedEvent(record)) if behind else parked.full_for(record.key)
        if why:
            unit.cut(unit.index)
            cursor.hold_up(why, self._services.clock.monotonic())
        return bool(why)

    def park(self, unit: WorkUnit, event: ParkedEvent) -> None:
        """A record that waits for an earlier one of its key."""
        if unit.batch is not None:
            unit.batch.parked.append(event)
            return
        queue = unit.cursor.parked
        assert queue is not None
        queue.add(event, 0.0)
        self._services.epoch.add((), event.size)
        unit.cursor.task.touched = True
        self._services.changed.set()

    def skip(self, unit: WorkUnit, record: Record) -> None:
        """No event, but what says that a key that is held goes on without the one that holds it."""
        self.done(unit, "duplicates")
        self.release(unit, record)

    def release(self, unit: WorkUnit, record: Record) -> None:
        """The event in hand needs no agent, and ends the hold of its key, if it is a replay of the event that holds it."""
        queue = unit.cursor.parked
        if queue is None or queue.held_by(record) is None:
            return
        if unit.batch is not None:
            unit.batch.parked.append(Release(record))
        else:
            queue.release(record)
            unit.cursor.task.touched = True
            self._services.changed.set()

    def quarantine(
        self,
        unit: WorkUnit,
        record: Record,
        reason: str,
        error: str,
        attempts: int = 0,
        *,
        cause: Cause | None = None,
        first_ms: int = 0,
        hold: bool = False,
    ) -> None:
        """To the dead letters, or, where earlier events of its key are parked, behind these.

        `hold`: its key waits for its letter then. So it does where the event is the replay of one that held it. `cause`
        and `first_ms`: of what failed in an agent's hands, what it failed at, and when for the first time."""
        if unit.waits_for_its_key(record):
            self.park(unit, ParkedEvent(record, letter=(reason, error)))
            return
        services, tp = self._services, unit.cursor.tp
        if self._throttle.may_say(reason, services.clock.monotonic()):
            log.warning(
                "%s[%d]@%d goes to the dead letters (%s): %s",
                tp.topic,
                tp.partition,
                record.offset,
                reason,
                folded(error),
            )
        name, queue = b"", unit.cursor.parked
        before = None if unit.retried is None else unit.retried[unit.index]
        if queue is not None and record.key is not None and (hold or (before is not None and before[0].place >= 0)):
            name = place_of(services.app, unit.cursor.agent.name, tp, record)
            if before is not None:
                before[0].to_hold = name
            else:
                event = ParkedEvent(record, attempts=attempts, first_ms=first_ms)
                queue.hold(event, name)
                services.epoch.add((), event.size)
        now_ms = int(services.clock.time() * 1000)
        letter = dead_letter(
            services.dead_letters, tp, record, pipeline=services.app, agent=unit.cursor.agent.name, reason=reason,
            error=error, attempts=attempts, cause=cause or cause_without_exception(reason, tp.topic, error),
            first_ms=first_ms or now_ms, now_ms=now_ms, hold=name,
        )  # fmt: skip
        self.done(unit, "dead", letter)

    def unfit(self, unit: WorkUnit, record: Record, value: Any) -> None:
        """A record that nobody is to look at: it cannot be decoded, or its writes were refused before."""
        if type(value) is Undecodable:
            self.quarantine(unit, record, "undecodable", str(value.error))
        else:
            self.quarantine(unit, record, "refused", unit.cursor.poisoned[record.offset])

    def handled(self, unit: WorkUnit, handling: str, reason: str, record: Record, error: str) -> bool:
        """Do as a dedup rule says: "quarantine", "drop" or "pass". False where the event takes effect all the same."""
        if handling == "pass":
            return False
        if handling == "drop":
            self.done(unit, "dropped")
        else:
            self.quarantine(unit, record, reason, error)
        return True
