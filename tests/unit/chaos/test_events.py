"""What a pipeline nobody has seen before is fed with."""

from __future__ import annotations

import enum
import json
import sys
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, make_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Annotated, Any, ClassVar

import msgspec
import pytest

from semel import Dedup, Pipeline, Table, Topic, content_hash, header
from semel.chaos import events
from semel.chaos.events import MIX, Delivery, Input, deliveries, from_file, from_module
from semel.chaos.generated import NotMade, from_types
from semel.chaos.subject import Subject, subject
from semel.errors import ConfigError

NOW_MS = 1_800_000_000_000
DAY = timedelta(days=1)


def now_ms() -> int:
    return NOW_MS


@dataclass
class Trade:
    shop: str
    number: int
    buyer: str
    seller: str
    amount: int


async def nothing(trades: AsyncIterable[Any]) -> AsyncIterator[None]:
    async for _ in trades:
        yield None


@dataclass
class Priced:
    """What it says of itself is not what may be in it."""

    price: Annotated[int, msgspec.Meta(ge=1, le=9, multiple_of=100)]


def pipeline(agent: Any = nothing, *tables: Table, dedup: Dedup | None = None, value: Any = Trade) -> Subject:
    declared = Pipeline("trades", source=Topic("trades", value=value), agent=agent, tables=tables, dedup=dedup)
    return subject("trades", declared)


def made_of(made: Input, count: int = 200) -> list[tuple[bytes | None, Any]]:
    return [(one.key, json.loads(one.value or b"")) for one in islice(made.originals, count)]


# -- the record key


def test_rows_kept_by_a_key_ask_for_the_record_key() -> None:
    balances = Table("balances", value=int, default=int)
    with pytest.raises(ConfigError, match=r"rows of balances .*--key FIELD.*'{origin}-{dest}'.*chaos_events\(rng\)"):
        from_types(pipeline(nothing, balances), 1, now_ms)
    made = from_types(pipeline(nothing, balances), 1, now_ms, "{seller}>{buyer}!")
    assert "keyed by {seller}>{buyer}!" in made.notes[0]
    assert all(key == f"{v['seller']}>{v['buyer']}!".encode() for key, v in made_of(made))


@dataclass
class Payment:
    id: str
    account: str
    amount: int


DEDUP = Dedup("id", window=DAY)


def test_the_only_field_that_fits_the_key_of_the_rows_is_the_record_key() -> None:
    balances = Table("balances", key=str, value=int, default=int)
    made = from_types(pipeline(nothing, balances, dedup=DEDUP, value=Payment), 1, now_ms)
    said = "keyed by account, the only field that could be the key of table balances; --key FIELD says another"
    assert made.notes[0].endswith(said)
    assert all(key == value["account"].encode() for key, value in made_of(made))


def test_the_key_of_the_rows_may_be_a_number() -> None:
    by_amount = Table("by_amount", key=int, value=int, default=int)
    made = from_types(pipeline(nothing, by_amount, dedup=DEDUP, value=Payment), 1, now_ms)
    assert all(key == str(value["amount"]).encode() for key, value in made_of(made))


def test_several_fields_that_fit_are_named_and_none_is_taken() -> None:
    balances = Table("balances", value=int, default=int)
    with pytest.raises(ConfigError, match="shop, buyer and seller of Trade could be it"):
        from_types(pipeline(nothing, balances, dedup=Dedup("number", window=DAY)), 1, now_ms)


@pytest.mark.parametrize("key", [float, tuple[str, int]])
def test_where_no_field_fits_the_key_of_the_rows_its_type_is_named(key: Any) -> None:
    balances = Table("balances", key=key, value=int, default=int)
    with pytest.raises(ConfigError, match=r"no field of Payment but its id is of type .*--key FIELD"):
        from_types(pipeline(nothing, balances, dedup=DEDUP, value=Payment), 1, now_ms)


def test_a_field_that_may_be_absent_is_no_key_of_rows_that_must_have_one() -> None:
    @dataclass
    class Noted:
        id: str
        account: str
        note: str | None

    balances = Table("balances", value=int, default=int)
    made = from_types(pipeline(nothing, balances, dedup=DEDUP, value=Noted), 1, now_ms)
    assert "keyed by account" in made.notes[0]


def test_a_field_that_does_not_fit_the_key_of_the_topic_is_no_key() -> None:
    balances = Table("balances", key=str, value=int, default=int)
    declared = Pipeline(
        "trades", source=Topic("trades", key=int, value=Payment), agent=nothing, tables=[balances], dedup=DEDUP
    )
    with pytest.raises(NotMade, match="whose values are declared as Payment and keys as int"):
        from_types(subject("trades", declared), 1, now_ms)


def test_without_such_rows_any_key_will_do() -> None:
    sums = Table("sums", value=int, default=int, merge=lambda a, b: a + b)
    made = from_types(pipeline(nothing, sums), 1, now_ms)
    assert "with 24 keys" in made.notes[0]
    assert 10 < len({key for key, _ in made_of(made)}) <= 24


@pytest.mark.parametrize("key", [str, bytes, int])
def test_a_key_that_nobody_asked_for_is_of_the_topic_s_type(key: Any) -> None:
    declared = Pipeline("trades", source=Topic("trades", key=key, value=Trade), agent=nothing)
    [made] = islice(from_types(subject("trades", declared), 1, now_ms).originals, 1)
    assert isinstance(declared.source.key.decode(made.key or b""), key)


def test_a_key_may_lie_within_a_field_and_its_place_is_empty_where_it_is_absent() -> None:
    @dataclass
    class Nested:
        trade: Trade | None
        kind: str

    made = from_types(pipeline(value=Nested), 1, now_ms, "{trade.buyer}/{kind}")
    for key, value in made_of(made):
        assert key == f"{value['trade']['buyer'] if value['trade'] else ''}/{value['kind']}".encode()


def test_a_key_given_by_hand_wins() -> None:
    made = from_types(pipeline(), 1, now_ms, "{shop}/{number}")
    assert all(key == f"{v['shop']}/{v['number']}".encode() for key, v in made_of(made))
    assert all(key == v["shop"].encode() for key, v in made_of(from_types(pipeline(), 1, now_ms, "shop")))


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


def test_a_key_of_fields_that_are_no_texts_is_as_json_has_them() -> None:
    @dataclass
    class Sized:
        kinds: ClassVar[int] = 2
        size: Size
        at: date

    for key, value in made_of(from_types(pipeline(value=Sized), 1, now_ms, "{size}/{at}"), 20):
        assert key == f"{value['size']}/{value['at']}".encode()
        assert value["size"] in ("small", "large")


@pytest.mark.parametrize(("key", "says"), [("{shopp}", "'shopp'"), ("{shop", "not closed")])
def test_a_key_by_hand_that_cannot_be_is_refused(key: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_types(pipeline(), 1, now_ms, key)


# -- the dedup key


@pytest.mark.parametrize(
    ("dedup", "field"),
    [
        (Dedup("number", window=DAY), "number"),
        (Dedup(content_hash("seller", "buyer"), window=DAY), None),
        (Dedup(content_hash(), window=DAY), None),
    ],
    ids=["field", "some fields", "all fields"],
)
def test_no_two_events_have_the_same_dedup_key(dedup: Dedup, field: str | None) -> None:
    made = from_types(pipeline(dedup=dedup), 1, now_ms)
    read = dedup.key_reader()
    values = [Trade(**value) for _, value in made_of(made, 300)]
    assert len({read(value, None) for value in values}) == 300
    if field is not None:
        assert len({getattr(value, field) for value in values}) == 300


def test_a_dedup_key_in_the_headers_is_there_and_differs() -> None:
    made = from_types(pipeline(dedup=Dedup(header("ce_id", "ce_source"), window=DAY)), 1, now_ms)
    headers = [dict(one.headers) for one in islice(made.originals, 100)]
    assert len({h["ce_id"] for h in headers}) == 100
    assert {h["ce_source"] for h in headers} == {b"chaos"}


def test_the_event_time_is_the_present_in_the_fields_own_type() -> None:
    @dataclass
    class Reading:
        id: str
        measured: datetime
        seen: int

    declared = pipeline(value=Reading, dedup=Dedup("id", window=DAY, time="seen"))
    assert {value["seen"] for _, value in made_of(from_types(declared, 1, now_ms), 20)} == {NOW_MS}
    source = Topic("readings", value=Reading, time="seen")
    declared = subject("readings", Pipeline("readings", source=source, agent=lambda reading: None))
    assert {value["seen"] for _, value in made_of(from_types(declared, 1, now_ms), 20)} == {NOW_MS}


@pytest.mark.parametrize(
    ("type_", "present"),
    [(float, NOW_MS), (float | None, NOW_MS), (int, NOW_MS), (Decimal, str(NOW_MS)), (Any, NOW_MS)],
    ids=str,
)
def test_an_event_time_that_is_a_number_is_one_of_ms(type_: Any, present: Any) -> None:
    reading = make_dataclass("Reading", [("id", str), ("ts", type_)])
    declared = pipeline(value=reading, dedup=Dedup("id", window=DAY, time="ts"))
    assert {value["ts"] for _, value in made_of(from_types(declared, 1, now_ms), 20)} == {present}


def test_a_source_that_may_have_tombstones_is_fed_with_values() -> None:
    made = from_types(pipeline(value=Payment | None, dedup=DEDUP), 1, now_ms, "account")
    assert all(key == value["account"].encode() for key, value in made_of(made, 20))


class Renamed(msgspec.Struct, rename="camel"):
    order_id: str
    seen_at: int
    customer_name: str


def test_fields_with_another_name_in_json_are_found_by_their_name_in_the_code() -> None:
    declared = pipeline(value=Renamed, dedup=Dedup("order_id", window=DAY, time="seen_at"))
    values = made_of(from_types(declared, 1, now_ms, "customer_name"), 50)
    assert {value["seenAt"] for _, value in values} == {NOW_MS}
    assert len({value["orderId"] for _, value in values}) == 50
    assert all(record_key == value["customerName"].encode() for record_key, value in values)


@pytest.mark.parametrize("value", [dict, list])
def test_a_source_without_types_is_refused_with_the_ways_out(value: Any) -> None:
    with pytest.raises(NotMade, match=r"chaos_events\(rng\).*--input FILE or --from-topic TOPIC"):
        from_types(pipeline(value=value), 1, now_ms)


@pytest.mark.parametrize("value", [Annotated[int, msgspec.Meta(multiple_of=1_000_003)], Priced])
def test_a_type_whose_values_are_not_known_is_refused_before_anything_runs(value: Any) -> None:
    with pytest.raises(NotMade, match=r"topic 'trades', whose values are declared as .*chaos_events\(rng\)"):
        from_types(pipeline(value=value), 1, now_ms)


def test_a_dedup_key_of_few_values_is_refused() -> None:
    @dataclass
    class Flag:
        up: bool

    with pytest.raises(NotMade, match="too few values"):
        from_types(pipeline(value=Flag, dedup=Dedup("up", window=DAY)), 1, now_ms)


def test_a_dedup_key_that_is_a_function_is_refused() -> None:
    with pytest.raises(NotMade, match=r"a function of the value: define chaos_events"):
        from_types(pipeline(dedup=Dedup(lambda trade: trade.number, window=DAY)), 1, now_ms)


@pytest.mark.parametrize("value", [str, int, bytes, float])
def test_scalars_are_made_too(value: Any) -> None:
    made = from_types(pipeline(value=value, dedup=Dedup(content_hash(), window=DAY)), 1, now_ms)
    assert len({one.value for one in islice(made.originals, 100)}) == 100


def test_a_seed_gives_the_same_events_again() -> None:
    dedup = Dedup("number", window=DAY)
    first, again, other = (
        list(islice(deliveries(from_types(pipeline(dedup=dedup), seed, now_ms), seed, now_ms, altered), 3000))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


# -- made by the module


def test_a_module_may_make_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("trades_module")

    def chaos_events(rng: Random) -> Iterator[Any]:
        yield "a", Trade("s", 1, "b", "c", rng.randint(1, 1))
        yield b"raw", b"as it is", {"h": "text"}
        yield None, None

    module.chaos_events = chaos_events  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trades_module", module)
    made = from_module(pipeline(), "trades_module:pipeline", 1)
    assert made is not None
    first, second, third = made.originals
    assert (first.key, json.loads(first.value or b"")["shop"]) == (b"a", "s")
    assert second == Delivery(b"raw", b"as it is", (("h", b"text"),))
    assert third == Delivery(None, None)


def test_a_module_without_that_function_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trades_module", ModuleType("trades_module"))
    assert from_module(pipeline(), "trades_module", 1) is None


def test_an_event_of_the_module_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("trades_module")
    module.chaos_events = lambda rng: iter([("key", 5)])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trades_module", module)
    made = from_module(pipeline(), "trades_module", 1)
    assert made is not None
    with pytest.raises(ConfigError, match="does not fit the source"):
        next(made.originals)


# -- recorded


def test_recorded_events_are_read_from_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(
        '{"key": "k", "value": {"id": 1}, "headers": {"h": "x"}, "timestamp": 5}\n\n{"value": "plain text"}\n'
    )
    made = from_file(file)
    first, second = made.originals
    assert first == Delivery(b"k", b'{"id":1}', (("h", b"x"),), 5)
    assert second == Delivery(None, b"plain text")
    assert made.limit == 2


@pytest.mark.parametrize(
    ("text", "says"), [("[1]\n", "line 1"), ("{}\n", "`value`"), ("\n", "no lines"), ("{", "line 1")]
)
def test_a_file_that_holds_no_events_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        from_file(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        from_file(tmp_path / "nothing.jsonl")


# -- redeliveries


def altered(made: Delivery, others: Sequence[Delivery]) -> bytes:
    assert others[-1] == made
    return b"altered " + (made.value or b"")


def test_originals_come_once_in_their_order_with_redeliveries_between() -> None:
    originals = [Delivery(b"k", b'{"n":%d}' % n) for n in range(20_000)]
    found = list(deliveries(Input(iter(originals)), 3, now_ms, altered))
    assert [d.value for d in found if d.kind == "original"] == [m.value for m in originals]
    counts = Counter(d.kind for d in found)
    assert set(counts) == {"original", *MIX}
    assert 0.1 < (len(found) - len(originals)) / len(originals) < 0.4
    seen: set[bytes | None] = set()
    for delivery in found:
        if delivery.kind == "original":
            seen.add(delivery.value)
        elif delivery.kind == "conflict":
            assert (delivery.value or b"").removeprefix(b"altered ") in seen
        elif delivery.kind == "undecodable":
            assert delivery.value == events.NOT_JSON
        else:
            assert delivery.value in seen


def test_where_nothing_can_be_altered_nothing_is() -> None:
    made = [Delivery(b"k", str(n).encode()) for n in range(5_000)]
    kinds = {d.kind for d in deliveries(Input(iter(made), json=False), 3, now_ms, lambda made, others: None)}
    assert not kinds & {"conflict", "undecodable"}
