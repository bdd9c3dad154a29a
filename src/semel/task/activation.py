"""Activation: fresh metadata, and for each task of the assignment its state and its place (rules 11, 14, 15)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from semel.broker.asking import ask, see
from semel.errors import TopicChanged
from semel.plan import Plan, TablePlan
from semel.port import TP, Broker, Clock, TopicInfo
from semel.runtime.budget import shares
from semel.runtime.settings import EngineSettings
from semel.state import parked, timers
from semel.state.dedup_marks import Marks
from semel.state.parked import ParkedLog
from semel.state.positions import Position
from semel.state.store import Store
from semel.state.table_rows import Rows
from semel.state.task import Cursor, RetryState, Task
from semel.state.timers import TimerLog
from semel.task import predecessor
from semel.task.restore import Restorer
from semel.task.start_position import begun, ends_to_begin_at, resumed_at, unplaced
from semel.task.topics import MISSING_S, Topics, denied

log = logging.getLogger("semel.engine")

# Rows kept at hand by one table of one task: more are never seen again before they are forgotten.
HOT_ROWS = 200_000
# What a task may park however many tasks share the worker's limit.
LEAST_PARKED = 1_000


class Activation:
    def __init__(
        self,
        plan: Plan,
        settings: EngineSettings,
        broker: Broker,
        clock: Clock,
        store: Store,
        topics: Topics,
        restorer: Restorer,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._broker = broker
        self._clock = clock
        self._store = store
        self._topics = topics
        self._restorer = restorer
        self._first: Position | None = None
        self._asked = False
        self._asking = asyncio.Lock()

    async def metadata(self, shared: Mapping[str, int]) -> dict[str, TopicInfo]:
        """Of the sources and the logs, fresh. TopicChanged where one of them is gone for good.

        `shared`: how many partitions of each source the group has shared out. A broker that knows fewer of the same topic is
        asked again: a task would find none of its own.
        """
        self._asked = False
        names = [*self._plan.sources, *self._plan.logs]
        ids = {name: info.id for name, info in self._topics.known.items()}

        def whole(info: TopicInfo) -> bool:
            return info.partitions >= shared.get(info.name, 1) or info.id != ids.get(info.name, info.id)

        def gone(topics: dict[str, TopicInfo]) -> TopicChanged | None:
            missing = [name for name in names if name not in topics]
            if not missing:
                return None
            return TopicChanged(
                f"{', '.join(missing)} of {self._plan.app!r} is gone: it was deleted while workers ran. Run `semel reset` to "
                "start anew from the source"
            )

        async def all_there() -> dict[str, TopicInfo]:
            return await see(
                self._clock,
                lambda: self._topics.refreshed(names),
                lambda topics: all(name in topics and whole(topics[name]) for name in names),
                within_s=MISSING_S,
                otherwise=gone,
            )

        return await ask(self._clock, all_there, giving_up=partial(denied, self._plan.app))

    def task(
        self,
        partition: int,
        tasks: int,
        poisoned: Callable[[TP, str], dict[int, str]],
        retry_state: Callable[[TP, str], RetryState],
    ) -> Task:
        """A task of `tasks`, not restored yet. StoreError."""
        task = Task(partition)
        plan, known = self._plan, self._topics.known
        # Asked each time: a store that was made anew since may number them otherwise.
        numbers = self._store.table_numbers([*(t.name for t in plan.tables), parked.TABLE, timers.TABLE])
        for table in plan.tables:
            task.tables[table.name] = Rows(
                table.name,
                partition,
                numbers[table.name],
                self._store,
                table.key,
                table.value,
                place=self._place(table),
                max_bytes=self._topics.max_bytes(plan.changelog(table.name)),
                topic=plan.changelog(table.name),
                kind_of=table.kind_of,
                limit=HOT_ROWS,
                limit_bytes=shares(self._settings.memory_budget_bytes).rows // max(1, tasks * len(plan.tables)),
            )
        dedup = plan.dedup
        if dedup is not None:
            task.dedup = dedup
            task.marks = Marks(
                self._store, partition, window_ms=dedup.window_ms, bucket_ms=dedup.bucket_ms, topic=plan.marks_topic
            )
        if plan.sources:
            settings = self._settings
            task.parked = ParkedLog(
                self._store,
                partition,
                numbers[parked.TABLE],
                plan.parked_topic,
                limit=max(LEAST_PARKED, settings.parked_limit // max(1, tasks)),
                key_limit=settings.parked_key_limit,
                most_delay_s=max(agent.retry.longest_delay_s for agent in plan.agents),
                most_bytes=self._topics.max_bytes(plan.parked_topic),
            )
            task.timers = TimerLog(
                self._store, partition, numbers[timers.TABLE], plan.timers_topic,
                max_bytes=self._topics.max_bytes(plan.timers_topic),
            )  # fmt: skip
        for name in plan.sources:
            info = known[name]
            if partition < info.partitions:
                task.topics[name] = (info.id, info.partitions)
                for agent in plan.agents:
                    if any(t.name == name for t in agent.sources):
                        tp = TP(name, partition)
                        cursor = Cursor(task, tp, agent, retry_state(tp, agent.name))
                        cursor.poisoned = poisoned(cursor.tp, agent.name)
                        task.cursors[(name, agent.name)] = cursor
        return task

    def _place(self, table: TablePlan) -> Callable[[bytes], int] | None:
        if not table.keyed:
            return None
        return self._topics.place(max((self._topics.known[n].partitions for n in self._plan.sources), default=1))

    async def restore(self, task: Task, topics: Mapping[str, TopicInfo]) -> None:
        """Bring the task's state and place up to what is committed; then it may run. RecoveryError, StoreError."""
        p = task.partition
        position = await self._restorer.restore(task, topics)
        self._topics.check_kept()
        begins_at = unplaced(p, position)
        if begins_at:
            position = await self._begin(p, position)
        await self._check_former(task, position)
        task.committed = position
        task.open_anew()
        # Where it began is remembered at once: at the latest record it may not begin later another time, and tools that show
        # how far a group is show nothing of partitions that it has no offset of.
        task.touched = bool(begins_at) or task.unseen or task.redeclared

    async def _begin(self, partition: int, position: Position) -> Position:
        first = await self._recorded_first() if partition else None
        ends = ends_to_begin_at(self._plan, partition, position, first)
        if not partition and len(ends) == len(position.topics):
            await predecessor.look(self._broker, self._plan, self._topics.known)
        begins: dict[TP, int] = {}
        for end in sorted(set(ends.values())):
            begins |= await self._offsets([tp for tp, at in ends.items() if at == end], end)
        return begun(partition, position, begins, first)

    async def _check_former(self, task: Task, position: Position) -> None:
        """An agent that was taken out once goes on where it stood. TopicChanged where that is gone from the topic."""
        for cursor in task.cursors.values():
            name = cursor.agent.name
            stood = resumed_at(position.topics[cursor.tp.topic], name)
            if stood is None:
                continue
            start = (await self._restorer.starts([cursor.tp]))[cursor.tp]
            if start > stood:
                raise TopicChanged(
                    f"agent {name!r} of {self._plan.app!r} was taken out of the app when it stood at offset {stood} of "
                    f"{cursor.tp.topic}[{cursor.tp.partition}], which begins at {start} now: what lies between is gone. Give "
                    "the agent another name, and it begins where the app stands"
                )
            log.info("agent %s goes on where it stood, at %d of %s[%d]", name, stood, *cursor.tp)

    async def _recorded_first(self) -> Position | None:
        """What the task that was there from the first has recorded, if it has yet."""
        async with self._asking:
            if not self._asked:
                self._first, self._asked = await self._restorer.position_of(0), True
        return self._first

    async def _offsets(self, tps: list[TP], at: int) -> dict[TP, int]:
        giving_up = partial(denied, self._plan.app)
        return await ask(self._clock, lambda: self._broker.list_offsets(tps, at), giving_up=giving_up)
