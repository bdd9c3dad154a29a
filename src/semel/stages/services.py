"""Services: what every stage needs of the worker that it runs in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from semel.port import Clock, Randomness
from semel.stages.sink.dead_letters import DeadLetters
from semel.stages.sink.open_epoch import OpenEpoch
from semel.state.store import StoreError


@dataclass(slots=True)
class Services:
    """`changed`: set where something happened that may make an epoch due. `store_failed` hears of a store that cannot be used.
    `interrupts`: what ends the worker though an agent's code raised it. `halt_after`: so many events that fail alike while none
    succeeds are no event's fault, 0: as many as there are."""

    app: str
    clock: Clock
    randomness: Randomness
    epoch: OpenEpoch
    dead_letters: DeadLetters
    changed: asyncio.Event
    store_failed: Callable[[StoreError], None]
    interrupts: tuple[type[BaseException], ...]
    halt_after: int
