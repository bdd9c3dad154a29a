"""Reset: move an app's positions and state together (protocol rule 24). Repeating it is safe, at any point.

The order is the rule: an empty group; a record in the positions that keeps workers from starting; state deleted and made
anew; the group's offsets; and only then, in one transaction, the new positions and the end of that record.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal

from semel.errors import ConfigError, RecoveryError
from semel.plan import Plan
from semel.port import EARLIEST, LATEST, TP, Broker, Clock
from semel.runtime.failpoints import Failpoints
from semel.runtime.settings import EngineSettings
from semel.runtime.topics import Topics
from semel.stages.commit import Sealed, Writer, by_partition
from semel.stages.sink import Out
from semel.state import positions
from semel.state.positions import Position, StreamTime, TopicPosition

Target = Literal["earliest", "latest"] | datetime


def target_of(text: str) -> Target:
    """`earliest`, `latest`, or a time as ISO 8601; a time without an offset is UTC's local reading. ConfigError."""
    if text in ("earliest", "latest"):
        return text
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--to {text!r} is neither earliest nor latest nor a time; write one as 2026-03-01T12:00:00+00:00"
        ) from None
    return at if at.tzinfo is not None else at.astimezone()


async def reset(
    plan: Plan, settings: EngineSettings, broker: Broker, clock: Clock, to: Target, *, say: Callable[[str], None]
) -> dict[TP, int]:
    """Returns where each source partition begins now. RecoveryError while the group has members; broker errors as they come."""
    until = clock.monotonic() + settings.session_timeout_ms / 1000 + 1
    while (info := await broker.describe_group(plan.app)).members and clock.monotonic() < until:
        say(f"waiting for the group's {len(info.members)} member(s) to be gone: a stopped worker's session has to end")
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
    found = await broker.topics([*plan.sources, *plan.logs])
    missing = [name for name in plan.sources if name not in found]
    if missing:
        raise RecoveryError(f"source topic {', '.join(missing)} does not exist; create it, then reset")
    tasks = max(found[name].partitions for name in plan.sources)
    offsets = await _target_offsets(plan, broker, {n: found[n].partitions for n in plan.sources}, to)

    writer = Writer(
        broker,
        clock,
        Failpoints(),
        f"{plan.app}-reset",
        timeout_ms=settings.transaction_timeout_ms,
        commit_timeout_ms=settings.commit_timeout_ms,
    )
    await writer.init(until=clock.monotonic() + settings.commit_timeout_ms / 1000)
    now_ms = int(clock.time() * 1000)
    known = found.get(plan.positions_topic)
    if known is not None:
        say("marking the positions: workers refuse to start until the reset is complete")
        told = b'{"v":1,"at":%d}' % now_ms
        await _write(
            writer,
            1,
            [Out(TP(known.name, p), now_ms, positions.RESETTING_KEY, told, ()) for p in range(known.partitions)],
        )
    doomed = [name for name in plan.logs if name != plan.positions_topic and name in found]
    if known is not None and known.partitions != tasks:
        doomed.append(known.name)
    if doomed:
        say(f"deleting {', '.join(doomed)}")
        await broker.delete_topics(doomed)
        while await broker.topics(doomed):
            await clock.sleep(0.1)
    await topics.ready()
    say("setting the group's offsets")
    await broker.set_group_offsets(plan.app, offsets)
    say("writing the positions")
    outs: list[Out] = []
    logs = {name: topics.known[name].id for name in plan.state_logs}
    for task in range(tasks):
        at = {
            name: TopicPosition(found[name].id, found[name].partitions, offsets[TP(name, task)])
            for name in plan.sources
            if task < found[name].partitions
        }
        position = Position(at, StreamTime(), {}, -1, writer.transactional_id, 2, now_ms, plan.shape(), logs)
        tp = TP(plan.positions_topic, task)
        outs.append(Out(tp, now_ms, positions.KEY, position.encode(), ()))
        outs.append(Out(tp, now_ms, positions.RESETTING_KEY, None, ()))
    await _write(writer, 2, outs)
    return offsets


async def _write(writer: Writer, number: int, outs: list[Out]) -> None:
    await writer.commit(Sealed(number, by_partition(outs), {}), None)


async def _target_offsets(plan: Plan, broker: Broker, partitions: dict[str, int], to: Target) -> dict[TP, int]:
    tps = [TP(name, p) for name, count in partitions.items() for p in range(count)]
    if to == "earliest":
        return await broker.list_offsets(tps, EARLIEST)
    latest = await broker.list_offsets(tps, LATEST)
    if to == "latest":
        return latest
    at = await broker.list_offsets(tps, int(to.timestamp() * 1000))
    return {tp: latest[tp] if offset < 0 else offset for tp, offset in at.items()}
