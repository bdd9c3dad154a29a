"""PipelineTester: what a test of a pipeline sees of it. Plain functions, as its users write them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from semel import Dedup, Output, Pipeline, Reject, Retry, Table, Topic
from semel.codec import Codec
from semel.partitioner import partition_of
from semel.stages.commit.due_timers import AT_ONCE
from semel.testing import Counts, NotSettled, PipelineTester, PipelineTesterError, UnknownName


@dataclass(frozen=True)
class Order:
    id: str
    shop: str
    amount: int = 1


SOURCE = Topic("orders", key=str, value=Order)
ACCEPTED = Topic("accepted", key=str, value=Order)
LARGE = Topic("large", key=str, value=int)
MINUTE = timedelta(minutes=1)

TesterOf = Callable[..., PipelineTester]


def pipeline_of(agent: Any, **declared: Any) -> Pipeline:
    given = {"dedup": Dedup("id", window=timedelta(days=7)), "sink": ACCEPTED, **declared}
    return Pipeline("orders-test", source=SOURCE, agent=agent, **given)


def passing(order: Order) -> Order:
    return order


def summing(**table: Any) -> Pipeline:
    sums = Table("sums", key=str, value=int, default=int, **table)

    async def add(orders: Any) -> AsyncIterator[Order]:
        async for order in orders:
            sums[order.shop] += order.amount
            yield order

    return pipeline_of(add, tables=[sums])


# -- events and results


def test_a_second_order_with_the_same_id_is_dropped(tester_of: TesterOf) -> None:
    tester = tester_of(summing())
    tester.send(Order("o1", "north", 10), key="north")
    tester.send(Order("o1", "north", 10), key="north")
    assert [output.value for output in tester.outputs()] == [Order("o1", "north", 10)]
    assert tester.tables["sums"] == {"north": 10}
    assert tester.counts == Counts(
        received=2, accepted=1, outputs=1, filtered=0, duplicates=1, replayed=0, conflicts=0, dropped=0, dead_lettered=0
    )


def test_an_output_has_its_source_records_key_headers_and_time(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    at = datetime(2025, 10, 9, 8, 0, 0, 7_000, tzinfo=UTC)
    sent = tester.send(Order("o1", "north"), key="north", headers={"trace": "t-1"}, timestamp=at, partition=3)
    [output] = tester.outputs()
    assert (output.topic, output.key, output.value) == ("accepted", "north", Order("o1", "north"))
    assert output.headers["trace"] == b"t-1"
    assert output.timestamp == sent.timestamp == 1_759_996_800_007
    assert (sent.topic, sent.partition, sent.offset) == ("orders", 3, 0)
    assert output.raw_value == b'{"id":"o1","shop":"north","amount":1}'


def test_an_output_says_in_a_header_which_event_it_comes_from(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(Order("o1", "north"), headers={"trace": "t-1"}, partition=3)
    [output] = tester.outputs()
    assert output.headers == {"trace": b"t-1", "semel.lineage": b"orders-test/orders/3/0/0/o1"}


def test_an_event_and_its_output_go_to_the_partition_of_their_key(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing), partitions=6)
    placed = {key: tester.send(Order(key, key), key=key).partition for key in ("a", "b", "north", "south")}
    assert placed == {key: partition_of(key.encode(), 6) for key in placed}
    assert {output.key: output.partition for output in tester.outputs()} == placed


def test_events_without_a_key_take_turns(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing), partitions=3)
    sent = tester.send_all([Order(f"o{n}", "north") for n in range(4)])
    assert [record.partition for record in sent] == [0, 1, 2, 0]
    assert tester.outputs()[0].key is None


def test_outputs_stand_in_the_order_in_which_events_were_sent(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    shops = [f"shop {n * 7 % 20}" for n in range(20)]
    for number, shop in enumerate(shops):
        tester.send(Order(str(number), shop), key=shop)
    assert [output.value.shop for output in tester.outputs()] == shops


def test_outputs_of_one_commit_are_woven_by_time_and_each_partition_keeps_its_order(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing), partitions=2)
    for number, (partition, at) in enumerate([(0, 1000), (0, 4000), (0, 2000), (1, 3000), (1, 1500)]):
        tester.send(Order(str(number), "north"), timestamp=at, partition=partition, settle=False)
    tester.settle()
    assert [output.timestamp for output in tester.outputs()] == [1000, 3000, 1500, 4000, 2000]


def test_outputs_go_to_several_topics(tester_of: TesterOf) -> None:
    def split(order: Order) -> Any:
        return Output(order.amount, topic=LARGE) if order.amount > 100 else order

    tester = tester_of(pipeline_of(split))
    tester.send_all([Order("o1", "north", 500), Order("o2", "north", 5)], key="shop")
    assert [output.value for output in tester.outputs(LARGE)] == [500]
    assert [output.value for output in tester.outputs("accepted")] == [Order("o2", "north", 5)]
    assert len(tester.outputs()) == 2


def test_a_topic_that_nothing_was_sent_to_has_no_outputs(tester_of: TesterOf) -> None:
    def alert(order: Order) -> Any:
        return Output(order.amount, topic=LARGE) if order.amount > 100 else None

    tester = tester_of(pipeline_of(alert))
    assert tester.outputs(LARGE) == tester.outputs(ACCEPTED) == tester.outputs("accepted") == []
    tester.send(Order("o1", "north", 5), key="north")
    assert tester.outputs(LARGE) == []
    # A name could be mistyped; what to do instead is said.
    with pytest.raises(UnknownName, match=r"there is accepted; .*give the Topic itself"):
        tester.outputs("large")
    tester.send(Order("o2", "north", 500), key="north")
    assert [output.value for output in tester.outputs("large")] == [500]
    assert tester.outputs(LARGE) == tester.outputs("large")


@pytest.mark.parametrize("topic", [SOURCE, Topic("orders-test.dlq"), Topic("orders-test-positions")])
def test_a_topic_that_never_has_results_is_refused(tester_of: TesterOf, topic: Topic) -> None:
    tester = tester_of(pipeline_of(passing))
    with pytest.raises(PipelineTesterError, match=r"no topic that results go to.*dead_letters\(\)"):
        tester.outputs(topic)


def test_many_events_are_keyed_by_a_field_of_objects_and_of_dicts(tester_of: TesterOf) -> None:
    of_objects = tester_of(pipeline_of(passing))
    assert [r.key for r in of_objects.send_all([Order("o1", "north"), Order("o2", "south")], key="shop")] == [
        "north",
        "south",
    ]
    of_dicts = tester_of(Pipeline("dicts-test", source=Topic("orders"), agent=lambda order: order, sink=Topic("done")))
    sent = of_dicts.send_all([{"id": "o1", "shop": "north"}, {"id": "o2", "shop": None}], key="shop")
    assert [record.key for record in sent] == ["north", None]
    assert len(of_dicts.outputs()) == 2


def test_a_key_field_that_a_value_has_not_is_said_and_nothing_is_sent(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    with pytest.raises(PipelineTesterError, match=r"key='shopp': Order\(.* has no such field; did you mean 'shop'"):
        tester.send_all([Order("o1", "north")], key="shopp")
    of_dicts = tester_of(Pipeline("dicts-test", source=Topic("orders"), agent=lambda order: None))
    with pytest.raises(PipelineTesterError, match=r"key='shop': \{'id': 'o2'\} has no such field"):
        of_dicts.send_all([{"id": "o1", "shop": "north"}, {"id": "o2"}], key="shop")
    assert tester.counts.received == of_dicts.counts.received == 0


def test_new_outputs_are_those_since_the_last_time(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(Order("o1", "north"))
    assert [output.value.id for output in tester.new_outputs()] == ["o1"]
    tester.send(Order("o2", "north"))
    assert [output.value.id for output in tester.new_outputs()] == ["o2"]
    assert tester.new_outputs() == []
    assert len(tester.outputs()) == 2


def test_a_tombstone_is_an_output_of_none(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(lambda order: Output(None)))
    tester.send(Order("o1", "north"), key="north")
    assert [(output.key, output.value) for output in tester.outputs()] == [("north", None)]


def test_batches_are_handled_as_on_a_worker(tester_of: TesterOf) -> None:
    sizes: list[int] = []

    async def in_batches(orders: Any) -> AsyncIterator[Order]:
        async for batch in orders.batches():
            sizes.append(len(batch))
            for order in batch:
                yield order

    tester = tester_of(pipeline_of(in_batches), partitions=1)
    tester.send_all([Order(str(n), "north") for n in range(50)])
    assert len(tester.outputs()) == 50
    assert max(sizes) == 50


# -- what goes wrong in a pipeline


def test_undecodable_bytes_are_a_dead_letter_as_they_came(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(b"not json", key="north", headers={"trace": "t-1"})
    [letter] = tester.dead_letters()
    assert (letter.reason, letter.value, letter.key, letter.attempts) == ("undecodable", b"not json", "north", 0)
    assert letter.headers == {"trace": b"t-1"}
    assert letter.error.startswith("not of type Order: ")


@pytest.mark.parametrize("name", [None, "dlq.orders"])
def test_a_dead_letter_says_what_it_failed_at_wherever_it_goes(tester_of: TesterOf, name: str | None) -> None:
    def refuse(order: Order) -> Order:
        raise Reject("not ours")

    topic = Topic(name, partitions=2) if name is not None else None
    tester = tester_of(pipeline_of(refuse, dead_letters=topic))
    tester.send(Order("o1", "north"), key="north", headers={"semel.lineage": "another/1", "trace": "t"}, partition=3)
    [letter] = tester.dead_letters()
    assert letter.exception == "semel.errors.Reject"
    assert letter.fingerprint == f"semel.errors.Reject@{__name__}:{refuse.__qualname__}"
    assert letter.trace.endswith("Reject: not ours\n")
    assert letter.headers == {"semel.lineage": b"another/1", "trace": b"t"}
    assert letter.letter_headers["__dlq.errors.topic"] == b"orders"
    assert letter.letter_headers["__dlq.errors.group"] == b"orders-test"
    if name is not None:
        with pytest.raises(PipelineTesterError, match="Dead letters are in"):
            tester.outputs(Topic(name))


class Hollow(ExceptionGroup[Exception]):
    """An error that answers wrongly when it is asked what it is."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("ask somebody else")


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_error_that_cannot_be_asked_what_it_is_costs_its_event_a_dead_letter_and_no_more(
    tester_of: TesterOf, attempts: int
) -> None:
    async def fail_at_one(orders: Any) -> AsyncIterator[Order]:
        async for order in orders:
            if order.id == "o2":
                raise Hollow("nothing", [ValueError("x")])
            yield order

    tester = tester_of(pipeline_of(fail_at_one, retry=Retry(attempts=attempts)), partitions=1)
    tester.send_all([Order(id, id) for id in ("o1", "o2", "o3", "o2")], key="shop")
    assert [output.value.id for output in tester.outputs()] == ["o1", "o3"]
    assert [letter.reason for letter in tester.dead_letters()] == ["failed", "duplicate"]
    assert tester.dead_letters()[0].fingerprint.startswith("unreadable@")


def test_a_dead_letter_says_when_it_failed_first_and_last(tester_of: TesterOf) -> None:
    def refuse(order: Order) -> Order:
        raise ValueError("not yet")

    tester = tester_of(pipeline_of(refuse, retry=Retry(attempts=2, first_delay=MINUTE, max_delay=MINUTE)))
    tester.send(Order("o1", "north"))
    [letter] = tester.dead_letters()
    first, last = (int(letter.letter_headers[f"semel.failed_{when}_at"]) for when in ("first", "last"))
    assert 30_000 <= last - first <= 61_000
    assert last == int(letter.letter_headers["semel.dead_at"])


def test_a_null_value_is_a_dead_letter(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(None, key="north")
    assert [(letter.reason, letter.value) for letter in tester.dead_letters()] == [("undecodable", None)]


class Odd(BaseException):
    """What a library of another language raises when it panics."""


@dataclass
class Picky:
    id: str

    def __post_init__(self) -> None:
        if self.id == "odd":
            raise Odd("panic")
        if self.id == "key":
            raise KeyError("boom")


def test_bytes_that_a_codec_of_others_chokes_on_are_a_dead_letter(tester_of: TesterOf) -> None:
    def read(raw: bytes) -> str:
        if raw == b"odd":
            raise Odd("panic")
        return str(raw, "ascii")

    own: Codec[str] = Codec(str, lambda value: value.encode("ascii"), read, True)
    for topic, bad, good in (
        (Topic("orders", key=own, value=own), [b"odd", b"\xff"], b"fine"),
        (Topic("orders", key=own, value=Picky), [b'{"id":"odd"}', b'{"id":"key"}'], b'{"id":"fine"}'),
    ):
        tester = tester_of(
            Pipeline("orders", source=topic, agent=lambda value: value, sink=Topic("out", value=topic.value))
        )
        for raw in bad:
            tester.send(raw, key=b"odd")
        tester.send(good, key=b"k")
        assert [(letter.reason, letter.value, letter.key) for letter in tester.dead_letters()] == [
            ("undecodable", raw, b"odd") for raw in bad
        ]
        assert len(tester.outputs()) == 1


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("no"), Odd("no")])
def test_a_value_that_the_topics_own_codec_cannot_write_is_a_mistake_of_the_test(
    tester_of: TesterOf, error: BaseException
) -> None:
    def write(value: str) -> bytes:
        raise error

    own: Codec[str] = Codec(str, write, bytes.decode, True)
    tester = tester_of(Pipeline("orders", source=Topic("orders", key=own, value=own), agent=lambda value: None))
    for sent in ({"value": "x"}, {"value": b"x", "key": "k"}):
        with pytest.raises(PipelineTesterError, match="of topic 'orders', which takes str"):
            tester.send(**sent)


def test_tombstones_reach_an_agent_that_declares_them(tester_of: TesterOf) -> None:
    rows = Table("rows", value=dict)

    async def mirror(stream: Any) -> Any:
        async for event in stream.events():
            if event.value is None:
                rows.pop(event.key, None)
            else:
                rows[event.key] = event.value
            yield None

    tester = tester_of(Pipeline("mirror", source=Topic("rows", value=dict | None), agent=mirror, tables=[rows]))
    tester.send_all([{"k": "a"}, {"k": "b"}], key="k")
    tester.send(None, key="a")
    assert dict(tester.tables["rows"]) == {"b": {"k": "b"}}
    assert not tester.dead_letters()


def test_a_rejected_event_is_a_dead_letter_with_its_value_and_position(tester_of: TesterOf) -> None:
    def refuse(order: Order) -> None:
        raise Reject("closed on Sundays")

    tester = tester_of(pipeline_of(refuse))
    sent = tester.send(Order("o1", "north"), key="north")
    [letter] = tester.dead_letters()
    assert (letter.reason, letter.error) == ("rejected", "Reject: closed on Sundays")
    assert letter.value == Order("o1", "north")
    assert letter.position == sent.position
    assert letter.timestamp == sent.timestamp
    assert tester.counts.dead_lettered == 1


def test_the_same_id_with_another_payload_is_a_conflict(tester_of: TesterOf) -> None:
    tester = tester_of(summing())
    tester.send(Order("o1", "north", 10), key="north")
    tester.send(Order("o1", "north", 99), key="north")
    assert [letter.reason for letter in tester.dead_letters()] == ["conflict"]
    assert tester.tables["sums"]["north"] == 10
    assert tester.counts.conflicts == 1


def test_retries_take_no_time_and_pass_the_virtual_time_of_their_delays(tester_of: TesterOf) -> None:
    attempts: list[float] = []

    def third_time_lucky(order: Order) -> Order:
        attempts.append(time.monotonic())
        if len(attempts) < 3:
            raise ConnectionError("the shop does not answer")
        return order

    tester = tester_of(
        pipeline_of(third_time_lucky, retry=Retry(attempts=3, first_delay=MINUTE, max_delay=timedelta(hours=1)))
    )
    began = tester.now
    tester.send(Order("o1", "north"))
    assert len(tester.outputs()) == 1
    assert 1.5 * MINUTE <= tester.now - began <= 3.1 * MINUTE
    assert attempts[-1] - attempts[0] < 20


def test_the_attempts_can_be_followed_in_time(tester_of: TesterOf) -> None:
    attempts: list[str] = []

    def fail(order: Order) -> None:
        attempts.append(order.id)
        raise ConnectionError("the shop does not answer")

    tester = tester_of(pipeline_of(fail, retry=Retry(attempts=3, first_delay=MINUTE, max_delay=MINUTE)))
    tester.send(Order("o1", "north"), settle=False)
    tester.advance_time(timedelta(seconds=1))
    assert attempts == ["o1"]
    tester.advance_time(MINUTE)
    assert attempts == ["o1", "o1"]
    assert tester.dead_letters() == []
    tester.advance_time(MINUTE)
    assert [(letter.reason, letter.attempts) for letter in tester.dead_letters()] == [("failed", 3)]


def test_a_record_sent_without_settling_is_not_handled_before_time_passes(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(Order("o1", "north"), settle=False)
    assert tester.outputs() == []
    tester.settle()
    assert len(tester.outputs()) == 1


# -- time


def test_the_clock_starts_where_it_is_told_and_stands_still_while_events_are_handled(tester_of: TesterOf) -> None:
    start = datetime(2013, 1, 1, 5, tzinfo=UTC)
    tester = tester_of(pipeline_of(passing), start=start)
    tester.send(Order("o1", "north"))
    tester.send(Order("o2", "north"))
    assert tester.now == start
    assert [output.timestamp for output in tester.outputs()] == [1_357_016_400_000] * 2


def test_a_month_passes_at_once(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(Order("o1", "north"))
    before = tester.now
    tester.advance_time(timedelta(days=30))
    assert tester.now - before == timedelta(days=30)
    tester.send(Order("o2", "north"))
    assert len(tester.outputs()) == 2


def test_an_id_may_come_again_when_its_window_is_over(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    tester.send(Order("o1", "north"), key="north")
    tester.advance_time(timedelta(days=6))
    tester.send(Order("o1", "north"), key="north")
    assert tester.counts.duplicates == 1
    tester.advance_time(timedelta(days=2))
    tester.send(Order("o1", "north"), key="north")
    assert len(tester.outputs()) == 2


def test_a_redelivery_after_the_window_is_late(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing, dedup=Dedup("id", window=timedelta(days=1))), partitions=1)
    first = tester.send(Order("o1", "north"), key="north")
    for number in range(3):
        tester.advance_time(timedelta(days=1))
        tester.send(Order(f"later {number}", "north"), key="north")
    tester.redeliver(first)
    assert [letter.reason for letter in tester.dead_letters()] == ["late"]


# -- tables


def test_a_table_is_a_mapping_of_its_rows(tester_of: TesterOf) -> None:
    tester = tester_of(summing())
    shops = [f"shop {n}" for n in range(12)]
    tester.send_all([Order(shop, shop, number) for number, shop in enumerate(shops)], key="shop")
    sums = tester.tables["sums"]
    assert dict(sums) == {shop: number for number, shop in enumerate(shops)} == sums
    assert len(sums) == 12
    assert list(sums) == sorted(shops) == list(sums.keys())
    assert "shop 3" in sums
    assert "shop 12" not in sums
    assert sums.get("shop 12") is None
    assert repr(sums).startswith("TableView('sums', {'shop 0': 0, ")
    with pytest.raises(KeyError, match="shop 12"):
        sums["shop 12"]


def test_a_table_is_found_by_its_declaration(tester_of: TesterOf) -> None:
    pipeline = summing()
    tester = tester_of(pipeline)
    tester.send(Order("o1", "north", 3), key="north")
    assert tester.tables[pipeline.tables[0]]["north"] == 3
    assert list(tester.tables) == ["sums"]


def test_partial_rows_of_several_partitions_are_merged(tester_of: TesterOf) -> None:
    tester = tester_of(summing(merge=lambda a, b: a + b), partitions=3)
    for number in range(3):
        tester.send(Order(f"o{number}", "north", 10**number), partition=number)
    assert tester.tables["sums"]["north"] == 111
    assert tester.tables["sums"] == {"north": 111}


def test_a_row_of_another_partition_is_refused_as_on_a_worker(tester_of: TesterOf) -> None:
    tester = tester_of(summing())
    tester.send(Order("o1", "north"), key="north")
    tester.send(Order("o2", "north"), key="another key")
    assert ["WrongPartition" in letter.error for letter in tester.dead_letters()] == [True]


# -- mistakes in a test


def test_a_value_of_another_type_is_the_tests_mistake(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    with pytest.raises(PipelineTesterError, match=r"no value of topic 'orders', which takes Order.*send it as bytes"):
        tester.send({"id": "o1"})
    with pytest.raises(PipelineTesterError, match=r"amount: expected int, got str"):
        tester.send(Order("o1", "north", "ten"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(PipelineTesterError, match=r"no key of topic 'orders', which takes str"):
        tester.send(Order("o1", "north"), key=5)
    assert tester.counts.received == 0


def test_an_unknown_name_names_the_nearest_one(tester_of: TesterOf) -> None:
    tester = tester_of(summing())
    with pytest.raises(UnknownName, match=r"no table 'sum'.* did you mean 'sums'"):
        tester.tables["sum"]
    with pytest.raises(UnknownName, match="did you mean 'accepted'"):
        tester.outputs("acepted")
    with pytest.raises(UnknownName, match=r"did you mean 'commit\.after_produce'"):
        tester.crash(at="commit.after_prod")
    with pytest.raises(UnknownName, match="no worker 'w2'; there is w1"):
        tester.crash(worker="w2")
    assert "sum" not in tester.tables


def test_what_the_broker_would_refuse_is_refused(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    with pytest.raises(PipelineTesterError, match=r"error 10\)"):
        tester.send(Order("o1", "n" * 2_000_000))
    with pytest.raises(PipelineTesterError, match=r"error 32\)"):
        tester.send(Order("o1", "north"), timestamp=tester.now + timedelta(days=1))
    with pytest.raises(PipelineTesterError, match="partitions 0 to 3"):
        tester.send(Order("o1", "north"), partition=4)


def test_a_tester_of_something_else_says_what_it_takes() -> None:
    with pytest.raises(PipelineTesterError, match="import the object"):
        PipelineTester("pipelines.payments")  # pyright: ignore[reportArgumentType]


def test_an_app_is_refused_with_the_way_out() -> None:
    from semel import App

    with pytest.raises(PipelineTesterError, match=r"declare it as a pipeline"):
        PipelineTester(App("an-app"))  # pyright: ignore[reportArgumentType]


def test_a_closed_tester_says_so() -> None:
    with PipelineTester(pipeline_of(passing)) as tester:
        tester.send(Order("o1", "north"))
    with pytest.raises(PipelineTesterError, match="is closed"):
        tester.send(Order("o2", "north"))
    with pytest.raises(PipelineTesterError, match="is closed"):
        tester.outputs()
    tester.close()


async def test_inside_a_running_loop_a_tester_says_what_to_do(tester_of: TesterOf) -> None:
    tester = tester_of(pipeline_of(passing))
    with pytest.raises(PipelineTesterError, match=r"write the test as `def`.*asyncio\.to_thread"):
        tester.send(Order("o1", "north"))


async def test_a_thread_of_an_async_test_may_use_a_tester() -> None:
    def outputs() -> int:
        with PipelineTester(pipeline_of(passing)) as tester:
            tester.send(Order("o1", "north"))
            return len(tester.outputs())

    assert await asyncio.to_thread(outputs) == 1


# -- events that never get done


def test_a_handler_that_hangs_is_named_with_its_event_and_line(tester_of: TesterOf) -> None:
    async def hang(order: Order) -> None:
        await asyncio.get_running_loop().create_future()

    tester = tester_of(pipeline_of(hang))
    with pytest.raises(NotSettled) as raised:
        tester.send(Order("o1", "north"), partition=2)
    assert "orders[2]: the record at offset 0 is not done" in str(raised.value)
    assert "agent 'hang' is still handling orders[2]@0, Order(id='o1'" in str(raised.value)
    assert "it stands in hang" in str(raised.value)
    assert "create_future()" in str(raised.value)


def test_an_agent_whose_body_hangs_is_named_with_its_line(tester_of: TesterOf) -> None:
    async def hang(orders: Any) -> AsyncIterator[Order]:
        async for order in orders:
            yield order
            await asyncio.Event().wait()

    tester = tester_of(pipeline_of(hang), workers=2)
    with pytest.raises(NotSettled, match=r"it stands in hang .*: await asyncio\.Event\(\)\.wait\(\)"):
        tester.send(Order("o1", "north"))


def test_an_agent_that_ends_by_itself_is_said_with_its_error(tester_of: TesterOf) -> None:
    async def broken(orders: AsyncIterable[Any]) -> None:
        async for _ in orders.no_such_thing():  # type: ignore[attr-defined]
            pass

    tester = tester_of(pipeline_of(broken, sink=None))
    with pytest.raises(NotSettled) as raised:
        tester.send(Order("o1", "north"))
    assert any("no_such_thing" in note for note in raised.value.__notes__)


def test_a_slow_handler_is_waited_for_in_virtual_time(tester_of: TesterOf) -> None:
    async def slow(order: Order) -> Order:
        await asyncio.sleep(30)
        return order

    tester = tester_of(pipeline_of(slow))
    began = tester.now
    tester.send(Order("o1", "north"))
    assert len(tester.outputs()) == 1
    assert tester.now - began >= timedelta(seconds=30)


@pytest.mark.parametrize("then", ["park", "stop", "hold"])
def test_what_is_parked_is_counted_and_what_has_no_attempts_left_is_not_waited_for(
    tester_of: TesterOf, then: Any
) -> None:
    down = True

    def handle(order: Order) -> Order:
        if down:
            raise ConnectionError("the shop does not answer")
        return order

    tester = tester_of(pipeline_of(handle, retry=Retry(attempts=2, max_delay=timedelta(seconds=5), then=then)))
    tester.send(Order("o1", "north"), key="north")
    tester.send(Order("o2", "north"), key="north", settle=False)
    tester.advance_time(MINUTE)
    held = then == "hold"
    assert (tester.counts.accepted, len(tester.dead_letters())) == (0, int(held))
    assert tester.parked == (1 if then != "park" else 2)
    down = False
    tester.advance_time(MINUTE)
    assert [output.value.id for output in tester.outputs()] == ([] if held else ["o1", "o2"])
    assert tester.parked == int(held)


@pytest.mark.parametrize("events", [5, 50, 200])
def test_what_is_handled_side_by_side_is_done_and_committed_when_send_returns(tester_of: TesterOf, events: int) -> None:
    async def slow(order: Order) -> Order:
        await asyncio.sleep(0.1)
        return order

    tester = tester_of(pipeline_of(slow, concurrency=100))
    began = tester.now
    tester.send_all([Order(f"o{n}", f"shop-{n}") for n in range(events)], key="shop")
    assert len(tester.outputs()) == tester.counts.accepted == events
    assert tester.now - began < timedelta(seconds=1)


def test_a_handler_may_work_in_a_thread(tester_of: TesterOf) -> None:
    def work(order: Order) -> Order:
        time.sleep(0.05)
        return order

    async def handle(order: Order) -> Order:
        return await asyncio.to_thread(work, order)

    tester = tester_of(pipeline_of(handle))
    began = tester.now
    tester.send(Order("o1", "north"))
    assert len(tester.outputs()) == 1
    assert tester.now == began


def test_a_handler_may_speak_to_a_real_server(tester_of: TesterOf) -> None:
    serving = asyncio.new_event_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        await asyncio.sleep(0.03)
        writer.write(asked.upper())
        writer.close()

    server = serving.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=serving.run_forever)
    thread.start()

    async def ask(order: Order) -> Order:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(order.shop.encode() + b"\n")
            said = await reader.readline()
            writer.close()
        return Order(order.id, said.decode().strip())

    try:
        tester = tester_of(pipeline_of(ask))
        tester.send(Order("o1", "north"))
        assert [output.value for output in tester.outputs()] == [Order("o1", "NORTH")]
    finally:
        serving.call_soon_threadsafe(serving.stop)
        thread.join()
        server.close()
        serving.close()


# -- chance


def test_the_same_seed_is_the_same_run_and_another_seed_is_another(tester_of: TesterOf) -> None:
    def fail(order: Order) -> None:
        raise ConnectionError("the shop does not answer")

    def ends(seed: int) -> datetime:
        tester = tester_of(pipeline_of(fail), seed=seed)
        tester.send_all([Order(str(n), "north") for n in range(20)])
        return tester.now

    assert ends(1) == ends(1) != ends(2)


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_an_error_that_cannot_be_read_is_a_failed_attempt_as_in_a_worker(tester_of: TesterOf) -> None:
    async def fail(orders: Any) -> AsyncIterator[Order]:
        async for order in orders:
            if order.amount:
                raise Unreadable
            yield order

    tester = tester_of(pipeline_of(fail, retry=Retry(1)))
    tester.send(Order("o1", "north", 1), key="north")
    tester.send(Order("o2", "north", 0), key="north")
    [letter] = tester.dead_letters()
    assert letter.error == "Unreadable (its message cannot be read: RuntimeError)"
    assert [output.value.id for output in tester.outputs()] == ["o2"]


def test_time_that_passes_waits_for_a_commit_that_is_on_its_way() -> None:
    """All outputs that are due are more than one commit takes: the second one was overtaken by the clock."""
    many = AT_ONCE + 100

    async def remind(numbers: Any) -> Any:
        async for _ in numbers:
            for n in range(many):
                yield Output(n, at=timedelta(seconds=5))

    declared = Pipeline("remind", source=Topic("numbers", value=int), agent=remind, sink=Topic("later", value=int))
    with PipelineTester(declared, partitions=1) as t:
        t.send(0, key="a")
        t.advance_time(timedelta(seconds=6))
        assert [out.value for out in t.outputs()] == [*range(many)]
