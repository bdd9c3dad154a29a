"""The open epoch: what goes in is counted, a full one closes the gate, and an empty one opens it."""

from __future__ import annotations

import asyncio

import pytest

from semel.errors import CarryOverFull
from semel.port import TP
from semel.stages.sink.destination import ProducerRecord
from semel.stages.sink.open_epoch import OpenEpoch


def out(size: int) -> ProducerRecord:
    return ProducerRecord(TP("settlements", 0), None, None, b"v", (), size)


@pytest.fixture
def epoch() -> OpenEpoch:
    return OpenEpoch(100, 30, asyncio.Event())


def test_what_is_added_is_taken_in_order_and_the_next_one_is_empty(epoch: OpenEpoch) -> None:
    epoch.add([out(1), out(2)], 40)
    epoch.add([out(3)], 20)
    outputs, size = epoch.take()
    assert [o.size for o in outputs] == [1, 2, 3] and size == 60
    assert epoch.take() == ([], 0)


def test_at_its_limit_it_is_full_closes_the_gate_and_says_so_once(epoch: OpenEpoch) -> None:
    changed = epoch._changed
    epoch.add([], 99)
    assert not epoch.full and not epoch.closed and not changed.is_set()
    epoch.add([], 1)
    assert epoch.full and epoch.closed and changed.is_set()
    changed.clear()
    epoch.add([], 1)
    assert not changed.is_set()


def test_what_outlives_its_event_may_send_as_much_as_one_event_until_the_next_cut(epoch: OpenEpoch) -> None:
    epoch.join(out(20))
    epoch.join(out(10))
    with pytest.raises(CarryOverFull, match="30 bytes were sent since the last commit"):
        epoch.join(out(1))
    assert epoch.bytes == 30
    epoch.take()
    epoch.join(out(30))


async def test_who_waits_at_the_gate_goes_on_when_it_is_opened_again(epoch: OpenEpoch) -> None:
    epoch.close()
    waiting = asyncio.ensure_future(epoch.gate())
    assert epoch.parked.is_set()
    await asyncio.sleep(0)
    assert not waiting.done()
    epoch.take()
    assert epoch.closed
    epoch.reopen()
    await waiting
    assert not epoch.closed


async def test_a_full_one_that_is_dropped_opens_the_gate_but_not_while_it_is_cut(epoch: OpenEpoch) -> None:
    epoch.add([out(1)], 100)
    epoch.drop()
    assert not epoch.closed and epoch.take() == ([], 0)
    epoch.close()
    epoch.drop()
    assert epoch.closed
