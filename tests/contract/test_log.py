"""Topics and logs: what is written, what is read, and where readers come to stand."""

from __future__ import annotations

import asyncio

import pytest

from semel.port import EARLIEST, LATEST, NO_TIMESTAMP, NO_TOPIC_ID, TP, Broker, FetchRequest, TopicInfo, TopicSpec
from tests.contract.rig import Rig, code_of


async def test_a_topic_has_an_id_and_partitions(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 3)
    info = (await broker.topics([name]))[name]
    assert info.name == name
    assert info.partitions == 3
    assert len(info.id) == 32
    assert set(info.id) <= set("0123456789abcdef")


async def test_without_an_authorizer_a_client_has_every_right_on_what_is_there(rig: Rig, broker: Broker) -> None:
    name, missing = await rig.topic(broker), rig.name("missing")
    rights = await broker.topic_rights([name, missing])
    assert set(rights) == {name}
    assert {"Read", "Write", "Describe", "DescribeConfigs", "Delete"} <= rights[name]


async def test_a_recreated_topic_has_another_id(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker)
    before = (await broker.topics([name]))[name]
    await broker.delete_topics([before])
    assert await broker.topics([name]) == {}
    await broker.create_topics([TopicSpec(name, 1, 1, {})])
    assert (await broker.topics([name]))[name].id != before.id


async def test_a_topic_that_was_made_under_the_name_of_a_deleted_one_is_not_deleted_for_it(
    rig: Rig, broker: Broker
) -> None:
    name = await rig.topic(broker)
    before = (await broker.topics([name]))[name]
    await broker.delete_topics([before])
    await broker.create_topics([TopicSpec(name, 1, 1, {})])
    anew = await broker.topics([name])
    await broker.delete_topics([before])
    assert await broker.topics([name]) == anew


async def test_asking_for_all_topics_finds_each(rig: Rig, broker: Broker) -> None:
    names = {await rig.topic(broker), await rig.topic(broker)}
    assert names <= set(await broker.topics())


async def test_asking_for_a_missing_topic_finds_nothing_and_creates_nothing(rig: Rig, broker: Broker) -> None:
    name = rig.name("missing")
    assert await broker.topics([name]) == {}
    assert await broker.leaders([TP(name, 0)]) == {}
    assert name not in await broker.topics()


async def test_creating_twice_and_deleting_what_is_not_there_are_no_errors(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 2)
    await broker.create_topics([TopicSpec(name, 5, 1, {})])
    assert (await broker.topics([name]))[name].partitions == 2
    await broker.delete_topics([TopicInfo(rig.name("missing"), "5" * 32, 1)])


async def test_a_creation_that_is_only_validated_is_refused_like_any_other_and_makes_nothing(
    rig: Rig, broker: Broker
) -> None:
    there, missing = await rig.topic(broker, 2), rig.name("missing")
    await broker.create_topics([TopicSpec(there, 5, 1, {}), TopicSpec(missing, 1, 1, {})], validate_only=True)
    too_many = TopicSpec(missing, 1, await broker.broker_count() + 1, {})
    assert await code_of(broker.create_topics([too_many], validate_only=True)) == 38
    found = await broker.topics([there, missing])
    assert {name: info.partitions for name, info in found.items()} == {there: 2}


async def test_a_topic_that_grows_keeps_its_id_and_what_it_has(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 2)
    before = (await broker.topics([name]))[name]
    await broker.create_partitions(name, 5)

    async def grown() -> bool:
        return (await broker.topics([name]))[name] == before._replace(partitions=5)

    # A broker hears of it a moment after the one that did it.
    await rig.until(grown)
    for fewer in (5, 3):
        await broker.create_partitions(name, fewer)
    assert (await broker.topics([name]))[name].partitions == 5
    # Its leader has the metadata before it leads.
    found = await rig.patiently(lambda: broker.list_offsets([TP(name, 4)], EARLIEST), frozenset({3, 5, 6, 9}))
    assert found == {TP(name, 4): 0}
    assert await code_of(broker.create_partitions(rig.name("missing"), 3)) == 3


async def test_of_two_who_grow_a_topic_at_once_neither_is_refused(rig: Rig, broker: Broker) -> None:
    for _ in range(5):
        name = await rig.topic(broker, 1)
        await asyncio.gather(*(broker.create_partitions(name, 3) for _ in range(3)))

        async def grown(name: str = name) -> bool:
            return (await broker.topics([name]))[name].partitions == 3

        await rig.until(grown)


async def test_more_replicas_than_brokers_are_refused(rig: Rig, broker: Broker) -> None:
    brokers = await broker.broker_count()
    spec = TopicSpec(rig.name("topic"), 1, brokers + 1, {})
    assert await code_of(broker.create_topics([spec])) == 38


async def test_configs_are_those_given_and_the_defaults(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, cleanup_policy="compact", max_message_bytes="4321")
    found = await broker.topic_configs([name])
    assert set(found) == {name}
    assert found[name]["cleanup.policy"] == "compact"
    assert found[name]["max.message.bytes"] == "4321"
    assert found[name]["message.timestamp.type"] == "CreateTime"
    assert found[name]["delete.retention.ms"] == "86400000"


async def test_configs_of_a_topic_that_is_not_known_are_refused(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker)
    assert await code_of(broker.topic_configs([name, rig.name("missing")])) == 3


async def test_a_record_comes_back_as_it_was_written(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    builder = broker.batch_builder(10_000)
    assert builder.append(1_700_000_000_123, b"k", b"v", [("h", b"1"), ("h", b"2"), ("none", None)])
    assert builder.append(1_700_000_000_001, None, None, [])
    assert builder.append(1_700_000_000_002, b"", b"", [])
    await writer.begin([tp])
    await broker.produce(writer.producer, {tp: builder.build(writer.producer, 0)})
    await writer.end(commit=True)
    await rig.until(lambda: _readable(rig, broker, tp))
    records = (await rig.fetch(broker, tp, 0)).records
    assert [(r.offset, r.timestamp, r.key, r.value, [tuple(h) for h in r.headers]) for r in records] == [
        (0, 1_700_000_000_123, b"k", b"v", [("h", b"1"), ("h", b"2"), ("none", None)]),
        (1, 1_700_000_000_001, None, None, []),
        (2, 1_700_000_000_002, b"", b"", []),
    ]


async def test_a_record_without_a_timestamp_gets_the_time_of_its_sending(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    before = int(rig.clock.time() * 1000)
    await rig.produced(broker, tp, b"v")
    record = (await rig.fetch(broker, tp, 0)).records[0]
    assert before - 1 <= record.timestamp <= rig.clock.time() * 1000 + 1


async def test_a_control_marker_takes_an_offset_that_no_reader_gets(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, b"a", b"b")
    await rig.produced(broker, tp, b"c")
    fetched = await rig.fetch(broker, tp, 0)
    assert [(r.offset, r.value) for r in fetched.records] == [(0, b"a"), (1, b"b"), (3, b"c")]
    assert fetched.next_offset == fetched.high_watermark == 5


async def test_a_partition_that_got_nothing_gets_the_marker_all_the_same(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.end(commit=False)

    async def marked() -> bool:
        return (await broker.list_offsets([tp], LATEST))[tp] == 1

    await rig.until(marked)
    assert await rig.values(broker, tp, committed=False) == []


async def test_an_open_transaction_is_read_uncommitted_only_and_holds_the_stable_offset(
    rig: Rig, broker: Broker
) -> None:
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, b"before")
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"open")
    committed = await rig.fetch(broker, tp, 2)
    assert (committed.records, committed.next_offset, committed.error) == ([], 2, 0)
    assert (committed.last_stable_offset, committed.high_watermark) == (2, 3)
    assert await rig.values(broker, tp, committed=False) == [b"before", b"open"]
    assert await rig.values(broker, tp) == [b"before"]
    assert await broker.list_offsets([tp], LATEST, committed=True) == {tp: 2}
    assert await broker.list_offsets([tp], LATEST) == {tp: 3}
    await writer.end(commit=True)
    await rig.until(lambda: _readable(rig, broker, tp))
    assert await rig.values(broker, tp) == [b"before", b"open"]


async def test_an_aborted_transaction_is_never_read_committed(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"aborted")
    await writer.end(commit=False)
    await rig.until(lambda: _readable(rig, broker, tp))
    await rig.produced(broker, tp, b"kept")
    assert await rig.values(broker, tp) == [b"kept"]
    assert await rig.values(broker, tp, committed=False) == [b"aborted", b"kept"]


async def test_a_reader_passes_a_range_in_which_everything_was_aborted(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"a", b"b")
    await writer.end(commit=False)
    await rig.until(lambda: _readable(rig, broker, tp))
    fetched = await rig.fetch(broker, tp, 0)
    assert (fetched.records, fetched.next_offset) == ([], 3)


async def test_transactions_that_interleave_are_told_apart(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    first, second = await rig.writer(broker), await rig.writer(broker)
    await first.begin([tp])
    await second.begin([tp])
    await first.send(tp, b"first 1")
    await second.send(tp, b"second 1")
    await first.send(tp, b"first 2")
    await second.end(commit=True)
    await rig.clock.sleep(0.2)
    assert await broker.list_offsets([tp], LATEST, committed=True) == {tp: 0}
    await first.end(commit=False)
    await rig.until(lambda: _readable(rig, broker, tp))
    assert await rig.values(broker, tp) == [b"second 1"]


async def test_reading_from_within_a_batch_gives_its_rest(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, b"a", b"b", b"c")
    fetched = await rig.fetch(broker, tp, 1)
    assert [(r.offset, r.value) for r in fetched.records] == [(1, b"b"), (2, b"c")]


async def test_a_fetch_at_the_end_waits_as_long_as_it_was_told(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    start = rig.clock.monotonic()
    fetched = await rig.fetch(broker, tp, 0, max_wait_ms=400)
    assert (fetched.records, fetched.next_offset, fetched.high_watermark) == ([], 0, 0)
    assert rig.clock.monotonic() - start >= 0.39


async def test_a_waiting_fetch_wakes_when_a_transaction_is_committed(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    await writer.send(tp, b"v")
    start = rig.clock.monotonic()
    waiting = asyncio.create_task(rig.fetch(broker, tp, 0, max_wait_ms=8_000))
    await rig.clock.sleep(0.2)
    assert not waiting.done()
    await writer.end(commit=True)
    fetched = await waiting
    assert [r.value for r in fetched.records] == [b"v"]
    assert rig.clock.monotonic() - start < 6


async def test_a_waiting_uncommitted_fetch_wakes_when_something_is_written(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    start = rig.clock.monotonic()
    waiting = asyncio.create_task(rig.fetch(broker, tp, 0, committed=False, max_wait_ms=8_000))
    await rig.clock.sleep(0.2)
    await writer.send(tp, b"v")
    assert [r.value for r in (await waiting).records] == [b"v"]
    assert rig.clock.monotonic() - start < 6


async def test_a_fetch_gives_at_least_one_batch_and_not_many_more_bytes_than_asked(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    await writer.begin([tp])
    for _ in range(4):
        await writer.send(tp, b"x" * 1000)
    await writer.end(commit=True)
    await rig.until(lambda: _readable(rig, broker, tp))
    assert len((await rig.fetch(broker, tp, 0, max_bytes=10)).records) == 1
    assert len((await rig.fetch(broker, tp, 0, max_bytes=2500)).records) == 2
    assert len((await rig.fetch(broker, tp, 0)).records) == 4


async def test_a_fetch_outside_the_log_is_out_of_range(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, b"a", b"b")
    assert (await rig.fetch(broker, tp, 3)).error == 0
    assert (await rig.fetch(broker, tp, 4)).error == 1
    await broker.delete_records({tp: 1})
    below = await rig.fetch(broker, tp, 0)
    assert (below.error, below.records, below.next_offset) == (1, [], 0)
    # Brokers do not say where the log is; ListOffsets does.
    assert (below.high_watermark, below.last_stable_offset, below.log_start) == (-1, -1, -1)


async def test_a_fetch_from_a_missing_partition_says_so(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    node = (await broker.leaders([tp]))[tp]
    missing = TP(tp.topic, 7)
    answer = await broker.fetch(
        FetchRequest(node, {missing: 0}, max_wait_ms=100, max_bytes=1000, partition_max_bytes=1000)
    )
    assert answer[missing].error == 3


async def test_of_a_topic_that_was_made_anew_nothing_is_read_for_the_one_that_is_meant(
    rig: Rig, broker: Broker
) -> None:
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, b"old")
    meant = (await broker.topics([tp.topic]))[tp.topic]
    await broker.delete_topics([meant])
    await broker.create_topics([TopicSpec(tp.topic, 1, 1, {})])
    await rig.patiently(lambda: rig.produced(broker, tp, b"new"), frozenset({3, 5, 6}))

    async def read(topic_id: str) -> tuple[int, list[bytes | None]]:
        node = (await broker.leaders([tp]))[tp]
        request = FetchRequest(node, {tp: 0}, 100, 1000, 1000, topic_ids={tp.topic: topic_id})
        answer = (await broker.fetch(request))[tp]
        return answer.error, [record.value for record in answer.records]

    assert await read(meant.id) == (100, [])
    assert await read(NO_TOPIC_ID) == (0, [b"new"])
    assert await read((await broker.topics([tp.topic]))[tp.topic].id) == (0, [b"new"])


async def test_deleting_records_moves_the_start_of_the_log(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    await rig.produced(broker, tp, b"a", b"b", b"c")
    await broker.delete_records({tp: 1})
    assert await broker.list_offsets([tp], EARLIEST) == {tp: 1}
    fetched = await rig.fetch(broker, tp, 1)
    assert ([r.value for r in fetched.records], fetched.log_start) == ([b"b", b"c"], 1)


async def test_records_beyond_the_end_or_of_a_compacted_topic_cannot_be_deleted(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    assert await code_of(broker.delete_records({tp: 1})) == 1
    compacted = await rig.partition(broker, cleanup_policy="compact")
    await rig.produced(broker, compacted, b"a")
    assert await code_of(broker.delete_records({compacted: 1})) == 44
    both = await rig.partition(broker, cleanup_policy="compact,delete")
    await rig.produced(broker, both, b"a")
    assert await code_of(broker.delete_records({both: 1})) == 0


async def test_offsets_are_found_by_time(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker)
    writer = await rig.writer(broker)
    now = int(rig.clock.time() * 1000)
    await writer.begin([tp])
    await writer.send(tp, b"a", b"b", timestamp=now - 5000)
    await writer.send(tp, b"c", timestamp=now - 3000)
    await writer.end(commit=True)
    await rig.until(lambda: _readable(rig, broker, tp))
    assert await broker.list_offsets([tp], now - 9000) == {tp: 0}
    assert await broker.list_offsets([tp], now - 5000) == {tp: 0}
    assert await broker.list_offsets([tp], now - 4999) == {tp: 2}
    assert await broker.list_offsets([tp], now + 60_000) == {tp: -1}


async def test_offsets_of_a_missing_partition_are_refused(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker)
    assert await code_of(broker.list_offsets([TP(name, 4)], LATEST)) in {3, 5}


async def test_a_batch_larger_than_the_topic_takes_is_refused(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker, max_message_bytes="2000")
    writer = await rig.writer(broker)
    await writer.begin([tp])
    large = writer.batch(b"x" * 2000, base=0)
    assert await code_of(broker.produce(writer.producer, {tp: large})) == 10
    assert await writer.send(tp, b"x" * 1800) == 0


async def test_a_timestamp_beyond_the_topics_limit_is_refused(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker, message_timestamp_after_max_ms="60000", message_timestamp_before_max_ms="60000")
    writer = await rig.writer(broker)
    now = int(rig.clock.time() * 1000)
    await writer.begin([tp])
    for wrong in (now + 120_000, now - 120_000):
        batch = writer.batch(b"v", timestamp=wrong, base=0)
        assert await code_of(broker.produce(writer.producer, {tp: batch})) == 32
    assert await writer.send(tp, b"v", timestamp=now) == 0


@pytest.mark.parametrize("compacted", [True, False], ids=["compacted", "deleted"])
@pytest.mark.parametrize("kind", ["CreateTime", "LogAppendTime"])
async def test_a_record_that_says_no_time_is_never_refused_for_it(
    rig: Rig, broker: Broker, kind: str, compacted: bool
) -> None:
    """Whatever the topic's limits; with LogAppendTime the broker's time is the record's, whatever it says."""
    tp = await rig.partition(
        broker, message_timestamp_after_max_ms="1", message_timestamp_before_max_ms="1", message_timestamp_type=kind,
        cleanup_policy="compact" if compacted else "delete", retention_ms="-1",
    )  # fmt: skip
    writer = await rig.writer(broker)
    before = int(rig.clock.time() * 1000)
    await writer.begin([tp])
    await writer.send(tp, b"v", b"w", timestamp=NO_TIMESTAMP)
    await writer.end(commit=True)
    await rig.until(lambda: _readable(rig, broker, tp))
    stamps = {r.timestamp for r in (await rig.fetch(broker, tp, 0)).records}
    if kind == "CreateTime":
        assert stamps == {NO_TIMESTAMP}
    else:
        assert all(before - 1 <= stamp <= rig.clock.time() * 1000 + 1 for stamp in stamps)


async def test_a_compacted_topic_takes_no_record_without_a_key(rig: Rig, broker: Broker) -> None:
    tp = await rig.partition(broker, cleanup_policy="compact")
    writer = await rig.writer(broker)
    await writer.begin([tp])
    batch = writer.batch(b"v", key=None, base=0)
    assert await code_of(broker.produce(writer.producer, {tp: batch})) == 87


async def test_a_batch_is_full_by_its_encoded_size_but_takes_any_first_record(rig: Rig, broker: Broker) -> None:
    builder = broker.batch_builder(1000)
    taken = 0
    while builder.append(1_700_000_000_000, b"0123456789", b"x" * 100, [("name", b"value")]):
        taken += 1
    assert taken == builder.count() == 7
    small = broker.batch_builder(100)
    assert small.append(1, b"k", b"x" * 500, [])
    assert not small.append(1, None, None, [])
    assert small.count() == 1


async def test_batches_are_filled_one_after_the_other_as_if_record_by_record(rig: Rig, broker: Broker) -> None:
    tp = TP(await rig.topic(broker), 0)
    records = [
        (tp, 1_700_000_000_000 + n, b"%d" % n, None if n % 7 == 0 else b"x" * (n % 90), (("n", b"v"),) * (n % 3), 0)
        for n in range(200)
    ]
    writer = await rig.writer(broker)
    at, base = 0, 0
    while at < len(records):
        filled, one_by_one = broker.batch_builder(2_000), broker.batch_builder(2_000)
        after = filled.fill(records, at)
        for _, timestamp, key, value, headers, _ in records[at:after]:
            assert one_by_one.append(timestamp, key, value, headers)
        if after < len(records):
            assert not one_by_one.append(*records[after][1:5])
        assert filled.count() == after - at > 0
        assert filled.build(writer.producer, base) == one_by_one.build(writer.producer, base)
        at, base = after, base + after - at


async def test_one_fetch_answers_for_several_partitions(rig: Rig, broker: Broker) -> None:
    name = await rig.topic(broker, 3)
    tps = [TP(name, partition) for partition in range(3)]
    for tp in tps[:2]:
        await rig.produced(broker, tp, f"of {tp.partition}".encode())
    node = (await broker.leaders(tps))[tps[0]]
    answer = await broker.fetch(
        FetchRequest(node, dict.fromkeys(tps, 0), max_wait_ms=1000, max_bytes=1 << 20, partition_max_bytes=1 << 20)
    )
    assert {tp: [r.value for r in fetched.records] for tp, fetched in answer.items()} == {
        tps[0]: [b"of 0"],
        tps[1]: [b"of 1"],
        tps[2]: [],
    }


async def _readable(rig: Rig, broker: Broker, tp: TP) -> bool:
    """No open transaction holds readers back."""
    ends = await broker.list_offsets([tp], LATEST)
    return await broker.list_offsets([tp], LATEST, committed=True) == ends
