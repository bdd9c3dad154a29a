"""Stream: what a streaming agent iterates over: values, events with their metadata, or batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from semel.event import Event
from semel.hand import Hand
from semel.port import Record
from semel.stages.agent import TURN_S, Lane


class Batch(Sequence[Any]):
    """Fresh events of one partition, handled as one: its write set is one, and a failure undoes all of it.

    Iterating moves the event in hand along, so that a result yielded inside the loop keeps its own event's key.
    """

    __slots__ = ("_event", "_hand", "_records", "_values")

    def __init__(self, hand: Hand, values: list[Any], records: list[Record]) -> None:
        self._hand = hand
        self._event = hand.event
        self._values = values
        self._records = records

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __iter__(self) -> Iterator[Any]:
        hand, event = self._hand, self._event
        for value, record in zip(self._values, self._records, strict=True):
            # A batch that was kept may be looked at again when another one is in hand.
            if hand.event == event:
                hand.record = record
            yield value

    @property
    def records(self) -> list[Record]:
        return self._records


class LaneStream:
    """The stream a plain semel agent receives. Asking for the next event finishes the one before."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    async def __aiter__(self) -> AsyncIterator[Any]:
        lane = self._lane
        hand, host = lane.hand, lane.host
        monotonic, begin, finish = host.clock.monotonic, lane.begin, lane.finish
        while True:
            s = await lane.next_slice(hand)
            turn_ends = monotonic() + TURN_S
            for value in lane.admit(s, hand):
                begin(hand)
                yield value
                finish(hand)
                if monotonic() > turn_ends or host.gate_closed:
                    turn_ends = await lane.pause(hand, turn_ends)
            lane.end_slice(hand)
            await lane.let_go()

    async def events(self) -> AsyncIterator[Event]:
        """The same events with key, headers, timestamp and position."""
        async for value in self:
            s = self._lane.slice
            assert s is not None
            yield self._lane.event(value, self._lane.hand.record, s.cursor.tp)

    async def batches(self) -> AsyncIterator[Batch]:
        """The events as `Batch`es, each a unit of work."""
        lane = self._lane
        hand = lane.hand
        while True:
            s = await lane.next_slice(hand)
            found = lane.admit_batch(s, hand)
            lane.begin(hand)
            if found:
                hand.record = found[0][1]
                yield Batch(hand, [value for value, _ in found], [record for _, record in found])
            lane.complete(hand)
            lane.end_slice(hand)
            await lane.let_go()
