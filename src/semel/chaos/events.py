"""Events for a pipeline nobody has seen before: made by its module, or recorded; and what is redelivered of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, cast

import msgspec

from semel.chaos.subject import Subject
from semel.config import Settings
from semel.errors import ConfigError
from semel.port import EARLIEST, LATEST, NO_TIMESTAMP, TP
from semel.runtime.clock import SystemClock
from semel.task.read_committed import CommittedLogs
from semel.topic import Topic
from semel.worker.engine_host import kafka_broker

Headers = tuple[tuple[str, bytes | None], ...]


DeliveryKind = Literal["original", "immediate", "late", "burst", "disordered", "conflict", "undecodable"]


class Delivery(NamedTuple):
    """An event as bytes, a `semel.port.Record` that stands nowhere yet. Without a timestamp it gets that of its sending."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: int = NO_TIMESTAMP
    kind: DeliveryKind = "original"

    @property
    def offset(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Input:
    """Where events come from. `originals`: each event once, without end unless `limit` says how many there are.

    `notes`: what a person should know about how they are made, as sentences.
    """

    originals: Iterator[Delivery]
    notes: tuple[str, ...] = ()
    limit: int | None = None
    json: bool = True


# -- made by the pipeline's module


def from_module(subject: Subject, target: str, seed: int) -> Input | None:
    """What `chaos_events(rng)` of the pipeline's module gives; None where there is no such function."""
    module = target.partition(":")[0]
    function: Any = getattr(sys.modules.get(module), "chaos_events", None)
    if function is None:
        return None
    if not callable(function):
        raise ConfigError(f"chaos_events of {target} is {function!r}; make it a function of a random.Random")
    given = cast("Iterable[Any]", function(Random(f"{seed} events")))
    originals = map(partial(_given, subject.source, target), given)
    return Input(originals, (f"events are those of chaos_events in {module}, seed {seed}",))


def _given(source: Topic, target: str, one: Any) -> Delivery:
    if not isinstance(one, tuple) or len(cast("tuple[Any, ...]", one)) not in (2, 3):
        raise ConfigError(f"chaos_events of {target} gave {one!r:.200}; give (key, value) or (key, value, headers)")
    key, value, headers = cast("tuple[Any, Any, Any]", (*one, ())[:3])
    pairs = cast("Iterable[tuple[str, Any]]", headers.items() if hasattr(headers, "items") else headers)
    try:
        return Delivery(
            key if key is None or isinstance(key, bytes) else source.key.encode(key),
            value if value is None or isinstance(value, bytes) else source.value.encode(value),
            tuple((name, text.encode() if isinstance(text, str) else text) for name, text in pairs),
        )
    except TypeError as wrong:
        raise ConfigError(
            f"chaos_events of {target} gave {one!r:.200}, which does not fit the source: {wrong}"
        ) from wrong


# -- recorded


class _Line(msgspec.Struct):
    """Of a text its bytes are meant, of another value its JSON."""

    value: Any
    key: Any = None
    headers: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    timestamp: int = NO_TIMESTAMP


def from_file(path: Path) -> Input:
    """JSON lines of {"key", "value", "headers", "timestamp"}: a text stands for its bytes, another value for its JSON."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as missing:
        raise ConfigError(f"--input {path}: {missing.strerror or missing}") from missing
    made: list[Delivery] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as wrong:
            raise ConfigError(
                f'{path}, line {number}: {wrong}; a line is {{"key": ..., "value": ..., "headers": {{...}}, "timestamp": '
                "ms}, of which only the value must be there"
            ) from wrong
        headers = tuple((name, _recorded(value)) for name, value in row.headers.items())
        made.append(Delivery(_recorded(row.key), _recorded(row.value), headers, row.timestamp))
    if not made:
        raise ConfigError(f"--input {path} has no lines")
    return Input(iter(made), (f"{len(made):,} events recorded in {path}",), len(made))


def _recorded(value: Any) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


async def from_topic(topic: str, broker: str | None, events: int) -> Input:
    """The last `events` committed records of the topic, the same number from each partition, ordered by time.

    RpcLost where no broker answers, Unreadable where it does not go on; ConfigError where there is no such topic, or
    nothing in it.
    """
    settings = Settings.load(None, broker=broker)
    there = kafka_broker(settings, client_id="semel-chaos-copy")
    await there.start()
    try:
        info = (await there.topics([topic])).get(topic)
        if info is None:
            raise ConfigError(f"there is no topic {topic!r} on {settings.bootstrap}; name another with --from-topic")
        tps = [TP(topic, partition) for partition in range(info.partitions)]
        starts = await there.list_offsets(tps, EARLIEST)
        ends = await there.list_offsets(tps, LATEST, committed=True)
        share = -(-events // info.partitions)
        logs = CommittedLogs(there, SystemClock(), "copy")
        copied = [
            Delivery(record.key, record.value, tuple(record.headers), record.timestamp)
            for tp in tps
            async for piece in logs.read(tp, max(starts[tp], ends[tp] - share), ends[tp])
            for record in piece.records
        ]
    finally:
        await there.close()
    if not copied:
        raise ConfigError(f"topic {topic!r} on {settings.bootstrap} holds no records to copy")
    newest = sorted(copied, key=lambda copy: copy.timestamp)[-events:]
    return Input(iter(newest), (f"{len(newest):,} events copied from {topic} on {settings.bootstrap}",), len(newest))


# -- redeliveries

MIX: Mapping[DeliveryKind, float] = {
    "immediate": 0.06, "late": 0.06, "burst": 0.002, "disordered": 0.003, "conflict": 0.01, "undecodable": 0.001,
}  # fmt: skip
RECENT = 100
LATE = (20, 5_000)
NOT_JSON = b"\xff\x00 not what the topic declares"


def deliveries(
    source: Input, seed: int, now_ms: Callable[[], int], altered: Callable[[Delivery, Sequence[Delivery]], bytes | None]
) -> Iterator[Delivery]:
    """The originals in their order, and what a retrying producer, a replayed backup or a broken sender puts between.

    A redelivery is the record it repeats, its timestamp included. Late ones come after 20 to 5,000 more events; those
    that still wait when the originals end come then. `altered`: another payload under the id of an event, of what recent
    ones have; None where there is none.
    """
    rng = Random(f"{seed} redeliveries")
    kinds, weights = list(MIX), list(MIX.values())
    none = 1 - sum(weights)
    recent: list[Delivery] = []
    waiting: dict[int, list[Delivery]] = {}
    for number, first in enumerate(source.originals, 1):
        if first.timestamp == NO_TIMESTAMP:
            first = first._replace(timestamp=now_ms())
        yield first
        recent.append(first)
        del recent[:-RECENT]
        yield from waiting.pop(number, ())
        match rng.choices((None, *kinds), (none, *weights))[0]:
            case "immediate":
                yield first._replace(kind="immediate")
            case "late":
                waiting.setdefault(number + rng.randint(*LATE), []).append(first._replace(kind="late"))
            case "burst":
                yield from [d._replace(kind="burst") for d in recent[-rng.randint(10, RECENT) :]]
            case "disordered":
                stretch = recent[-rng.randint(5, 40) :]
                rng.shuffle(stretch)
                yield from [d._replace(kind="disordered") for d in stretch]
            case "conflict" if (value := altered(first, recent)) is not None:
                due = number + rng.choice((1, rng.randint(*LATE)))
                waiting.setdefault(due, []).append(first._replace(kind="conflict", value=value))
            case "undecodable" if source.json:
                yield first._replace(kind="undecodable", value=NOT_JSON)
            case _:
                continue
    for due in sorted(waiting):
        yield from waiting[due]
