"""Codecs: what goes in comes out again, or is refused when it is written."""

from __future__ import annotations

import gzip
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict
from uuid import UUID

import msgspec
import orjson
import pytest

from semel.codec import Codec, codec_for, fields_of, framed, is_immutable, register, topic_codec
from semel.errors import DeclarationError, DecodeError

BIG = 2**200


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


@dataclass
class Line:
    sku: str
    count: int


@dataclass
class Order:
    id: str
    total: float
    lines: list[Line] = field(default_factory=list)
    note: str | None = None


@dataclass
class LongLine(Line):
    more: int


@dataclass
class Positive:
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0 and not isinstance(self.amount, bool):
            raise KeyError("negative")


@dataclass
class Names:
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Money:
    amount: int
    currency: str = "EUR"


@dataclass(frozen=True)
class Price:
    money: Money
    valid: tuple[date, ...] = ()


@dataclass(frozen=True)
class Basket:
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Tagged:
    tags: set[str]


@dataclass(frozen=True)
class Loose:
    extra: Any = None


@dataclass(frozen=True)
class Maybe:
    rows: list[int] | None = None


@dataclass(frozen=True)
class Chain:
    value: int
    next: Chain | None = None


@dataclass
class Private:
    shown: int
    _hidden: int


class Point(NamedTuple):
    x: int
    y: int


class Shape(TypedDict):
    name: str


class Frozen(msgspec.Struct, frozen=True):
    a: int


class Thawed(msgspec.Struct):
    a: int


UserId = NewType("UserId", str)
UUID_1 = UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (bytes, b"\x00\xff"),
        (str, "zażółć"),
        (str, ""),
        (int, -5),
        (int, 2**63),
        (int, BIG),
        (float, 0.1),
        (bool, True),
        (dict, {"a": [1, 2.5, None, {"b": "c"}]}),
        (dict, {"id": BIG}),
        (list, [1, "x", None]),
        (Any, {"a": 1}),
        (Any, [1]),
        (int | None, None),
        (int | None, 3),
        (Literal["a"] | None, "a"),
        (list[int], [1, 2]),
        (dict[int, str], {1: "one", -2: "two"}),
        (dict[UUID, int], {UUID_1: BIG}),
        (set[str], {"b", "a"}),
        (frozenset[int], frozenset({3, 1})),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (Annotated[int, msgspec.Meta(gt=0)], 4),
        (UserId, "u1"),
        (Decimal, Decimal("1.10")),
        (UUID, UUID_1),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        (date, date(2026, 1, 2)),
        (timedelta, timedelta(days=1, seconds=2)),
        (Colour, Colour.BLUE),
        (Level, Level.LOW),
        (bytes | None, b"\x00"),
        (Order, Order("o1", 1.5, [Line("a", 2)], None)),
        (Price, Price(Money(3), (date(2026, 1, 1),))),
        (Chain, Chain(1, Chain(2))),
        (Private, Private(1, 2)),
        (Point, Point(1, 2)),
        (Shape, {"name": "square"}),
        (Frozen, Frozen(1)),
        (Thawed, Thawed(BIG)),
    ],
)
def test_what_is_written_is_read_back_as_it_was(declared: Any, value: Any) -> None:
    codec = codec_for(declared)
    raw = codec.encode(value)
    again = codec.decode(raw)
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (int, True),
        (int, 1.0),
        (int, "1"),
        (int, None),
        (float, True),
        (float, "1"),
        (bool, 1),
        (str, b"a"),
        (str, 1),
        (str, "\ud800"),
        (bytes, "a"),
        (dict, [1]),
        (list, (1,)),
        (dict, {1: "key is no string"}),
        (dict, {"a": {1: BIG}}),
        (dict, {"a": object()}),
        (Any, object()),
        (int | None, "x"),
        (int | str, True),
        (Order, {"id": "o1"}),
        (Money, None),
        (Decimal, 1.5),
    ],
)
def test_a_value_of_another_type_is_refused_when_it_is_written(declared: Any, value: Any) -> None:
    with pytest.raises(TypeError):
        codec_for(declared).encode(value)


UNTYPED = [
    datetime(2026, 1, 2, tzinfo=UTC), date(2026, 1, 2), timedelta(1), UUID_1, Decimal("1.10"), (1, 2), {1, 2}, b"ab",
    Colour.RED, Money(3), Frozen(1), Point(1, 2), math.nan, {1: 2}, [(1,)],
]  # fmt: skip


@pytest.mark.parametrize("value", UNTYPED, ids=repr)
@pytest.mark.parametrize("wrap", [lambda v: {"a": {"b": [v]}}, lambda v: [v], Loose])
def test_what_json_has_no_type_for_is_refused_where_its_type_is_not_declared(
    wrap: Callable[[Any], Any], value: Any
) -> None:
    wrapped = wrap(value)
    for declared in (type(wrapped), Any) if not isinstance(wrapped, Loose) else (Loose,):
        with pytest.raises(TypeError):
            codec_for(declared).encode(wrapped)


@pytest.mark.parametrize(
    ("declared", "value", "place"),
    [
        (Order, Order("o", "much"), "total: expected float"),  # type: ignore[arg-type]
        (Order, Order(5, 1.0), "id: expected str, got int: 5"),  # type: ignore[arg-type]
        (Order, Order("o", 1.0, [Line("a", "2")]), r"lines: \[0\]: count: expected int, got str"),  # type: ignore[arg-type]
        (Order, Order("o", 1.0, (Line("a", 2),)), "lines: expected list, got tuple"),  # type: ignore[arg-type]
        (Order, Order("o", 1.0, [], 7), "note: fits none"),  # type: ignore[arg-type]
        (Order, Order("o", 2**60 + 1), "no float is equal to"),
        (Chain, Chain(1, Chain("2")), "next: .*value: expected int"),  # type: ignore[arg-type]
        (list[datetime], ["2026-01-02T03:04:05Z"], "expected datetime, got str"),
        (list[date], [datetime(2026, 1, 2)], "expected date, got datetime"),
        (dict[str, UUID], {"a": str(UUID_1)}, "expected UUID"),
        (list[bytes], ["YWI="], "expected bytes"),
        (list[int], [True], "expected int, got bool"),
        (tuple[int, str], (1, "a", "b"), "a tuple of 2"),
        (Shape, {"name": "square", "size": 3}, "has no key 'size', and would lose it"),
        (Shape, {}, "lacks 'name'"),
        (Annotated[int, msgspec.Meta(gt=0)], 0, "could not be read again"),
        (Positive, Positive(1), "could not be read again"),
        (Thawed, Thawed("1"), "a: expected int"),  # type: ignore[arg-type]
        (Line, LongLine("a", 2, 3), "its subclass LongLine, whose more would be lost"),
        (Literal["a", 1], True, "expected one of"),
    ],
)
def test_a_wrong_type_inside_is_refused_when_it_is_written_with_its_place(
    declared: Any, value: Any, place: str
) -> None:
    if isinstance(value, Positive):
        value.amount = -1
    with pytest.raises(TypeError, match=place):
        codec_for(declared).encode(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for declared in (list, Any, list[Any]):
        with pytest.raises(TypeError):
            codec_for(declared).encode(endless)


def test_what_raises_while_it_is_read_is_a_decode_error() -> None:
    for declared, raw in ((Positive, b'{"amount":-1}'), (dict, b'{"a":' * 2000 + b"1" + b"}" * 2000)):
        with pytest.raises(DecodeError):
            codec_for(declared).decode(raw)


def test_a_sequence_is_written_whichever_it_is() -> None:
    codec = codec_for(Names)
    assert codec.encode(Names(("a",))) == codec.encode(Names(["a"])) == b'{"names":["a"]}'


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_because_json_would_make_null_of_them(odd: float) -> None:
    for declared, value in (
        (float, odd),
        (dict, {"a": [odd]}),
        (list, [None, odd]),
        (float | None, odd),
        (Order, Order("o1", odd)),
        (list[tuple[float, ...]], [(1.0, odd)]),
    ):
        with pytest.raises(TypeError, match="NaN"):
            codec_for(declared).encode(value)


def test_none_beside_a_number_is_no_nan() -> None:
    assert codec_for(dict).encode({"a": None, "b": 1.5, "null": "null"}) == b'{"a":null,"b":1.5,"null":"null"}'


def test_an_int_in_a_float_column_is_written_as_a_float() -> None:
    assert codec_for(float).encode(3) == b"3.0"
    assert type(codec_for(float).decode(b"3")) is float


@pytest.mark.parametrize(
    ("declared", "raw"),
    [
        (int, b"1.0"),
        (int, b"true"),
        (int, b'"1"'),
        (int, b"null"),
        (bool, b"1"),
        (float, b"null"),
        (dict, b"[]"),
        (dict, b""),
        (dict, b'{"a":1'),
        (dict, b'{"a":NaN}'),
        (dict, b'{"a":"\xff"}'),
        (list, b"{}"),
        (str, b"\xff"),
        (Order, b'{"id":"o1"}'),
        (Order, b'{"id":"o1","total":"much"}'),
        (Literal["a"], b'"b"'),
    ],
)
def test_bytes_that_do_not_fit_raise_a_decode_error(declared: Any, raw: bytes) -> None:
    with pytest.raises(DecodeError):
        codec_for(declared).decode(raw)


def test_a_decode_error_names_the_type_and_the_place() -> None:
    with pytest.raises(DecodeError, match=r"not of type Order: .*lines\[0\]\.count"):
        codec_for(Order).decode(b'{"id":"o1","total":1,"lines":[{"sku":"a","count":"2"}]}')


def test_two_integers_beyond_64_bits_stay_two() -> None:
    decode = codec_for(dict).decode
    assert decode(b'{"id":18446744073709551616}') != decode(b'{"id":18446744073709551617}')


def test_equal_sets_are_equal_bytes() -> None:
    # The order of a set of strings differs from process to process.
    words = {f"w{n}" for n in range(50)}
    assert codec_for(set[str]).encode(words) == orjson.dumps(sorted(words))


@pytest.mark.parametrize(
    "declared",
    [int, float, bool, str, bytes, Decimal, UUID, date, datetime, Colour, Money, Price, Chain, Point, Frozen,
     frozenset[int], tuple[Money, ...], int | None, Money | None, Literal["a"]],
)  # fmt: skip
def test_types_whose_values_cannot_change_are_known(declared: Any) -> None:
    assert is_immutable(declared)
    assert codec_for(declared).immutable


@pytest.mark.parametrize(
    "declared",
    [dict, list, Any, Order, Line, Basket, Tagged, Loose, Maybe, Shape, Thawed, tuple, tuple[list[int]],
     tuple[Line, ...], set[int], list[int] | None, frozenset[Line]],
)  # fmt: skip
def test_types_with_anything_changeable_inside_are_changeable(declared: Any) -> None:
    # The annotations of this module are strings: they must be followed, not skipped.
    assert not is_immutable(declared)
    assert not codec_for(declared).immutable


@pytest.mark.parametrize("declared", [object, Codec, complex, list[complex], "Nowhere"])
def test_a_type_without_a_codec_is_refused_where_it_is_declared(declared: Any) -> None:
    with pytest.raises(DeclarationError, match=r"semel\.codec\.register"):
        codec_for(declared)


def test_the_name_of_a_codec_tells_types_apart() -> None:
    assert codec_for(list[int]).name == "list[int]"
    assert codec_for(list[str]).name == "list[str]"
    assert codec_for(int | None).name == "int | None"
    assert codec_for(Order).name == "Order"
    assert codec_for(Any).name == "Any"


def test_a_registered_converter_comes_first_and_the_latest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semel.codec._converters", [])

    def text(declared: Any) -> Codec[Any]:
        return Codec(declared, lambda v: str(v).encode(), lambda raw: complex(raw.decode()), True)

    register(lambda t: t is complex, lambda t: pytest.fail("an older converter was asked"))
    register(lambda t: t is complex, text)
    codec = codec_for(complex)
    assert codec.decode(codec.encode(1 + 2j)) == 1 + 2j
    assert codec_for(int).encode(1) == b"1"


def test_a_codec_is_its_own_codec() -> None:
    codec = codec_for(Order)
    assert codec_for(codec) is codec


def test_a_faust_record_is_a_type_like_any_other_for_a_pipeline_without_an_app() -> None:
    """In a process of its own: here, Faust's side of semel is loaded already."""
    code = """
import sys
import faust
from semel import Topic

class Trade(faust.Record, serializer="json"):
    id: str
    amount: int

value = Topic("trades", key=str, value=Trade).value
trade = value.decode(value.encode(Trade("t", 3)))
print(trade.id, trade.amount, "semel.faust_.app" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["t", "3", "False"], ran.stderr


# -- several classes in one topic


@dataclass
class Opened:
    id: str
    name: str = ""


@dataclass
class Closed:
    id: str


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass
class Debit:
    kind: Literal["debit", "fee"]
    amount: int


@dataclass
class Credit:
    amount: int
    kind: Literal["credit"] = "credit"


def test_dataclasses_of_a_union_are_told_apart_by_the_name_of_the_class() -> None:
    codec = codec_for(Opened | Closed | Nothing)
    for value, raw in (
        (Opened("1", "x"), b'{"type":"Opened","id":"1","name":"x"}'),
        (Closed("1"), b'{"type":"Closed","id":"1"}'),
        (Nothing(), b'{"type":"Nothing"}'),
    ):
        assert (codec.encode(value), codec.decode(raw)) == (raw, value)
    assert codec.decode(b'{"id":"1","more":[1],"type":"Closed"}') == Closed("1")


def test_dataclasses_that_share_a_literal_are_told_apart_by_it() -> None:
    codec = codec_for(Debit | Credit)
    for value in (Debit("fee", 1), Debit("debit", 1), Credit(3)):
        assert codec.decode(codec.encode(value)) == value
    assert codec.encode(Credit(3)) == b'{"amount":3,"kind":"credit"}'
    with pytest.raises(TypeError, match=r"Credit has kind='debit'; it takes 'credit'"):
        codec.encode(Credit(3, "debit"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"id":"1"}', "its field 'type', which tells them apart, is not there; it takes 'Opened', 'Closed'"),
        (b'{"type":"Gone","id":"1"}', "is 'Gone'; it takes"),
        (b'{"type":7,"id":"1"}', "is 7; it takes"),
        (b'{"type":"Opened"}', "missing required field `id`"),
        (b"[]", "not of type "),
        (b"\xff", "not of type "),
        (b"[" * 100_000, "not of type "),
    ],
)
def test_what_is_none_of_a_union_is_said(raw: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=re.escape(said)):
        codec_for(Opened | Closed).decode(raw)


def test_a_value_of_another_class_is_not_written_as_one_of_a_union() -> None:
    with pytest.raises(TypeError, match="got Debit"):
        codec_for(Opened | Closed).encode(Debit("fee", 1))


@dataclass
class Typed:
    type: str


@dataclass
class Holds:
    inner: Opened | Closed


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (Opened | Typed, r"Typed has a field 'type' of its own; give each a field .* kind: Literal\[\"opened\"\]"),
        (Opened | Closed | dict, "dict is no dataclass"),
        (Holds, "where it lies within another type, make its members msgspec.Structs with tag=True"),
        (list[Opened | Closed], "msgspec.Structs with tag=True"),
    ],
)
def test_a_union_that_cannot_be_told_apart_names_the_way(declared: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        codec_for(declared)


# -- None


@pytest.mark.parametrize(
    ("declared", "value", "raw"),
    [
        (dict | None, {"a": 1}, b'{"a":1}'),
        (str | None, "x", b"x"),
        (bytes | None, b"\x00x", b"\x00x"),
        (int | None, 5, b"5"),
        (Opened | Closed | None, Closed("1"), b'{"type":"Closed","id":"1"}'),
        (Optional[Debit], Debit("fee", 1), b'{"kind":"fee","amount":1}'),  # noqa: UP045
        (Annotated[Debit | None, "x"], Debit("fee", 1), b'{"kind":"fee","amount":1}'),
        (Any, [1], b"[1]"),
    ],
)
def test_a_topic_of_a_type_or_none_has_the_type_and_takes_records_without_a_value(
    declared: Any, value: Any, raw: bytes
) -> None:
    codec = topic_codec(declared)
    assert codec.nullable
    assert (codec.encode(value), codec.decode(raw)) == (raw, value)


@pytest.mark.parametrize("declared", [bytes, str, int, dict, Debit, Opened | Closed])
def test_a_topic_of_a_type_alone_takes_no_record_without_a_value(declared: Any) -> None:
    assert not topic_codec(declared).nullable


# -- what code of others raises


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyError("boom"), RecursionError(), SystemExit(3), Odd("x"), GeneratorExit()])
def test_whatever_the_code_behind_a_codec_raises_its_bytes_are_undecodable(error: BaseException) -> None:
    def decode(raw: bytes) -> Any:
        raise error

    @dataclass
    class Picky:
        id: str

        def __post_init__(self) -> None:
            raise error

    given = Codec(int, lambda value: b"", decode, False)
    for codec in (codec_for(given), topic_codec(given), codec_for(Picky), topic_codec(Picky | None)):
        with pytest.raises(DecodeError, match=type(error).__name__):
            codec.decode(b'{"id":"x"}')


# -- what bytes look like


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            b'\x00\x00\x00\x00\x07{"kind":"fee","amount":1}',
            "schema registry's serializers do, with 0x00 and the schema id 7",
        ),
        (b"\x00\x00\x00\x01\x00\x04o1\x02", "schema id 256"),
        (b"", "it is empty"),
        (gzip.compress(b'{"kind":"fee","amount":1}'), "it is gzip"),
        (b'"{\\"kind\\":\\"fee\\"}"', "JSON within a JSON string"),
        (b'{"schema":{"type":"struct"},"payload":{"kind":"fee"}}', "schemas.enable=false"),
    ],
)
@pytest.mark.parametrize("declared", [Debit, Debit | Credit, dict[str, int]])
def test_envelopes_of_other_systems_are_named(raw: bytes, said: str, declared: Any) -> None:
    with pytest.raises(DecodeError, match=re.escape(said)):
        codec_for(declared).decode(raw)


def test_values_behind_the_bytes_of_a_schema_registry_are_read_and_written() -> None:
    codec = framed(Debit, schema_id=7)
    raw = b'\x00\x00\x00\x00\x07{"kind":"fee","amount":1}'
    assert (codec.encode(Debit("fee", 1)), codec.decode(raw)) == (raw, Debit("fee", 1))
    with pytest.raises(DecodeError, match="does not begin with 0x00"):
        codec.decode(b'{"kind":"fee","amount":1}')
    with pytest.raises(TypeError, match="schema_id="):
        framed(Debit).encode(Debit("fee", 1))


# -- fields


class Row(TypedDict, total=False):
    id: str


class Struct(msgspec.Struct, rename="camel"):
    order_id: str


class Pair(NamedTuple):
    id: str


@pytest.mark.parametrize(
    ("declared", "known"),
    [
        (Debit, ["kind", "amount"]),
        (Row, ["id"]),
        (Struct, ["order_id"]),
        (Pair, ["id"]),
        (Opened | Debit | None, ["id", "name", "kind", "amount"]),
        (str, []),
        (dict, None),
        (Any, None),
        (Debit | dict, None),
    ],
)
def test_the_fields_of_a_type_are_known_where_it_has_some(declared: Any, known: list[str] | None) -> None:
    assert fields_of(declared) == known
