"""A pipeline's agent tried on a few made-up events, without Kafka, to learn how its source must be keyed.

A row of a table lives in the partition that its key hashes to, so the record key must be what the agent uses as the
table's key. Which field that is, or which text made of fields, stands in the agent's code only; so it is run, its tables
note what is asked of them, and the rule is read off.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semel.event import Event
from semel.hand import event_number, in_hand
from semel.output import Output
from semel.pipeline import Pipeline
from semel.plan import AgentKind
from semel.state.overlay import MISSING

# An agent that waits for something that is not there must not hold the run up.
TRIAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Tried:
    """One made-up event: its fields as texts, and the keys of partitioned tables that it led to, as bytes."""

    fields: Mapping[str, str]
    record_key: bytes | None
    table_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A record key made of fields: literal texts and names of fields in turn, as `["", "origin", "-", "dest", ""]`."""

    parts: tuple[str, ...]

    def fill(self, fields: Mapping[str, str]) -> bytes:
        return "".join(part if n % 2 == 0 else fields[part] for n, part in enumerate(self.parts)).encode()

    @property
    def fields(self) -> tuple[str, ...]:
        return self.parts[1::2]

    def __str__(self) -> str:
        return "".join(part if n % 2 == 0 else f"{{{part}}}" for n, part in enumerate(self.parts))


def learn(tried: Sequence[Tried]) -> Template | None:
    """The rule that gives each event the table key it led to; None where any key will do, or no rule is found."""
    led = [t for t in tried if t.table_keys]
    if not led:
        return None
    candidates: Counter[Template] = Counter()
    for one in led:
        for raw in dict.fromkeys(one.table_keys):
            if raw == one.record_key:
                continue
            template = _read_off(raw, one.fields)
            if template is not None:
                candidates[template] += 1
    best = candidates.most_common(1)
    if not best:
        return None
    [(template, times)] = best
    return template if times * 2 > len(led) else None


def _read_off(raw: bytes, fields: Mapping[str, str]) -> Template | None:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    # Longer texts first: one may be part of another.
    names = {value: name for name, value in sorted(fields.items(), reverse=True) if len(value) >= 3}
    if not names:
        return None
    pattern = re.compile("|".join(re.escape(value) for value in sorted(names, key=len, reverse=True)))
    parts: list[str] = []
    at = 0
    for match in pattern.finditer(text):
        parts += [text[at : match.start()], names[match[0]]]
        at = match.end()
    return Template((*parts, text[at:])) if parts else None


# -- running the agent


@dataclass(slots=True)
class _Rows:
    """What a table's hand reads from: nothing, and everything that is asked is noted."""

    name: str
    hot: _Rows | Any = None
    numeric_key: type | None = None


class _Noting(dict[Any, Any]):
    def __init__(self, note: Callable[[Any], None], held: dict[Any, Any]) -> None:
        super().__init__()
        self._note = note
        self._held = held

    def get(self, key: Any, default: Any = None) -> Any:
        self._note(key)
        return self._held.get(key, default)


@dataclass(slots=True)
class _Record:
    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(slots=True)
class TrialHand:
    """Stands where the engine's hand would: rows start empty and are kept for the trial."""

    pipeline: Pipeline
    event: int = 0
    touched: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    held: dict[str, dict[Any, Any]] = field(default_factory=dict[str, dict[Any, Any]])
    now: Event | None = None

    # what `semel.table` and `semel.event` ask of a hand

    @property
    def holding(self) -> bool:
        """No rows are at hand: each access asks for them."""
        return False

    @property
    def mine(self) -> bool:
        return self.now is not None

    @property
    def task(self) -> TrialHand:
        return self

    def event_in_hand(self, _hand: Any) -> Event | None:
        return self.now

    def rows(self, name: str) -> _Rows:
        held = self.held.setdefault(name, {})
        return _Rows(name, _Noting(lambda key: self.touched.append((name, key)), held))

    def read(self, rows: _Rows, key: Any, default: Any) -> Any:
        self.touched.append((rows.name, key))
        held = self.held[rows.name]
        if key not in held:
            if default is None:
                return MISSING
            held[key] = default()
        return held[key]

    def write(self, rows: _Rows, key: Any, value: Any) -> None:
        self.touched.append((rows.name, key))
        if value is MISSING:
            self.held[rows.name].pop(key, None)
        else:
            self.held[rows.name][key] = value


@dataclass(frozen=True, slots=True)
class Candidate:
    """An event to be tried: its value, its fields as texts, and the record as it would be sent."""

    value: Any
    fields: Mapping[str, str]
    key: bytes | None
    raw: bytes
    timestamp: int


def attempt(pipeline: Pipeline, candidates: Sequence[Candidate]) -> tuple[list[Tried], str]:
    """Run the agent on each; and what it said where it failed, empty where it never did."""
    return asyncio.run(_attempt(pipeline, candidates))


async def _attempt(pipeline: Pipeline, candidates: Sequence[Candidate]) -> tuple[list[Tried], str]:
    hand = TrialHand(pipeline)
    keyed = {table.name: table.key for table in pipeline.tables if table.merge is None}
    tried: list[Tried] = []
    failed = ""
    for number, candidate in enumerate(candidates):
        record = _Record(candidate.key, candidate.raw, number, candidate.timestamp)
        hand.now = Event(candidate.value, record, pipeline.source.name, 0, pipeline.source.key.decode)
        hand.touched.clear()
        try:
            async with asyncio.timeout(TRIAL_S):
                await _run(pipeline, hand)
        except Exception as error:
            failed = failed or f"{type(error).__name__}: {error}"
        keys = tuple(keyed[name].encode(key) for name, key in hand.touched if name in keyed)
        tried.append(Tried(candidate.fields, candidate.key, keys))
    return tried, failed


async def _run(pipeline: Pipeline, hand: TrialHand) -> None:
    assert hand.now is not None
    token = in_hand.set(hand)  # pyright: ignore[reportArgumentType]  (it answers what a hand is asked)
    number = event_number.set(hand.event)
    try:
        if pipeline.kind is AgentKind.STREAM:
            running = pipeline.agent(_Stream(hand.now))
            if hasattr(running, "__aiter__"):
                async for result in running:
                    _encode(pipeline, result)
            else:
                await running
        elif pipeline.kind is AgentKind.COROUTINE:
            _encode(pipeline, await pipeline.agent(hand.now.value))
        else:
            _encode(pipeline, pipeline.agent(hand.now.value))
    finally:
        in_hand.reset(token)
        event_number.reset(number)


def _encode(pipeline: Pipeline, result: Any) -> None:
    """What cannot be sent fails its event, too. TypeError for what its topic does not declare."""
    if result is None:
        return
    output = result if isinstance(result, Output) else Output(result)
    topic = output.topic or pipeline.sink
    if topic is not None and output.value is not None:
        topic.value.encode(output.value)


class _Batch(list[Any]):
    """One event, as `stream.batches()` hands it out."""

    def __init__(self, event: Event) -> None:
        super().__init__([event.value])
        self.records = [event.record]


class _Stream:
    """One event, in each of the forms in which an agent takes its stream."""

    def __init__(self, event: Event) -> None:
        self._event = event

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield self._event.value

    async def events(self) -> AsyncIterator[Event]:
        yield self._event

    async def batches(self) -> AsyncIterator[_Batch]:
        yield _Batch(self._event)
