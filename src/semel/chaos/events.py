"""Events for a pipeline nobody has seen before: made up from its types, made by its module, or recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, cast

import orjson

from semel.chaos.subject import Subject
from semel.chaos.trial import Candidate, Template, attempt, learn
from semel.chaos.values import POOL, NotMade, build, fields_of, make, unique
from semel.dedup import ContentKey, Dedup, HeaderKey
from semel.errors import ConfigError
from semel.topic import Topic

Headers = tuple[tuple[str, bytes | None], ...]

TRIALS = 24
ID_NAME = "id"


class Made(NamedTuple):
    """An event as bytes. `altered`: the same event with another payload, for a conflict; None where none is known."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None
    altered: bytes | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """Where events come from. `originals`: each event once, without end unless `limit` says how many there are.

    `notes`: what a person should know about how they are made, as sentences.
    """

    originals: Iterator[Made]
    notes: tuple[str, ...] = ()
    limit: int | None = None
    json: bool = True


def from_types(subject: Subject, seed: int, now_ms: Callable[[], int], key: str | None = None) -> Input:
    """Made up from the source's value type; NotMade where that does not say enough.

    `key`: the record key as a text with fields in braces, `{origin}-{dest}`; else it is learned from what the agent
    does.
    """
    maker = _Maker(subject, seed, now_ms)
    maker.find_identity()
    template = _template(key) if key is not None else None
    notes: list[str] = []
    if template is None:
        template, failed = maker.learn_key()
        if failed:
            notes.append(f"the agent fails on events that are made up, so many will be dead letters: {failed[:300]}")
    maker.template = template
    maker.check_template()
    keyed = f"keyed by {template}" if template else f"with {POOL} keys"
    notes.insert(0, f"events are made up from {subject.source.value.name}, {keyed}, seed {seed}")
    return Input(maker.events(), tuple(notes), json=subject.source.value.type is not bytes)


class _Maker:
    def __init__(self, subject: Subject, seed: int, now_ms: Callable[[], int]) -> None:
        self._pipeline = subject.pipeline
        self._source = subject.source
        self._seed = seed
        self._now_ms = now_ms
        self._rng = Random(f"{seed} events")
        self._type = subject.source.value.type
        self._fields = fields_of(self._type)
        self._dedup = subject.dedup
        self._identity: str | None = None
        self._number = 0
        self.template: Template | None = None
        if self._type in (dict, list, Any, object) or self._type is None:
            raise NotMade(f"topic {self._source.name!r}, whose values are declared as {self._source.value.name}")

    # -- what makes an event one of its own

    def find_identity(self) -> None:
        """The field (empty: the whole value) that gets a value no other event has; NotMade where none would help."""
        dedup = self._dedup
        if dedup is None or isinstance(dedup.key, HeaderKey):
            self._identity = self._by_name() if self._fields is not None else None
            return
        if self._fields is None:
            self._identity = ""
            self._refuse_few(self._type, "the value")
            return
        if isinstance(dedup.key, str):
            if dedup.key not in self._fields:
                raise NotMade(f"{self._source.value.name}, which has no field {dedup.key!r} to make a dedup key")
            self._identity = dedup.key
            self._refuse_few(self._fields[dedup.key], f"field {dedup.key!r}")
            return
        self._identity = self._by_probing(dedup)

    def _by_name(self) -> str | None:
        assert self._fields is not None
        named = [n for n, t in self._fields.items() if n.lower() in ("id", "uuid") and unique(t, "x", 0) is not None]
        return named[0] if named else None

    def _by_probing(self, dedup: Dedup) -> str:
        """Which field changes the dedup key when it alone changes; one that looks like an id is preferred."""
        assert self._fields is not None
        read = dedup.key_reader()
        found: list[str] = []
        for name, declared in self._fields.items():
            if isinstance(dedup.key, ContentKey) and dedup.key.fields and name not in dedup.key.fields:
                continue
            if unique(declared, "x", 0) is None:
                continue
            drawn = self._draw()
            try:
                keys = {
                    read(build(self._type, drawn | {name: unique(declared, "probe", number)}), None)
                    for number in range(3)
                }
            except Exception:
                continue
            if len(keys) == 3:
                found.append(name)
        if not found:
            raise NotMade(f"a dedup key that no single field of {self._source.value.name} makes different")
        return min(found, key=lambda name: (ID_NAME not in name.lower(), found.index(name)))

    def _refuse_few(self, declared: Any, what: str) -> None:
        if unique(declared, "x", 0) is None:
            raise NotMade(f"a dedup key in {what}, whose type {declared} has too few values")

    # -- the record key

    def learn_key(self) -> tuple[Template | None, str]:
        """What a pipeline's agent uses as the keys of its tables, on trial; and how it failed, where it did."""
        if self._pipeline is None:
            return None, ""
        candidates: list[Candidate] = []
        for _ in range(TRIALS):
            value, raw, _ = self._value()
            candidates.append(Candidate(value, texts(raw), self._pool_key(), raw, self._now_ms()))
        tried, failed = attempt(self._pipeline, candidates)
        return learn(tried), failed

    def check_template(self) -> None:
        if self.template is None:
            return
        _, raw, _ = self._value()
        there = texts(raw)
        for name in self.template.fields:
            if name not in there:
                raise ConfigError(f"--key names field {name!r}; an event has {', '.join(there) or 'no fields'}")

    def _pool_key(self) -> bytes | None:
        declared = self._source.key.type
        number = self._rng.randrange(POOL)
        if declared is bytes:
            return f"key-{number:02d}".encode()
        try:
            made = make(declared, self._rng, self._now_ms(), name="key")
            return self._source.key.encode(made)
        except (NotMade, TypeError):
            return f"key-{number:02d}".encode()

    # -- events

    def events(self) -> Iterator[Made]:
        while True:
            _, raw, altered = self._value()
            key = self.template.fill(texts(raw)) if self.template is not None else self._pool_key()
            if altered is not None and self.template is not None and self.template.fill(texts(altered)) != key:
                altered = None
            yield Made(key, raw, self._headers(), None, altered)

    def _headers(self) -> Headers:
        if self._dedup is None or not isinstance(self._dedup.key, HeaderKey):
            return ()
        first, *others = self._dedup.key.names
        return ((first, f"{self._seed}-{self._number:07d}".encode()), *((name, b"chaos") for name in others))

    def _draw(self) -> dict[str, Any]:
        assert self._fields is not None
        return {name: make(t, self._rng, self._now_ms(), name=name) for name, t in self._fields.items()}

    def _value(self) -> tuple[Any, bytes, bytes | None]:
        """The next event's value, its bytes, and the bytes of another payload under the same identity."""
        self._number += 1
        encode = self._source.value.encode
        if self._fields is None:
            value: Any = (
                make(self._type, self._rng, self._now_ms(), name="value")
                if self._identity is None
                else unique(self._type, str(self._seed), self._number)
            )
            return value, encode(value), None
        drawn = self._draw() | self._own()
        value = build(self._type, drawn)
        raw = encode(value)
        return value, raw, self._altered(drawn, value, raw)

    def _altered(self, drawn: dict[str, Any], value: Any, raw: bytes) -> bytes | None:
        """One field drawn anew, so that it is the same event with another payload; None where no field allows it."""
        kept = {self._identity, *(name.partition(".")[0] for name in (self.template.fields if self.template else ()))}
        others = [name for name in drawn if name not in kept]
        self._rng.shuffle(others)
        fresh = self._draw()
        for name in others:
            changed = build(self._type, drawn | {name: fresh[name]})
            altered = self._source.value.encode(changed)
            if altered != raw and self._same_event(value, changed):
                return altered
        return None

    def _same_event(self, one: Any, other: Any) -> bool:
        if self._dedup is None:
            return False
        if isinstance(self._dedup.key, HeaderKey):
            return True
        read = self._dedup.key_reader()
        return read(one, None) == read(other, None)

    def _own(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if self._identity:
            assert self._fields is not None
            own[self._identity] = unique(self._fields[self._identity], f"{self._seed}", self._number)
        if self._dedup is not None and isinstance(self._dedup.time, str) and self._fields is not None:
            declared = self._fields.get(self._dedup.time)
            now_ms = self._now_ms()
            # A name that looks like a time gets the present, in the form that the type asks for.
            own[self._dedup.time] = make(declared, self._rng, now_ms, name="time")
        return own


def texts(raw: bytes) -> dict[str, str]:
    """The scalars of a JSON value by their path, `customer.id`, as the texts that a key would be made of."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, part = waiting.pop(0)
        if isinstance(part, dict):
            inner = cast("dict[str, Any]", part)
            waiting += [(f"{path}.{name}" if path else name, value) for name, value in inner.items()]
        elif path and isinstance(part, (str, int)) and not isinstance(part, bool):
            found[path] = str(part)
    return found


def _template(text: str) -> Template:
    """`{origin}-{dest}`, or a field's name alone."""
    if "{" not in text:
        return Template(("", text, ""))
    parts: list[str] = []
    rest = text
    while "{" in rest:
        literal, _, rest = rest.partition("{")
        name, closed, rest = rest.partition("}")
        if not closed or not name:
            raise ConfigError(f"--key {text!r} has a brace that is not closed; write fields as {{field}}")
        parts += [literal, name]
    return Template((*parts, rest))


# -- made by the pipeline's module


def from_module(subject: Subject, target: str, seed: int) -> Input | None:
    """What `chaos_events(rng)` of the pipeline's module gives; None where there is no such function."""
    module = sys.modules.get(target.partition(":")[0])
    function: Callable[[Random], Iterable[Any]] | None = getattr(module, "chaos_events", None)
    if function is None:
        return None
    if not callable(function):  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigError(f"chaos_events of {target} is {function!r}; make it a function of a random.Random")
    given = iter(function(Random(f"{seed} events")))
    return Input(
        (_given(subject.source, target, one) for one in given),
        (f"events are those of chaos_events in {target.partition(':')[0]}, seed {seed}",),
    )


def _given(source: Topic, target: str, one: Any) -> Made:
    if not isinstance(one, tuple) or len(cast("tuple[Any, ...]", one)) not in (2, 3):
        raise ConfigError(f"chaos_events of {target} gave {one!r:.200}; give (key, value) or (key, value, headers)")
    key, value, *more = cast("tuple[Any, ...]", one)
    headers: Any = more[0] if more else ()
    pairs = cast("Iterable[tuple[str, Any]]", headers.items() if hasattr(headers, "items") else headers)
    try:
        return Made(
            key if key is None or isinstance(key, bytes) else source.key.encode(key),
            value if value is None or isinstance(value, bytes) else source.value.encode(value),
            tuple((name, text.encode() if isinstance(text, str) else text) for name, text in pairs),
        )
    except TypeError as wrong:
        raise ConfigError(
            f"chaos_events of {target} gave {one!r:.200}, which does not fit the source: {wrong}"
        ) from wrong


# -- recorded


def from_file(path: Path) -> Input:
    """JSON lines of {"key", "value", "headers", "timestamp"}: a text stands for its bytes, another value for its JSON."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as missing:
        raise ConfigError(f"--input {path}: {missing.strerror or missing}") from missing
    made: list[Made] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = orjson.loads(line)
            headers: dict[str, Any] = row.get("headers") or {}
            timestamp = row.get("timestamp")
            made.append(
                Made(
                    _recorded(row.get("key")),
                    _recorded(row["value"]),
                    tuple((name, _recorded(value)) for name, value in headers.items()),
                    None if timestamp is None else int(timestamp),
                )
            )
        except (ValueError, KeyError, AttributeError, TypeError) as wrong:
            raise ConfigError(
                f'{path}, line {number}: {wrong}; a line is {{"key": ..., "value": ..., "headers": {{...}}, "timestamp": '
                "ms}, of which only the value must be there"
            ) from wrong
    if not made:
        raise ConfigError(f"--input {path} has no lines")
    return recorded(made, f"{len(made):,} events recorded in {path}")


def recorded(made: Sequence[Made], note: str) -> Input:
    """Events as they are; those with JSON objects in them can be altered for a conflict."""
    return Input((one._replace(altered=_altered(one.value)) for one in made), (note,), len(made))


def _recorded(value: Any) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else orjson.dumps(value)


def _altered(value: bytes | None) -> bytes | None:
    """The same JSON object with one more field: another payload, whatever its fields mean."""
    try:
        found = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return orjson.dumps(cast("dict[str, Any]", found) | {"_chaos": True}) if isinstance(found, dict) else None


# -- redeliveries

DeliveryKind = Literal["original", "immediate", "late", "burst", "disordered", "conflict", "undecodable"]
MIX: Mapping[DeliveryKind, float] = {
    "immediate": 0.06, "late": 0.06, "burst": 0.002, "disordered": 0.003, "conflict": 0.01, "undecodable": 0.001,
}  # fmt: skip
RECENT = 100
LATE = (20, 5_000)
NOT_JSON = b"\xff\x00 not what the topic declares"


class Delivery(NamedTuple):
    kind: DeliveryKind
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


def deliveries(source: Input, seed: int, now_ms: Callable[[], int]) -> Iterator[Delivery]:
    """The originals in their order, and what a retrying producer, a replayed backup or a broken sender puts between.

    A redelivery is the record it repeats, its timestamp included. Late ones come after 20 to 5,000 more events; those
    that still wait when the originals end come then.
    """
    rng = Random(f"{seed} redeliveries")
    kinds, weights = list(MIX), list(MIX.values())
    none = 1 - sum(weights)
    recent: list[Delivery] = []
    waiting: dict[int, list[Delivery]] = {}
    number = 0
    for made in source.originals:
        number += 1
        at = made.timestamp_ms if made.timestamp_ms is not None else now_ms()
        first = Delivery("original", made.key, made.value, made.headers, at)
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
            case "conflict" if made.altered is not None:
                due = number + rng.choice((1, rng.randint(*LATE)))
                waiting.setdefault(due, []).append(first._replace(kind="conflict", value=made.altered))
            case "undecodable" if source.json:
                yield first._replace(kind="undecodable", value=NOT_JSON)
            case _:
                continue
    for due in sorted(waiting):
        yield from waiting[due]
