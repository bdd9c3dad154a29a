"""Services: what every stage needs of the worker that it runs in."""

from __future__ import annotations

from typing import Protocol

from semel.port import Clock, Randomness
from semel.stages.sink.dead_letters import DeadLetters
from semel.stages.sink.open_epoch import OpenEpoch


class Services(Protocol):
    """`finished` is called where something happened that may make an epoch due."""

    app: str
    clock: Clock
    randomness: Randomness
    epoch: OpenEpoch
    dead_letters: DeadLetters

    def finished(self) -> None: ...
