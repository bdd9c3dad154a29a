"""Who runs which task: pure, sticky, balanced. The leader of the group decides for everyone.

A task is a partition number: partition p of every source topic goes to the same worker, so that co-partitioned topics and
tables stay together. On the wire it is the consumer protocol, so that Kafka's own tools show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import orjson

_I16 = Struct(">h")
_I32 = Struct(">i")


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """What a member says of itself when it joins. `tasks`: what it ran last, so that it may keep it."""

    member_id: str
    topics: tuple[str, ...]
    instance: str = ""
    url: str = ""
    tasks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """`tasks`: ours. `owners`: task -> (instance, web URL) of every member, for forwarding."""

    tasks: tuple[int, ...]
    topics: tuple[str, ...] = ()
    partitions: Mapping[str, int] = field(default_factory=dict[str, int])
    owners: Mapping[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])


def assign(members: Sequence[MemberInfo], tasks: int) -> dict[str, tuple[int, ...]]:
    """member id -> its tasks: each task exactly once, loads differ by at most one, what a member ran it keeps where possible."""
    order = sorted(members, key=lambda m: (m.instance, m.member_id))
    low, extra = divmod(tasks, len(order))
    free = set(range(tasks))
    kept: dict[str, list[int]] = {}
    for member in order:
        kept[member.member_id] = []
        for task in member.tasks:
            if task in free and len(kept[member.member_id]) < low + 1:
                free.remove(task)
                kept[member.member_id].append(task)
    # Only `extra` members may hold one more than the others.
    fuller = [m.member_id for m in order if len(kept[m.member_id]) > low]
    for member_id in fuller[extra:]:
        free.add(kept[member_id].pop())
    room = extra - min(len(fuller), extra)
    for task in sorted(free):
        smallest = min(order, key=lambda m: (len(kept[m.member_id]), m.instance, m.member_id))
        held = kept[smallest.member_id]
        if len(held) == low:
            room -= 1
        held.append(task)
    if room < 0:
        raise AssertionError("more members hold an extra task than there are extra tasks")
    return {member_id: tuple(sorted(held)) for member_id, held in kept.items()}


# -- the consumer protocol, version 1 (org.apache.kafka.clients.consumer.internals.ConsumerProtocol)


def encode_subscription(info: MemberInfo) -> bytes:
    """What describes us to the group. A restart under the same instance id must yield the same bytes for the same topics
    and URL, or a static member would cause a rebalance; the tasks it ran are known to the leader by its instance."""
    said = orjson.dumps({"instance": info.instance, "url": info.url, "tasks": info.tasks})
    parts = [_I16.pack(1), _I32.pack(len(info.topics))]
    parts += [_string(t) for t in sorted(info.topics)]
    parts += [_I32.pack(len(said)), said, _I32.pack(0)]
    return b"".join(parts)


def decode_subscription(member_id: str, raw: bytes) -> MemberInfo:
    at, topics = 2, list[str]()
    (count,) = _I32.unpack_from(raw, at)
    at += 4
    for _ in range(count):
        topic, at = _read_string(raw, at)
        topics.append(topic)
    said, at = _read_json(raw, at)
    return MemberInfo(
        member_id, tuple(topics), said.get("instance", ""), said.get("url", ""), tuple(said.get("tasks", ()))
    )


def encode_assignment(assignment: Assignment) -> bytes:
    said = orjson.dumps(
        {
            "tasks": assignment.tasks,
            "partitions": dict(assignment.partitions),
            "owners": {str(task): owner for task, owner in assignment.owners.items()},
        }
    )
    held = {
        topic: [t for t in assignment.tasks if t < assignment.partitions.get(topic, 0)] for topic in assignment.topics
    }
    parts = [_I16.pack(1), _I32.pack(len(held))]
    for topic, partitions in held.items():
        parts += [_string(topic), _I32.pack(len(partitions)), *(_I32.pack(p) for p in partitions)]
    parts += [_I32.pack(len(said)), said]
    return b"".join(parts)


def decode_assignment(raw: bytes) -> Assignment:
    """An empty answer is an empty assignment."""
    if not raw:
        return Assignment(())
    at, topics = 2, list[str]()
    (count,) = _I32.unpack_from(raw, at)
    at += 4
    for _ in range(count):
        topic, at = _read_string(raw, at)
        topics.append(topic)
        (held,) = _I32.unpack_from(raw, at)
        at += 4 + 4 * held
    said, at = _read_json(raw, at)
    return Assignment(
        tuple(said.get("tasks", ())),
        tuple(topics),
        said.get("partitions", {}),
        {int(task): (owner[0], owner[1]) for task, owner in said.get("owners", {}).items()},
    )


def _string(text: str) -> bytes:
    raw = text.encode()
    return _I16.pack(len(raw)) + raw


def _read_string(raw: bytes, at: int) -> tuple[str, int]:
    (length,) = _I16.unpack_from(raw, at)
    return raw[at + 2 : at + 2 + length].decode(), at + 2 + length


def _read_json(raw: bytes, at: int) -> tuple[dict[str, Any], int]:
    (length,) = _I32.unpack_from(raw, at)
    if length <= 0:
        return {}, at + 4
    return orjson.loads(raw[at + 4 : at + 4 + length]), at + 4 + length
