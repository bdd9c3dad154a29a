"""Values made up from a type: each is read back by the type's own codec."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict
from uuid import UUID

import faust
import msgspec
import pytest

import semel.faust_.codec  # noqa: F401  (records have their codec from there)
from semel.chaos.generated import NotMade, make
from semel.codec import codec_for

NOW = datetime.fromtimestamp(1_800_000_000, UTC)


def made(declared: Any, rng: Random, name: str = "") -> Any:
    return make(declared, rng, NOW, name)


OrderId = NewType("OrderId", str)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: float


class Address(TypedDict):
    street: str
    number: int


@dataclass
class Line:
    article: str
    pieces: int


@dataclass
class Order:
    id: OrderId
    customer: str
    colour: Colour
    state: Literal["new", "paid"]
    lines: list[Line]
    tags: set[str]
    prices: dict[str, Decimal]
    created_at: str
    paid_at: datetime | None
    place: Point
    address: Address
    where: tuple[int, str]
    note: str | int | None = None
    extra: Any = None
    later: list[int] = field(default_factory=list[int])


class Click(msgspec.Struct):
    page: str
    at: datetime


class Clicked(faust.Record):
    user: str
    count: int


TYPES = [
    str, int, float, bool, bytes, Decimal, UUID, datetime, date, time, timedelta, Colour, Literal[1, 2], Order, Click,
    Clicked, Point, Address, list[int], dict[str, int], tuple[str, ...], frozenset[int], int | None, OrderId,
    Annotated[int, msgspec.Meta(gt=0)], Annotated[str, msgspec.Meta(min_length=1, max_length=30)], Sequence[int],
]  # fmt: skip


@pytest.mark.parametrize("declared", TYPES, ids=str)
def test_what_is_made_goes_through_the_codec_and_comes_back(declared: Any) -> None:
    rng, codec = Random(1), codec_for(declared)
    for _ in range(50):
        value = made(declared, rng, "field")
        assert codec.decode(codec.encode(value)) == value


def test_the_same_seed_makes_the_same_values() -> None:
    assert [made(Order, Random(3)) for _ in range(3)] == [made(Order, Random(3)) for _ in range(3)]


def test_texts_come_from_a_pool_so_that_events_meet_in_the_same_rows() -> None:
    rng = Random(1)
    customers = [made(Order, rng).customer for _ in range(500)]
    assert 10 < len(set(customers)) <= 24


def test_an_optional_field_is_now_and_then_absent() -> None:
    rng = Random(1)
    absent = sum(made(Order, rng).paid_at is None for _ in range(400))
    assert 20 < absent < 120


def test_what_is_declared_as_a_time_is_the_present() -> None:
    assert made(Click, Random(1)).at == NOW


@pytest.mark.parametrize("declared", [dict, list, Any, complex], ids=str)
def test_a_type_that_says_too_little_is_refused_with_the_ways_out(declared: Any) -> None:
    with pytest.raises(NotMade, match=r"chaos_events.*--input.*--from-topic"):
        made(declared, Random(1))
