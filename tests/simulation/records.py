"""Records as they must stand in the logs: what an effect is to be there, to the byte, and what a log's records are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import orjson

from semel.memory.batch import MemoryRecord
from semel.state import lineage
from semel.state.dedup_marks import Mark, unpack
from tests.simulation.history import History
from tests.simulation.oracle import Effect

Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]
# What a letter says of its death that no law foretells: the words of the error and what is made of them, the moments; and
# how often a refused one was sent.
UNTOLD = frozenset(
    ("semel.error", "semel.dead_at", "semel.failed_first_at", "semel.failed_last_at", "semel.fingerprint", "semel.exception",
     "semel.trace", "__dlq.errors.message")
)  # fmt: skip
OF_ATTEMPTS = frozenset(("semel.attempts", "__dlq.errors.delivery.count"))


class Written(NamedTuple):
    """A record without its offset. `timestamp`: None where no law says it."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int | None


def written(record: MemoryRecord) -> Written:
    return Written(record.key, record.value, tuple((n, v) for n, v in record.headers), record.timestamp)


def origin(record: MemoryRecord) -> tuple[int, int, int]:
    """Partition and offset of the event that an output says it comes from, and its number among that event's."""
    said = lineage.parse(lineage.of(record.headers) or b"")
    return (-1, -1, -1) if said is None else (said.partition, said.offset, said.step)


def output_of(effect: Effect, app: str, topic: str, partition: int) -> Written:
    """Key, timestamp and headers of its event; the lineage put last, in the place of one from further up."""
    source = effect.record
    said = f"{app}/{topic}/{partition}/{effect.offset}/0/{effect.id or ''}".encode()
    taken_off = (lineage.HEADER, "semel.replay", "semel.letter", "semel.edited", "semel.hold")
    headers = tuple((n, v) for n, v in source.headers if n not in taken_off)
    return Written(source.key, orjson.dumps(effect.output), (*headers, (lineage.HEADER, said)), source.timestamp)


def reminders_of(effects: Iterable[Effect]) -> dict[int, Effect]:
    """By offset, the events that took effect and asked for one."""
    found: dict[int, Effect] = {}
    for effect in effects:
        if (
            effect.counted in ("out", "filtered")
            and orjson.loads(effect.record.value or b"{}").get("remind_ms", -1) >= 0
        ):
            found[effect.offset] = effect
    return found


def superseded_of(effects: Iterable[Effect]) -> dict[int, int]:
    """By offset, the reminders that a later event of the key replaces or cancels, and the offset of the first that does."""
    found: dict[int, int] = {}
    pending: dict[bytes | None, int] = {}
    for effect in sorted(effects, key=lambda effect: effect.offset):
        if effect.counted in ("out", "filtered"):
            payment = orjson.loads(effect.record.value or b"{}")
            named = payment.get("remind_ms", -1) >= 0 and payment.get("named")
            if named or payment.get("remind_ms", -1) == -2:
                before = pending.pop(effect.record.key, None)
                if before is not None:
                    found[before] = effect.offset
            if named:
                pending[effect.record.key] = effect.offset
    return found


def reminder_of(effect: Effect, app: str, topic: str, partition: int) -> tuple[int, Written]:
    """When it is due, and as it must be written: as an output of its event, but for its time and its number."""
    payment = orjson.loads(effect.record.value or b"")
    value = {"id": payment["id"], "account": payment["account"], "balance": -2}
    at_once = output_of(replace(effect, output=value), app, topic, partition)
    due_ms = effect.record.timestamp + payment["remind_ms"]
    number = "~0" if payment.get("named") else "+0"
    said = f"{app}/{topic}/{partition}/{effect.offset}/{number}/{effect.id or ''}".encode()
    return due_ms, at_once._replace(headers=(*at_once.headers[:-1], (lineage.HEADER, said)), timestamp=due_ms)


def hold_of(history: History, topic: str, partition: int, record: MemoryRecord) -> str:
    """How an event is named that holds its key."""
    return f"{history.app}/{history.agent}/{topic}[{partition}]@{record.offset}/{record.timestamp}"


def letter_to(effect: Effect, history: History, topic: str, partition: int) -> Written:
    """Its event as it came, and where from and why."""
    source = effect.record
    said = {
        "semel.pipeline": history.app,
        "semel.agent": history.agent,
        "semel.reason": effect.dead or "",
        "semel.topic": topic,
        "semel.partition": str(partition),
        "semel.offset": str(effect.offset),
        "semel.timestamp": str(source.timestamp),
        "__dlq.errors.topic": topic,
        "__dlq.errors.partition": str(partition),
        "__dlq.errors.offset": str(effect.offset),
        "__dlq.errors.group": history.app,
    }
    if effect.hold:
        said["semel.hold"] = effect.hold
    if effect.dead != "refused":
        said["semel.attempts"] = str(effect.attempts)
        said["__dlq.errors.delivery.count"] = str(max(1, effect.attempts))
    return Written(
        source.key, source.value, _told([*source.headers, *((n, v.encode()) for n, v in said.items())]), None
    )


def letter(record: MemoryRecord) -> Written:
    """What of a dead letter can be foretold. Its timestamp is the moment at which the broker got it."""
    said = dict(record.headers)
    untold = UNTOLD | OF_ATTEMPTS if said.get("semel.reason") == b"refused" else UNTOLD
    raised = ("semel.exception",) if said.get("semel.reason") in (b"failed", b"rejected") else ()
    stamped = record.timestamp > 0 and UNTOLD - {"semel.exception", "semel.trace"} | {*raised} <= said.keys()
    headers = _told((n, v) for n, v in record.headers if n not in untold)
    return Written(record.key, record.value, headers, None if stamped else record.timestamp)


def marks(records: Iterable[MemoryRecord], *, exact: bool) -> Counter[tuple[bytes, Mark]]:
    """`exact`: what they are filed under counts."""
    return Counter((r.key or b"", _mark(unpack(r.value or b""), exact)) for r in records)


def marks_of(effects: Iterable[Effect], *, exact: bool) -> Counter[tuple[bytes, Mark]]:
    return Counter(((e.id or "").encode(), _mark(e.mark, exact)) for e in effects if e.mark is not None)


def first_difference(found: Sequence[Written], wanted: Sequence[Written]) -> str | None:
    for a, b in zip(found, wanted, strict=False):
        if a != b:
            return f"{a}, not {b}"
    return None if len(found) == len(wanted) else f"{len(found)} records, not {len(wanted)}"


def _mark(mark: Mark, exact: bool) -> Mark:
    return mark if exact else mark._replace(filed_at=0)


def _told(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    return tuple(sorted(headers, key=lambda header: (header[0], header[1] or b"")))
