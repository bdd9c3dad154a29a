"""Injected redeliveries: what they may do to a stream, and what they may not."""

from collections import Counter
from itertools import islice, pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds import flights, payments
from feeds.redelivery import LATEST_MS, MIX, redeliver
from pipelines.flights import pipeline as flights_pipeline
from pipelines.payments import pipeline as payments_pipeline

SEED = 20_130_101


@pytest.fixture(scope="module")
def records():
    return list(payments.records(payments.events(100_000, SEED, accounts=500, step_ms=2_000)))


@pytest.fixture(scope="module")
def deliveries(records):
    return list(redeliver(records, SEED, altered=payments.altered))


def test_without_its_redeliveries_the_stream_is_the_input(records, deliveries):
    assert [delivery.record for delivery in deliveries if delivery.kind == "original"] == records


def test_the_same_seed_gives_the_same_stream_and_another_seed_another(records, deliveries):
    assert list(redeliver(records, SEED, altered=payments.altered)) == deliveries
    assert list(redeliver(records, SEED + 1, altered=payments.altered)) != deliveries


def test_a_redelivery_comes_after_the_first_and_keeps_its_key_and_timestamp(deliveries):
    first = {}
    for kind, record in deliveries:
        identity = orjson.loads(record.value)["id"]
        if kind == "original":
            first[identity] = record
        else:
            assert (record.key, record.timestamp_ms) == (first[identity].key, first[identity].timestamp_ms)


def test_only_a_conflict_has_another_payload(deliveries):
    first = {orjson.loads(record.value)["id"]: record.value for kind, record in deliveries if kind == "original"}
    for kind, record in deliveries:
        assert (record.value != first[orjson.loads(record.value)["id"]]) == (kind == "conflict")


def test_a_fifth_is_redelivered_in_the_mix_that_is_said(records, deliveries):
    counts = Counter(delivery.kind for delivery in deliveries)
    redelivered = counts.total() - counts.pop("original")
    assert redelivered / len(records) == pytest.approx(0.2, rel=0.1)
    for kind, part in MIX.items():
        assert counts[kind] / redelivered == pytest.approx(part, rel=0.25), kind


def test_no_redelivery_is_later_than_said_nor_outside_a_dedup_window(deliveries):
    newest = 0
    latest = Counter()
    for kind, record in deliveries:
        newest = max(newest, record.timestamp_ms)
        latest[kind] = max(latest[kind], newest - record.timestamp_ms)
    assert max(latest.values()) <= LATEST_MS
    assert latest["late"] > 30 * 3_600_000
    assert latest["immediate"] == 0
    for pipeline in (flights_pipeline, payments_pipeline):
        assert pipeline.dedup is not None
        assert pipeline.dedup.window_ms > LATEST_MS


def test_disordered_redeliveries_of_one_account_overtake_each_other(deliveries):
    assert overtaken(deliveries, "disordered") > 0


def test_bursts_keep_the_order_they_had(records, deliveries):
    number = {record.value: index for index, record in enumerate(records)}
    burst = [number[record.value] for kind, record in deliveries if kind == "burst"]
    steps = Counter(after - before for before, after in pairwise(burst))
    assert steps[1] > 0.9 * len(burst)


def test_a_flights_conflict_has_another_delay_and_nothing_else():
    stream = flights.records(islice(flights.events(), 30_000))
    first = {}
    conflicts = 0
    for kind, record in redeliver(stream, SEED, altered=flights.altered):
        event = orjson.loads(record.value)
        if kind == "original":
            first[event["id"]] = event
        elif kind == "conflict":
            conflicts += 1
            assert event["delay"] != first[event["id"]]["delay"]
            assert event | {"delay": 0} == first[event["id"]] | {"delay": 0}
    assert conflicts > 0


@given(seed=st.integers(), count=st.integers(0, 300), share=st.floats(0, 1), step_ms=st.sampled_from([1, 1_000, 10**8]))
@settings(max_examples=60, deadline=None)
def test_any_seed_share_and_pace_keeps_the_input_whole(seed, count, share, step_ms):
    records = list(payments.records(payments.events(count, 1, accounts=7, step_ms=step_ms)))
    deliveries = list(redeliver(records, seed, share=share, altered=payments.altered))
    assert [delivery.record for delivery in deliveries if delivery.kind == "original"] == records
    seen = set()
    for kind, record in deliveries:
        identity = orjson.loads(record.value)["id"]
        assert (identity in seen) == (kind != "original")
        seen.add(identity)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=f"share={share}"):
        next(redeliver([], 1, share=share, altered=payments.altered))


def overtaken(deliveries, kind):
    number: dict[bytes, int] = {}
    newest: dict[bytes, int] = {}
    count = 0
    for delivery in deliveries:
        record = delivery.record
        if delivery.kind == "original":
            number[record.value] = len(number)
        elif delivery.kind == kind:
            count += number[record.value] < newest.get(record.key, -1)
            newest[record.key] = max(newest.get(record.key, -1), number[record.value])
    return count
