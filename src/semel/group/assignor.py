"""Who runs which task: pure, sticky, balanced. The leader of the group decides for everyone.

A task is a partition number: partition p of every source topic goes to the same worker, so that co-partitioned topics
and tables stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import orjson

from semel.group.address import worker_url

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """What a member says of itself when it joins.

    `tasks`: what it ran last, so that it may keep it. `anew`: how often it joined again only to be heard. `program`: what it
    runs (`Plan.program`); empty: not known, of a version that does not say it.
    """

    member_id: str
    topics: tuple[str, ...]
    instance: str = ""
    url: str = ""
    tasks: tuple[int, ...] = ()
    anew: int = 0
    program: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """`tasks`: ours. `owners`: task -> (instance, web URL) of every member, for forwarding."""

    tasks: tuple[int, ...]
    partitions: Mapping[str, int] = field(default_factory=dict[str, int])
    owners: Mapping[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])


def assign(members: Sequence[MemberInfo], tasks: int) -> dict[str, tuple[int, ...]]:
    """member id -> its tasks: each task exactly once, loads that differ by at most one, as few moves as that allows.

    Where two members say they ran a task, the first by instance name keeps it. No members, nothing assigned.
    """
    if not members:
        return {}
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


def mixed(members: Sequence[MemberInfo]) -> list[dict[str, list[str]]]:
    """Program -> instances that run it, of members that read the same topics and do not run the same.

    What a member does not say of itself is taken for what the others say.
    """
    running: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for member in sorted(members, key=lambda m: m.instance):
        if member.program:
            by_program = running.setdefault(tuple(sorted(member.topics)), {})
            by_program.setdefault(member.program, []).append(member.instance)
    return [by_program for by_program in running.values() if len(by_program) > 1]


# -- on the wire: JSON; the broker's envelope around it is the client's business


class Malformed(ValueError):
    """What a member or the leader sent is none of ours: another program uses the group's name, or it is hostile."""


# A member that ran 100,000 tasks says so in less.
BYTES_MAX = 1 << 20
# The longest name that Kafka takes as a group instance id is shorter.
INSTANCE_CHARACTERS_MAX = 255


class _Member(msgspec.Struct):
    topics: tuple[str, ...] = ()
    instance: str = ""
    url: str = ""
    tasks: tuple[int, ...] = ()
    anew: int = 0
    program: str = ""


class _Assignment(msgspec.Struct):
    tasks: tuple[int, ...] = ()
    partitions: dict[str, int] = {}
    owners: dict[int, tuple[str, str]] = {}


_read_member = msgspec.json.Decoder(_Member).decode
_read_assignment = msgspec.json.Decoder(_Assignment).decode


def encode_member(info: MemberInfo) -> bytes:
    return orjson.dumps(
        {
            "topics": info.topics,
            "instance": info.instance,
            "url": info.url,
            "tasks": info.tasks,
            "anew": info.anew,
            "program": info.program,
        }
    )


def decode_member(member_id: str, raw: bytes) -> MemberInfo:
    """Malformed where a worker of ours would not have said it. A URL that is none is no address."""
    member = _read(_read_member, raw) if raw else _Member()
    _check_instance(member.instance)
    url = worker_url(member.url) or ""
    return MemberInfo(member_id, member.topics, member.instance, url, member.tasks, member.anew, member.program)


def encode_assignment(assignment: Assignment) -> bytes:
    return orjson.dumps(
        {
            "tasks": assignment.tasks,
            "partitions": dict(assignment.partitions),
            "owners": {str(task): owner for task, owner in assignment.owners.items()},
        }
    )


def decode_assignment(raw: bytes) -> Assignment:
    """Malformed as for a member. An empty answer is an empty assignment."""
    assignment = _read(_read_assignment, raw) if raw else _Assignment()
    most = max(assignment.partitions.values(), default=0)
    if any(not 0 <= task < most for task in assignment.tasks) or min(assignment.partitions.values(), default=1) < 1:
        raise Malformed("a task that is no partition")
    for instance, _ in assignment.owners.values():
        _check_instance(instance)
    owners = {task: (instance, worker_url(url) or "") for task, (instance, url) in assignment.owners.items()}
    return Assignment(assignment.tasks, assignment.partitions, owners)


def _read(decode: Callable[[bytes], T], raw: bytes) -> T:
    if len(raw) > BYTES_MAX:
        raise Malformed(f"{len(raw):,} bytes")
    try:
        return decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise Malformed(str(wrong)) from wrong


def _check_instance(name: str) -> None:
    if len(name) > INSTANCE_CHARACTERS_MAX or not name.isprintable():
        raise Malformed(f"an instance called {name!r:.80}")
