"""Restore: bring a task's store and position up to the end of its logs (protocol rules 11, 14, 15, 18).

The order is the rule: stable group offsets, then end offsets read uncommitted, then the logs read by position to there,
committed records only. A log whose last stable offset stands still has an open transaction in it; its holder is found and
fenced by name if it is not a member of the group now. Most of the time there is nothing to read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from semel.errors import PositionConflict, RecoveryError, ShapeChanged, TopicChanged
from semel.plan import Plan
from semel.port import EARLIEST, LATEST, TP, Broker, Clock, Fetched, Randomness, Record, RpcError, RpcLost, TopicInfo
from semel.runtime.failpoints import Failpoints
from semel.runtime.task import Task
from semel.stages.answers import Answer, answer_of
from semel.stages.commit import ask
from semel.state import positions
from semel.state.positions import Position, TopicPosition
from semel.state.store import Store

log = logging.getLogger("semel.restore")

CHUNK_RECORDS = 20_000
# About ten thousand rows: a chunk enters the store in one batch, and the loop waits for it.
FETCH_BYTES = 1_000_000
# A log may stand still for this long before we look for who holds it.
STALL_S = 0.15


@dataclass(slots=True)
class RestoreSettings:
    group: str
    has_sources: bool
    rpc_timeout_ms: int
    rebuild_age_ms: int
    adopt: bool = False


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
        settings: RestoreSettings,
        *,
        fence: Callable[[str], Any],
        own_id: str,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._randomness = randomness
        self._pass = failpoints
        self._store = store
        self._plan = plan
        self._settings = settings
        self._fence = fence
        self._own_id = own_id

    async def restore(self, task: Task, topics: Mapping[str, TopicInfo]) -> Position:
        """The task's committed position; its store is up to it. RecoveryError where a person must decide.

        `topics`: fresh metadata of sources and logs. Broker errors that pass are waited out; the caller bounds the time.
        """
        sources = task.source_tps()
        group_offsets: dict[TP, int] = {}
        if sources and self._settings.has_sources:
            group_offsets = await self._waiting(lambda: self._stable(sources), sources)
        await self._pass("restore.after_offsets")
        logs = [TP(name, task.partition) for name in self._plan.logs]
        ends = await self._waiting(lambda: self._broker.list_offsets(logs, LATEST), logs)
        starts = await self._waiting(lambda: self._broker.list_offsets(logs, EARLIEST), logs)
        await self._pass("restore.after_ends")
        meta = self._store.meta(task.partition) or {}
        known: dict[str, dict[str, Any]] = meta.get("logs", {})
        position = positions.from_json(meta["position"]) if meta.get("position") else None
        if known:
            why = await self._rebuild_reason(task, meta, position, known, topics, starts, ends)
            if why:
                log.warning("task %d: its store is rebuilt from the changelogs: %s", task.partition, why)
                batch = self._store.batch()
                batch.drop_partition(task.partition)
                self._store.write(batch)
                known, position = {}, None
        if task.marks is not None:
            task.marks.buckets = {int(b): o for b, o in meta.get("buckets", {}).items()} if known else {}
        at = {tp: max(int(known.get(tp.topic, {"next": 0})["next"]), starts[tp]) for tp in logs}
        task.to_restore = sum(max(0, ends[tp] - at[tp]) for tp in logs)
        task.restored = 0
        task.restoring_since = self._clock.monotonic()
        task.logs = {tp.topic: {"id": topics[tp.topic].id, "next": at[tp]} for tp in logs}
        held = _Held(position)
        for tp in logs:
            # Positions come last, so that a store never says it is further than its rows are.
            await self._read(task, tp, at[tp], ends[tp], held)
        if held.resetting:
            raise RecoveryError(
                f"{self._plan.positions_topic} says that a reset is under way or was broken off; run `semel reset` again: "
                "repeating it is safe"
            )
        position = self._decide(task, held.position, group_offsets, topics)
        batch = self._store.batch()
        batch.meta(task.partition, task_meta(task, held.position, int(self._clock.time() * 1000)))
        self._store.write(batch)
        await self._pass("restore.end")
        return position

    # -- asking until the answer is there

    async def _waiting(self, request: Callable[[], Any], tps: list[TP]) -> Any:
        """Ask again while brokers come and go; look for a stuck transaction meanwhile."""
        pause = 0.02
        stalled_since = self._clock.monotonic()
        while True:
            try:
                return await request()
            except RpcError as exc:
                if answer_of(exc) not in (Answer.WAIT, Answer.RETRY):
                    raise
                if exc.code == 88 and self._clock.monotonic() - stalled_since > STALL_S:
                    await self._fence_holders([TP(self._plan.positions_topic, tp.partition) for tp in tps])
                    stalled_since = self._clock.monotonic()
            except RpcLost as exc:
                log.debug("restore: %s", exc)
            await self._clock.sleep(pause * (0.5 + self._randomness.random()))
            pause = min(pause * 1.5, 0.5)

    async def _stable(self, sources: list[TP]) -> dict[TP, int]:
        return await self._broker.stable_offsets(self._settings.group, sources)

    # -- the three cases of a rebuild

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
        age_ms = int(self._clock.time() * 1000) - int(meta.get("at", 0))
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
                if at < starts[tp]:
                    return f"it is at {at} of {name}, below the start {starts[tp]}"
                if at < ends[tp] and age_ms > self._settings.rebuild_age_ms:
                    return f"it is {age_ms // 1000} s old: tombstones of {name} may be gone"
        stamp = meta.get("stamp")
        if stamp is not None and stamp[2] >= 0:
            writer, epoch, offset = stamp
            tp = TP(self._plan.positions_topic, task.partition)
            found = await self._record_at(tp, offset)
            if found is not None and found.key == positions.KEY and found.value is not None:
                there = positions.decode(found.value, f"{tp.topic}[{tp.partition}]@{offset}")
                if there.stamp != (writer, epoch):
                    return f"{tp.topic}@{offset} was written by {there.stamp}, not by {(writer, epoch)}"
        return None

    async def _record_at(self, tp: TP, offset: int) -> Record | None:
        fetched = await self._fetch(tp, offset)
        if fetched is None or fetched.error or not fetched.records or fetched.records[0].offset != offset:
            return None
        return fetched.records[0]

    # -- reading a log

    async def _fetch(self, tp: TP, offset: int) -> Fetched | None:
        """One fetch, read committed; None where the broker is in between."""
        try:
            node = (await self._broker.leaders([tp])).get(tp)
            if node is None:
                await self._clock.sleep(0.05)
                return None
            answer = await self._broker.fetch(
                node, {tp: offset}, committed=True, max_wait_ms=50, max_bytes=FETCH_BYTES,
                partition_max_bytes=FETCH_BYTES, purpose="restore",
            )  # fmt: skip
            return answer.get(tp)
        except (RpcError, RpcLost) as exc:
            if answer_of(exc) not in (Answer.WAIT, Answer.RETRY, Answer.UNKNOWN):
                raise
            await self._clock.sleep(0.05)
            return None

    async def _read(self, task: Task, tp: TP, at: int, end: int, held: _Held) -> None:
        moved_at = self._clock.monotonic()
        first = at
        while at < end:
            fetched = await self._fetch(tp, at)
            if fetched is None:
                continue
            if fetched.error == 1:
                start = (await self._waiting(lambda: self._broker.list_offsets([tp], EARLIEST), [tp]))[tp]
                if start <= at:
                    raise RecoveryError(f"{tp.topic}[{tp.partition}] answers out of range at {at}; was it truncated?")
                at = start
                continue
            if fetched.error:
                await self._clock.sleep(0.05)
                continue
            if fetched.next_offset == at:
                if self._clock.monotonic() - moved_at > STALL_S:
                    await self._fence_holders([tp])
                    moved_at = self._clock.monotonic()
                continue
            await self._pass("restore.chunk")
            self._apply(task, tp, fetched, held)
            task.restored += fetched.next_offset - at
            at = fetched.next_offset
            task.logs[tp.topic]["next"] = at
            moved_at = self._clock.monotonic()
            await self._clock.sleep(0)
        if at - first > CHUNK_RECORDS:
            log.info("task %d: %s read from %d to %d", task.partition, tp.topic, first, at)

    def _apply(self, task: Task, tp: TP, fetched: Fetched, held: _Held) -> None:
        """A chunk of a log enters the store together with how far it was read."""
        if tp.topic == self._plan.positions_topic:
            # Nothing of this log is noted until all of it is judged: a record that forbids to start must be met again.
            for record in fetched.records:
                held.see(record, tp)
            return
        batch = self._store.batch()
        if tp.topic == self._plan.marks_topic:
            assert task.marks is not None
            if fetched.records:
                marks = {r.key: r.value for r in fetched.records if r.key is not None and r.value is not None}
                task.marks.land(batch, marks.items(), fetched.records[0].offset)
        else:
            rows = next(r for r in task.tables.values() if self._plan.changelog(r.name) == tp.topic)
            batch.rows(rows.prefix, {r.key: r.value for r in fetched.records if r.key is not None})
        # Until the end the old position stays beside newer rows, and neither is used.
        task.logs[tp.topic]["next"] = fetched.next_offset
        batch.meta(task.partition, task_meta(task, held.stored, int(self._clock.time() * 1000)))
        self._store.write(batch)

    # -- stuck transactions

    async def _fence_holders(self, tps: list[TP]) -> None:
        """Fence, by name, writers of this app that are no members of its group now and hold these logs (rule 15)."""
        try:
            found = await self._broker.open_transactions(tps)
            group = await self._broker.describe_group(self._settings.group)
        except (RpcError, RpcLost) as exc:
            log.debug("looking for the holder of %s: %s", tps, exc)
            return
        living = {m.instance_id for m in group.members if m.instance_id}
        for tp, transactions in found.items():
            for transaction in transactions:
                name = transaction.transactional_id
                if name is None or name == self._own_id or not name.startswith(f"{self._plan.app}-") or name in living:
                    continue
                log.info("%s[%d] is held by the open transaction of %s, gone from the group: fencing it",
                         tp.topic, tp.partition, name)  # fmt: skip
                await self._clock.sleep(0.05 * self._randomness.random())
                try:
                    await self._fence(name)
                except (RpcError, RpcLost) as exc:
                    log.debug("fencing %s: %s", name, exc)

    # -- which position

    def _decide(
        self, task: Task, recorded: Position | None, group_offsets: Mapping[TP, int], topics: Mapping[str, TopicInfo]
    ) -> Position:
        """Protocol rule 10, for each source topic; rule 17 and 24 on the way."""
        plan, settings = self._plan, self._settings
        shape = plan.shape()
        if recorded is not None and recorded.shape and recorded.shape != shape:
            check_shape(plan.app, recorded.shape, shape)
        decided: dict[str, TopicPosition] = {}
        for name in task.topics:
            info = topics[name]
            tp = TP(name, task.partition)
            offset = group_offsets.get(tp, -1)
            at = recorded.topics.get(name) if recorded is not None else None
            if at is not None:
                check_topic(plan.app, at, info)
                if offset >= 0 and offset != at.next:
                    raise PositionConflict(
                        f"group {settings.group!r} is at offset {offset} of {name}[{task.partition}], the position record at "
                        f"{at.next}: somebody moved the group's offsets. State and position belong together: either move the "
                        f"offsets back to {at.next}, or run `semel reset` to move positions and state together"
                    )
                decided[name] = at
            elif offset >= 0:
                if not settings.adopt:
                    raise PositionConflict(
                        f"group {settings.group!r} has offset {offset} on {name}[{task.partition}], but semel has no position "
                        "there: another consumer used this group name. Start once with --adopt to go on from there with "
                        "empty state, or choose another pipeline name"
                    )
                decided[name] = TopicPosition(info.id, info.partitions, offset)
            else:
                decided[name] = TopicPosition(info.id, info.partitions, -1)
        if recorded is None:
            return Position(decided, shape=shape)
        return positions.moved(recorded, topics=decided, shape=shape)


class _Held:
    """The last position record seen while a log is read. `stored`: what the store said when reading began."""

    def __init__(self, position: Position | None) -> None:
        self.position = position
        self.stored = position
        self.resetting = False

    def see(self, record: Record, tp: TP) -> None:
        if record.key == positions.RESETTING_KEY:
            self.resetting = record.value is not None
        if record.key == positions.KEY:
            where = f"{tp.topic}[{tp.partition}]@{record.offset}"
            self.position = None if record.value is None else positions.decode(record.value, where)


def task_meta(
    task: Task, position: Position | None, at_ms: int, stamp: tuple[str, int, int] | None = None
) -> dict[str, Any]:
    """What the store keeps of a task beside its rows: how far each log is in it, and the position that goes with that."""
    return {
        "v": 1,
        "logs": task.logs,
        "position": position.to_json() if position is not None else None,
        "buckets": {str(b): o for b, o in task.marks.buckets.items()} if task.marks is not None else {},
        "at": at_ms,
        "stamp": stamp,
    }


def check_topic(app: str, at: TopicPosition, info: TopicInfo) -> None:
    """TopicChanged where a source topic is not what it was (rule 17)."""
    if at.id != info.id:
        raise TopicChanged(
            f"topic {info.name!r} was deleted and created again: the positions and dedup marks of {app!r} belong to the old "
            "one. Run `semel reset` to start on the new topic with empty state, or use another pipeline name"
        )
    if at.partitions != info.partitions:
        raise TopicChanged(
            f"topic {info.name!r} has {info.partitions} partitions now, {at.partitions} when {app!r} last ran: keys moved "
            "between partitions, away from their rows and dedup marks. Copy the events to a topic of the old size, or run "
            "`semel reset` to process them from the start with empty state"
        )


def check_shape(app: str, stored: str, now: str) -> None:
    """ShapeChanged where stored state was made with another declaration; tables that are new start empty."""
    import orjson

    before, after = orjson.loads(stored), orjson.loads(now)
    changed = [
        f"table {name!r} was {shape}, is {after['tables'][name]}"
        for name, shape in before["tables"].items()
        if name in after["tables"] and after["tables"][name] != shape
    ]
    changed += [f"table {name!r} is no longer declared" for name in before["tables"] if name not in after["tables"]]
    if before["dedup"] != after["dedup"]:
        changed.append(f"the dedup rule was {before['dedup']}, is {after['dedup']}")
    if changed:
        raise ShapeChanged(
            f"{app!r} is declared differently from when its state was made: {'; '.join(changed)}. Put the declaration back, "
            "run under another name, or run `semel reset` to rebuild its state from the source"
        )


__all__ = ["RestoreSettings", "Restorer", "ask", "check_shape", "check_topic", "task_meta"]
