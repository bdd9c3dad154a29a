"""Dedup: how an event is known again. The declaration; deciding is in `semel.stages.dedup.classify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from math import isnan
from typing import Any, Literal, NamedTuple, cast
from uuid import UUID

import msgspec
import orjson
import xxhash

from semel.errors import DeclarationError
from semel.event_time import EventTime, checked, noted, time_reader
from semel.functions import check_gives_value, is_reader, reader_of
from semel.schema.fingerprint import fingerprint

Handling = Literal["quarantine", "pass", "drop"]
_HANDLINGS = ("quarantine", "pass", "drop")
# What the key of an id that is no str begins with.
_BYTES, _OTHER = b"\x00b", b"\x00j"
# ... and of a str that begins as these do.
_TEXT = b"\x00s"
# What a mark keeps of a payload.
payload_hash = xxhash.xxh3_64_intdigest


@dataclass(frozen=True, slots=True)
class HeaderKey:
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContentKey:
    fields: tuple[str, ...]


def header(*names: str) -> HeaderKey:
    """The dedup key is these headers' values together, as in `header("ce_id", "ce_source")`."""
    if not names:
        raise DeclarationError("header() needs at least one header name")
    return HeaderKey(names)


def content_hash(*fields: str) -> ContentKey:
    """The dedup key is a hash over these fields of the value; over the whole value where none is named."""
    return ContentKey(fields)


def _names(given: Any) -> bool:
    return isinstance(given, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) and name for name in cast("list[Any]", given)
    )


class Ids(NamedTuple):
    """Keys that may be meant, and beginnings of keys of which only the first parts were given."""

    keys: Sequence[bytes]
    beginnings: Sequence[bytes]


class Dedup:
    """An event takes effect once per `key` within `window` of stream time; the first one wins.

    `key`: a field name, a callable of the value, `header(...)` or `content_hash(...)`. `window`: a timedelta.
    `time`: what gives the event time, short for `Topic(time=)` of the source. `missing`, `conflict`, `late`: what happens to
    an event without a key or a time, with a known key and another payload, older than the window: "quarantine" (to the dead
    letters), "pass" (takes effect, unprotected) or "drop" (counted only). `compare`: the fields, or a callable of the value,
    whose difference makes a conflict; the value's bytes unless given.
    """

    def __init__(
        self,
        key: str | Callable[[Any], Any] | HeaderKey | ContentKey,
        *,
        window: timedelta,
        time: EventTime | None = None,
        missing: Handling = "quarantine",
        conflict: Handling = "quarantine",
        late: Handling = "quarantine",
        compare: str | Sequence[str] | Callable[[Any], Any] | None = None,
    ) -> None:
        if not (isinstance(key, (HeaderKey, ContentKey)) or is_reader(key)):
            raise DeclarationError(
                f"Dedup key is {key!r}; give a field's name, a function of the value, header(...) or content_hash(...)"
            )
        if compare is not None and not is_reader(compare) and not _names(compare):
            raise DeclarationError(f"Dedup compare={compare!r}; give the names of fields, or a function of the value")
        for name, given in (("key", key), ("compare", compare)):
            check_gives_value(given, f"Dedup {name}")
        if not isinstance(window, timedelta) or window <= timedelta(0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DeclarationError(f"Dedup window is {window!r}; give a timedelta above zero, as timedelta(days=7)")
        for name, handling in (("missing", missing), ("conflict", conflict), ("late", late)):
            if handling not in _HANDLINGS:
                raise DeclarationError(f"Dedup {name}={handling!r}; it takes one of {', '.join(map(repr, _HANDLINGS))}")
        self.key = key
        self.window_ms = max(1, int(window.total_seconds() * 1000))
        self.time = checked(time, "Dedup time")
        self.missing: Handling = missing
        self.conflict: Handling = conflict
        self.late: Handling = late
        self.compare = compare

    @property
    def bucket_ms(self) -> int:
        """Marks are kept in buckets of a quarter of the window: few to ask, few expired ones kept."""
        return max(1, self.window_ms // 4)

    def key_reader(self) -> Callable[[Any, Any], bytes | None]:
        """(value, record) -> the key as bytes, None where the event has none."""
        key = self.key
        if isinstance(key, HeaderKey):
            return _header_reader(key.names)
        if isinstance(key, ContentKey):
            return _content_reader(key.fields)
        field = key if isinstance(key, str) else ""
        read = reader_of(key)

        def by_value(value: Any, record: Any) -> bytes | None:
            # A field of an object is read as `read` does, without a call for each event.
            key_value: Any = getattr(value, field, None) if field and not isinstance(value, dict) else read(value)
            if type(key_value) is str:
                raw = key_value.encode()
                return (raw if raw[:1] != b"\x00" else _TEXT + raw) or None
            absent = key_value is None or key_value == b"" or (isinstance(key_value, float) and isnan(key_value))
            return None if absent else key_bytes(key_value)

        return by_value

    def time_reader(self) -> Callable[[Any, Any], int] | None:
        """(value, record) -> event time in ms; None where the record's timestamp is it."""
        return time_reader(self.time)

    def with_time(self, time: EventTime | None) -> Dedup:
        """The same rule over a source that declares what gives its events' time."""
        if time is None or time == self.time:
            return self
        rule = copy(self)
        rule.time = time
        return rule

    def ids(self, written: Sequence[str]) -> Ids:
        """The keys that a person may mean who writes an id as these parts of a path, whatever its type is: as text, as
        JSON (`5`, `"5"`, `[1,"x"]`), as a UUID, as bytes in hex; each part of several headers for itself."""
        text = "/".join(written)
        if isinstance(self.key, HeaderKey):
            names = len(self.key.names)
            if names == 1:
                return Ids(_header_readings(text), ())
            parts = _string_list(text) or [*written[: names - 1], "/".join(written[names - 1 :])][: len(written)]
            together = [_joined(read) for read in product(*map(_header_readings, parts))]
            return Ids(together, ()) if len(parts) == names else Ids((), together)
        if isinstance(self.key, ContentKey):
            return Ids(_hex(text), ())
        readings: list[Any] = [text, text.encode(), *_hex(text)]
        with suppress(msgspec.MsgspecError, RecursionError):
            readings.append(msgspec.json.decode(text))
        with suppress(ValueError):
            readings.append(UUID(text))
        keys = [*map(key_bytes, readings), _OTHER + canonical(text)]
        return Ids(list(dict.fromkeys(key for key in keys if key)), ())

    def shown(self, key: bytes) -> Any:
        """The id of a key, as JSON: what `ids` reads back."""
        if isinstance(self.key, HeaderKey):
            parts = [key] if len(self.key.names) == 1 else _split(key)
            shown = [_readable(part) for part in parts]
            return shown[0] if len(self.key.names) == 1 else shown
        if isinstance(self.key, ContentKey):
            return key.hex()
        if key.startswith(_OTHER):
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                return msgspec.json.decode(key[len(_OTHER) :])
        return _readable(key.removeprefix(_BYTES).removeprefix(_TEXT))

    def payload_reader(self) -> Callable[[Any, Any], int]:
        """(value, record) -> 64-bit hash of what must agree between an event and its redelivery."""
        compare = self.compare
        if compare is None:
            return lambda value, record: 0 if record.value is None else payload_hash(record.value)
        pick = compare if callable(compare) else _picker(_fields(compare))
        return lambda value, record: payload_hash(canonical(pick(value)))

    @property
    def passes(self) -> frozenset[str]:
        """Of which events it says that they take effect all the same: "missing", "conflict", "late"."""
        declared = {"missing": self.missing, "conflict": self.conflict, "late": self.late}
        return frozenset(name for name, handling in declared.items() if handling == "pass")

    def shape(self) -> dict[str, Any]:
        """What the stored marks depend on: a change of it is a change of state (protocol rule 24)."""
        described = self.key if isinstance(self.key, (str, HeaderKey, ContentKey)) else "callable"
        shape: dict[str, Any] = {"key": str(described), "window_ms": self.window_ms}
        if self.time is not None:
            shape["time"] = noted(self.time)
        if self.compare is not None:
            shape["compare"] = "callable" if callable(self.compare) else _fields(self.compare)
        return shape

    def code(self, source: Any) -> dict[str, str]:
        """Of functions that marks depend on what they say, of a content hash what it is over: `source`, the value's structure."""
        codes = {name: fingerprint(f) for name, f in (("key", self.key), ("time", self.time), ("compare", self.compare))
                 if callable(f)}  # fmt: skip
        if isinstance(self.key, ContentKey) and not self.key.fields:
            codes["content"] = f"{xxhash.xxh3_64_intdigest(orjson.dumps(source)):016x}"
        return codes

    def fields(self) -> list[str]:
        """The fields of the value that the rule names, so that a typing error can be found before any event is."""
        named = list(self.key.fields) if isinstance(self.key, ContentKey) else []
        named += [name for name in (self.key, self.time) if isinstance(name, str)]
        return named if self.compare is None or callable(self.compare) else [*named, *_fields(self.compare)]


def _fields(named: str | Sequence[str]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else tuple(named)


def _picker(fields: tuple[str, ...]) -> Callable[[Any], Any]:
    readers = [reader_of(f) for f in fields]
    return lambda value: [read(value) for read in readers]


def _header_reader(names: tuple[str, ...]) -> Callable[[Any, Any], bytes | None]:
    def read(value: Any, record: Any) -> bytes | None:
        headers: dict[str, bytes | None] = {}
        for name, content in record.headers:
            if name in names and headers.setdefault(name, content) != content:
                raise ValueError(f"header {name!r} stands twice, with two values")
        parts = [headers.get(name) for name in names]
        if any(part is None or part == b"" for part in parts):
            return None
        if len(parts) == 1:
            return parts[0]
        return _joined([part or b"" for part in parts])

    return read


def _joined(parts: Sequence[bytes]) -> bytes:
    # Lengths keep ("a", "bc") apart from ("ab", "c").
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _split(joined: bytes) -> list[bytes]:
    parts: list[bytes] = []
    while joined:
        end = 4 + int.from_bytes(joined[:4], "big")
        parts.append(joined[4:end])
        joined = joined[end:]
    return parts


def _header_readings(text: str) -> list[bytes]:
    readings = [text.encode(), *_hex(text)]
    with suppress(ValueError):
        readings.append(UUID(text).bytes)
    return readings


def _hex(text: str) -> list[bytes]:
    try:
        return [bytes.fromhex(text)] if text else []
    except ValueError:
        return []


def _string_list(text: str) -> list[str] | None:
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.MsgspecError, RecursionError):
        return None


def _readable(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return part.hex()


def _content_reader(fields: tuple[str, ...]) -> Callable[[Any, Any], bytes | None]:
    if not fields:
        return lambda value, record: xxhash.xxh3_128_digest(canonical(value))
    pick = _picker(fields)

    def read(value: Any, record: Any) -> bytes | None:
        picked = pick(value)
        # Events that have none of the fields are not one event many times.
        return None if all(f is None for f in picked) else xxhash.xxh3_128_digest(canonical(picked))

    return read


def key_bytes(key: Any) -> bytes:
    """A dedup key as bytes; ids of different types never meet (a str "5" is not the int 5)."""
    if isinstance(key, str):
        raw = key.encode()
        return raw if raw[:1] != b"\x00" else _TEXT + raw
    if isinstance(key, bytes):
        return _BYTES + key
    return _OTHER + canonical(key)


def canonical(value: Any) -> bytes:
    """Equal bytes for equal values, in every process. TypeError for what has no such form."""
    try:
        return _encode(value)
    except TypeError:
        return orjson.dumps(value, default=_content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _content(value: Any) -> Any:
    try:
        parts = cast("dict[str, Any]", vars(value))
        return {name: part for name, part in parts.items() if not name.startswith("__")}
    except TypeError:
        raise TypeError(f"type {type(value).__name__} cannot be compared by its content") from None


_encode = msgspec.json.Encoder(order="deterministic", enc_hook=_content).encode
