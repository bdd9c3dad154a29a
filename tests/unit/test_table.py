"""Tables as an agent sees them: dictionaries whose rows belong to the event in hand."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from semel.errors import (
    DeclarationError,
    DecodeError,
    HandlingError,
    OutputRefused,
    OutsideEvent,
    StaleIncarnation,
    WrongPartition,
)
from semel.partitioner import KeyPartitions
from semel.state.event_context import EventContext, current_context
from semel.state.store import Store
from semel.state.table_rows import Rows
from semel.table import RESERVED, Table
from tests.unit.rows import begun, committed, fail, finish, land, rows_of, take_in_hand


@dataclass
class Account:
    balance: int = 0


@pytest.fixture(autouse=True)
def nothing_in_hand() -> Iterator[None]:
    token = current_context.set(None)
    yield
    current_context.reset(token)


# -- declaring


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="reserved"):
        Table(name)


@pytest.mark.parametrize("name", ["", "a b", "ü", "x" * 250, "..", "a/b"])
def test_names_that_kafka_refuses_are_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="not possible on Kafka"):
        Table(name)


def test_a_changeable_default_that_all_rows_would_share_is_refused() -> None:
    with pytest.raises(DeclarationError, match="default=list or default=lambda"):
        Table("t", value=list, default=[])
    with pytest.raises(DeclarationError, match="shared by all rows"):
        Table("t", value=Account, default=Account())


def test_a_default_of_another_type_is_refused() -> None:
    with pytest.raises(DeclarationError, match="no value of the table"):
        Table("t", value=int, default="0")


@pytest.mark.parametrize(
    ("value", "default"),
    [(int, str), (int, dict), (str, int), (dict, int), (Account, dict), (dict, Decimal), (int, complex)],
)
def test_a_class_as_default_that_makes_no_value_of_the_table_is_refused(value: Any, default: Any) -> None:
    with pytest.raises(DeclarationError, match=f"default={default.__name__} makes no value of the table"):
        Table("t", value=value, default=default)


@pytest.mark.parametrize(
    ("value", "default"),
    [(int, int), (float, int), (Decimal, int), (dict, dict), (Any, list), (Account, Account), (str, str)],
)
def test_a_class_as_default_that_makes_a_value_of_the_table_is_taken(value: Any, default: Any) -> None:
    Table("t", value=value, default=default)


@pytest.mark.parametrize(
    "declared",
    [{"version": "2"}, {"version": 1.0}, {"version": True}, {"merge": lambda a: a}, {"migrate": lambda a, b: a},
     {"migrate": lambda: None}],
)  # fmt: skip
def test_what_cannot_be_is_refused_where_it_is_declared(declared: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=f"table 't': {next(iter(declared))}="):
        Table("t", value=int, **declared)


def test_functions_that_say_nothing_of_their_parameters_are_taken() -> None:
    Table("t", value=int, merge=max, migrate=int)
    Table("t", value=int, merge=lambda *parts: sum(parts), migrate=lambda row, scale=2: row * scale)


@pytest.mark.parametrize("key", [dict, list, list[int], set[str], Account])
def test_a_key_that_can_change_is_refused(key: Any) -> None:
    with pytest.raises(DeclarationError, match="no key"):
        Table("t", key=key)


def test_a_merge_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(DeclarationError, match="merge="):
        Table("t", merge=True)  # type: ignore[arg-type]


def test_a_table_belongs_to_one_pipeline_which_may_be_declared_again() -> None:
    table = Table("t")
    table.belong_to("a")
    table.belong_to("a")
    with pytest.raises(DeclarationError, match="'a' and 'b'; a table belongs to one"):
        table.belong_to("b")


# -- where no event is in hand


def test_a_table_needs_an_event_in_hand(store: Store) -> None:
    table = Table("t", value=int, default=int)
    for use in (lambda: table["a"], lambda: table.get("a"), lambda: "a" in table, lambda: table.update({"a": 1})):
        with pytest.raises(OutsideEvent, match="no event is in hand"):
            use()
    _, context = begun(table, store)
    table["a"] = 1
    finish(context)
    with pytest.raises(OutsideEvent, match="between two events"):
        table["a"] = 2
    with pytest.raises(OutsideEvent):
        table["a"]


def test_a_table_that_the_pipeline_does_not_list_names_the_way_out(store: Store) -> None:
    begun(Table("listed"), store)
    with pytest.raises(OutsideEvent, match=r"Pipeline\(tables=\[\.\.\.\]\)"):
        Table("other")["a"] = 1


def test_work_of_an_incarnation_that_is_over_cannot_touch_a_table(store: Store) -> None:
    table = Table("t", value=int, default=int)
    _, context = begun(table, store)
    context.alive = False
    with pytest.raises(StaleIncarnation):
        table["a"] += 1


async def test_a_task_of_the_handler_works_on_its_event_and_on_no_later_one(store: Store) -> None:
    table = Table("t", key=str, value=dict, default=dict)
    rows = rows_of(table, store)
    context = take_in_hand(rows)
    release = asyncio.Event()

    async def during() -> None:
        table["a"]["during"] = 1

    async def after() -> str:
        await release.wait()
        try:
            table["a"]["after"] = 1
        except OutsideEvent:
            return "refused"
        return "done"

    context.begin()
    straggler = asyncio.create_task(after())
    await asyncio.create_task(during())
    finish(context)

    context.begin()
    release.set()
    assert await straggler == "refused"
    table["c"]["second"] = 1
    finish(context)
    assert [rows.decode(value or b"") for value in rows.open.values()] == [{"during": 1}, {"second": 1}]


async def test_a_callback_that_fires_in_a_later_event_is_told_apart(store: Store) -> None:
    table = Table("t", value=int)
    context = take_in_hand(rows_of(table, store))
    seen: list[str] = []

    def fire() -> None:
        try:
            table["late"] = 1
        except OutsideEvent as exc:
            seen.append(str(exc))

    context.begin()
    asyncio.get_running_loop().call_soon(fire)
    finish(context)
    context.begin()
    await asyncio.sleep(0)
    assert len(seen) == 1
    assert not context.writes.rows


def test_hand_mine_is_true_only_for_the_code_of_the_event_in_hand(store: Store) -> None:
    context = take_in_hand()
    assert not context.mine
    context.begin()
    inherited = contextvars.copy_context()
    assert context.mine
    assert inherited.run(lambda: context.mine)
    context.holding = False
    assert not context.mine
    context.begin()
    assert not inherited.run(lambda: context.mine)


# -- as a dict


@pytest.fixture(params=["immutable", "changeable"])
def numbers(request: pytest.FixtureRequest, store: Store) -> tuple[Table, Rows, EventContext]:
    """A table without a default, of ints or of lists of one int; `value` makes one."""
    table = Table("t", value=int if request.param == "immutable" else list)
    rows = rows_of(table, store)
    return table, rows, take_in_hand(rows)


def value_of(table: Table) -> Callable[[int], Any]:
    return (lambda n: n) if table.value.immutable else (lambda n: [n])


def test_a_table_is_a_dict(numbers: tuple[Table, Rows, EventContext]) -> None:
    table, _, context = numbers
    v = value_of(table)
    context.begin()
    with pytest.raises(KeyError, match="a"):
        table["a"]
    with pytest.raises(KeyError, match="a"):
        del table["a"]
    with pytest.raises(KeyError, match="a"):
        table.pop("a")
    assert table.pop("a", None) is None
    assert table.get("a") is None
    assert table.get("a", 5) == 5
    assert "a" not in table
    table["a"] = v(1)
    assert table["a"] == table.get("a") == v(1)
    assert "a" in table
    assert table.setdefault("a", v(2)) == v(1)
    assert table.setdefault("b", v(2)) == v(2)
    assert table.get_many(["b", "x", "a"]) == [v(2), None, v(1)]
    table.update({"c": v(3), "a": v(4)})
    assert table.pop("a") == v(4)
    assert "a" not in table
    del table["c"]
    with pytest.raises(KeyError):
        table["c"]
    table["c"] = v(5)
    assert table["c"] == v(5)


def test_an_event_that_fails_leaves_no_trace(numbers: tuple[Table, Rows, EventContext], store: Store) -> None:
    table, rows, context = numbers
    v = value_of(table)
    context.begin()
    table.update({"kept": v(1), "changed": v(1), "gone": v(1)})
    finish(context)
    context.begin()
    table["changed"] = v(2)
    table["changed"] = v(3)
    del table["gone"]
    table["new"] = v(1)
    fail(context)
    context.begin()
    assert table.get_many(["kept", "changed", "gone", "new"]) == [v(1), v(1), v(1), None]
    finish(context)
    rows.seal()
    land(store, rows)
    assert committed(store, rows) == {"kept": v(1), "changed": v(1), "gone": v(1)}


def test_reads_see_the_open_epoch_over_the_sealed_one_over_the_store(
    numbers: tuple[Table, Rows, EventContext], store: Store
) -> None:
    table, rows, context = numbers
    v = value_of(table)
    context.begin()
    table.update({"a": v(1), "b": v(1), "c": v(1)})
    finish(context)
    rows.seal()
    land(store, rows)
    context.begin()
    table.update({"b": v(2)})
    del table["c"]
    finish(context)
    rows.seal()
    context.begin()
    assert table.get_many(["a", "b", "c"]) == [v(1), v(2), None]
    table["c"] = v(3)
    finish(context)
    context.begin()
    assert table.get_many(["a", "b", "c"]) == [v(1), v(2), v(3)]
    finish(context)
    rows.drop()
    context.begin()
    assert table.get_many(["a", "b", "c"]) == [v(1), v(1), v(1)]


def test_a_table_cannot_be_iterated_even_with_a_default() -> None:
    with pytest.raises(TypeError, match="GET /tables/t"):
        list(Table("t", key=int, value=int, default=int))  # type: ignore[call-overload]


# -- defaults and changes in place


def test_reading_a_default_writes_nothing(store: Store) -> None:
    for value, default in ((int, int), (int, 7), (dict, dict), (Account, Account)):
        table = Table("t", value=value, default=default)
        rows, context = begun(table, store)
        made = default() if callable(default) else default
        assert table["a"] == made
        assert table.get_many(["a", "b"]) == [made, made]
        assert "a" not in table
        assert table.get("a") is None
        with pytest.raises(KeyError):
            del table["a"]
        finish(context)
        assert rows.open == {}


def test_a_default_changed_in_place_is_a_row_from_then_on(store: Store) -> None:
    table = Table("t", value=dict, default=dict)
    rows, context = begun(table, store)
    table["a"]["n"] = 1
    assert "a" in table
    assert table.get("a") == {"n": 1}
    finish(context)
    assert rows.open == {b"a": b'{"n":1}'}


def test_a_value_changed_in_place_is_written_back_once_and_only_if_it_changed(store: Store) -> None:
    table = Table("t", value=Account)
    rows, context = begun(table, store)
    table["a"], table["b"] = Account(1), Account(1)
    finish(context)
    rows.seal()
    land(store, rows)
    context.begin()
    for _ in range(3):
        table["a"].balance += 1
    assert table["b"].balance == 1
    finish(context)
    assert rows.open == {b"a": b'{"balance":4}'}


def test_a_value_changed_after_it_was_assigned_is_written_as_it_is_at_the_end(store: Store) -> None:
    table = Table("t", value=list)
    rows, context = begun(table, store)
    mine = [1]
    table["a"] = mine
    table["b"] = mine
    mine.append(2)
    finish(context)
    assert rows.open == {b"a": b"[1,2]", b"b": b"[1,2]"}


def test_a_value_changed_after_its_event_ended_changes_no_row(store: Store) -> None:
    table = Table("t", value=list, default=list)
    rows, context = begun(table, store)
    kept = table["a"]
    kept.append(1)
    finish(context)
    kept.append(2)
    context.begin()
    assert table["a"] == [1]
    assert table["a"] is not kept
    kept.append(3)
    finish(context)
    assert rows.open == {b"a": b"[1]"}


def test_a_value_changed_in_an_event_that_failed_changes_no_row(store: Store) -> None:
    table = Table("t", value=list, default=list)
    rows, context = begun(table, store)
    table["a"].append(1)
    fail(context)
    context.begin()
    assert table["a"] == []
    finish(context)
    assert rows.open == {}


def test_a_value_changed_in_place_to_what_does_not_fit_raises_when_the_event_ends(store: Store) -> None:
    table = Table("t", value=dict, default=dict)
    rows, context = begun(table, store)
    table["a"]["x"] = 1
    table["b"]["x"] = object()
    with pytest.raises(HandlingError, match="row 'b'"):
        finish(context)
    fail(context)
    assert rows.open == {}


def test_a_deleted_row_is_not_written_back(store: Store) -> None:
    table = Table("t", value=list, default=list)
    rows, context = begun(table, store)
    table["a"] = [1]
    finish(context)
    context.begin()
    kept = table["a"]
    del table["a"]
    kept.append(2)
    finish(context)
    assert rows.open == {b"a": None}


# -- what a row may be


def test_a_key_of_another_type_is_refused_also_when_it_equals_one_that_is_known(store: Store) -> None:
    for value in (int, list):
        table = Table("t", key=int, value=value)
        _, context = begun(table, store)
        table[1] = value()
        assert table[1] == value()
        for odd in (True, 1.0, Decimal(1), "1"):
            for use in (table.__getitem__, table.get, table.__contains__):
                with pytest.raises(HandlingError, match="keys are int"):
                    use(odd)
            with pytest.raises(HandlingError, match="keys are int"):
                table[odd] = value()
        finish(context)


def test_bool_keys_and_int_keys_are_different_rows_of_different_tables(store: Store) -> None:
    flags = Table("flags", key=bool, value=int)
    begun(flags, store)
    flags[True] = 1
    assert flags[True] == 1
    with pytest.raises(HandlingError):
        flags[1]


def test_a_value_of_another_type_is_refused(store: Store) -> None:
    table = Table("t", value=int)
    _, context = begun(table, store)
    for odd in (True, 1.5, None, "1"):
        with pytest.raises(HandlingError, match="row 'a': expected int"):
            table["a"] = odd
    assert not context.writes.rows


def test_a_value_is_read_as_its_type_in_the_event_that_wrote_it_and_after_a_restart(store: Store) -> None:
    table = Table("t", value=float)
    _, context = begun(table, store)
    table["a"] = 3
    assert type(table["a"]) is float
    finish(context)
    raw = Table("raw", value=bytes)
    _, context = begun(raw, store, number=2)
    buffer = bytearray(b"x")
    raw["a"] = buffer
    buffer.append(0)
    assert raw["a"] == b"x"


def test_keys_that_are_equal_but_differ_as_bytes_are_different_rows_always(store: Store) -> None:
    table = Table("t", key=Decimal, value=int, default=int)
    begun(table, store)
    table[Decimal("1")] += 1
    table[Decimal("1.0")] += 1
    table[Decimal("1")] += 1
    assert (table[Decimal("1")], table[Decimal("1.0")]) == (2, 1)


@dataclass(frozen=True)
class Place:
    id: int
    x: float = 0.0


@pytest.mark.parametrize(
    ("key", "given", "other"),
    [
        (tuple[int, float], (1, 1.0), (1, 1)),
        (tuple[float, ...], (1.0, 2.5), (1, 2.5)),
        (tuple[int, tuple[str, float]], (1, ("a", 2.0)), (1, ("a", 2))),
        (Place, Place(1, 1.0), Place(1, 1)),
        (Place | None, Place(1, 1.0), Place(1, 1)),
    ],
)
def test_a_key_that_would_be_read_back_as_another_row_is_refused(
    store: Store, key: Any, given: Any, other: Any
) -> None:
    table = Table("t", key=key, value=int, default=int)
    begun(table, store)
    table[given] += 1
    assert given == other and table[given] == 1
    for use in (table.__getitem__, table.get, table.__contains__, lambda k: table.update({k: 1})):
        with pytest.raises(HandlingError, match=r"read back as .*1.*another row; give it so; its keys are"):
            use(other)


def test_a_key_of_a_float_alone_is_one_row_whichever_number_it_is_given(store: Store) -> None:
    for key in (float, float | None):
        table = Table("t", key=key, value=int, default=int)
        begun(table, store)
        table[1.0] += 1
        table[1] += 1
        assert table[1.0] == 2


def test_a_row_of_another_partition_is_refused_with_the_two_ways_out(store: Store) -> None:
    place = KeyPartitions(4)
    table = Table("t", value=int, default=int)
    rows, _ = begun(table, store, partition=2, place=place)
    homes = {f"k{n}": place(f"k{n}".encode()) for n in range(40)}
    for key, home in homes.items():
        if home == 2:
            table[key] += 1
            continue
        for use in (table.__getitem__, table.get, table.__contains__, lambda k: table.update({k: 1})):
            with pytest.raises(WrongPartition, match=f"row '{key}' belongs to partition {home}.*partition 2.*merge="):
                use(key)
    assert len(rows.pending) == sum(home == 2 for home in homes.values()) > 0


def test_a_table_with_merge_keeps_a_partial_row_wherever_its_events_are(store: Store) -> None:
    table = Table("t", value=int, default=int, merge=lambda a, b: a + b)
    sides = [rows_of(table, store, partition=p) for p in (0, 1)]
    for rows in sides:
        context = take_in_hand(rows)
        context.begin()
        table["a"] += 1 + rows.partition
        finish(context)
        rows.seal()
    land(store, *sides)
    assert [committed(store, rows) for rows in sides] == [{"a": 1}, {"a": 2}]


def test_a_row_that_its_changelog_would_not_take_is_refused_and_the_key_counts(store: Store) -> None:
    for value, big in ((str, "x" * 80), (list, ["x" * 80])):
        table = Table("t", value=value)
        _, context = begun(table, store, max_bytes=100)
        table["a"] = big
        with pytest.raises(OutputRefused, match=r"bytes do not fit its changelog, which takes 100"):
            table["k" * 50] = big
        fail(context)


def test_a_stored_row_of_another_type_names_the_table_and_the_row(store: Store) -> None:
    written = Table("t", value=dict)
    context = take_in_hand(rows := rows_of(written, store))
    context.begin()
    written["a"] = {"balance": "much"}
    finish(context)
    rows.seal()
    land(store, rows)
    declared = Table("t", value=Account)
    _, context = begun(declared, store)
    with pytest.raises(DecodeError, match="table 't', row 'a': what is stored cannot be read"):
        declared["a"]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_row_that_cannot_be_read_can_be_deleted_and_replaced(store: Store, how: str) -> None:
    written = Table("t", value=dict)
    rows, context = begun(written, store)
    written["a"] = {"balance": "much"}
    finish(context)
    rows.seal()
    land(store, rows)
    declared = Table("t", value=Account)
    rows, context = begun(declared, store)
    assert "a" in declared
    with pytest.raises(KeyError):
        del declared["b"]
    if how == "deleted":
        del declared["a"]
        assert "a" not in declared
    else:
        declared["a"] = Account(1)
    finish(context)
    rows.seal()
    land(store, rows)
    assert committed(store, rows) == ({} if how == "deleted" else {"a": Account(1)})


def test_a_row_of_a_wrong_type_inside_is_refused_when_it_is_written(store: Store) -> None:
    table = Table("t", value=Account, default=Account)
    _, context = begun(table, store)
    with pytest.raises(HandlingError, match=r"table 't', row 'a': balance: expected int, got str: '12'"):
        table["a"] = Account("12")  # type: ignore[arg-type]
    table["b"].balance = "13"
    with pytest.raises(HandlingError, match="row 'b': balance: expected int"):
        finish(context)


def test_what_is_kept_at_hand_is_bounded_for_readers_and_for_writers(store: Store) -> None:
    table = Table("t", key=str, value=int, default=int)
    rows = rows_of(table, store, limit=10)
    context = take_in_hand(rows)
    for n in range(100):
        context.begin()
        table[f"w{n}"] = n
        table[f"w{n}"] += 1
        assert f"r{n}" not in table
        finish(context)
        assert len(rows.hot) <= 10
    context.begin()
    assert table.get_many([f"w{n}" for n in range(100)]) == list(range(1, 101))


def test_what_is_kept_at_hand_is_bounded_in_bytes(store: Store) -> None:
    table = Table("t", key=str, value=str)
    rows = rows_of(table, store, limit_bytes=100_000)
    context, most = take_in_hand(rows), 0
    for n in range(200):
        context.begin()
        table[f"w{n}"] = "x" * 1_000
        table[f"w{n}"] += "y"
        assert f"{n}" * 500 not in table
        finish(context)
        kept = sum(map(len, rows.hot.values())) + sum(map(len, rows.hot))
        assert kept <= rows.hot_bytes <= 110_000
        most = max(most, len(rows.hot))
    assert most > 10
    context.begin()
    assert table.get_many([f"w{n}" for n in range(200)]) == ["x" * 1_000 + "y"] * 200


def test_a_row_that_is_written_again_and_again_is_kept_at_hand_once(store: Store) -> None:
    table = Table("t", key=str, value=str)
    rows = rows_of(table, store, limit_bytes=100_000)
    context = take_in_hand(rows)
    context.begin()
    table["small"] = "x"
    for n in range(1_000):
        table["large"] = "x" * 1_000 if n % 3 else "y"
    assert set(rows.hot) == {"small", "large"}
    assert rows.hot_bytes < 3_000
    fail(context)
    assert rows.hot_bytes < 1_100


def test_a_value_larger_than_the_room_for_all_is_not_kept_at_hand(store: Store) -> None:
    table = Table("t", key=str, value=bytes)
    rows = rows_of(table, store, limit_bytes=100_000)
    context = take_in_hand(rows)
    context.begin()
    table["small"] = b"x"
    table["large"] = b"x"
    table["large"] = bytes(90_000)
    assert set(rows.hot) == {"small"}
    assert table["large"] == bytes(90_000)


@pytest.mark.parametrize("value", [str, list[str]])
def test_a_write_that_is_too_much_for_one_event_leaves_the_row_as_it_was(store: Store, value: Any) -> None:
    table = Table("t", key=str, value=value)
    context = take_in_hand(rows_of(table, store))
    context.begin()
    small, large = ("x", "x" * 5_000) if value is str else (["x"], ["x" * 5_000])
    table["a"] = small
    context.writes.most_bytes = 2_000
    for key in ("a", "b"):
        with pytest.raises(OutputRefused, match="over 2000 bytes"):
            table[key] = large
    assert table["a"] == small
    assert "b" not in table
    table["c"] = small
    finish(context)
    context.begin()
    assert [table.get(key) for key in ("a", "b", "c")] == [small, None, small]


def test_the_shape_of_a_table_names_its_types() -> None:
    assert Table("t", key=str, value=list[int]).shape() == {"key": "str", "value": "list[int]", "merge": False}
    assert Table("t", merge=max).shape()["merge"] is True


# -- an event that is left out of an epoch


def test_an_event_left_out_of_an_epoch_takes_effect_in_the_next(
    numbers: tuple[Table, Rows, EventContext], store: Store
) -> None:
    table, rows, context = numbers
    v = value_of(table)
    context.begin()
    table.update({"a": v(1), "b": v(1)})
    finish(context)
    context.begin()
    table["a"] = v(2)
    table["a"] = v(3)
    del table["b"]
    rows.seal()
    land(store, rows)
    assert committed(store, rows) == {"a": v(1), "b": v(1)}
    assert table.get_many(["a", "b"]) == [v(3), None]
    finish(context)
    rows.seal()
    land(store, rows)
    assert committed(store, rows) == {"a": v(3)}


def test_an_event_left_out_of_an_epoch_that_fails_later_leaves_no_trace(
    numbers: tuple[Table, Rows, EventContext], store: Store
) -> None:
    table, rows, context = numbers
    v = value_of(table)
    context.begin()
    table["a"] = v(1)
    finish(context)
    context.begin()
    table["a"] = v(2)
    table["a"] = v(3)
    table["b"] = v(1)
    rows.seal()
    land(store, rows)
    fail(context)
    assert rows.open == {}
    context.begin()
    assert table.get_many(["a", "b"]) == [v(1), None]
