"""The events of a run: a year of flights with redeliveries, counted as they are handed out, and the truth about them.

Needs the folder `feeds` of this repository on the import path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

from demos.up.audit import Expected, Letter
from feeds import flights
from feeds.record import Record
from feeds.redelivery import Delivery, redeliver
from feeds.truth import FlightsTruth

YEAR_EVENTS = 993_360


class Feed:
    """The first `events` events of the year and what the seed redelivers of them."""

    def __init__(self, events: int, seed: int) -> None:
        self.limit = min(events, YEAR_EVENTS)
        self.events = 0
        self.redelivered = 0
        self._conflicts: Counter[Letter] = Counter()
        self._truth = FlightsTruth()
        self._deliveries = redeliver(flights.records(self._originals()), seed, altered=flights.altered)

    @property
    def records(self) -> int:
        """Handed out so far."""
        return self.events + self.redelivered

    def open(self) -> None:
        """Read and sort the year, which takes seconds; the first record then comes at once.

        FileNotFoundError where the data is not installed.
        """
        first = next(self._deliveries)
        self._deliveries = chain((first,), self._deliveries)

    def until(self, events: int) -> Iterator[Record]:
        """Records until that many events were handed out in all, each with the redeliveries that follow it."""
        for delivery in self._deliveries:
            if delivery.kind == "original" and self.events >= events:
                self._deliveries = chain((delivery,), self._deliveries)
                return
            self._count(delivery)
            yield delivery.record

    def expected(self) -> Expected:
        """What must come of it, once everything was handed out."""
        return Expected(self.events, self.redelivered, self._conflicts, self._truth.tables, self._truth.late_flights)

    def _originals(self) -> Iterator[flights.FlightEvent]:
        for event in islice(flights.events(), self.limit):
            self._truth.add(event)
            yield event

    def _count(self, delivery: Delivery) -> None:
        if delivery.kind == "original":
            self.events += 1
            return
        self.redelivered += 1
        if delivery.kind == "conflict":
            self._conflicts[delivery.record.key, delivery.record.value] += 1


def parts(events: int) -> tuple[int, int]:
    """Where a run of so many events is cut: published before the kill is prepared, and when the worker is killed.

    What comes after is published while the worker is dead. Something is left for that from two events on.
    """
    first = max(1, events * 2 // 5)
    # Fresh records, few enough that the worker is killed before it can have done them all.
    return first, first + min(2_000, (events - first) // 2)
