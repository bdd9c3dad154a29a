"""Rights: whether the brokers let this worker do what it is about to, asked before it joins its group.

A right that is missing would show with the first commit else: after events have been handled, in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from semel.broker.asking import ask
from semel.codes import Code
from semel.errors import ConfigError
from semel.plan import Plan
from semel.port import Broker, Clock, Right, RpcError, RpcLost
from semel.task.topics import denied

# What says of a resource that its client has no right to know of it.
_HIDDEN = frozenset({Code.GROUP_AUTHORIZATION_FAILED, Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED})


class Missing(NamedTuple):
    """A right that is needed and not given. `resource`: as `kafka-acls` names it; `why`: what the worker needs it for."""

    right: Right
    resource: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.right} on the {self.resource} {self.name!r} ({self.why})"


def needed(plan: Plan) -> list[tuple[str, Right, str]]:
    """The topics that a worker uses, the rights it needs on them, and for what."""
    rights: list[tuple[str, Right, str]] = []
    for name in plan.sources:
        rights.append((name, "Read", "its events"))
    for topic in plan.outputs:
        rights.append((topic.name, "Write", "its results"))
    rights.append((plan.dead_letter_topic, "Write", "its dead letters"))
    for name in plan.logs:
        rights.append((name, "Read", "its state"))
        rights.append((name, "Write", "its state"))
    return rights


def missing_on_topics(plan: Plan, given: Mapping[str, frozenset[Right]]) -> list[Missing]:
    """Of a topic of which nothing is said nothing is missing."""
    return [
        Missing(right, "topic", name, why)
        for name, right, why in needed(plan)
        if name in given and right not in given[name]
    ]


def refusal(app: str, missing: list[Missing]) -> ConfigError:
    codes = {
        "topic": Code.TOPIC_AUTHORIZATION_FAILED, "group": Code.GROUP_AUTHORIZATION_FAILED,
        "transactional id": Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }  # fmt: skip
    names = ", ".join(dict.fromkeys(codes[m.resource].name for m in missing))
    one = missing[0]
    option = "--transactional-id" if one.resource == "transactional id" else f"--{one.resource}"
    return ConfigError(
        f"{app!r} is not given {', '.join(map(str, missing))} ({names}), and has not joined its group. Grant this worker's "
        f"principal what is missing, as kafka-acls --add --allow-principal User:NAME --operation {one.right} {option} "
        f"{one.name}, and start it again"
    )


async def check(
    broker: Broker, clock: Clock, plan: Plan, *, transactional_id: str, waiting: Callable[[RpcError | RpcLost], None]
) -> None:
    """ConfigError where a right is missing, with all that are. What brokers do not say is not missing."""

    async def look() -> list[Missing]:
        topics = list(dict.fromkeys(name for name, _, _ in needed(plan)))
        missing = missing_on_topics(plan, await broker.topic_rights(topics))
        if plan.sources and "Read" not in (await _of_group(broker, plan.app)):
            missing.append(Missing("Read", "group", plan.app, "the consumer group that shares its partitions"))
        if not await _may_write(broker, transactional_id):
            missing.append(Missing("Write", "transactional id", transactional_id, "its commits"))
        return missing

    missing = await ask(clock, look, waiting=waiting, giving_up=lambda exc: denied(plan.app, exc))
    if missing:
        raise refusal(plan.app, missing)


async def _of_group(broker: Broker, group: str) -> frozenset[Right]:
    try:
        rights = await broker.group_rights(group)
    except RpcError as exc:
        if exc.code not in _HIDDEN:
            raise
        return frozenset()
    return frozenset(("Read",)) if rights is None else rights


async def _may_write(broker: Broker, transactional_id: str) -> bool:
    try:
        await broker.find_writer(transactional_id)
    except RpcError as exc:
        if exc.code not in _HIDDEN:
            raise
        return False
    return True
