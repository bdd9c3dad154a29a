"""Start position: where a task goes on, or begins. Pure (rules 10, 17, 24)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from semel.errors import PositionConflict
from semel.plan import Plan
from semel.port import EARLIEST, LATEST, TP, TopicInfo
from semel.state import positions
from semel.state.positions import COUNTS, UNKNOWN, Position, StreamTime, TopicPosition, Windows
from semel.task.declaration_changes import Changes, changes
from semel.task.topic_identity import check_logs, check_topic, source_remade


def disagrees(partition: int, recorded: Position | None, group_offsets: Mapping[TP, int]) -> bool:
    """Whether the group is not where a position is: somebody moved it, or its coordinator does not know better yet.

    Such a one may also be ahead, with what it was told before a reset.
    """
    topics = {} if recorded is None else recorded.topics
    told = {name: group_offsets.get(TP(name, partition), -1) for name in topics}
    return any(told[name] >= 0 and told[name] != at.next for name, at in topics.items())


def decide(
    plan: Plan,
    partition: int,
    sources: Collection[str],
    recorded: Position | None,
    group_offsets: Mapping[TP, int],
    topics: Mapping[str, TopicInfo],
    *,
    types: str,
    adopt: bool,
    holds_state: bool,
) -> Position:
    """Where a task goes on. `next` is -1 where it never was: there it begins (`ends_to_begin_at`, `begun`).

    `group_offsets`: -1 where the group has none. `holds_state`: it has committed rows or marks. PositionConflict,
    TopicChanged, ShapeChanged; RpcError where `topics` is older than `recorded`.
    """
    check_logs(plan, partition, recorded, group_offsets, topics, adopt=adopt, holds_state=holds_state)
    changed = changes(plan, recorded, types) if recorded is not None else Changes()
    decided: dict[str, TopicPosition] = {}
    for name, at in recorded.topics.items() if recorded is not None else ():
        if name in plan.sources and name not in sources:
            # By this broker it has no such partition. What stands there must not be lost.
            check_topic(plan, at, topics[name])
    for name in sources:
        info = topics[name]
        tp = TP(name, partition)
        offset = group_offsets.get(tp, -1)
        at = recorded.topics.get(name) or recorded.left.get(name) if recorded is not None else None
        if at is not None:
            check_topic(plan, at, info)
            if offset >= 0 and offset != at.next:
                raise PositionConflict(
                    f"group {plan.app!r} is at offset {offset} of {name}[{partition}], the position record at "
                    f"{at.next}: somebody moved the group's offsets. State and position belong together: either move the "
                    f"offsets back to {at.next}, or run `semel reset` to move positions and state together"
                )
            decided[name] = replace(
                at,
                partitions=info.partitions,
                born=at.since,
                former=_former(plan, name, at, recorded or Position({})),
                hashed_from=at.next if changed.compare else at.hashed_from,
                windows=windows_of(at, changed.window_ms),
            )
        elif offset >= 0:
            if not adopt:
                raise PositionConflict(
                    f"group {plan.app!r} has offset {offset} on {name}[{partition}], but semel has no position "
                    "there: another consumer used this group name. Start once with --adopt to go on from there with "
                    "empty state, or choose another pipeline name"
                )
            decided[name] = TopicPosition(info.id, info.partitions, offset, first=offset, born=info.partitions)
        else:
            decided[name] = TopicPosition(info.id, info.partitions, -1, born=info.partitions)
    recorded = recorded or Position({})
    left = {n: at for n, at in {**recorded.left, **recorded.topics}.items() if n not in plan.sources}
    passed = {*recorded.passed, *(plan.dedup.passes if plan.dedup is not None else ())}
    passed |= {name for name, is_other in (("window", changed.window_ms), ("compare", changed.compare)) if is_other}
    return positions.moved(
        recorded,
        topics=decided,
        stream_time=StreamTime() if changed.time else recorded.stream_time,
        shape=_with_old(plan.shape(), recorded.shape, changed.migrate),
        types=_with_old(types, recorded.types, changed.migrate),
        migrating={name: recorded.migrating.get(name, ("", to)) for name, to in changed.migrate.items()},
        left=left,
        readers=tuple(sorted({*recorded.readers, *plan.readers})),
        passed=tuple(sorted(passed)),
        letters=_letters(plan, recorded),
    )


def _letters(plan: Plan, recorded: Position) -> tuple[str, ...]:
    """The topics of dead letters, whatever they were called before."""
    default = plan.default_dead_letter_topic
    before = plan.letters_of(recorded.letters) if recorded.letters or recorded.counts.get("dead") else ()
    letters = {*before, plan.dead_letter_topic}
    return () if letters == {default} else tuple(sorted(letters))


def unplaced(partition: int, position: Position) -> list[TP]:
    """Source partitions of a task that it never was at."""
    return [TP(topic, partition) for topic, at in position.topics.items() if at.next < 0]


def ends_to_begin_at(plan: Plan, partition: int, position: Position, first: Position | None) -> dict[TP, int]:
    """EARLIEST or LATEST for each source partition that the task never was at: as `start=` of the declaration says, but EARLIEST
    where the topic grew under the app: nobody was there to see the first records of such a partition, so none is of before.

    `first`: what the task that was there from the first has recorded, None where it has not, or is this one. TopicChanged where
    that task was of another topic: what is new here is not the app's.
    """
    known = first.topics if first is not None else {}
    ends: dict[TP, int] = {}
    for tp in unplaced(partition, position):
        before = known.get(tp.topic)
        if before is not None and before.id != position.topics[tp.topic].id:
            raise source_remade(plan.app, tp.topic)
        grew = before is not None and partition >= before.since
        ends[tp] = EARLIEST if grew or plan.start == "earliest" else LATEST
    return ends


def begun(partition: int, position: Position, begins: Mapping[TP, int], first: Position | None) -> Position:
    """The position of a task that begins at these offsets where it never was."""
    topics = dict(position.topics)
    for tp in unplaced(partition, position):
        topics[tp.topic] = replace(topics[tp.topic], next=begins[tp], first=begins[tp])
    sinks = position.sinks or (first.sinks if first is not None else {})
    counts = {**dict.fromkeys(COUNTS, 0), **position.counts}
    return positions.moved(position, topics=topics, counts=counts, sinks=sinks)


def resumed_at(at: TopicPosition, agent: str) -> int | None:
    """Where an agent that was taken out once goes on; None where it goes on with the others."""
    stood = at.former.get(agent, UNKNOWN)
    return None if stood == UNKNOWN or stood >= at.cursors.get(agent, at.next) else stood


def windows_of(at: TopicPosition, before_ms: int) -> Windows | None:
    """Where the window of now begins to judge, where that of before was `before_ms`; 0: it is the same."""
    if not before_ms:
        return at.windows
    earlier = at.windows or Windows(0, before_ms, before_ms)
    return Windows(at.next, min(earlier.least_ms, before_ms), max(earlier.most_ms, before_ms))


def _with_old(now: str, before: str, tables: Iterable[str]) -> str:
    """What is declared now, but for these tables, whose rows are not migrated yet."""
    if not tables:
        return now
    shape: dict[str, Any] = orjson.loads(now)
    old: dict[str, Any] = orjson.loads(before) if before else {"tables": {}}
    for name in tables:
        shape["tables"].pop(name, None)
        if name in old["tables"]:
            shape["tables"][name] = old["tables"][name]
    return orjson.dumps(shape, option=orjson.OPT_SORT_KEYS).decode()


def _former(plan: Plan, topic: str, at: TopicPosition, recorded: Position) -> dict[str, int]:
    """Where agents of the topic stand that are not declared now, or are again: they go on from there.

    A version that noted no types noted no agents that left either: where those stood is known of none but who was ahead.
    """
    declared = {agent.name for agent in plan.agents if any(t.name == topic for t in agent.sources)}
    names = [reader.removeprefix(f"{topic} by ") for reader in recorded.readers if reader.startswith(f"{topic} by ")]
    lowest = at.next if recorded.types else UNKNOWN
    stood = {name: at.cursors.get(name, lowest) for name in names if name not in declared}
    return {**stood, **at.former}
