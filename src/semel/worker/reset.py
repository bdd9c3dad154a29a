"""Reset: move an app's positions and state together (protocol rule 24). Repeating it is safe, at any point.

The order is the rule: an empty group; a record in the positions that keeps workers from starting; state deleted and made
anew; the group's offsets; and only then, in one transaction, the new positions and the end of that record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Literal

import orjson

from semel.broker.answers import needs_a_person
from semel.broker.asking import see
from semel.codes import LOGIN, NO_RIGHT, Code
from semel.errors import ConfigError, RecoveryError
from semel.plan import Plan
from semel.port import EARLIEST, LATEST, NO_TIMESTAMP, TP, Broker, Clock, RpcError, TopicInfo, TopicSpec
from semel.runtime import looptime
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.stages.commit.epoch import SealedEpoch, by_partition
from semel.stages.commit.transaction import CommitFailed, Writer
from semel.stages.sink.destination import ProducerRecord
from semel.state import positions
from semel.state.positions import Position, PositionLog, Sink, StreamTime, TopicPosition
from semel.task import log_owners
from semel.task.read_committed import CommittedLogs
from semel.task.topics import Topics

# For so long brokers may take to show what was done to a topic.
SHOWN_S = 60.0
# Answers to a deletion that say for certain that nothing was done.
_NOT_DONE = NO_RIGHT | {Code.TOPIC_DELETION_DISABLED, Code.POLICY_VIOLATION}

Target = Literal["earliest", "latest"] | datetime


async def reset(
    plan: Plan, settings: EngineSettings, broker: Broker, clock: Clock, to: Target, *, say: Callable[[str], None]
) -> dict[TP, int]:
    """Returns where each source partition begins now. RecoveryError while the group has members; broker errors as they come."""
    until = clock.monotonic() + settings.session_timeout_ms / 1000 + 1
    told = 0
    while (info := await broker.describe_group(plan.app)).members and clock.monotonic() < until:
        if len(info.members) != told:
            told = len(info.members)
            say(f"waiting for the group's {told} member(s) to be gone: a stopped worker's session has to end")
        await clock.sleep(1)
    if info.members:
        who = ", ".join(sorted(m.instance_id or m.member_id for m in info.members))
        raise RecoveryError(
            f"group {plan.app!r} has members ({who}): its workers are still running; stop them, then reset"
        )
    topics = Topics(
        broker,
        clock,
        plan,
        replication_factor=settings.replication_factor,
        say=lambda text: say(text) if text else None,
    )
    needed = [*plan.logs, plan.dead_letter_topic, *(t.name for t in plan.outputs)]
    existing = await broker.topics([*plan.sources, *needed])
    missing = [name for name in plan.sources if name not in existing]
    if missing:
        raise RecoveryError(f"source topic {', '.join(missing)} does not exist; create it, then reset")
    tasks = max(existing[name].partitions for name in plan.sources)
    offsets = await _target_offsets(plan, broker, {n: existing[n].partitions for n in plan.sources}, to)
    for name in plan.state_logs:
        await _check_owner(plan, broker, clock, name, say)

    writer = Writer(
        broker,
        clock,
        Failpoints(),
        f"{plan.app}-reset",
        timeout_ms=settings.transaction_timeout_ms,
        commit_timeout_ms=settings.commit_timeout_ms,
    )
    await writer.init(until=looptime.now() + settings.commit_timeout_ms / 1000)
    now_ms = int(clock.time() * 1000)
    known = existing.get(plan.positions_topic)
    written = {plan.dead_letter_topic, *(t.name for t in plan.outputs)} - set(plan.sources)
    doomed = [existing[name] for name in plan.logs if name != plan.positions_topic and name in existing]
    await _check_rights(plan, broker, doomed)
    for name in needed:
        if name not in existing:
            await _check_creation(plan, broker, TopicInfo(name, "", tasks), "does not exist and has to be created")
    if known is not None and known.partitions < tasks:
        known = await _grown(broker, clock, known, tasks)
    if known is not None and known.partitions != tasks:
        await _check_rights(plan, broker, [known])
        doomed.append(known)
    marked = False
    if known is not None:
        held, marked = await _positions(broker, clock, known)
        # Where outputs went: also topics that the declaration does not name.
        written |= {
            name
            for position in held
            for name in (*position.outputs, *position.sent_later, *plan.letters_of(position.letters))
        }
        if to != "latest":
            _say_what_moved(plan, held, existing, say)
        say("marking the positions: workers refuse to start until the reset is complete")
        told = b'{"v":1,"at":%d}' % now_ms
        await _mark(writer, 1, known, told)
    if doomed:
        say(f"deleting {', '.join(topic.name for topic in doomed)}")
        for topic in doomed:
            try:
                await broker.delete_topics([topic])
            except RpcError as exc:
                # Of an earlier reset that was broken off, nobody knows what it deleted.
                untouched = topic is doomed[0] and not marked and exc.code in _NOT_DONE
                if untouched and known is not None:
                    await _mark(writer, 2, known, None)
                raise _undeleted(plan, topic, exc, untouched=untouched) from exc
        await _shown(broker, clock, {topic.name: 0 for topic in doomed}, "deleted")
    await _made_anew(topics, clock, doomed)
    say("setting the group's offsets")
    await broker.set_group_offsets(plan.app, offsets)
    say("writing the positions")
    began = await _ends(broker, sorted(written))
    outs: list[ProducerRecord] = []
    logs = {name: topics.known[name].id for name in plan.state_logs}
    # Whoever begins first, all send keys where this says, also when the topic grows before that.
    outputs = [topics.known[t.name] for t in plan.outputs]
    sinks = {info.name: Sink(info.id, info.partitions, info.partitions) for info in outputs}
    for task in range(tasks):
        at = {
            name: TopicPosition(existing[name].id, existing[name].partitions, begin, first=begin)
            for name in plan.sources
            if (begin := offsets.get(TP(name, task), -1)) >= 0
        }
        position = Position(
            at,
            StreamTime(),
            {},
            -1,
            writer.transactional_id,
            2,
            now_ms,
            plan.shape(),
            logs,
            types=plan.types(),
            sinks=sinks,
        )
        tp = TP(plan.positions_topic, task)
        outs.append(ProducerRecord(tp, NO_TIMESTAMP, positions.KEY, position.encode(), ()))
        outs.append(ProducerRecord(tp, NO_TIMESTAMP, positions.BEGAN_KEY, began, ()))
        outs.append(ProducerRecord(tp, NO_TIMESTAMP, positions.RESETTING_KEY, None, ()))
    await _write(writer, 2, outs)
    return offsets


async def _check_rights(plan: Plan, broker: Broker, doomed: list[TopicInfo]) -> None:
    """ConfigError where one of them may not be deleted or created anew, before anything is changed.

    Brokers look at rights first: to delete no records takes the right to delete, and to have a creation validated the
    right to create. Neither does anything, also where it arrives late, with the topic deleted meanwhile.
    """
    why = "has to be deleted and created anew"
    for info in doomed:
        await _check_right(plan, info.name, "Delete", broker.delete_records({TP(info.name, 0): 0}), why)
        await _check_creation(plan, broker, info, why)


async def _check_creation(plan: Plan, broker: Broker, info: TopicInfo, why: str) -> None:
    spec = TopicSpec(info.name, info.partitions, 1, {})
    await _check_right(plan, info.name, "Create", broker.create_topics([spec], validate_only=True), why)


async def _check_right(plan: Plan, name: str, right: str, harmless: Awaitable[None], why: str) -> None:
    try:
        await harmless
    except RpcError as exc:
        if exc.code in NO_RIGHT:
            raise ConfigError(
                f"{name!r} {why}, and this client may not: {exc}. Grant {right} on the topics of {plan.app!r}, then reset; "
                "until then nothing is changed"
            ) from exc


def _undeleted(plan: Plan, topic: TopicInfo, exc: RpcError, *, untouched: bool) -> ConfigError | RecoveryError:
    """What a refused deletion means, and what to do. `untouched`: workers may go on as before."""
    if exc.code not in _NOT_DONE:
        # What keeps workers away stands in the positions.
        away = (
            f"Start no worker of {plan.app!r}"
            if topic.name == plan.positions_topic
            else f"Workers of {plan.app!r} refuse to start"
        )
        return RecoveryError(
            f"whether {topic.name!r} was deleted is not known: {exc}. {away} until a reset is complete; run `semel reset` again: "
            "repeating it is safe"
        )
    match exc.code:
        case Code.TOPIC_DELETION_DISABLED:
            way_out = "Set delete.topic.enable=true on the brokers"
        case Code.POLICY_VIOLATION:
            way_out = f"Have the brokers' policy let the topics of {plan.app!r} be deleted"
        case _:
            way_out = f"Grant Delete on the topics of {plan.app!r}"
    if untouched:
        return ConfigError(
            f"{topic.name!r} cannot be deleted: {exc}. {way_out}, then reset; until then nothing is changed"
        )
    return ConfigError(
        f"{topic.name!r} cannot be deleted: {exc}. {way_out}, then run `semel reset` again: repeating it is safe, and workers "
        f"of {plan.app!r} refuse to start until a reset is complete"
    )


async def _made_anew(topics: Topics, clock: Clock, doomed: list[TopicInfo]) -> None:
    """All topics there, and none of them a deleted one that a broker which is behind still shows: its id would be taken for
    that of the state. RecoveryError where that lasts."""
    # A cluster that gives topics no ids cannot be asked.
    before = {topic.name: topic.id for topic in doomed if topic.has_id}

    async def look() -> list[str]:
        await topics.ready()
        return [name for name, id in before.items() if topics.known[name].id == id]

    await see(
        clock,
        look,
        lambda old: not old,
        within_s=SHOWN_S,
        otherwise=lambda old: RecoveryError(
            f"{', '.join(old)}: deleted, and for {SHOWN_S:g} s a broker still shows the deleted one ({before[old[0]]}); see the "
            "brokers' logs, and run `semel reset` again: repeating it is safe"
        ),
    )


async def _grown(broker: Broker, clock: Clock, topic: TopicInfo, partitions: int) -> TopicInfo:
    """The positions with as many partitions as the source, so that the mark that keeps workers away stays; as it is where
    that is not permitted."""
    try:
        await broker.create_partitions(topic.name, partitions)
    except RpcError as exc:
        if exc.code in NO_RIGHT:
            return topic
        raise
    grown = {topic.name: partitions}
    return (await _shown(broker, clock, grown, f"given {partitions} partitions"))[topic.name]


async def _shown(broker: Broker, clock: Clock, sizes: Mapping[str, int], done: str) -> Mapping[str, TopicInfo]:
    """Topics, once the brokers show what was done to them: `sizes` by name, 0 for none. RecoveryError where they do not."""
    return await see(
        clock,
        lambda: broker.topics(list(sizes)),
        lambda shown: all((shown[n].partitions if n in shown else 0) == size for n, size in sizes.items()),
        within_s=SHOWN_S,
        otherwise=lambda _: RecoveryError(
            f"{', '.join(sizes)}: {done}, and for {SHOWN_S:g} s the brokers do not show it; see their logs, and run `semel "
            "reset` again: repeating it is safe"
        ),
    )


async def _check_owner(plan: Plan, broker: Broker, clock: Clock, log: str, say: Callable[[str], None]) -> None:
    """RecoveryError where another app's positions have that log: it is not ours to delete."""
    for app in plan.others_of(log):
        info = await log_owners.seen(broker, f"{app}-positions", say)
        if info is None:
            continue
        try:
            recorded, _ = await _positions(broker, clock, info)
        except RpcError as exc:
            if exc.code in LOGIN or not needs_a_person(exc):
                raise
            say(log_owners.hidden(info.name, exc))
            continue
        if any(log in position.logs for position in recorded):
            raise RecoveryError(
                f"{log!r} holds state of app {app!r}, and {plan.app!r} has a table whose changelog has the same name: give the "
                f"table or the app another name, then reset. If {app!r} is no more, delete {info.name}"
            )


def _say_what_moved(
    plan: Plan, held: list[Position], existing: Mapping[str, TopicInfo], say: Callable[[str], None]
) -> None:
    """Events from before a source grew are not where their keys belong now."""
    if plan.may_grow:
        return
    for name in plan.sources:
        now = existing[name]
        before = max(
            (p.topics[name].partitions for p in held if name in p.topics and p.topics[name].id == now.id), default=0
        )
        if 0 < before < now.partitions:
            say(
                f"{name} had {before} partitions when {plan.app} ran last, and has {now.partitions}: events from before "
                "it grew whose keys moved are dead-lettered where they use a table (WrongPartition), and their ids are not known "
                "where the keys are now. --to TIME, the time at which it grew, leaves them out; a copy of all events in a new "
                "topic, declared as the source, keeps them"
            )


async def _positions(broker: Broker, clock: Clock, topic: TopicInfo) -> tuple[list[Position], bool]:
    """All that a topic of positions holds, and whether a reset that was broken off left its mark there. RpcError, RpcLost,
    Unreadable."""
    logs = CommittedLogs(broker, clock, "restore")
    tps = [TP(topic.name, p) for p in range(topic.partitions)]
    starts, ends = await logs.starts(tps), await broker.list_offsets(tps, LATEST, committed=True)
    written: list[Position | None] = []
    held = {tp: PositionLog() for tp in tps}
    for tp in tps:
        async for piece in logs.read(tp, starts[tp], ends[tp]):
            written += [held[tp].see(record, tp) for record in piece.records]
    return [position for position in written if position is not None], any(log.resetting for log in held.values())


async def _ends(broker: Broker, names: list[str]) -> bytes:
    """Where these topics end now, as JSON: what lies before is of the life that this reset ends."""
    topics = await broker.topics(names)
    ends = await broker.list_offsets([TP(n, p) for n, info in topics.items() for p in range(info.partitions)], LATEST)
    told = {n: {"id": info.id, "ends": [ends[TP(n, p)] for p in range(info.partitions)]} for n, info in topics.items()}
    return orjson.dumps({"v": 1, "topics": told})


async def _mark(writer: Writer, number: int, topic: TopicInfo, told: bytes | None) -> None:
    """Say in every partition of the positions that a reset is under way; None: that it is not."""
    outs = [
        ProducerRecord(TP(topic.name, p), NO_TIMESTAMP, positions.RESETTING_KEY, told, ())
        for p in range(topic.partitions)
    ]
    await _write(writer, number, outs)


async def _write(writer: Writer, number: int, outs: list[ProducerRecord]) -> None:
    try:
        await writer.commit(SealedEpoch(number, by_partition(outs), {}), None)
    except CommitFailed as exc:
        raise RecoveryError(
            f"the positions cannot be written: {exc}; see that this client may write them, and run `semel reset` again: "
            "repeating it is safe"
        ) from exc


async def _target_offsets(plan: Plan, broker: Broker, partitions: dict[str, int], to: Target) -> dict[TP, int]:
    tps = [TP(name, p) for name, count in partitions.items() for p in range(count)]
    if to == "earliest":
        return await broker.list_offsets(tps, EARLIEST)
    latest = await broker.list_offsets(tps, LATEST)
    if to == "latest":
        return latest
    at = await broker.list_offsets(tps, int(to.timestamp() * 1000))
    return {tp: latest[tp] if offset < 0 else offset for tp, offset in at.items()}
