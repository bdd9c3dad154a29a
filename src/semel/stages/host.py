"""Host: what the stages need of the engine that runs them."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from semel.plan import AgentPlan
from semel.port import TP, Clock, Randomness
from semel.runtime.task import Cursor
from semel.stages.sink import DeadLetters, Destination, Out
from semel.state.store import StoreError
from semel.topic import Topic

if TYPE_CHECKING:
    from semel.stages.agent import Lane


class Host(Protocol):
    """`interrupts`: what ends the worker though an agent's code raised it.

    `add`: the only way into the open epoch, of outputs and of about how many bytes all is that comes with them, rows included;
    at `epoch_bytes` the epoch is full, and lanes wait until it is cut. `event_bytes`: the most that one event, or one batch,
    may write.

    `origin`: what the lineage of outputs of an agent begins with, for events of a partition; None where it is off.
    """

    app: str
    clock: Clock
    randomness: Randomness
    gate_closed: bool
    interrupts: tuple[type[BaseException], ...]
    dead_letters: DeadLetters
    epoch_bytes: int
    event_bytes: int

    def add(self, outs: Iterable[Out], size: int) -> None: ...
    def gate(self) -> Awaitable[Any]: ...
    def cautious(self) -> bool: ...
    def may_take(self, lane: Lane) -> bool: ...
    def one_by_one(self) -> bool: ...
    def has_all_to_itself(self, lane: Lane) -> bool: ...
    @property
    def catching_up(self) -> bool: ...
    def answers_for_all(self, lane: Lane) -> bool: ...
    def session_is_over(self, held_s: float, last_s: float) -> bool: ...
    async def catch_up(self, held_s: float) -> None: ...
    def finished(self) -> None: ...
    def store_failed(self, exc: StoreError) -> None: ...
    def released(self, cursor: Cursor, lane: Lane) -> None: ...
    def origin(self, agent: AgentPlan, tp: TP) -> bytes | None: ...
    def destination(self, topic: Topic) -> Destination | None: ...
    async def open_destination(self, topic: Topic) -> Destination: ...
