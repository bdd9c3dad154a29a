"""Foreign state: whether another app keeps its state in a topic that results are to go to. A record of ours would damage it.

A name alone says nothing: `world-positions` may be anybody's. What counts is what the apps of which the topic could be say in
their position records: that they are such, and which logs, by name and id, go with them.
"""

from __future__ import annotations

import logging

from semel.errors import RecoveryError
from semel.plan import Plan
from semel.port import Broker, RpcError, RpcLost, TopicInfo
from semel.state import positions
from semel.task.log_owners import seen
from semel.task.predecessor import last_records

log = logging.getLogger("semel.topics")

_POSITIONS, _LOG = "-positions", "-changelog"
# Logs that every app with a source has one of.
_OF_EVENTS = ("-parked", "-timers")


async def keeper_of(broker: Broker, plan: Plan, topic: TopicInfo) -> str | None:
    """The other app that keeps its positions, rows, marks, parked events or timers in `topic`; None where there is none, or
    brokers do not tell."""
    try:
        if topic.name.endswith(_POSITIONS):
            app = topic.name.removesuffix(_POSITIONS)
            return app if app != plan.app and await _keeps(broker, topic, None) else None
        apps = plan.others_of(topic.name) if topic.name.endswith(_LOG) else []
        for suffix in _OF_EVENTS:
            if topic.name.endswith(suffix) and topic.name not in plan.own_topics:
                apps = [topic.name.removesuffix(suffix)]
        for app in apps:
            theirs = await seen(broker, app + _POSITIONS, lambda text: log.debug("%s", text))
            if theirs is not None and await _keeps(broker, theirs, topic):
                return app
    except (RpcError, RpcLost) as exc:
        log.debug("whether %s holds state of another app: %s", topic.name, exc)
    return None


def refusal(topic: str, app: str) -> str:
    return (
        f"app {app!r} keeps its state in topic {topic!r}, which a record of another program would damage: choose "
        f"another topic. If {app!r} is no more, delete {app}{_POSITIONS} first"
    )


async def _keeps(broker: Broker, theirs: TopicInfo, state: TopicInfo | None) -> bool:
    """Whether `theirs` holds a position record, one that names `state` where it is given."""
    async for record in last_records(broker, theirs):
        if record.key != positions.KEY or record.value is None:
            continue
        try:
            position = positions.decode(record.value, f"{theirs.name}@{record.offset}")
        except RecoveryError:
            continue
        if state is None or position.logs.get(state.name) == state.id or state.name in position.claims:
            return True
    return False
