"""A conflict is what the pipeline's own dedup rule takes for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal

import msgspec
import pytest

from semel import Dedup, Pipeline, Topic, content_hash, header
from semel.chaos.conflicts import Altering
from semel.chaos.events import Delivery
from semel.chaos.generated import from_types
from semel.chaos.subject import Subject, subject

DAY = timedelta(days=1)
BY_ID = Dedup("id", window=DAY)


@dataclass
class Payment:
    id: str
    account: str
    amount: int


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    at: datetime
    paid: bool
    kind: Literal["a", "b"]


class Renamed(msgspec.Struct, rename="camel"):
    order_id: str
    total_sum: int
    sent_at: int


def pipeline(value: Any, dedup: Dedup | None = BY_ID) -> Subject:
    return subject("p", Pipeline("p", source=Topic("p", value=value), agent=lambda event: None, dedup=dedup))


def altered(
    declared: Subject, value: Any, *others: Any, key: bytes = b"k", headers: tuple[tuple[str, bytes], ...] = ()
) -> Any:
    def raw(value: Any) -> bytes:
        return value if isinstance(value, bytes) else json.dumps(value).encode()

    recent = [Delivery(b"other", raw(other)) for other in others]
    found = Altering(declared)(Delivery(key, raw(value), headers, 5), recent)
    return None if found is None else found if isinstance(value, bytes) else json.loads(found)


PAYMENT = {"id": "1", "account": "a-1", "amount": 7}
OTHER = {"id": "2", "account": "a-2", "amount": 8}


@pytest.mark.parametrize(
    "compare", ["amount", ("amount",), lambda payment: payment.amount], ids=["text", "list", "code"]
)
def test_what_the_rule_compares_is_that_of_another_event(compare: Any) -> None:
    declared = pipeline(Payment, Dedup("id", window=DAY, compare=compare))
    assert altered(declared, PAYMENT, OTHER) == {"id": "1", "account": "a-1", "amount": 8}


def test_a_field_of_the_record_key_is_left_as_it_is_where_another_will_do() -> None:
    declared = pipeline(Payment)
    assert altered(declared, PAYMENT, OTHER, key=b"eu/a-1") == {**PAYMENT, "amount": 8}
    assert altered(declared, PAYMENT, OTHER) == {**PAYMENT, "account": "a-2"}
    declared = pipeline(Payment, Dedup("id", window=DAY, compare="account"))
    assert altered(declared, PAYMENT, OTHER, key=b"a-1") == {**PAYMENT, "account": "a-2"}


def test_whatever_type_a_field_has_another_event_has_a_value_of_it() -> None:
    value = {"id": "1", "at": "2026-01-01T00:00:00Z", "paid": False, "kind": "a"}
    rule = Dedup("id", window=DAY, time="at")
    assert altered(pipeline(Strict, rule), value, {**value, "id": "2", "kind": "b"}) == {**value, "kind": "b"}


def test_names_that_json_has_otherwise_are_those_of_the_code() -> None:
    declared = pipeline(Renamed, Dedup("order_id", window=DAY, time="sent_at", compare="total_sum"))
    value = {"orderId": "1", "totalSum": 3, "sentAt": 1_800_000_000_000}
    other = {"orderId": "2", "totalSum": 4, "sentAt": 1_800_000_000_001}
    assert altered(declared, value, other) == {**value, "totalSum": 4}


def test_the_event_time_is_left_as_it_is() -> None:
    declared = pipeline(dict, Dedup("id", window=DAY, time=lambda value: value["at"]))
    value = {"id": "1", "at": 1_800_000_000_000, "n": 1}
    assert altered(declared, value, {"id": "2", "at": 1_800_000_000_001, "n": 2}) == {**value, "n": 2}


def test_an_object_that_no_other_event_differs_from_gets_a_field_more() -> None:
    assert altered(pipeline(dict), {"id": "1", "n": 1}) == {"id": "1", "n": 1, "_chaos": True}
    assert altered(pipeline(dict), {"id": "1", "n": 1}, {"id": "2", "n": 1}) == {"id": "1", "n": 1, "_chaos": True}


@pytest.mark.parametrize(
    ("type_", "value", "other"),
    [(int, 5, 6), (str, b"some text", b"other text"), (bytes, b"\xff", b"\xfe")],
    ids=["int", "str", "bytes"],
)
def test_of_a_value_that_is_no_object_another_events_is_taken_as_a_whole(type_: Any, value: Any, other: Any) -> None:
    declared = pipeline(type_, Dedup(header("id"), window=DAY))
    assert altered(declared, value, other, headers=(("id", b"1"),)) == other


@pytest.mark.parametrize(
    ("type_", "dedup"),
    [
        (dict, Dedup(content_hash(), window=DAY)),
        (Payment, Dedup("id", window=DAY, compare="id")),
        (int, Dedup(content_hash(), window=DAY)),
        (Payment, Dedup(lambda payment: None, window=DAY)),
    ],
    ids=["a hash of all of a dict", "the id compared", "a number by content", "no id"],
)
def test_where_nothing_makes_a_conflict_there_is_none(type_: Any, dedup: Dedup) -> None:
    assert altered(pipeline(type_, dedup), *((5, 6) if type_ is int else (PAYMENT, OTHER))) is None


def test_where_the_id_is_a_hash_over_the_fields_of_a_class_it_gets_one_that_is_none_of_them() -> None:
    declared = pipeline(Payment, Dedup(content_hash(), window=DAY))
    assert altered(declared, PAYMENT, OTHER) == {**PAYMENT, "_chaos": True}


def test_of_what_cannot_be_read_and_of_a_tombstone_there_is_none() -> None:
    assert altered(pipeline(Payment), b"{}", OTHER) is None
    assert Altering(pipeline(Payment))(Delivery(b"k", None), []) is None


def test_without_a_dedup_rule_there_is_none() -> None:
    assert altered(pipeline(Payment, None), PAYMENT, OTHER) is None


def refuses(payment: Payment) -> Any:
    raise ValueError("odd")


@pytest.mark.parametrize("compare", [refuses, lambda payment: payment.amount // 1_000_000], ids=["raises", "coarse"])
def test_functions_of_a_rule_are_asked_and_may_raise(compare: Callable[[Any], Any]) -> None:
    assert altered(pipeline(Payment, Dedup("id", window=DAY, compare=compare)), PAYMENT, OTHER) is None


def test_every_made_up_event_has_a_conflict_that_the_rule_sees() -> None:
    rule = Dedup("id", window=DAY, compare="amount")
    declared = pipeline(Payment, rule)
    alter, payload = Altering(declared), rule.payload_reader()
    made = list(islice(from_types(declared, 1, lambda: 0, "account").originals, 50))
    for one in made:
        other = alter(one._replace(timestamp=5), made)
        assert other is not None
        before, after = (declared.source.value.decode(raw) for raw in (one.value or b"", other))
        assert payload(before, None) != payload(after, None)
