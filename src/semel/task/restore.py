"""Restore: bring a task's store and position up to the end of its logs (protocol rules 11, 14, 15, 18).

The order is the rule: stable group offsets, then end offsets read uncommitted, then the logs read by position to there,
committed records only. Most of the time there is nothing to read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import orjson

from semel.broker.answers import needs_a_person
from semel.errors import RecoveryError, TopicChanged
from semel.plan import Plan
from semel.port import TP, Broker, Clock, Randomness, Record, RpcError, RpcLost, TopicInfo
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.stages.fetch.fetch_errors import FetchErrors
from semel.stages.sink.outbox import InDoubt
from semel.state import positions
from semel.state.positions import Position, PositionLog
from semel.state.store import Store
from semel.state.task import Task, task_meta
from semel.task.declaration_changes import changes
from semel.task.log_owners import Owners
from semel.task.log_reader import LogReader
from semel.task.read_committed import Piece
from semel.task.start_position import decide, disagrees
from semel.task.topic_identity import bereft, check_log_ids, check_logs, not_known, of_a_life_that_is_over
from semel.task.topics import Topics

log = logging.getLogger("semel.restore")

CHUNK_RECORDS = 20_000
# How long a coordinator may answer with offsets of before its last commits (docs/decisions/group-offsets-behind.md), and a
# broker with a topic that is no more.
BEHIND_S = 5.0
BEHIND_PAUSE_S = 0.2


class Restorer:
    """Restores one task at a time per call; calls may run side by side."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        randomness: Randomness,
        failpoints: Failpoints,
        store: Store,
        plan: Plan,
        settings: EngineSettings,
        topics: Topics,
        troubles: FetchErrors,
        *,
        own_id: str,
    ) -> None:
        self._topics = topics
        self._broker = broker
        self._types = ""
        self._said_notes: set[str] = set()
        self._clock = clock
        self._pass = failpoints
        self._store = store
        self._plan = plan
        self._settings = settings
        self._logs = LogReader(
            broker,
            clock,
            randomness,
            plan,
            troubles,
            look_at=self._look_at,
            own_id=own_id,
            transaction_timeout_ms=settings.transaction_timeout_ms,
        )
        claim_ms = settings.session_timeout_ms + settings.commit_timeout_ms
        self._owners = Owners(plan, broker, self._logs, clock, claim_ms=claim_ms)
        self.confirm = self._owners.confirm

    async def restore(self, task: Task, topics: Mapping[str, TopicInfo]) -> Position:
        """The task's committed position; its store is up to it. RecoveryError where a person must decide.

        `topics`: fresh metadata of sources and logs. Broker errors that pass are waited out; the caller bounds the time.
        """
        sources = task.source_tps()
        group_offsets = await self._logs.stable_offsets(sources) if sources else {}
        await self._pass("restore.after_offsets")
        task.unseen = any(offset < 0 for offset in group_offsets.values())
        logs = [TP(name, task.partition) for name in self._plan.logs]
        began_ms, began_at = self._now_ms(), self._clock.monotonic()
        ends = await self._logs.ends(logs)
        starts = await self._logs.starts(logs)
        await self._pass("restore.after_ends")
        meta = self._store.meta(task.partition) or {}
        known: dict[str, dict[str, Any]] = meta.get("logs", {})
        position = positions.from_json(meta["position"]) if meta.get("position") else None
        if known:
            why = await self._rebuild_reason(task, meta, position, known, topics, starts, ends)
            if why:
                if not await self._is_over(task, position, topics, starts, ends):
                    await self._check_logs(task, position is not None, group_offsets, topics, starts, ends)
                log.warning("task %d: its store is rebuilt from the changelogs: %s", task.partition, why)
                batch = self._store.batch()
                batch.drop_partition(task.partition)
                self._store.write(batch)
                known, position = {}, None
        stands = {tp.topic: int(known[tp.topic]["next"]) for tp in logs if tp.topic in known}
        if any(stands.get(tp.topic, 0) < starts[tp] for tp in logs if tp.topic in self._plan.state_logs):
            # Before anything of them is noted: what is not there must be missed another time, too.
            recorded = await self._recorded(task.partition, starts, ends)
            bereft(self._plan, task.partition, recorded, {tp.topic: starts[tp] for tp in logs}, stands)
        # What it holds is of then until all is read: a restore that is broken off leaves no younger a store.
        task.as_of_ms = int(meta.get("at", 0)) if known else began_ms
        for state in task.state_logs:
            state.recall(meta if known else {})
        at = {tp: max(stands.get(tp.topic, 0), starts[tp]) for tp in logs}
        task.to_restore = sum(max(0, ends[tp] - at[tp]) for tp in logs)
        task.restored = 0
        task.restoring_since = self._clock.monotonic()
        task.logs = {tp.topic: {"id": topics[tp.topic].id, "next": at[tp]} for tp in logs}
        task.stamp_offset = int(meta.get("stamp", -1)) if position is not None else -1
        stored, held = position, PositionLog(position, task.stamp_offset)
        began, stood = {tp.topic: starts[tp] for tp in logs}, {tp.topic: at[tp] for tp in logs}
        for tp in logs:
            # Positions come last, so that a store never says it is further than its rows are.
            if moved := await self._read(task, tp, at[tp], ends[tp], held, stored):
                began[tp.topic], stood[tp.topic] = moved, 0
        try:
            self._say(bereft(self._plan, task.partition, held.position, began, stood))
        except TopicChanged:
            # Another time it must be missed, too.
            batch = self._store.batch()
            batch.drop_partition(task.partition)
            self._store.write(batch)
            raise
        self._warn_of_short_tombstones(task, logs, self._clock.monotonic() - began_at)
        if held.resetting:
            raise RecoveryError(
                f"{self._plan.positions_topic} says that a reset is under way or was broken off; run `semel reset` again: "
                "repeating it is safe"
            )
        if disagrees(task.partition, held.position, group_offsets) and await self._changes(task, group_offsets):
            # What was committed meanwhile is in the logs, too: all of it again, in the order of the rule.
            return await self.restore(task, topics)
        if not self._types:
            self._types = self._plan.types()
        await self._owners.check(task, held.position, topics)
        marks = TP(self._plan.marks_topic, task.partition)
        position = decide(
            self._plan, task.partition, task.topics, held.position, group_offsets, topics, types=self._types,
            adopt=self._settings.adopt, holds_state=held.position is None and task.holds_state,
        )  # fmt: skip
        if position.trimmed < 0 and marks in starts:
            position = positions.moved(position, trimmed=began[marks.topic])
        if held.position is not None:
            self._say(changes(self._plan, held.position, self._types).notes)
            before = held.position
            task.redeclared = (before.shape, before.types) != (position.shape, position.types)
        task.stamp_offset = held.offset
        batch = self._store.batch()
        for state in task.state_logs:
            # The next commit may be far off.
            state.expire(batch, None if held.position is None else held.position.stream_time.ms)
        batch.meta(task.partition, task_meta(task, held.position, began_ms))
        self._store.write(batch)
        await self._pass("restore.end")
        return position

    async def _look_at(self, name: str) -> None:
        """TopicChanged where a log is another topic than when this takeover began: some brokers hear of that later than others.

        One that is missing is waited for; the watch ends the worker where it does not come back.
        """
        known = self._topics.known.get(name)
        until = self._clock.monotonic() + BEHIND_S
        while known is not None and self._clock.monotonic() < until:
            try:
                topics = await self._broker.topics([name])
            except (RpcError, RpcLost) as exc:
                if needs_a_person(exc):
                    raise self._logs.refused(exc) from exc
                log.debug("metadata: %s", exc)
                topics = {}
            check_log_ids(self._plan.app, {name: known.id}, topics)
            if name not in topics:
                until = self._clock.monotonic() + BEHIND_S
            await self._clock.sleep(BEHIND_PAUSE_S)

    async def starts(self, tps: list[TP]) -> dict[TP, int]:
        return await self._logs.starts(tps)

    def _say(self, notes: list[str]) -> None:
        """Once each, though every task finds the same."""
        for note in notes:
            if note not in self._said_notes:
                self._said_notes.add(note)
                log.warning("%s", note)

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)

    def _warn_of_short_tombstones(self, task: Task, logs: list[TP], took_s: float) -> None:
        for name in (tp.topic for tp in logs if tp.topic not in (self._plan.marks_topic, self._plan.positions_topic)):
            kept_s = self._topics.tombstones_ms(name) / 1000
            if took_s > kept_s and task.restored:
                log.warning(
                    "task %d: its restore took %.1f s, and %s keeps tombstones for %.1f s only: rows that were deleted may be "
                    "back. Set delete.retention.ms of the topic to a day",
                    task.partition,
                    took_s,
                    name,
                    kept_s,
                )

    async def position_of(self, partition: int) -> Position | None:
        """What another task's position record says."""
        tp = TP(self._plan.positions_topic, partition)
        ends, starts = await self._logs.ends([tp]), await self._logs.starts([tp])
        return await self._recorded(partition, starts, ends)

    async def _changes(self, task: Task, group_offsets: Mapping[TP, int]) -> bool:
        """Whether the group's offsets become others within a while."""
        until = self._clock.monotonic() + BEHIND_S
        while self._clock.monotonic() < until:
            await self._clock.sleep(BEHIND_PAUSE_S)
            if await self._logs.stable_offsets(task.source_tps()) != group_offsets:
                return True
        return False

    async def _is_over(
        self,
        task: Task,
        position: Position | None,
        topics: Mapping[str, TopicInfo],
        starts: Mapping[TP, int],
        ends: Mapping[TP, int],
    ) -> bool:
        """Whether a store without rows and marks holds but a position that a reset has left behind."""
        if position is None or not task.partition or not self._plan.may_grow:
            return False
        if await self._recorded(task.partition, starts, ends) is not None:
            return False
        first = await self.position_of(0)
        return of_a_life_that_is_over(task.partition, task.topics, position, first, topics)

    async def _check_logs(
        self,
        task: Task,
        holds_state: bool,
        group_offsets: Mapping[TP, int],
        topics: Mapping[str, TopicInfo],
        starts: Mapping[TP, int],
        ends: Mapping[TP, int],
    ) -> None:
        """Before the rows of a store go, which may be the last copy: whether the logs can take their place. TopicChanged."""
        recorded = await self._recorded(task.partition, starts, ends)
        check_logs(
            self._plan, task.partition, recorded, group_offsets, topics, adopt=self._settings.adopt,
            holds_state=holds_state,
        )  # fmt: skip
        bereft(self._plan, task.partition, recorded, {tp.topic: start for tp, start in starts.items()}, {})

    async def _recorded(self, partition: int, starts: Mapping[TP, int], ends: Mapping[TP, int]) -> Position | None:
        """What the positions say, without noting any of it."""
        tp, held = TP(self._plan.positions_topic, partition), PositionLog()
        async for piece in self._logs.read(tp, starts[tp], ends[tp]):
            for record in piece.records:
                held.see(record, tp)
        return held.position

    # -- the cases of a rebuild that a store which can be read is in

    async def _rebuild_reason(
        self,
        task: Task,
        meta: dict[str, Any],
        position: Position | None,
        known: dict[str, dict[str, Any]],
        topics: Mapping[str, TopicInfo],
        starts: Mapping[TP, int],
        ends: Mapping[TP, int],
    ) -> str | None:
        # A time that is still to come was written by a wrong clock: nobody knows how long ago that was.
        age_ms = abs(self._now_ms() - int(meta.get("at", 0)))
        for name in self._plan.logs:
            tp = TP(name, task.partition)
            if name not in known:
                continue
            at = int(known[name]["next"])
            if known[name]["id"] != topics[name].id:
                return f"{name} is another topic than the one it was made from"
            if at > ends[tp]:
                return f"it is at {at} of {name}, beyond the end {ends[tp]}"
            if name != self._plan.marks_topic:
                # Marks are trimmed from the front on purpose: only expired ones are missing (rule 21).
                if at + 1 < starts[tp]:
                    return f"it is at {at} of {name}, below the start {starts[tp]}"
                # Every commit leaves one offset behind its records, which ends it. More may have been a tombstone,
                # compacted away since: then nothing is there to be read of it. Positions have none that counts.
                if (
                    name != self._plan.positions_topic
                    and ends[tp] - at > 1
                    and age_ms > min(self._settings.rebuild_age_ms, self._topics.tombstones_ms(name) // 2)
                ):
                    return f"it is {age_ms // 1000} s old: tombstones of {name} may be gone"
        offset = int(meta.get("stamp", -1))
        if position is not None and offset >= 0:
            tp = TP(self._plan.positions_topic, task.partition)
            record = await self._record_at(tp, offset)
            if record is not None and record.key == positions.KEY and record.value is not None:
                there = positions.decode(record.value, f"{tp.topic}[{tp.partition}]@{offset}")
                if there.stamp != position.stamp:
                    return f"{tp.topic}@{offset} was written by {there.stamp}, not by {position.stamp}"
        if task.marks is not None and position is not None and position.shape:
            rule: dict[str, Any] = orjson.loads(position.shape)["dedup"] or {}
            if meta.get("window_ms", rule.get("window_ms", task.marks.window_ms)) != task.marks.window_ms:
                return "its dedup marks are filed by another window"
        return None

    async def _record_at(self, tp: TP, offset: int) -> Record | None:
        records = [r async for piece in self._logs.read(tp, offset, offset + 1) for r in piece.records]
        return next((r for r in records if r.offset == offset), None)

    # -- reading a log

    async def _read(self, task: Task, tp: TP, at: int, end: int, held: PositionLog, stored: Position | None) -> int:
        """Where the log began anew because records were deleted while it was read; 0 where none were."""
        first, moved = at, 0
        async with aclosing(self._logs.read(tp, at, end)) as pieces:
            async for piece in pieces:
                if piece.missing:
                    moved = (await self._logs.starts([tp]))[tp]
                    continue
                await self._pass("restore.chunk")
                self._apply(task, tp, piece, held, stored)
                task.restored += piece.next - at
                at = task.logs[tp.topic]["next"] = piece.next
                await self._clock.sleep(0)
        if at - first > CHUNK_RECORDS:
            log.info("task %d: %s read from %d to %d", task.partition, tp.topic, first, at)
        return moved

    def _apply(self, task: Task, tp: TP, piece: Piece, held: PositionLog, stored: Position | None) -> None:
        """A piece of a log enters the store together with how far it was read."""
        if tp.topic == self._plan.positions_topic:
            # Nothing of this log is noted until all of it is judged: a record that forbids to start must be met again.
            for record in piece.records:
                held.see(record, tp)
            return
        batch = self._store.batch()
        next(state for state in task.state_logs if state.topic == tp.topic).replay(batch, piece.records)
        # Until the end the old position stays beside newer rows, and neither is used.
        task.logs[tp.topic]["next"] = piece.next
        batch.meta(task.partition, task_meta(task, stored, task.as_of_ms))
        self._store.write(batch)

    async def committed(self, doubt: InDoubt) -> bool | None:
        """Whether the position record of this writer and epoch stands in the log; None where the log is another one by now.

        To be asked when the writer has been taken anew: then its last transaction has ended, one way or the other.
        """
        tp, since = doubt.tp, doubt.since
        end = (await self._logs.ends([tp]))[tp]
        start = (await self._logs.starts([tp]))[tp]
        async with aclosing(self._logs.read(tp, max(since, start), end)) as pieces:
            async for piece in pieces:
                for record in piece.records:
                    if record.key == positions.KEY and record.value is not None:
                        recorded = positions.decode(record.value, f"{tp.topic}[{tp.partition}]@{record.offset}")
                        if recorded.stamp == doubt.stamp:
                            return True
        # Looked at when all is read: a log that was made anew in between has nothing of what is sought, too.
        info = (await self._broker.topics([tp.topic])).get(tp.topic)
        if info is None:
            raise not_known(f"the brokers know no topic {tp.topic!r}")
        return None if doubt.topic_id and info.id != doubt.topic_id else False
