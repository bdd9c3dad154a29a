"""The dedup rule as it is declared: which bytes an event is known by, and when it happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from semel.dedup import Dedup, content_hash, header, key_bytes
from semel.errors import DeclarationError

WEEK = timedelta(days=7)


class Given(NamedTuple):
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None
    value: bytes | None = b"v"
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass
class Payment:
    id: Any
    amount: int = 0
    sent_at: str = ""
    tags: set[str] = field(default_factory=set)
    _secret: int = 0


def key_of(rule: Dedup, value: Any, record: Given | None = None) -> bytes | None:
    return rule.key_reader()(value, record or Given())


@pytest.mark.parametrize("window", [timedelta(0), timedelta(days=-1), 3600, None])
def test_a_window_is_a_timedelta_above_zero(window: Any) -> None:
    with pytest.raises(DeclarationError, match=r"timedelta\(days=7\)"):
        Dedup("id", window=window)


@pytest.mark.parametrize("which", ["missing", "conflict", "late"])
def test_a_handling_is_one_of_three(which: str) -> None:
    for handling in ("quarantine", "pass", "drop"):
        assert getattr(Dedup("id", window=WEEK, **{which: handling}), which) == handling  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=f"{which}='ignore'"):
        Dedup("id", window=WEEK, **{which: "ignore"})  # type: ignore[arg-type]


def test_a_window_has_four_buckets_and_none_is_empty() -> None:
    assert Dedup("id", window=WEEK).bucket_ms * 4 == WEEK.total_seconds() * 1000
    tiny = Dedup("id", window=timedelta(microseconds=1))
    assert (tiny.window_ms, tiny.bucket_ms) == (1, 1)


# -- the key


@pytest.mark.parametrize("value", [{"id": "p1"}, Payment("p1"), SimpleNamespace(id="p1")])
def test_a_field_is_read_from_a_dict_or_an_object(value: Any) -> None:
    assert key_of(Dedup("id", window=WEEK), value) == b"p1"


def test_a_callable_reads_the_value() -> None:
    rule = Dedup(lambda p: (p.id, p.amount), window=WEEK)
    assert key_of(rule, Payment("a", 1)) != key_of(rule, Payment("a", 2))


@pytest.mark.parametrize("absent", [None, "", b"", float("nan")])
def test_an_event_without_an_id_has_no_key(absent: Any) -> None:
    rule = Dedup("id", window=WEEK)
    assert key_of(rule, {"id": absent}) is None
    assert key_of(rule, {}) is None
    assert key_of(Dedup(lambda v: absent, window=WEEK), {}) is None


def test_ids_of_different_types_never_meet() -> None:
    ids = ["5", 5, 5.0, b"5", True, [5], ["5"], {"5": 5}, 2**70, str(2**70), UUID(int=5), -5]
    assert len({key_bytes(i) for i in ids if i is not True}) == len(ids) - 1
    assert key_bytes(1) != key_bytes(True)
    assert key_bytes(2**70) != key_bytes(2**70 + 1)


def test_an_id_that_looks_like_the_form_of_another_type_is_another_id() -> None:
    read = Dedup("id", window=WEEK).key_reader()
    ids = [5, "5", "\x00j5", b"5", "\x00b5", "\x00sx", "\x00", [5], "\x00j[5]", True, "s", "\x00s"]
    assert len({read({"id": i}, None) for i in ids}) == len(ids)


def test_a_header_that_stands_twice_with_two_values_is_no_id() -> None:
    read = Dedup(header("ce_id"), window=WEEK).key_reader()
    assert read({}, Given(headers=[("ce_id", b"a"), ("other", b"x"), ("other", b"y"), ("ce_id", b"a")])) == b"a"
    with pytest.raises(ValueError, match="ce_id"):
        read({}, Given(headers=[("ce_id", b"a"), ("ce_id", b"b")]))


def test_equal_ids_are_equal_bytes() -> None:
    assert key_bytes({"a": 1, "b": 2}) == key_bytes({"b": 2, "a": 1})
    assert key_bytes((1, "a")) == key_bytes([1, "a"])
    assert key_bytes(Decimal("1.5")) == key_bytes(Decimal("1.5"))
    assert key_bytes({1: "a"}) == key_bytes({1: "a"})


def test_an_id_without_a_form_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError):
        key_bytes(object())


def test_header_keys_keep_their_parts_apart() -> None:
    rule = Dedup(header("ce_id", "ce_source"), window=WEEK)

    def of(*headers: tuple[str, bytes | None]) -> bytes | None:
        return key_of(rule, {}, Given(headers=headers))

    assert of(("ce_id", b"a"), ("ce_source", b"bc")) != of(("ce_id", b"ab"), ("ce_source", b"c"))
    assert of(("ce_source", b"bc"), ("ce_id", b"a")) == of(("ce_id", b"a"), ("ce_source", b"bc"), ("other", b"x"))
    assert of(("ce_id", b"a")) is None
    assert of(("ce_id", b"a"), ("ce_source", None)) is None
    assert of(("ce_id", b"a"), ("ce_source", b"")) is None
    assert key_of(Dedup(header("id"), window=WEEK), {}, Given(headers=[("id", b"x")])) == b"x"
    with pytest.raises(DeclarationError):
        header()


def test_a_content_hash_is_over_the_fields_named_or_over_everything() -> None:
    some, every = Dedup(content_hash("id", "amount"), window=WEEK), Dedup(content_hash(), window=WEEK)
    assert key_of(some, Payment("a", 1, "x")) == key_of(some, {"id": "a", "amount": 1})
    assert key_of(some, Payment("a", 1)) != key_of(some, Payment("a", 2))
    assert key_of(every, Payment("a", 1, "x")) != key_of(every, Payment("a", 1, "y"))
    assert key_of(every, Payment("a", 1, _secret=1)) != key_of(every, Payment("a", 1, _secret=2))
    assert key_of(every, {"a": 2**70}) != key_of(every, {"a": 2**70 + 1})
    assert key_of(every, b"raw") != key_of(every, b"row")


def test_events_that_have_none_of_the_fields_of_a_content_hash_are_not_each_others_duplicates() -> None:
    rule = Dedup(content_hash("idd", "none"), window=WEEK)
    assert key_of(rule, {"id": 1}) is None
    assert key_of(rule, {"none": 0}) is not None


def test_content_is_the_same_bytes_in_every_process() -> None:
    code = (
        "from datetime import timedelta\n"
        "from semel.dedup import Dedup, content_hash\n"
        "value = {'tags': {f't{n}' for n in range(40)}, 'b': 1, 'a': frozenset('xyz')}\n"
        "print(Dedup(content_hash(), window=timedelta(days=1)).key_reader()(value, None).hex())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_content_that_differs_from_process_to_process_is_refused() -> None:
    class Slotted:
        __slots__ = ()

    with pytest.raises(TypeError):
        key_of(Dedup(content_hash(), window=WEEK), Slotted())


# -- the event time


def test_the_time_of_a_rule_is_read_as_that_of_a_topic_and_may_be_the_topics() -> None:
    rule = Dedup("id", window=WEEK)
    assert rule.time_reader() is None and rule.with_time(None) is rule
    timed = rule.with_time("at")
    assert (timed.time, timed.shape()) == ("at", Dedup("id", window=WEEK, time="at").shape())
    assert rule.time is None and timed.with_time("at") is timed
    read = timed.time_reader()
    assert read is not None and read({"at": "2023-11-14T22:13:20Z"}, Given()) == 1_700_000_000_000


# -- the payload


def payload_of(rule: Dedup, value: Any, raw: bytes = b"v") -> int:
    return rule.payload_reader()(value, Given(value=raw))


def test_the_payload_is_the_bytes_unless_fields_are_named() -> None:
    whole = Dedup("id", window=WEEK)
    assert payload_of(whole, {}, b"a") == payload_of(whole, {"x": 1}, b"a") != payload_of(whole, {}, b"b")
    for compare in ("amount", ["amount"], ("amount",), lambda p: p.amount):
        rule = Dedup("id", window=WEEK, compare=compare)
        assert payload_of(rule, Payment("a", 1, "now"), b"a") == payload_of(rule, Payment("a", 1, "later"), b"b")
        assert payload_of(rule, Payment("a", 1)) != payload_of(rule, Payment("a", 2))


# -- what stored marks depend on


def test_the_shape_changes_with_all_that_marks_depend_on() -> None:
    rules = [
        Dedup("id", window=WEEK),
        Dedup("id", window=2 * WEEK),
        Dedup("uid", window=WEEK),
        Dedup(header("id"), window=WEEK),
        Dedup(content_hash("id"), window=WEEK),
        Dedup(lambda v: v, window=WEEK),
        Dedup("id", window=WEEK, time="at"),
        Dedup("id", window=WEEK, compare="amount"),
        Dedup("id", window=WEEK, compare=("amount", "currency")),
    ]
    shapes = [repr(rule.shape()) for rule in rules]
    assert len(set(shapes)) == len(rules)
    assert Dedup("id", window=WEEK, compare="amount").shape() == Dedup("id", window=WEEK, compare=["amount"]).shape()
    assert Dedup("id", window=WEEK, missing="pass", late="drop").shape() == rules[0].shape()


def test_the_fields_that_a_rule_names_are_known() -> None:
    assert Dedup("id", window=WEEK, time="at", compare=("a", "b")).fields() == ["id", "at", "a", "b"]
    assert Dedup(content_hash("x", "y"), window=WEEK, compare="z").fields() == ["x", "y", "z"]
    assert Dedup(header("id"), window=WEEK, time=lambda v: 0, compare=lambda v: 0).fields() == []


# -- an id as a person writes it


UUID_ID = UUID("6a3f9f0e-6f0b-4f52-9d0a-0d6a55f2a001")


@pytest.mark.parametrize(("event_id", "written"), [
    ("o-1", "o-1"), ("5", "5"), ("5", '"5"'), (5, "5"), (2**70, str(2**70)), (-3, "-3"), (1.5, "1.5"), (True, "true"),
    (UUID_ID, str(UUID_ID)), (UUID_ID, str(UUID_ID).upper()), (str(UUID_ID), str(UUID_ID)), (b"\xff\x00", "ff00"), (b"ab", "ab"),
    ("a/b", "a/b"), ("ü", "ü"), ([1, "x"], '[1, "x"]'), ({"b": 2, "a": 1}, '{"a": 1, "b": 2}'),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"), (Decimal("1.50"), "1.50"), ("\x00j5", "\x00j5"),
    ("\x00b5", "\x00b5"), ("[" * 5000, "[" * 5000),
], ids=repr)  # fmt: skip
def test_an_id_of_any_type_is_found_as_it_is_written(event_id: Any, written: str) -> None:
    rule = Dedup("id", window=WEEK)
    key = rule.key_reader()({"id": event_id}, Given())
    assert key in rule.ids(written.split("/")).keys
    shown = rule.shown(key)
    again = shown if isinstance(shown, str) else json.dumps(shown)
    assert key in rule.ids([again]).keys


@pytest.mark.parametrize("written", ["", "\x00", "[" * 100_000, "nan", "1e999", "{", "9" * 5000])
def test_whatever_is_written_as_an_id_is_read_as_something(written: str) -> None:
    for key in ("id", header("a"), header("a", "b"), content_hash("x")):
        Dedup(key, window=WEEK).ids([written])


def headers_key(rule: Dedup, **headers: bytes) -> bytes:
    key = rule.key_reader()({}, Given(headers=list(headers.items())))
    assert key is not None
    return key


@pytest.mark.parametrize("source", ["shop", "https://shop/eu", "", "a b"])
def test_an_id_of_several_headers_is_found_by_its_parts(source: str) -> None:
    rule = Dedup(header("ce_id", "ce_source"), window=WEEK)
    key = headers_key(rule, ce_id=b"e1", ce_source=source.encode() or b"x")
    source = source or "x"
    for written in (["e1", source], ["e1", *source.split("/")], [json.dumps(["e1", source])]):
        assert key in rule.ids(written).keys
    assert any(key.startswith(beginning) for beginning in rule.ids(["e1"]).beginnings)
    assert not any(key.startswith(beginning) for beginning in rule.ids(["e"]).beginnings)
    assert rule.shown(key) == ["e1", source]


def test_a_header_of_bytes_is_found_as_uuid_or_hex() -> None:
    rule = Dedup(header("id"), window=WEEK)
    key = headers_key(rule, id=UUID_ID.bytes)
    assert key in rule.ids([str(UUID_ID)]).keys
    assert key in rule.ids([rule.shown(key)]).keys


def test_a_content_hash_is_found_in_hex() -> None:
    rule = Dedup(content_hash("a"), window=WEEK)
    key = rule.key_reader()({"a": 1}, Given())
    assert key is not None and key in rule.ids([rule.shown(key)]).keys


@pytest.mark.parametrize(
    "declared",
    [
        {"key": 5},
        {"key": ""},
        {"key": None},
        {"key": ["id"]},
        {"time": 5},
        {"compare": 5},
        {"compare": [5]},
        {"compare": [""]},
    ],
)
def test_what_reads_nothing_of_a_value_is_refused_where_it_is_declared(declared: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=f"Dedup {next(iter(declared))}"):
        Dedup(**{"key": "id", "window": WEEK, **declared})
