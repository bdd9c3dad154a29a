"""Delays per carrier, per route, and per airport and hour.

A row of a table lives in the partition its key hashes to, so only a table keyed like the topic is written
as it stands. The topic of flights is keyed by route (`EWR-IAH`), and the two other tables are partial rows
per partition that the views add up (`merge=`). Why route:

* the events of one flight share it, so that they stay in order;
* 224 routes spread over many partitions; 16 carriers would not, and United alone is a sixth of the year;
* an airport and hour cannot be the key, for a flight departs in one and arrives in another;
* all that a row holds are sums, so partial rows add up to exactly what one row would hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import add

from semel import Table


@dataclass(frozen=True)
class Delays:
    """Numbers of events, and their delays in minutes added up; early flights count negative.

    Frozen: a row is replaced and never changed in place, which is what the engine stores fastest.
    """

    scheduled: int = 0
    departed: int = 0
    arrived: int = 0
    departure_minutes: int = 0
    arrival_minutes: int = 0

    def __add__(self, other: Delays) -> Delays:
        return Delays(
            self.scheduled + other.scheduled,
            self.departed + other.departed,
            self.arrived + other.arrived,
            self.departure_minutes + other.departure_minutes,
            self.arrival_minutes + other.arrival_minutes,
        )


carrier_delays = Table("carrier_delays", key=str, value=Delays, default=Delays, merge=add)

# Keyed as the topic is: each row is whole.
route_delays = Table("route_delays", key=str, value=Delays, default=Delays)

# `JFK-2013-01-01T15`: the airport of the event, and its hour in UTC. A prefix finds an airport, a month or a day.
airport_hour_delays = Table("airport_hour_delays", key=str, value=Delays, default=Delays, merge=add)
