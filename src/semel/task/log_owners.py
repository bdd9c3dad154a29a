"""Whose a log of state is, where its name does not tell: app `pay` with table `eu-sums`, app `pay-eu` with `sums`.

Before an app writes into such a log for the first time, it says in its position record that it is about to, and looks
whether another app's position has that log, or says so, too. Each looks after it has spoken, so that one of two sees the
other. Where both only say so, the one whose name comes later in the alphabet gives way, and the other waits until its
worker cannot commit any more. Clocks of machines may be apart, so that is measured here, from when the claim was first
seen. Where what the first one said seems to be old, or of a time to come, it may be a live one's all the same: then the
later one waits, too, for twice as long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing

from semel.broker.answers import needs_a_person
from semel.broker.asking import ask
from semel.codes import LOGIN
from semel.errors import RecoveryError, TopicChanged
from semel.plan import Plan
from semel.port import TP, Broker, Clock, Record, RpcError, TopicInfo
from semel.state import positions
from semel.state.positions import Position
from semel.state.task import Task
from semel.task.log_reader import LogReader

log = logging.getLogger("semel.restore")

# Where the newest position stands, unless nothing but other records came since.
TAIL_OFFSETS = 2_000


async def seen(broker: Broker, name: str, say: Callable[[str], None]) -> TopicInfo | None:
    """A topic that is no part of this app; None where it is not there, or where this client may not know, which is said.

    A broker refuses metadata of a topic that this client has no right on, also if there is none. So each is asked for alone.
    """
    try:
        return (await broker.topics([name])).get(name)
    except RpcError as exc:
        if exc.code in LOGIN or not needs_a_person(exc):
            raise
        say(hidden(name, exc))
        return None


def hidden(name: str, exc: Exception) -> str:
    why = exc.__cause__ if isinstance(exc.__cause__, RpcError) else exc
    way = "; to have that checked, grant Describe and Read on it" if isinstance(why, RpcError) else ""
    return (
        f"{name} cannot be looked at, if it exists: {why}. Whether its app keeps state under a name of this app's is not "
        f"known{way}"
    )


class Owners:
    """Checks the logs that a task has not written to yet, as far as its position says."""

    def __init__(self, plan: Plan, broker: Broker, logs: LogReader, clock: Clock, *, claim_ms: int) -> None:
        self._plan = plan
        # For so long a worker may still commit after it has said something.
        self._claim_ms = claim_ms
        self._broker = broker
        self._logs = logs
        self._clock = clock
        self._said_texts: set[str] = set()
        # By app, log and what it says, in monotonic seconds.
        self._claims_seen: dict[tuple[str, TP, int], float] = {}

    async def check(self, task: Task, position: Position | None, topics: Mapping[str, TopicInfo]) -> None:
        """TopicChanged for a log of somebody else's, or with rows from before. `task.unclaimed`: those to be claimed."""
        task.unclaimed = set()
        if position is not None and not position.logs and not position.types:
            # Of a version that noted neither.
            return
        for name in self._plan.state_logs:
            if position is not None and position.logs.get(name) == topics[name].id:
                continue
            tp = TP(name, task.partition)
            if name not in (self._plan.parked_topic, self._plan.timers_topic) and self._plan.others_of(name):
                await self._check_others(tp, wait=False)
                task.unclaimed.add(name)
            if position is not None and await self._holds_records(tp):
                raise TopicChanged(
                    f"{name!r}[{task.partition}] holds records that {self._plan.app!r} did not write, as far as its positions "
                    "say: another app keeps its state there, or an earlier declaration did. Give the table or the app another "
                    "name; or delete the topic, if nobody needs it"
                )

    async def confirm(self, task: Task) -> None:
        """After a position that claims them is committed. TopicChanged where another app has them, or claims them, too."""
        for name in task.unclaimed:
            await self._check_others(TP(name, task.partition), wait=True)
        task.unclaimed = set()

    async def _check_others(self, tp: TP, *, wait: bool) -> None:
        warned = False
        while True:
            left_s, claimant = 0.0, ""
            for app, position in await self._others(tp):
                claimed_ms = position.claims.get(tp.topic)
                just_now = claimed_ms is not None and 0 <= int(self._clock.time() * 1000) - claimed_ms < self._claim_ms
                if tp.topic in position.logs or (just_now and app < self._plan.app):
                    raise TopicChanged(
                        f"{tp.topic!r} holds state of app {app!r}, and {self._plan.app!r} has a table whose changelog has the "
                        f"same name: give the table or the app another name. If {app!r} is no more, delete {app}-positions"
                    )
                if claimed_ms is not None:
                    left_s, claimant = max((left_s, claimant), (self._left_s(app, tp, claimed_ms), app))
            if left_s <= 0 or not wait:
                return
            if not warned:
                log.warning(
                    "task %d waits for at most %.0f s: app %r said that it is about to write to %s, too, and may be alive",
                    tp.partition, left_s, claimant, tp.topic,
                )  # fmt: skip
                warned = True
            await self._clock.sleep(0.2)

    def _left_s(self, app: str, tp: TP, claimed_ms: int) -> float:
        """For how long that claim may still be a living worker's."""
        now = self._clock.monotonic()
        since = self._claims_seen.setdefault((app, tp, claimed_ms), now)
        return since + self._claim_ms / 1000 * (2 if app < self._plan.app else 1) - now

    async def _others(self, tp: TP) -> list[tuple[str, Position]]:
        """Apps that the log could be of by its name and that are there, with their positions."""
        others: list[tuple[str, Position]] = []
        for app in self._plan.others_of(tp.topic):
            info = await self._seen(f"{app}-positions")
            if info is None or tp.partition >= info.partitions:
                continue
            theirs = TP(info.name, tp.partition)
            try:
                position = await self._newest(theirs)
            except RecoveryError as exc:
                # What is not read here any more is no trouble of this app.
                self._logs.troubles.forget([theirs])
                self._say(hidden(info.name, exc))
                continue
            if position is not None:
                others.append((app, position))
        return others

    async def _seen(self, name: str) -> TopicInfo | None:
        return await ask(self._clock, lambda: seen(self._broker, name, self._say))

    def _say(self, text: str) -> None:
        """Once each, though every task finds the same."""
        if text not in self._said_texts:
            self._said_texts.add(text)
            log.info("%s", text)

    async def _newest(self, tp: TP) -> Position | None:
        start, end = (await self._logs.starts([tp]))[tp], (await self._logs.ends([tp]))[tp]
        for begin in dict.fromkeys((max(start, end - TAIL_OFFSETS), start)):
            last: Record | None = None
            async for piece in self._logs.read(tp, begin, end):
                last = next((r for r in reversed(piece.records) if r.key == positions.KEY), last)
            if last is not None:
                where = f"{tp.topic}[{tp.partition}]@{last.offset}"
                return None if last.value is None else positions.decode(last.value, where)
        return None

    async def _holds_records(self, tp: TP) -> bool:
        start, end = (await self._logs.starts([tp]))[tp], (await self._logs.ends([tp]))[tp]
        async with aclosing(self._logs.read(tp, start, end)) as pieces:
            async for piece in pieces:
                if piece.records:
                    return True
        return False
